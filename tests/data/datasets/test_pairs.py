"""Folders of images and of masks with a file that names the classes, in the ways that people arrange them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.checks.validate import check
from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from formats import worst_iou

COLOURS = ((0, 0, 0), (200, 10, 30))
FILES = {
    "class_dict.csv": 'name,r,g,b\nbackground,0,0,0\n"leaf, wet",200,10,30\n',
    "label_colors.txt": "0 0 0 background\n200 10 30 leaf, wet\n",
    "labels.txt": "background\nleaf, wet\n",
}


def put(root: Path, image: str, mask: str, file: str, seed: int = 0) -> None:
    """An image, its mask, the right half of which is leaf, and a file that names the classes."""
    for name in (image, mask):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(noise).save(root / image)
    ids = np.repeat([[0, 0, 0, 1, 1, 1]], 4, axis=0).astype(np.uint8)
    Image.fromarray(ids if file == "labels.txt" else np.array(COLOURS, np.uint8)[ids]).save(root / mask)
    (root / file).write_text(FILES[file])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("image", "mask", "split"),
    [
        ("images/x.jpg", "labels/x_L.png", "all"),
        ("imgs/x.jpg", "masks/x_mask.png", "all"),
        ("images/valid/x.jpg", "annotations/valid/x.png", "val"),
        ("train/x.jpg", "trainannot/x.png", "train"),
        ("train/x.jpg", "train_labels/x_L.png", "train"),
        ("training/image_2/x.png", "training/semantic_rgb/x.png", "train"),
        ("train/images/x.jpg", "train/masks/x.png", "train"),
    ],
)
def test_arrangements(tmp_path: Path, image: str, mask: str, split: str, file: str) -> None:
    put(tmp_path, image, mask, file)
    assert kind_of(tmp_path) == "pairs" and splits(tmp_path) == [split]
    dataset = open_dataset(tmp_path, split)
    assert dataset.labels.names == ("background", "leaf, wet") and dataset.names == ["x"]
    assert dataset[0].mask[0].tolist() == [0, 0, 0, 1, 1, 1] and check(tmp_path).problems == []
    (tmp_path / mask).unlink()
    (tmp_path / mask).with_name("other.png").write_bytes(b"")
    listing = list_split(tmp_path, split)
    assert "1 of 1 images have no mask in" in listing.problems[0] and "other.png" in listing.warnings[0]


def test_text_labels_are_no_masks(tmp_path: Path) -> None:
    put(tmp_path, "images/x.jpg", "labels/x.png", "labels.txt")
    (tmp_path / "labels" / "x.png").rename(tmp_path / "labels" / "x.txt")
    with pytest.raises(ValueError, match="layout not recognised"):
        open_dataset(tmp_path, "all")


@pytest.mark.parametrize("layout", ["camvid", "kitti_segmentation", "colour-masks-class-dict"])
def test_real_exports_are_read_to_the_pixel(layout: str) -> None:
    assert worst_iou(layout) == 1.0


def test_one_class_is_written_as_one(tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg", "masks/a.png", "labels.txt")
    assert list_split(tmp_path, "all").read_as == "images with masks, with the 2 classes of labels.txt"
    (tmp_path / "labels.txt").write_text("leaf\n")
    assert list_split(tmp_path, "all").read_as == "images with masks, with the 1 class of labels.txt"
