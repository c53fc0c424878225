"""Supervisely: bitmaps, polygons with holes, rectangles, what has no area, datasets as splits."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atrous.data.datasets.dataset import list_split, open_dataset, splits
from exports import HEIGHT, WIDTH, Region, png, samples, save_image, supervisely


def thing(kind: str, title: str = "leaf", **more: Any) -> dict[str, Any]:
    return {"classTitle": title, "geometryType": kind, **more}


def put(root: Path, *objects: dict[str, Any], dataset: str = "ds0", size: Any = None) -> Path:
    root.mkdir(exist_ok=True)
    (root / "meta.json").write_text(json.dumps({"classes": [{"title": "leaf"}, {"title": "stem"}]}))
    save_image(root / dataset / "img" / "a.png")
    (root / dataset / "ann").mkdir(parents=True, exist_ok=True)
    document = {"size": size or {"height": HEIGHT, "width": WIDTH}, "objects": list(objects)}
    (root / dataset / "ann" / "a.png.json").write_text(json.dumps(document))
    return root


def read(root: Path) -> np.ndarray:
    return open_dataset(root, "all")[0].mask.numpy()


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def test_holes_show_what_is_under_them_and_rectangles_are_filled(tmp_path: Path) -> None:
    hole = [[4, 4], [6, 4], [6, 6], [4, 6]]
    ring = {"exterior": Region("", 2, 2, 9, 9).points, "interior": [hole]}
    put(
        tmp_path,
        thing("polygon", "stem", points={"exterior": Region("", 0, 0, 12, 12).points, "interior": []}),
        thing("polygon", "leaf", points=ring),
        thing("rectangle", "leaf", points={"exterior": [[20, 3], [16, 1]], "interior": []}),
        thing("line", "leaf", points={"exterior": [[0, 15], [9, 15]], "interior": []}),
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:13, :13] = 2
    expected[2:10, 2:10] = 1
    expected[4:7, 4:7] = 2
    expected[1:4, 16:21] = 1
    np.testing.assert_array_equal(read(tmp_path), expected)
    warnings = str(list_split(tmp_path, "all").warnings)
    assert "1 objects are rectangles, and are filled: a.png.json" in warnings
    assert "1 objects of the kind 'line' have no area that is read, and are left out: a.png.json" in warnings


def test_bitmaps_with_a_transparent_palette_as_supervisely_writes_them(tmp_path: Path) -> None:
    inner = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    image = Image.fromarray(inner)
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "m.png", transparency=0)
    bitmap = {"data": packed((tmp_path / "m.png").read_bytes()), "origin": [5, 3]}
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[3:5, 5:8] = inner
    np.testing.assert_array_equal(read(put(tmp_path / "p", thing("bitmap", bitmap=bitmap))), expected)
    bitmap["origin"] = [WIDTH - 1, -1]
    expected[:] = 0
    expected[0, WIDTH - 1] = inner[1, 0]
    np.testing.assert_array_equal(read(put(tmp_path / "p", thing("bitmap", bitmap=bitmap))), expected)


def test_datasets_are_splits_if_one_is_named_so_else_one(tmp_path: Path) -> None:
    for dataset in ("ds0", "ds1/datasets/inner"):
        put(tmp_path / "a", thing("line", points={}), dataset=dataset)
    assert splits(tmp_path / "a") == ["all"]
    assert [item.name for item in list_split(tmp_path / "a", "all").items] == ["ds0/a", "ds1/inner/a"]
    for dataset in ("train", "Validation", "more"):
        put(tmp_path / "b", thing("line", points={}), dataset=dataset)
    assert splits(tmp_path / "b") == ["train", "val", "more"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (thing("bitmap", bitmap={"data": "!", "origin": [0, 0]}), "object 0, leaf, a bitmap: "),
        (
            thing("bitmap", bitmap={"data": packed(b"x"), "origin": [0, 0]}),
            "object 0, leaf, a bitmap: .*cannot identify",
        ),
        (
            thing("bitmap", bitmap={"data": packed(png(np.ones((99, 99)))), "origin": [0, 0]}),
            "a mask of 99x99 in an image",
        ),
        (thing("bitmap", bitmap={"data": packed(png(np.ones((2, 2)))), "origin": [90, 0]}), "a mask at 90, 0, outside"),
        (thing("polygon", points={}), "object 0, leaf, a polygon: without 'exterior'"),
        (thing("polygon", points=None), "object 0, leaf, a polygon: TypeError"),
    ],
)
def test_objects_that_cannot_be_drawn_are_named(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.png\.json: {message}|a\.png\.json: .*{message}"):
        read(put(tmp_path, wrong))


def test_a_bitmap_that_expands_without_bound_is_refused(tmp_path: Path) -> None:
    bomb = base64.b64encode(zlib.compress(bytes(1 << 22), 9)).decode()
    with pytest.raises(ValueError, match="a bitmap of more than 67072 bytes; expected a PNG that fits 24x16 pixels"):
        read(put(tmp_path, thing("bitmap", bitmap={"data": bomb, "origin": [0, 0]})))


def test_titles_and_sizes_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png\.json: object 0 has the classTitle '5'; expected a name"):
        read(put(tmp_path, thing("polygon", 5)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a\.png\.json: size: height 'x', width 3; expected the size in pixels"):
        read(put(tmp_path, size={"height": "x", "width": 3}))
    (tmp_path / "meta.json").write_text('{"classes": [{"shape": "any"}]}')
    with pytest.raises(ValueError, match=r"meta\.json: classes: without 'title'; expected a list with a title each"):
        read(tmp_path)


def test_images_without_annotation_are_left_out_with_a_count(tmp_path: Path) -> None:
    supervisely(tmp_path, samples(3))
    save_image(tmp_path / "ds0" / "img" / "z.png")
    assert list_split(tmp_path, "all").left_out == {"no annotation in ann/": 1}
