"""Roboflow's semantic masks, and what else has files of the same name."""

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.datasets.dataset import kind_of, open_dataset, splits
from formats import worst_iou

CLASSES = "Pixel Value, Class\n0, background\n3, leaf é\n"


def put(root: Path, classes: str = CLASSES) -> Path:
    for folder in ("train", "valid"):
        (root / folder).mkdir()
        Image.new("RGB", (3, 1)).save(root / folder / "x_jpg.rf.1.jpg")
        Image.fromarray(np.array([[0, 3, 255]], np.uint8)).save(root / folder / "x_jpg.rf.1_mask.png")
        (root / folder / "_classes.csv").write_text(classes, "utf-8")
    return root


@pytest.mark.parametrize(
    "classes", [CLASSES, "\ufeff" + CLASSES.replace("\n", "\r\n"), "Pixel Value,Class\n3,leaf é\n0,background"]
)
def test_pixel_values_need_not_be_consecutive(tmp_path: Path, classes: str) -> None:
    root = put(tmp_path, classes)
    assert kind_of(root) == "roboflow" and splits(root) == ["train", "val"]
    dataset = open_dataset(root, "val")
    assert dataset.labels.names == ("background", "leaf é") and dataset[0].mask.tolist() == [[0, 1, 255]]
    Image.fromarray(np.array([[0, 1, 3]], np.uint8)).save(root / "valid" / "x_jpg.rf.1_mask.png")
    with pytest.raises(ValueError, match=r"mask has id 1 \(1 pixels\); expected 0 or 3 or 255$"):
        dataset[0]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("Pixel Value, Class\nx, leaf\n", "expected lines PIXEL VALUE, CLASS"),
        ("Pixel Value, Class\n0, a\n0, b\n", "expected one each, 0..255"),
        ("Pixel Value, Class\n0, a\n300, b\n", "expected one each, 0..255"),
        ("Pixel Value, Class\n0, a\n1, a\n", "names has 'a' 2 times"),
        ("Pixel Value, Class\n", "names has 0 classes"),
    ],
)
def test_wrong_classes_are_named(tmp_path: Path, classes: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"train/_classes\.csv: .*{message}"):
        open_dataset(put(tmp_path, classes), "train")


def test_a_classification_is_no_segmentation(tmp_path: Path) -> None:
    root = put(tmp_path, "filename, leaf\nx.jpg, 1\n")
    with pytest.raises(ValueError, match="layout not recognised"):
        open_dataset(root, "train")


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
def test_no_file_is_left_open(tmp_path: Path) -> None:
    assert kind_of(put(tmp_path)) == "roboflow"
    gc.collect()


def test_a_real_export_is_read_to_the_pixel() -> None:
    assert worst_iou("roboflow-png-masks") == 1.0
