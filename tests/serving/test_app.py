"""Every route against a real server, and a table of bad requests: each answered by JSON that says what is wrong."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atrous.prediction.predictor import Predictor
from serving import Running, bomb, ids_of, photograph

NAME = "objects-mobilenetv2"
PHOTO = photograph()
BASE64 = base64.b64encode(PHOTO).decode()


def test_the_mask_is_the_predictors_in_every_way_to_send_an_image(client: httpx.Client, predictor: Predictor) -> None:
    expected = predictor(PHOTO).mask
    assert len(np.unique(expected)) > 1
    answers = [
        client.post("/predict?answer=mask", content=PHOTO),
        client.post("/predict", content=PHOTO, headers={"accept": "image/png", "content-type": "image/jpeg"}),
        client.post("/predict", content=PHOTO, headers={"accept": "application/json;q=0.5, image/png"}),
        client.post("/predict", files={"image": ("x.jpg", PHOTO)}, data={"answer": "mask"}),
        client.post("/predict?answer=mask", files={"anything": PHOTO}),
        client.post("/predict", json={"image": BASE64, "answer": "mask"}),
        client.post(
            "/predict", json={"image": f"data:image/jpeg;base64,{BASE64}", "answer": "mask", "model": "second"}
        ),
    ]
    for answer in answers:
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/png", answer.text
        assert np.array_equal(ids_of(answer.content), expected)


def test_json_has_the_classes_with_their_shapes(client: httpx.Client, predictor: Predictor) -> None:
    result = predictor(PHOTO, confidence=True)
    plain = client.post("/predict", content=PHOTO).json()
    assert plain == {"model": NAME, "width": 96, "height": 64, "segments": plain["segments"]}
    assert [one["rle"] for one in plain["segments"]] == list(result.rle().values())
    assert {one["confidence"] for one in plain["segments"]} == {None}
    full = client.post("/predict?shapes=polygons&tolerance=2&confidence=true", content=PHOTO).json()["segments"]
    assert full == result.to_dict("polygons", 2.0)["segments"]
    none = client.post("/predict?shapes=none", content=PHOTO).json()["segments"]
    assert [one["label"] for one in none] == list(result.areas) and "rle" not in none[0]


def test_overlays_and_cut_outs_are_the_results(client: httpx.Client, predictor: Predictor) -> None:
    result = predictor(PHOTO)
    cases = {
        "answer=overlay": result.overlay(),
        "answer=overlay&alpha=0.2&classes=cow&legend=false": result.overlay(0.2, ["cow"], False),
        "answer=cutout": result.cutout(),
        "answer=cutout&classes=0,cow": result.cutout("background", "cow"),
    }
    for query, expected in cases.items():
        answer = client.post(f"/predict?{query}", content=PHOTO)
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.mode == expected.mode and np.array_equal(np.asarray(image), np.asarray(expected)), query


def test_output_stride_of_one_request(client: httpx.Client, predictor: Predictor) -> None:
    png = client.post("/predict?answer=mask&output_stride=8", content=PHOTO).content
    assert np.array_equal(ids_of(png), predictor(PHOTO, output_stride=8).mask)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_format_of_files(client: httpx.Client, predictor: Predictor, kind: str) -> None:
    image = photograph("aeroplane.jpg", kind=kind)
    assert np.array_equal(ids_of(client.post("/predict?answer=mask", content=image).content), predictor(image).mask)


def test_what_there_is(client: httpx.Client, server: Running) -> None:
    models = client.get("/models").json()
    assert [one["name"] for one in models] == [NAME, "second"]
    assert models[0]["classes"][10] == {"id": 10, "name": "cow", "color": [64, 128, 0], "background": False}
    assert client.get(f"/models/{NAME}").json() == models[0]
    assert client.get("/health").json()["status"] == "UP"
    assert client.get("/ready").json() == {"ready": True}
    examples = client.get("/examples").json()
    assert {one["name"] for one in examples} >= {"cow.jpg", "pavilion.jpg"}
    for one in examples:
        assert client.get(f"/examples/{one['name']}").content.startswith(b"\xff\xd8")
    assert client.get("/examples/README.md").status_code == 404 == client.get("/page/..%2fapp.py").status_code


def test_the_page_asks_no_other_host(client: httpx.Client) -> None:
    total = 0
    for path, kind in (("/", "text/html"), ("/page/page.css", "text/css"), ("/page/page.js", "text/javascript")):
        answer = client.get(path)
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        urls = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", answer.text)) - {"http://www.w3.org"}
        assert not urls, urls
        total += len(answer.content)
    assert total < 40_000


def test_openapi_describes_every_route(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert {"/predict", "/models/{name}", "/v2/models/{name}/infer", "/setup", "/metrics"} <= document["paths"].keys()
    predict = document["paths"]["/predict"]["post"]
    parameters = {one["name"]: one for one in predict["parameters"]}
    assert {"model", "answer", "shapes", "classes", "alpha"} <= parameters.keys()
    assert all(one.get("description") for one in parameters.values())
    assert {"multipart/form-data", "application/json", "image/*"} <= predict["requestBody"]["content"].keys()
    assert {"400", "413", "415", "422", "429", "503"} <= predict["responses"].keys()
    assert document["components"]["schemas"]["Problem"]["required"] == ["error", "status"]
    assert all(one.get("summary") for path in document["paths"].values() for one in path.values())


def test_metrics_count_by_route_and_not_by_what_was_sent(client: httpx.Client) -> None:
    client.get("/secret-path")
    client.post("/predict?model=secret-model", content=PHOTO)
    text = client.get("/metrics").text
    assert 'atrous_requests_total{method="GET",route="other",status="404"}' in text
    assert 'atrous_requests_total{method="POST",route="/predict",status="404"}' in text
    assert "atrous_queue_length 0.0" in text and "atrous_request_bytes_held 0.0" in text and "secret" not in text
    assert "process_resident_memory_bytes" in text


HALF = base64.b64encode(PHOTO[: len(PHOTO) // 2]).decode()
GZIP = {"content-encoding": "gzip"}
JSON = {"content-type": "application/json"}
HUB = f"/models/{NAME}"
INFER = f"/v2/models/{NAME}/infer"
NO_FILE = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
LENGTH = "inference-header-content-length"
FORM = {"content-type": "multipart/form-data; boundary=x"}


def tensor(**changes: Any) -> dict[str, Any]:
    one = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}
    return {"inputs": [{key: value for key, value in {**one, **changes}.items() if value is not None}]}


def hub(**parameters: Any) -> dict[str, Any]:
    return {"inputs": BASE64, "parameters": parameters}


def array(shape: list[int], data: Any) -> dict[str, Any]:
    return tensor(datatype="UINT8", shape=shape, data=data)


def tasks(*images: str) -> dict[str, Any]:
    labels = '<BrushLabels name="tag" toName="image"><Label value="Cow"/></BrushLabels>'
    config = f'<View><Image name="image" value="$image"/>{labels}</View>'
    return {"label_config": config, "tasks": [{"data": {"image": f"data:image/jpeg;base64,{one}"}} for one in images]}


BAD: dict[str, tuple[str, dict[str, str], Any, int, str]] = {
    "text": ("/predict", {}, b"hello", 415, "body"),
    "nothing": ("/predict", {}, b"", 422, "body"),
    "a PDF": ("/predict", {}, b"%PDF-1.7 ...", 415, "body"),
    "half a JPEG": ("/predict", {}, PHOTO[: len(PHOTO) // 2], 422, "body"),
    "half a JPEG in JSON": ("/predict", JSON, {"image": HALF}, 422, "image"),
    "half a JPEG in another field": ("/predict", JSON, {"file": HALF}, 422, "file"),
    "text as base64": ("/predict", JSON, {"image": "aGVsbG8="}, 415, "image"),
    "a PNG without its end": ("/predict", {}, photograph(kind="PNG")[:-12], 422, "body"),
    "half a PNG": ("/predict", {}, photograph(kind="PNG")[:3000], 422, "body"),
    "a bomb": ("/predict", {}, bomb(), 413, "body"),
    "another type": ("/predict", {"content-type": "text/html"}, PHOTO, 415, "Content-Type"),
    "compressed": ("/predict", GZIP, PHOTO, 415, "Content-Encoding"),
    "another answer": ("/predict", {"accept": "text/html"}, PHOTO, 406, "Accept"),
    "a slip": ("/predict?alfa=1", {}, PHOTO, 422, "alfa"),
    "out of range": ("/predict?alpha=1.5", {}, PHOTO, 422, "alpha"),
    "NaN": ("/predict?alpha=nan", {}, PHOTO, 422, "alpha"),
    "no number": ("/predict?tolerance=much", {}, PHOTO, 422, "tolerance"),
    "no such answer": ("/predict?answer=video", {}, PHOTO, 422, "answer"),
    "no such class": ("/predict?classes=cat,dgo", {}, PHOTO, 422, "classes"),
    "no such id": ("/predict?classes=21", {}, PHOTO, 422, "classes"),
    "no such model": ("/predict?model=object", {}, PHOTO, 404, "model"),
    "no such stride": ("/predict?output_stride=12", {}, PHOTO, 422, "output_stride"),
    "a stride too fine": ("/predict?output_stride=4", {}, PHOTO, 422, "output_stride"),
    "broken JSON": ("/predict", JSON, b'{"image": ', 400, "body"),
    "a list": ("/predict", JSON, b"[1]", 400, "body"),
    "nested JSON": ("/predict", JSON, b"[" * 100_000, 400, "body"),
    "no UTF-8": ("/predict", JSON, b'{"image": "\xff\xfe"}', 400, "body"),
    "JSON without an image": ("/predict", JSON, b'{"picture": 1}', 422, "image"),
    "no base64": ("/predict", JSON, b'{"image": "%%%"}', 422, "image"),
    "a number": ("/predict", JSON, b'{"image": 7}', 422, "image"),
    "an address": ("/predict", JSON, b'{"image": "http://169.254.169.254/"}', 422, "image"),
    "a file's address": ("/predict", JSON, b'{"image": "file:///etc/passwd"}', 422, "image"),
    "a data: URI of text": ("/predict", JSON, b'{"image": "data:text/plain,hello"}', 422, "image"),
    "a broken form": ("/predict", FORM, b"--x\r\nnothing", 422, "image"),
    "a form without its boundary": ("/predict", {"content-type": "multipart/form-data"}, b"x", 400, "body"),
    "a form without an image": ("/predict", FORM, NO_FILE, 422, "image"),
    "HF: no inputs": (HUB, JSON, b"{}", 422, "inputs"),
    "HF: no threshold": (HUB, JSON, hub(threshold=2), 422, "parameters.threshold"),
    "HF: another subtask": (HUB, JSON, hub(subtask="panoptic"), 422, "parameters.subtask"),
    "HF: text": (HUB, {}, b"hello", 415, "body"),
    "HF: text as base64": (HUB, JSON, {"inputs": "aGVsbG8="}, 415, "inputs"),
    "HF: a form": (HUB, FORM, NO_FILE, 415, "Content-Type"),
    "HF: no such model": ("/models/nothing", {}, PHOTO, 404, "model"),
    "KServe: no JSON": (INFER, {}, PHOTO, 400, "body"),
    "KServe: no inputs": (INFER, {}, {}, 422, "inputs"),
    "KServe: another name": (INFER, {}, tensor(name="x"), 422, "inputs.0.name"),
    "KServe: another datatype": (INFER, {}, tensor(datatype="FP32"), 422, "inputs.0.datatype"),
    "KServe: another shape": (INFER, {}, tensor(shape=[2]), 422, "inputs.0.shape"),
    "KServe: no shape": (INFER, {}, tensor(shape=None), 422, "inputs.0.shape"),
    "KServe: no data": (INFER, {}, tensor(data=None), 422, "inputs.0.data"),
    "KServe: no base64": (INFER, {}, tensor(data=["%"]), 422, "inputs.0.data.0"),
    "KServe: text": (INFER, {}, tensor(data=["aGVsbG8="]), 415, "inputs.0.data.0"),
    "KServe: the second is damaged": (INFER, {}, tensor(shape=[2], data=[BASE64, HALF]), 422, "inputs.0.data.1"),
    "KServe: no such output": (INFER, {}, {**tensor(), "outputs": [{"name": "x"}]}, 422, "outputs.0.name"),
    "KServe: no such version": (f"/v2/models/{NAME}/versions/9/infer", {}, tensor(), 404, "version"),
    "KServe: an array that is no image": (INFER, {}, array([4, 4], [0] * 16), 422, "inputs.0.shape"),
    "KServe: an array too large": (INFER, {}, array([99999, 99999, 3], [0]), 413, "inputs.0.shape"),
    "KServe: floats": (INFER, {}, array([1, 1, 3], [0.5, 0, 0]), 422, "inputs.0.data"),
    "KServe: ragged": (INFER, {}, array([1, 2, 3], [[1, 2], [3]]), 422, "inputs.0.data"),
    "KServe: a cut binary": (INFER, {LENGTH: "9999999"}, tensor(), 400, LENGTH),
    "setup: no labels": ("/setup", JSON, {"schema": "<View></View>"}, 422, "label_config"),
    "setup: no XML": ("/setup", JSON, {"schema": "<View>"}, 422, "label_config"),
    "setup: entities": ("/setup", JSON, {"schema": '<!DOCTYPE x [<!ENTITY a "b">]><View/>'}, 422, "label_config"),
    "Label Studio: no config": ("/predict", JSON, {"tasks": []}, 422, "label_config"),
    "Label Studio: the second is damaged": ("/predict", JSON, tasks(BASE64, HALF), 422, "tasks.1.data.image"),
    "Label Studio: the second is text": ("/predict", JSON, tasks(BASE64, "aGVsbG8="), 415, "tasks.1.data.image"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(client: httpx.Client, name: str) -> None:
    path, headers, body, status, field = BAD[name]
    answer = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body), headers=headers)
    check_problem(answer, status)
    assert answer.json()["field"] == field, answer.text
    assert answer.json().get("expected"), answer.text


def check_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert problem["status"] == status and problem["error"]
    for secret in ("Traceback", ".py", "site-packages", "/home", "/work", "/usr", "object at 0x"):
        assert secret not in answer.text
    assert len(answer.text) < 2000


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/nothing", 404), ("DELETE", "/predict", 405), ("GET", "/predict", 405), ("GET", "/v2/models/x", 404),
    ("GET", f"/v2/models/{NAME}/versions/1/ready", 404), ("POST", "/v2/models/x/infer", 404), ("GET", "/docs", 404),
])  # fmt: skip
def test_paths_that_there_are_not(client: httpx.Client, method: str, path: str, status: int) -> None:
    check_problem(client.request(method, path), status)


@pytest.mark.parametrize("path", ["/", "/health", "/models", "/v2/health/ready", "/examples/cow.jpg", "/metrics"])
def test_head_is_answered_wherever_get_is(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert answer.status_code == 200 and answer.content == b""
    assert answer.headers["content-type"] == client.get(path).headers["content-type"]
    assert "head" not in client.get("/openapi.json").json()["paths"].get(path, {})
    check_problem(client.get("/predict"), 405)


def test_the_strides_that_are_named_can_be_asked_for(client: httpx.Client) -> None:
    answer = client.post("/predict?output_stride=12", content=PHOTO)
    assert answer.json()["expected"] == "one of: 8, 16, 32"


def test_masks_of_more_classes_than_a_palette_has(many: tuple[Running, Predictor]) -> None:
    server, predictor = many
    expected = predictor(PHOTO).mask
    assert expected.max() > 255
    with Image.open(io.BytesIO(server.client.post("/predict?answer=mask", content=PHOTO).content)) as image:
        assert np.array_equal(np.asarray(image), expected)
    for query in ("answer=overlay", "answer=cutout", "shapes=polygons"):
        assert server.client.post(f"/predict?{query}", content=PHOTO).status_code == 200
    metadata = server.client.get("/v2/models/many").json()["outputs"][0]
    asked = {
        **tensor(),
        "outputs": [{"name": "mask"}, {"name": "mask_png"}],
        "parameters": {"binary_data_output": True},
    }
    answer = server.client.post("/v2/models/many/infer", json=asked)
    length = int(answer.headers[LENGTH])
    mask = json.loads(answer.content[:length])["outputs"][0]
    values = np.frombuffer(answer.content, "<i4", expected.size, length)
    assert (
        mask["datatype"] == metadata["datatype"] == "INT32" and mask["parameters"]["binary_data_size"] == values.nbytes
    )
    assert np.array_equal(values.reshape(expected.shape), expected)


def test_a_near_word_is_named(client: httpx.Client) -> None:
    assert "did you mean /predict?" in client.post("/predct").text
    assert f"did you mean {NAME}?" in client.post("/predict?model=objects-mobilenet2", content=PHOTO).text
    assert "did you mean cow?" in client.post("/predict?classes=cwo", content=PHOTO).text
    assert client.request("PUT", "/predict").json()["expected"] == "POST"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(path=st.sampled_from(["/predict", f"/models/{NAME}", INFER, "/setup", f"/label-studio/{NAME}/predict"]),
       body=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()),
       kind=st.sampled_from(["application/json", "multipart/form-data; boundary=x", "image/png", ""]))  # fmt: skip
def test_any_body_is_answered(client: httpx.Client, path: str, body: bytes, kind: str) -> None:
    answer = client.post(path, content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        check_problem(answer, answer.status_code)


def test_an_error_that_nobody_foresaw_is_a_number(server: Running, client: httpx.Client, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("/secret/path of the server")

    monkeypatch.setattr(type(server.service.models[NAME]), "check_output_stride", fail)
    answer = client.post("/predict", content=PHOTO)
    check_problem(answer, 500)
    assert "secret" not in answer.text and re.search(r"error [0-9a-f]{8}", answer.text)
