"""What holds of every layout: items can be hashed, and no split hides another."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.checks.validate import check
from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from atrous.data.datasets.options import DatasetOptions
from atrous.data.images.image_io import write_mask
from atrous.data.labels import VOC
from atrous.data.sampling import id_histograms
from formats import FORMATS

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
    with pytest.raises(
        ValueError, match=r"it holds the archives \S*/annotations\.tar\.gz, \S*/images\.tar\.gz: give one"
    ):
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


def test_data_of_another_layout_beside_what_is_read_is_said(tmp_path: Path) -> None:
    shapes = [{"label": "leaf", "points": [[1, 1], [5, 1], [5, 4]], "shape_type": "polygon"}]
    document = {"shapes": shapes, "imagePath": "x.png", "imageHeight": 6, "imageWidth": 8}
    image(tmp_path / "a" / "x.png")
    text(tmp_path / "a" / "x.json", json.dumps(document))
    text(tmp_path / "b" / "data.yaml", "names: [leaf]\n")
    image(tmp_path / "b" / "images" / "x.png")
    text(tmp_path / "b" / "labels" / "x.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    with pytest.warns(UserWarning, match=r"read as labelme; .* another layout, too, which is not read: \S*/b$"):
        assert kind_of(tmp_path) == "labelme"
    image(tmp_path / "b" / "x.png")
    text(tmp_path / "b" / "x.json", json.dumps(document))
    with pytest.warns(UserWarning, match="read as yolo; .* which is not read: labelme:"):
        assert kind_of(tmp_path / "b") == "yolo"


def test_no_option_is_advised_that_a_layout_has_no_use_for(tmp_path: Path) -> None:
    plain(tmp_path, "train")
    (tmp_path / "labels.txt").write_text("background\nleaf\n")
    (tmp_path / "dataset.yaml").unlink()
    text(tmp_path / "train.txt", "x\ny\n")
    line = next(line for line in check(tmp_path).problems if "1 names in the list" in line or "have no image" in line)
    assert line.endswith("put the images there") and "--images" not in line


def test_a_folder_of_images_that_is_not_there_is_refused(tmp_path: Path) -> None:
    text(tmp_path / "data.yaml", "names: [leaf]\n")
    image(tmp_path / "images" / "x.png")
    text(tmp_path / "labels" / "x.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    with pytest.raises(
        FileNotFoundError, match="images is .*photos: no such folder; expected the folder of the images"
    ):
        list_split(tmp_path, "all", DatasetOptions.parse({"images": str(tmp_path / "photos")}))


def test_an_archive_in_an_archive_is_unpacked(tmp_path: Path) -> None:
    plain(tmp_path / "in", "train")
    inner = shutil.make_archive(str(tmp_path / "inner"), "zip", tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "my outer.zip", "w") as file:
        file.write(inner, "inner.zip")
    assert kind_of(tmp_path / "my outer.zip") == "folder"
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as file:
        file.write(inner, "a.zip")
        file.write(inner, "b.zip")
    with pytest.raises(
        ValueError, match=r"it holds the archives \S*/two\.\w+/a\.zip, \S*/b\.zip: give one of them, or unpack"
    ):
        kind_of(tmp_path / "two.zip")


def test_commands_that_are_advised_quote_the_path(tmp_path: Path) -> None:
    plain(tmp_path / "my data", "train")
    fixes = [finding.fix for finding in check(tmp_path / "my data").findings]
    assert any(f"atrous data convert '{tmp_path}/my data' OUT" in fix for fix in fixes)


@pytest.mark.parametrize(
    ("layout", "file", "said"),
    [
        ("cvat", "train.xml", "no <image>; expected CVAT for images"),
        ("cvat-polygons", "val.xml", "no <image>; expected CVAT for images"),
        ("labelstudio-json", "more.json", "expected Label Studio's JSON"),
        ("coco_panoptic", "annotations/panoptic_train.json", "expected COCO's panoptic JSON"),
        ("coco_instances", "annotations/instances_train.json", "expected COCO's instances"),
        ("camvid", "train.txt", "an empty list; expected names of images, or no such file"),
    ],
)
def test_an_empty_file_beside_sound_ones_is_named(tmp_path: Path, layout: str, file: str, said: str) -> None:
    if not (FORMATS / layout).is_dir():
        pytest.skip("no shared/formats beside the repository")
    data = Path(shutil.copytree(FORMATS / layout, tmp_path / "data"))
    (data / file).write_bytes(b"")
    try:
        problems = " ".join(check(data).problems)
    except ValueError as error:
        problems = str(error)
    assert str(data / file) in problems and said in problems


def test_an_empty_file_of_annotations_beside_sound_ones_is_named(tmp_path: Path) -> None:
    export = '<annotations><image id="0" name="x.png" width="8" height="6"><polygon label="leaf" points="1,1;5,1;5,4"/>'
    image(tmp_path / "images" / "x.png")
    text(tmp_path / "annotations.xml", f"{export}</image></annotations>")
    assert len(list_split(tmp_path, "all").items) == 1
    text(tmp_path / "more.xml", "")
    with pytest.raises(ValueError, match=r"more\.xml: no <image>; expected CVAT for images"):
        list_split(tmp_path, "all")
