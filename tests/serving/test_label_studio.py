"""Label Studio's backend: brushes that decode to the mask, polygons, tasks; nothing outside its folder is read."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from atrous.prediction.predictor import Predictor
from atrous.serving import label_studio
from atrous.serving.errors import Problem
from atrous.serving.limits import Limits
from atrous.serving.served import ServedModel
from serving import photograph, running

NAME = "objects-mobilenetv2"
PHOTO = photograph("cow.jpg", (160, 120))
CONFIG = """<View><!-- cows --><Image name="img" value="$image" zoom="true"/>
<BrushLabels name="tag" toName="img"><Label value="Cow" background="#f00"/><Label value="dog"/></BrushLabels></View>"""
POLYGONS = CONFIG.replace("BrushLabels", "PolygonLabels")
URI = f"data:image/jpeg;base64,{base64.b64encode(PHOTO).decode()}"


def decode(rle: list[int]) -> np.ndarray:
    """The values of a brush, as label-studio-sdk's `decode_rle` has it."""
    bits, place = "".join(f"{byte:08b}" for byte in rle), 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, width, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    out, i = np.zeros(total, np.uint8), 0
    while i < total:
        same, end = read(1), 0
        end = i + 1 + read(sizes[read(2)])
        if same:
            out[i:end], i = read(width), end
        else:
            while i < end:
                out[i], i = read(width), i + 1
    return out


def test_tasks_are_predicted(client: httpx.Client, predictor: Predictor) -> None:
    expected = predictor(PHOTO)
    body = {"tasks": [{"id": 1, "data": {"image": URI}}, {"id": 2, "data": {"image": URI}}], "label_config": CONFIG}
    for path in ("/predict", f"/label-studio/{NAME}/predict", "/predict?model=second"):
        answer = client.post(path, json=body).json()
        assert answer.keys() == {"results"} and len(answer["results"]) == 2
        one = answer["results"][0]
        assert one.keys() == {"model_version", "score", "result"} and 0 < one["score"] <= 1
        (item,) = one["result"]  # the project has no label for the background
        assert (item["from_name"], item["to_name"], item["type"]) == ("tag", "img", "brushlabels")
        assert (item["original_width"], item["original_height"], item["image_rotation"]) == (160, 120, 0)
        assert item["value"]["format"] == "rle" and item["value"]["brushlabels"] == ["Cow"]
        assert np.array_equal(decode(item["value"]["rle"])[3::4].reshape(120, 160) == 255, expected.mask == 10)


def test_polygons_in_percent(client: httpx.Client, predictor: Predictor) -> None:
    body = {"tasks": [{"data": {"image": URI}}], "label_config": POLYGONS}
    (one,) = client.post("/predict", json=body).json()["results"]
    drawn = Image.new("1", (160, 120))
    for item in one["result"]:
        assert item["type"] == "polygonlabels" and item["value"]["polygonlabels"] == ["Cow"]
        points = np.array(item["value"]["points"])
        assert points.min() >= 0 and points.max() <= 100
        ImageDraw.Draw(drawn).polygon([tuple(point) for point in points * (1.6, 1.2)], fill=1)
    cow = predictor(PHOTO).mask == 10
    assert (np.asarray(drawn) & cow).sum() / (np.asarray(drawn) | cow).sum() > 0.85


def test_setup_and_health(client: httpx.Client) -> None:
    version = client.post(
        "/setup", json={"project": "1.2", "schema": CONFIG, "hostname": "", "access_token": ""}
    ).json()
    assert version["model_version"].startswith(NAME)
    assert client.post("/label-studio/second/setup", json={}).json()["model_version"].startswith("second")
    assert client.get("/label-studio/second/health").json() == client.get("/health").json()
    assert (
        client.post("/setup", json={"schema": CONFIG.replace("Cow", "cowboy").replace("dog", "x")}).status_code == 422
    )


def test_nothing_is_fetched_and_nothing_outside_the_folder_is_read(
    models: dict[str, ServedModel], tmp_path: Path
) -> None:
    media = tmp_path / "media"
    (media / "upload" / "1").mkdir(parents=True)
    (media / "upload" / "1" / "a b.jpg").write_bytes(PHOTO)
    (tmp_path / "secret.jpg").write_bytes(PHOTO)
    (media / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    good = ["/data/upload/1/a%20b.jpg", "/data/upload/1/a b.jpg", "/data/local-files/?d=upload/1/a%20b.jpg"]
    bad = [
        "http://127.0.0.1/x.jpg", "file:///etc/passwd", "/data/../secret.jpg", "/data/%2e%2e/secret.jpg",
        "/data/link.jpg", "/data/local-files/?d=../secret.jpg", "/data/local-files/?d=/etc/passwd", "/etc/passwd",
        "/data/upload", "", "/data/upload/1/none.jpg", "/data/a\0b.jpg", None, 7, "s3://bucket/a.jpg",
    ]  # fmt: skip
    with running(models, label_studio_files=media) as here:
        for image in (*good, *bad):
            answer = here.client.post("/predict", json={"tasks": [{"data": {"image": image}}], "label_config": CONFIG})
            assert answer.status_code == (200 if image in good else 422), (image, answer.text)
            assert str(tmp_path) not in answer.text
            if image in bad:
                assert answer.json()["field"] == "tasks.0.data.image"
    target = label_studio.parse_config(CONFIG, ["cow"])
    with pytest.raises(Problem, match="cannot be had"):  # without a folder
        label_studio.read_task({"data": {"image": good[0]}}, target, None, Limits())


@st.composite
def interfaces(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from([CONFIG, POLYGONS]))
    first, last = draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))
    return text[:first] + text[last:]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | interfaces())
def test_any_interface_is_read_or_refused(config: str) -> None:
    try:
        target = label_studio.parse_config(config, ["cow"])
        assert target.labels and target.kind in label_studio.KINDS
    except Problem as problem:
        assert problem.status == 422 and problem.field == "label_config"


json_values = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "image", "id"]), inner),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.just("tasks"), json_values))
def test_any_tasks_are_read_or_refused(document: dict[str, Any]) -> None:
    target = label_studio.parse_config(CONFIG, ["cow"])
    try:
        for task in label_studio.parse_tasks(document, Limits()):
            label_studio.read_task(task, target, None, Limits())
    except Problem as problem:
        assert problem.status in (413, 422) and problem.field.startswith("tasks")
