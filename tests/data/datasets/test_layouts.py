"""What holds of every layout: items can be hashed, and no split hides another."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from atrous.data.datasets.options import DatasetOptions
from atrous.data.image_io import write_mask
from atrous.data.labels import VOC
from atrous.data.sampling import id_histograms

NAMES = "background\nleaf\n"
POLYGON = [1, 1, 5, 1, 5, 4, 1, 4]


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)).save(path)


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 6, axis=0).astype(np.uint8)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def plain(root: Path, split: str) -> None:
    text(root / "dataset.yaml", "names: [background, leaf]\n")
    image(root / "images" / split / "x.png")
    mask(root / "masks" / split / "x.png")


def voc(root: Path, split: str) -> None:
    image(root / "JPEGImages" / "x.jpg")
    (root / "SegmentationClass").mkdir(exist_ok=True)
    ids = np.repeat([[0, 1]], 6, axis=0).repeat(4, axis=1)
    write_mask(root / "SegmentationClass" / "x.png", ids, VOC)
    text(root / "ImageSets" / "Segmentation" / f"{split}.txt", "x\n")


def cityscapes(root: Path, split: str) -> None:
    image(root / "leftImg8bit" / split / "ulm" / "ulm_0_0_leftImg8bit.png")
    mask(root / "gtFine" / split / "ulm" / "ulm_0_0_gtFine_labelIds.png")


def roboflow(root: Path, split: str) -> None:
    image(root / split / "x.jpg")
    mask(root / split / "x_mask.png")
    text(root / split / "_classes.csv", "Pixel Value, Class\n0, background\n1, leaf\n")


def pairs_beside(root: Path, split: str) -> None:
    text(root / "labels.txt", NAMES)
    image(root / split / "x.jpg")
    mask(root / f"{split}_labels" / "x.png")


def pairs_of_kinds(root: Path, split: str) -> None:
    text(root / "labels.txt", NAMES)
    image(root / "imgs" / split / "x.jpg")
    mask(root / "masks" / split / "x.png")


def pairs_by_colour(root: Path, split: str) -> None:
    text(root / "class_dict.csv", "name,r,g,b\nbackground,0,0,0\nleaf,1,1,1\n")
    image(root / split / "images" / "x.jpg")
    mask(root / split / "masks" / "x.png")


def labelme(root: Path, split: str) -> None:
    image(root / split / "x.jpg")
    shape = {"label": "leaf", "points": np.reshape(POLYGON, (-1, 2)).tolist(), "shape_type": "polygon"}
    text(root / split / "x.json", json.dumps({"shapes": [shape], "imageHeight": 6, "imageWidth": 8}))


def yolo(root: Path, split: str) -> None:
    text(root / "data.yaml", "names: [leaf]\n")
    image(root / "images" / split / "x.jpg")
    text(root / "labels" / split / "x.txt", "0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6\n")


def yolo_inside(root: Path, split: str) -> None:
    text(root / "data.yaml", "names: [leaf]\n")
    image(root / split / "images" / "x.jpg")
    text(root / split / "labels" / "x.txt", "0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6\n")


def coco_json() -> str:
    record = {"id": 1, "image_id": 1, "category_id": 1, "area": 12, "iscrowd": 0, "segmentation": [POLYGON]}
    images = [{"id": 1, "file_name": "x.jpg", "height": 6, "width": 8}]
    return json.dumps({"images": images, "categories": [{"id": 1, "name": "leaf"}], "annotations": [record]})


def instances(root: Path, split: str) -> None:
    image(root / "images" / split / "x.jpg")
    text(root / "annotations" / f"instances_{split}.json", coco_json())


def instances_beside(root: Path, split: str) -> None:
    image(root / split / "x.jpg")
    text(root / split / "_annotations.coco.json", coco_json())


def instances_of_other_names(root: Path, split: str) -> None:
    image(root / "images" / "x.jpg")
    text(root / f"{split}.json", coco_json())


SHORTENED = [
    (roboflow, "roboflow"),
    (pairs_beside, "pairs"),
    (pairs_of_kinds, "pairs"),
    (pairs_by_colour, "pairs"),
    (labelme, "labelme"),
    (yolo, "yolo"),
    (yolo_inside, "yolo"),
    (instances, "instances"),
    (instances_beside, "instances"),
    (instances_of_other_names, "instances"),
]
"""The layouts in which valid is val."""
ALL = [(plain, "folder"), (voc, "voc"), (cityscapes, "cityscapes"), *SHORTENED]

Put = Callable[[Path, str], None]


@pytest.mark.parametrize(("put", "kind"), ALL)
def test_items_of_every_layout_can_be_hashed(tmp_path: Path, put: Put, kind: str) -> None:
    for split in ("train", "val"):
        put(tmp_path, split)
    assert kind_of(tmp_path) == kind and splits(tmp_path) == ["train", "val"]
    dataset, again = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "train")
    assert {*dataset.items} == {*again.items} and len({*dataset.items}) == 1
    twice = dataset.with_items(dataset.items * 2)
    assert id_histograms(twice).sum(axis=1).tolist() == [48, 48]


@pytest.mark.parametrize(("put", "kind"), SHORTENED)
def test_two_folders_of_one_split_are_refused(tmp_path: Path, put: Put, kind: str) -> None:
    put(tmp_path, "train")
    put(tmp_path, "valid")
    assert splits(tmp_path) == ["train", "val"]
    put(tmp_path, "val")
    with pytest.raises(ValueError, match=r"\bval\S* and \S*valid\S* are both the split val; expected one"):
        splits(tmp_path)
    with pytest.raises(ValueError, match="are both the split val; expected one"):
        open_dataset(f"{kind}:{tmp_path}", "val")


def test_a_json_that_is_named_is_all_of_the_data(tmp_path: Path) -> None:
    for split in ("train", "val"):
        instances(tmp_path, split)
    path = tmp_path / "annotations" / "instances_val.json"
    assert kind_of(path) == "instances" and splits(path) == splits(f"instances:{path}") == ["all"]
    assert open_dataset(path, "all").names == ["x"]


def test_the_file_beside_the_data_stands_for_its_folder(tmp_path: Path) -> None:
    yolo(tmp_path, "train")
    assert kind_of(tmp_path / "data.yaml") == "yolo"
    roboflow(tmp_path / "masks", "train")
    with pytest.warns(UserWarning, match=r"_classes\.csv: read with the folder around it"):
        assert kind_of(tmp_path / "masks" / "train" / "_classes.csv") == "roboflow"


@pytest.mark.parametrize("inner", ["export", "export/export/job_1 (2)"])
def test_a_folder_that_holds_one_folder_stands_for_it(tmp_path: Path, inner: str) -> None:
    roboflow(tmp_path / inner, "train")
    text(tmp_path / "README.roboflow.txt", "exported")
    (tmp_path / "__MACOSX").mkdir()
    assert kind_of(tmp_path) == "roboflow" and len(open_dataset(f"roboflow:{tmp_path}", "train")) == 1


def test_archives_in_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("images.tar.gz", "annotations.tar.gz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"it holds the archives annotations\.tar\.gz, images\.tar\.gz: give one"):
        kind_of(tmp_path)


def test_camvid_may_be_named(tmp_path: Path) -> None:
    pairs_beside(tmp_path, "train")
    assert kind_of(f"camvid:{tmp_path}") == "camvid" and kind_of(tmp_path) == "pairs"
    assert len(open_dataset(f"camvid:{tmp_path}", "train")) == 1


def test_options_that_a_layout_has_no_use_for_are_said(tmp_path: Path) -> None:
    plain(tmp_path, "train")
    for key, value in (("annotator", "ann"), ("images", "photos")):
        with pytest.warns(UserWarning, match=f"{key} is {value}, which the layout folder has no use for"):
            list_split(tmp_path, "train", DatasetOptions.parse({key: value}))
