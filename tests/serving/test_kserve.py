"""KServe v2 by its published fields, in JSON and by the binary extension; masks are the predictor's."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from atrous.prediction.predictor import Predictor
from atrous.serving import kserve
from atrous.serving.errors import Problem
from atrous.serving.limits import Limits
from serving import ids_of, photograph

NAME = "objects-mobilenetv2"
URL = f"/v2/models/{NAME}/infer"
PHOTOS = [photograph("cow.jpg"), photograph("aeroplane.jpg")]


def body(images: list[bytes], **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}], **more}


def test_health_and_metadata_have_the_published_fields(client: httpx.Client) -> None:
    assert client.get("/v2").json().keys() == {"name", "version", "extensions"}
    assert client.get("/v2/health/live").status_code == 200 == client.get("/v2/health/ready").status_code
    assert client.get(f"/v2/models/{NAME}/ready").status_code == 200
    metadata = client.get(f"/v2/models/{NAME}").json()
    assert metadata.keys() == {"name", "versions", "platform", "inputs", "outputs"}
    for tensor in (*metadata["inputs"], *metadata["outputs"]):
        assert tensor.keys() == {"name", "datatype", "shape"}
    version = metadata["versions"][0]
    assert client.get(f"/v2/models/{NAME}/versions/{version}").json() == metadata
    assert client.get(f"/v2/models/{NAME}/versions/{version}/ready").status_code == 200


def test_images_in_json(client: httpx.Client, predictor: Predictor) -> None:
    expected = [predictor(image) for image in PHOTOS]
    asked = [{"name": "mask"}, {"name": "mask_png"}, {"name": "areas"}]
    answer = client.post(URL, json=body(PHOTOS, id="42", outputs=asked)).json()
    assert answer.keys() == {"model_name", "model_version", "id", "outputs"} and answer["id"] == "42"
    mask, png, areas = answer["outputs"]
    assert all(one.keys() == {"name", "datatype", "shape", "data"} for one in answer["outputs"])
    assert (mask["name"], mask["datatype"], mask["shape"]) == ("mask", "UINT8", [2, 64, 96])
    assert np.array_equal(np.reshape(mask["data"], mask["shape"]), [one.mask for one in expected])
    assert (png["datatype"], png["shape"], areas["shape"]) == ("BYTES", [2], [2, 21])
    for text, one in zip(png["data"], expected, strict=True):
        assert np.array_equal(ids_of(base64.b64decode(text)), one.mask)
    shares = np.reshape(areas["data"], (2, 21))
    assert shares[0].argmax() == next(iter(expected[0].shares)) and shares.sum(1) == pytest.approx([1, 1], abs=1e-6)
    assert [one["name"] for one in client.post(URL, json=body(PHOTOS)).json()["outputs"]] == ["mask"]


def test_images_and_masks_as_binary(client: httpx.Client, predictor: Predictor) -> None:
    raw = b"".join(struct.pack("<I", len(image)) + image for image in PHOTOS)
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}]
    outputs = [
        {"name": "mask"},
        {"name": "mask_png", "parameters": {"binary_data": True}},
        {"name": "areas", "parameters": {"binary_data": False}},
    ]
    head = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": {"binary_data_output": True}}).encode()
    answer = client.post(URL, content=head + raw, headers={"inference-header-content-length": str(len(head))})
    length = int(answer.headers["inference-header-content-length"])
    mask, png, areas = json.loads(answer.content[:length])["outputs"]
    size = mask["parameters"]["binary_data_size"]
    values = np.frombuffer(answer.content[length : length + size], np.uint8).reshape(mask["shape"])
    assert np.array_equal(values, [predictor(image).mask for image in PHOTOS]) and "data" not in mask
    rest = answer.content[length + size :]
    assert len(rest) == png["parameters"]["binary_data_size"]
    (first,) = struct.unpack_from("<I", rest)
    assert np.array_equal(ids_of(rest[4 : 4 + first]), values[0])
    assert "parameters" not in areas and len(areas["data"]) == 42


@pytest.mark.parametrize("shape", [(64, 96, 3), (1, 64, 96, 3)])
@pytest.mark.parametrize("binary", [False, True])
def test_arrays(client: httpx.Client, predictor: Predictor, shape: tuple[int, ...], binary: bool) -> None:
    image = predictor(PHOTOS[0]).image.reshape(shape)
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": list(shape)}
    if binary:
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": image.size}}]}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        answer = client.post(URL, content=head + image.tobytes(), headers=headers)
    else:
        answer = client.post(URL, json={"inputs": [{**tensor, "data": image.ravel().tolist()}]})
    (mask,) = answer.json()["outputs"]
    assert np.array_equal(np.reshape(mask["data"], mask["shape"])[0], predictor(PHOTOS[0]).mask)


def test_masks_of_two_sizes_are_no_one_tensor(client: httpx.Client) -> None:
    images = [PHOTOS[0], photograph(size=(64, 64))]
    answer = client.post(URL, json=body(images))
    assert answer.status_code == 422 and "mask_png" in answer.json()["expected"]
    assert client.post(URL, json=body(images, outputs=[{"name": "mask_png"}])).status_code == 200


KEYS = st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "b64"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("image") | st.just("BYTES"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


TENSOR: dict[str, Any] = {
    "name": json_values | st.just("image"),
    "datatype": st.sampled_from(["BYTES", "UINT8"]),
    "shape": json_values | st.just([1]) | st.just([1, 1, 3]),
    "data": json_values | st.just(["aGk="]) | st.just([1, 2, 3]),
}


@settings(max_examples=300, deadline=None)
@given(json_values, st.binary(max_size=30), st.integers(-5, 200) | st.none())
def test_any_request_is_read_or_refused(value: Any, tail: bytes, length: int | None) -> None:
    head = json.dumps(value).encode()
    headers = {} if length is None else {kserve.HEADER: str(length if length > 100 else len(head))}
    try:
        request = kserve.parse(head + (tail if headers else b""), Headers(headers), Limits())
        assert request.images and request.outputs
    except Problem as problem:
        assert problem.status in (400, 413, 422) and json.dumps(problem.as_dict())


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional=TENSOR))
def test_any_tensor_is_read_or_refused(tensor: dict[str, Any]) -> None:
    try:
        assert kserve.parse(json.dumps({"inputs": [tensor]}).encode(), Headers({}), Limits()).images
    except Problem as problem:
        assert problem.status in (413, 422) and problem.field.startswith("inputs")
