"""Results in other tools' forms: valid by their specifications, and the mask comes back from them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from atrous import Segmentation
from atrous.data.labels import Labels
from atrous.integrations import coco, geojson, label_studio

LABELS = Labels(("background", "cat", "dog"), ((0, 0, 0), (200, 0, 0), (0, 0, 200)))


@pytest.fixture
def result() -> Segmentation:
    mask = np.zeros((40, 50), dtype=np.uint8)
    mask[2:22, 3:25], mask[8:12, 9:15], mask[30:, 20:] = 1, 0, 2
    mask[25, ::3] = 1
    sure = np.full(mask.shape, 0.75, dtype=np.float32)
    return Segmentation(mask, np.zeros((40, 50, 3), np.uint8), LABELS, sure, "a.jpg")


def test_coco_is_read_by_pycocotools(result: Segmentation) -> None:
    api = pytest.importorskip("pycocotools.coco")
    document = json.loads(json.dumps(coco.dataset([result, result])))
    loaded = api.COCO()
    loaded.dataset = document
    loaded.createIndex()
    assert [image["file_name"] for image in document["images"]] == ["a.jpg", "a.jpg"]
    assert [(c["id"], c["name"]) for c in document["categories"]] == [(1, "cat"), (2, "dog")]
    assert [a["id"] for a in document["annotations"]] == [1, 2, 3, 4]
    for annotation in loaded.loadAnns(loaded.getAnnIds(imgIds=[2])):
        region = result.mask == annotation["category_id"]
        assert np.array_equal(loaded.annToMask(annotation), region) and annotation["area"] == region.sum()
        assert annotation["score"] == 0.75 and annotation["iscrowd"] == 0
    assert [c["name"] for c in coco.dataset([result], background=True)["categories"]] == list(LABELS.names)
    other = Segmentation(result.mask, result.image, Labels(("a", "b", "c"), LABELS.palette))
    with pytest.raises(ValueError, match="result 2 has 3 classes of another model; expected those of the first"):
        coco.dataset([result, other])


def area(ring: list[list[float]]) -> float:
    x, y = np.array(ring[:-1]).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


@pytest.mark.parametrize("transform", [(1, 0, 0, 0, 1, 0), (0.5, 0, 100, 0, -0.5, 900), (0, 2, 1, 2, 0, 1)])
def test_geojson_obeys_rfc_7946(result: Segmentation, transform: tuple[float, ...]) -> None:
    document = json.loads(json.dumps(geojson.feature_collection(result, tolerance=0, transform=transform)))
    assert document["type"] == "FeatureCollection"
    pixel = abs(transform[0] * transform[4] - transform[1] * transform[3])
    for feature, (i, name) in zip(document["features"], [(1, "cat"), (2, "dog")], strict=True):
        assert feature["type"] == "Feature" and feature["geometry"]["type"] == "MultiPolygon"
        assert feature["properties"]["label"] == name and feature["properties"]["confidence"] == 0.75
        total = 0.0
        for outer, *holes in feature["geometry"]["coordinates"]:
            assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in (outer, *holes))
            assert area(outer) > 0 and all(area(hole) < 0 for hole in holes)  # counterclockwise, clockwise
            total += area(outer) + sum(map(area, holes))
        assert total == pytest.approx((result.mask == i).sum() * pixel)
    with pytest.raises(ValueError, match="is not invertible"):
        geojson.feature_collection(result, transform=(1, 1, 0, 1, 1, 0))
    with pytest.raises(ValueError, match="transform has 2 numbers"):
        geojson.feature_collection(result, transform=(1, 1))


def decoded(rle: list[int]) -> np.ndarray:
    """As Label Studio's SDK reads a brush, bit by bit."""
    bits, place = "".join(f"{byte:08b}" for byte in rle), 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out, i = np.zeros(total, dtype=np.uint8), 0
    while i < total:
        run = read(1)
        stop = i + 1 + read(sizes[read(2)])
        if run:
            out[i:stop] = read(word)
        else:
            out[i:stop] = [read(word) for _ in range(stop - i)]
        i = stop
    return out


def test_label_studio_takes_brushes_and_polygons(result: Segmentation) -> None:
    task = json.loads(json.dumps(label_studio.task(result, "https://example.org/a.jpg", model_version="v1")))
    assert task["data"] == {"image": "https://example.org/a.jpg"}
    [prediction] = task["predictions"]
    assert prediction["model_version"] == "v1" and prediction["score"] == 0.75
    for region, i in zip(prediction["result"], (1, 2), strict=True):
        assert region["type"] == "brushlabels" and region["value"]["format"] == "rle"
        assert region["value"]["brushlabels"] == [LABELS.names[i]] and region["original_width"] == 50
        seen = decoded(region["value"]["rle"]).reshape(40, 50, 4)
        assert (seen == np.where(result.mask == i, 255, 0)[:, :, None]).all()
    polygons = label_studio.prediction(result, kind="polygon", tolerance=0, from_name="l", to_name="i")["result"]
    assert {region["type"] for region in polygons} == {"polygonlabels"} and polygons[0]["from_name"] == "l"
    assert polygons[0]["value"]["points"][0] == [6.0, 5.0] and polygons[0]["value"]["closed"] is True
    with pytest.raises(ValueError, match="kind is 'box'; expected 'brush' or 'polygon'"):
        label_studio.prediction(result, kind="box")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (300, 700)])
def test_brushes_of_any_length(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for region in (np.ones(shape, bool), np.zeros(shape, bool), rng.random(shape) < 0.01, rng.random(shape) < 0.5):
        if region.size > 10_000 and 0.4 < region.mean() < 0.6:
            region = region[:40, :40]
        assert ((decoded(label_studio.brush(region)) == 255).reshape(*region.shape, 4) == region[:, :, None]).all()


def test_what_is_not_installed_is_named(result: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    from atrous.integrations import cvat, fiftyone, supervision

    calls: dict[str, Any] = {
        "supervision": lambda: supervision.detections(result),
        "fiftyone.core.labels": lambda: fiftyone.segmentation(result),
        "cvat_sdk.auto_annotation": lambda: cvat.AutoAnnotation(None),  # type: ignore[arg-type]
    }
    for module, call in calls.items():
        monkeypatch.setitem(__import__("sys").modules, module, None)
        package = {"cvat_sdk": "cvat-sdk"}.get(module.split(".")[0], module.split(".")[0])
        with pytest.raises(ValueError, match=f"pip install {package}"):
            call()
