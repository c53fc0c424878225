"""What is wrong with data, each kind once, with the line that mends it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.checks.validate import DataReport, check
from atrous.data.datasets.options import DatasetOptions


def put(root: Path, split: str, name: str, picture: Image.Image, mask: np.ndarray, suffix: str = ".png") -> None:
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    picture.save(root / "images" / split / f"{name}{suffix}")
    Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / split / f"{name}.png")


def scene(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve different pictures, each with both classes."""
    (tmp_path / "dataset.yaml").write_text("names: [ground, leaf, stem]\n")
    mask = np.zeros((48, 64))
    mask[:20], mask[20:30] = 1, 2
    for index in range(12):
        put(tmp_path, "val" if index > 8 else "train", f"p{index}", scene(index), mask)
    return tmp_path


def the(report: DataReport, words: str):
    """The one finding with these words."""
    (finding,) = [finding for finding in report.findings if words in finding.text]
    return finding


def test_sound_data_has_no_findings_and_says_what_it_is(root: Path) -> None:
    report = check(root)
    assert report.findings == ()
    assert (
        report.saw
        == "a plain folder with the classes of dataset.yaml: 12 images, 12 masks, 3 classes, splits train, val"
    )


def test_pictures_that_are_dark_flat_turned_or_of_odd_modes_are_warned_of(root: Path) -> None:
    mask = np.zeros((48, 64))
    mask[:20], mask[20:30] = 1, 2
    put(root, "train", "dark", scene(50).point(lambda value: value // 40), mask)
    put(root, "train", "flat", Image.new("RGB", (64, 48), (80, 80, 80)), mask)
    put(root, "train", "print", scene(51).convert("CMYK"), mask, ".tif")
    report = check(root)
    assert report.problems == [] and len(report.warnings) == 3
    assert "1 image is almost black" in the(report, "almost black").text and "--value-range" in the(report, "black").fix
    assert the(report, "of one colour").fix and the(report, "of mode CMYK").items[0].name == "print"


def test_nearly_the_same_pictures_in_two_splits_are_warned_of(root: Path) -> None:
    mask = np.zeros((24, 32))
    mask[:10], mask[10:15] = 1, 2
    for index in (0, 1, 2):
        put(
            root, "val", f"again{index}", scene(index).resize((32, 24)).resize((64, 48)), np.kron(mask, np.ones((2, 2)))
        )
    report = check(root)
    finding = the(report, "look almost the same")
    assert finding.text.startswith("train and val: 3 pairs of pictures look almost the same:") and not finding.fatal
    assert "p0.png and" in finding.text and "again1.png and 1 more" in finding.text
    assert "on one side" in finding.fix and report.problems == []


def test_a_class_in_one_split_alone_is_told_how_to_divide_anew(root: Path) -> None:
    for path in (root / "masks" / "val").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)
    finding = the(check(root), "no pixel of leaf, stem, so that no IoU is measured there")
    assert finding.fix == f"atrous data convert {root} OUT --resplit divides anew, each class on both sides"


def test_rare_classes_are_warned_of(root: Path) -> None:
    for index, path in enumerate(sorted((root / "masks" / "train").iterdir())):
        mask = np.zeros((48, 64), np.uint8)
        mask[:20], mask[20, :2] = 1, 2 if index == 0 else 1
        Image.fromarray(mask).save(path)
    finding = the(check(root), "hardly learnt")
    assert "stem (0.01% of the pixels, 1 image)" in finding.text and "--map NAME=OTHER" in finding.fix


def test_names_that_differ_in_case_or_spaces_alone_are_warned_of(root: Path) -> None:
    (root / "dataset.yaml").write_text("names: [ground, Leaf, leaf]\n")
    path = root / "masks" / "train" / "p0.png"
    Image.fromarray(np.uint8(np.asarray(Image.open(path)) // 2)).save(path)  # without 2
    finding = the(check(root), "differ in case or spaces alone")
    assert finding.text.startswith("'Leaf' (12 images) and 'leaf' (11 images) are 2 classes") and not finding.fatal
    assert finding.fix == "if they are one, rename one in the tool, or join them: --map leaf=Leaf"
    joined = check(root, DatasetOptions.parse({"map": {"leaf": "Leaf"}}))
    assert joined.names == ("ground", "Leaf") and joined.findings == ()
    (root / "dataset.yaml").write_text("names: [ground, leaf, 'leaf ']\n")
    fix = the(check(root), "differ in case or spaces alone").fix
    assert fix.endswith("join them: map: {'leaf ': 'leaf'} in dataset.yaml")


def test_values_of_no_class_are_shown_with_what_would_read_them(root: Path) -> None:
    path = root / "masks" / "train" / "p0.png"
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(path)
    assert "--map 77=NAME" in the(check(root), "has id 77").fix
    rng = np.random.default_rng(0)
    for path in (root / "masks" / "train").iterdir():
        Image.fromarray(rng.integers(0, 200, (48, 64)).astype(np.uint8)).save(path)
    assert "come from resizing or JPEG" in the(check(root), "files like this").fix


def test_shapes_are_not_told_to_be_resized(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "a.png")
    shape = {"label": "leaf", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}
    document = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 96, "imageWidth": 128}
    (tmp_path / "a.json").write_text(json.dumps(document))
    fix = the(check(tmp_path), "mask of 128x96; expected 64x48").fix
    assert fix.startswith("this is not the image that was annotated") and "neighbour" not in fix


def test_masks_of_another_size_and_broken_files_say_what_mends_them(root: Path) -> None:
    Image.new("L", (10, 10)).save(root / "masks" / "train" / "p0.png")
    (root / "images" / "train" / "p1.png").write_bytes(b"nothing")
    report = check(root)
    assert "nearest neighbour" in the(report, "mask of 10x10").fix and "copy these files" in the(report, "p1.png").fix
    assert report.as_dict()["fixes"][the(report, "mask of 10x10").text]


def test_an_export_without_images_says_how_many_masks_it_has(tmp_path: Path) -> None:
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\n")
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nleaf:0,200,0::\n")
    (tmp_path / "SegmentationClass").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8), (0, 200, 0)).save(tmp_path / "SegmentationClass" / f"{name}.png")
    report = check(tmp_path)
    assert report.saw.startswith("a CVAT export, VOC's layout with the 2 classes of labelmap.txt: no images, 2 masks")
    assert "--images FOLDER" in report.problems[0]
