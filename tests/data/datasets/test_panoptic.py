"""COCO's panoptic format, with and without a category of background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from formats import worst_iou
from own_data import photo, stored, text

IDS = np.array([[0, 3, 3, 70_000], [0, 3, 5, 70_000]])
"""Segments of an image: 3 and 5 of the first category, 70,000 of the second."""


def document(names: tuple[str, ...] = ("leaf, wet", "café"), thing: int = 1, area: float = 2) -> dict[str, Any]:
    segments = [(3, 7), (5, 7), (70_000, 9)]
    return {
        "images": [{"id": 4, "file_name": "x é.jpg", "height": 2, "width": 4}],
        "categories": [{"id": n, "name": name, "isthing": thing} for n, name in zip((7, 9, 2), names, strict=False)],
        "annotations": [
            {
                "image_id": 4,
                "file_name": "x é.png",
                "segments_info": [{"id": i, "category_id": c, "area": area, "iscrowd": 0} for i, c in segments],
            }
        ],
    }


def put(root: Path, content: str | dict[str, Any], split: str = "train2017", images: str = "train2017") -> Path:
    photo(root / images / "x é.jpg", size=(2, 4))
    colours = np.stack([IDS % 256, IDS // 256 % 256, IDS // 65536], axis=2).astype(np.uint8)
    stored(root / "annotations" / f"panoptic_{split}" / "x é.png", colours)
    return text(root / "annotations" / f"panoptic_{split}.json", content)


@pytest.mark.parametrize("images", ["train2017", "images/train2017"])
def test_segments_become_classes(tmp_path: Path, images: str) -> None:
    put(tmp_path, document(), images=images)
    assert kind_of(tmp_path) == "panoptic" and splits(tmp_path) == ["train"]
    dataset = open_dataset(tmp_path, "train")
    assert dataset.labels.names == ("background", "leaf, wet", "café") and dataset.names == ["x é"]
    assert dataset[0].mask.tolist() == [[0, 1, 1, 2], [0, 1, 1, 2]]


def test_void_is_ignored_where_stuff_covers_the_images(tmp_path: Path) -> None:
    put(tmp_path, document(thing=0))
    dataset = open_dataset(tmp_path, "train")
    assert dataset.labels.names == ("leaf, wet", "café")
    assert dataset[0].mask.tolist() == [[255, 0, 0, 1], [255, 0, 0, 1]]
    assert "pixels of no segment are ignored" in list_split(tmp_path, "train").read_as


def test_void_is_background_where_segments_cover_little(tmp_path: Path) -> None:
    put(tmp_path, document(thing=0, area=1))
    assert "no segment are background, for segments cover 38% of the pixels" in list_split(tmp_path, "train").read_as
    assert open_dataset(tmp_path, "train").labels.names == ("background", "leaf, wet", "café")


def test_a_category_of_background_is_background(tmp_path: Path) -> None:
    put(tmp_path, document(("leaf", "_background_"), thing=0))
    dataset = open_dataset(tmp_path, "train")
    assert dataset.labels.names == ("_background_", "leaf")
    assert dataset[0].mask.tolist() == [[0, 1, 1, 0], [0, 1, 1, 0]]


def test_crowds_are_ignored(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["segments_info"][1]["iscrowd"] = 1
    put(tmp_path, content)
    assert open_dataset(tmp_path, "train")[0].mask.tolist() == [[0, 1, 1, 2], [0, 1, 255, 2]]


def test_the_json_itself_may_be_named(tmp_path: Path) -> None:
    path = put(tmp_path, document())
    assert kind_of(path) == "panoptic" and splits(f"panoptic:{path}") == ["all"]
    assert open_dataset(path, "all")[0].mask.tolist() == [[0, 1, 1, 2], [0, 1, 1, 2]]


def test_instances_beside_it_come_first(tmp_path: Path) -> None:
    put(tmp_path, document())
    text(tmp_path / "annotations" / "instances_train2017.json", '{"images": [], "annotations": [], "categories": [{}]}')
    assert kind_of(tmp_path) == "instances" and kind_of(f"panoptic:{tmp_path}") == "panoptic"


def test_segments_that_are_not_listed_are_counted(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["segments_info"].pop()
    put(tmp_path, content)
    with pytest.raises(ValueError, match=r"x é\.png: segments 70000 \(2 pixels\) are not in segments_info"):
        open_dataset(tmp_path, "train")[0]


def test_what_is_missing_is_a_problem(tmp_path: Path) -> None:
    content = document()
    content["images"].append({"id": 5, "file_name": "y.jpg", "height": 2, "width": 4})
    content["images"].append({"id": 6, "file_name": "z.jpg", "height": 2, "width": 4})
    content["annotations"] += [{**content["annotations"][0], "image_id": n, "file_name": "y.png"} for n in (5, 8)]
    path = put(tmp_path, "\ufeff" + json.dumps(content).replace("\n", "\r\n"))
    listing = list_split(tmp_path, "train")
    assert "1 images of panoptic_train2017.json are not there: y.jpg" in listing.problems[0]
    assert "1 images have no annotation, and are left out: z.jpg" in listing.warnings[0]
    assert "1 annotations are of images that it does not list" in listing.warnings[1]
    (tmp_path / "annotations" / "panoptic_train2017" / "x é.png").unlink()
    assert "1 masks of panoptic_train2017.json are not there" in list_split(tmp_path, "train").problems[1]
    assert path.exists()


def test_an_id_of_two_categories_is_a_problem(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["segments_info"][2]["id"] = 3
    put(tmp_path, content)
    assert "1 masks have one id for segments of two categories: x é.png" in list_split(tmp_path, "train").problems[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("categories"), "it has no categories"),
        (lambda d: d["categories"].pop(), "segments of category 9, which it does not list"),
        (lambda d: d["categories"][0].update(name="café"), "names has 'café' 2 times"),
        (lambda d: d["categories"][0].update(name=3), "category 7 has the name 3, which is no text"),
        (lambda d: d["annotations"][0].pop("segments_info"), "without 'segments_info'"),
        (lambda d: d["annotations"][0].update(segments_info=[{"id": "a", "category_id": 7}]), "'a'"),
        (
            lambda d: d["annotations"][0].update(segments_info=[{"id": 1 << 24, "category_id": 7}]),
            "segment 16777216 of",
        ),
        (lambda d: d["images"][0].update(id="first"), "'first'"),
    ],
)
def test_wrong_json_is_named(tmp_path: Path, change: Any, said: str) -> None:
    content = document()
    change(content)
    put(tmp_path, content)
    with pytest.raises(ValueError, match=rf"panoptic_train2017\.json: .*{said}") as caught:
        open_dataset(f"panoptic:{tmp_path}", "train")
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
KEYS = ["id", "file_name", "segments_info", "image_id", "name", "category_id", "area"]


@settings(max_examples=40)
@given(VALUES, st.sampled_from(KEYS))
def test_no_value_is_more_than_a_line(tmp_path_factory: pytest.TempPathFactory, value: Any, key: str) -> None:
    root, content = tmp_path_factory.mktemp("wrong"), document()
    records = [*content["images"], *content["categories"], *content["annotations"]]
    for record in [*records, *content["annotations"][0]["segments_info"]]:
        record.update({key: value} if key in record else {})
    put(root, content)
    try:
        for _ in open_dataset(root, "train"):
            pass
    except (ValueError, FileNotFoundError) as error:
        assert str(root) in str(error) and "\n" not in str(error)


def test_a_real_export_is_read_to_the_pixel() -> None:
    assert worst_iou("coco_panoptic") == 1.0
