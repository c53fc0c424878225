"""The protocols' own clients speak to the service: Triton's for KServe v2, Label Studio's SDK.

Run by a Python that has them (`.ci/run` makes one); a client that is missing is named by the skip.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from atrous.prediction.predictor import Predictor
from serving import Running, photograph

pytestmark = pytest.mark.integration

NAME = "objects-mobilenetv2"
PHOTOS = [photograph("cow.jpg", (160, 120)), photograph("aeroplane.jpg", (160, 120))]
CONFIG = """<View><Image name="img" value="$image"/>
<{kind} name="tag" toName="img"><Label value="Cow"/><Label value="aeroplane"/></{kind}></View>"""


def test_tritons_client(server: Running, predictor: Predictor) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'", exc_type=ImportError)
    expected = [predictor(image).mask for image in PHOTOS]
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(NAME)
    assert client.get_model_metadata(NAME)["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    for binary in (True, False):
        image = triton.InferInput("image", [2], "BYTES")
        image.set_data_from_numpy(np.array(PHOTOS, dtype=object))
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("mask", "mask_png", "areas")]
        answer = client.infer(NAME, [image], outputs=outputs, request_id="42")
        assert answer.get_response()["id"] == "42"
        assert np.array_equal(answer.as_numpy("mask"), expected)
        assert answer.as_numpy("areas").sum(1) == pytest.approx([1, 1], abs=1e-5)
        if binary:
            png = Image.open(io.BytesIO(answer.as_numpy("mask_png")[0]))
            assert np.array_equal(np.asarray(png), expected[0])
    array = triton.InferInput("image", [120, 160, 3], "UINT8")
    array.set_data_from_numpy(np.asarray(Image.open(io.BytesIO(PHOTOS[0]))))
    assert np.array_equal(client.infer(NAME, [array]).as_numpy("mask")[0], expected[0])
    with pytest.raises(triton.InferenceServerException, match="no such model"):
        client.infer("absent", [array])


@pytest.mark.parametrize("kind", ["BrushLabels", "PolygonLabels"])
def test_label_studios_sdk(kind: str, client: httpx.Client, predictor: Predictor) -> None:
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="pip install label-studio-sdk")
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    config = CONFIG.format(kind=kind)
    assert client.post("/setup", json={"project": "1", "schema": config}).status_code == 200
    task = {"id": 1, "data": {"image": f"data:image/jpeg;base64,{base64.b64encode(PHOTOS[0]).decode()}"}}
    answer = client.post("/predict", json={"tasks": [task], "label_config": config, "project": "1.2"}).json()
    [prediction] = answer["results"]
    interface: Any = sdk.LabelInterface(config)
    assert interface.validate_prediction(prediction, return_errors=True) == []
    if kind == "BrushLabels":
        [region] = prediction["result"]
        values = brush.decode_rle(region["value"]["rle"]).reshape(120, 160, 4)[:, :, 3]
        assert np.array_equal(values == 255, predictor(PHOTOS[0]).mask == 10)
