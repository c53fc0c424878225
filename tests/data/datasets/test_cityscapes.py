"""Cityscapes as it is distributed, made small: fine and coarse masks, both ways between label ids and train ids."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.checks.validate import check
from atrous.data.datasets.dataset import list_split, open_dataset, splits
from atrous.data.labels import CITYSCAPES, CITYSCAPES_LABEL_IDS

LABELS = np.arange(34, dtype=np.uint8)[None]


def put(root: Path, split: str, stem: str, **masks: np.ndarray) -> None:
    """An image and its masks, gtFine= or gtCoarse=, uint8 H,W of label ids."""
    city = stem.partition("_")[0]
    path = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = next(iter(masks.values()), LABELS).shape
    rng = np.random.default_rng(list(f"{split}{stem}".encode()))
    Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(path)
    for kind, ids in masks.items():
        target = root / kind / split / city / f"{stem}_{kind}_labelIds.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(target)
        Image.fromarray(np.zeros_like(ids)).save(str(target).replace("labelIds", "instanceIds"))


def test_labels_become_train_ids_and_go_back(tmp_path: Path) -> None:
    for stem in ("ulm_000001_000019", "aachen_000000_000019", "aachen_000002_000019"):
        put(tmp_path, "train", stem, gtFine=LABELS)
    dataset = open_dataset(tmp_path, "train")
    assert dataset.names == ["aachen_000000_000019", "aachen_000002_000019", "ulm_000001_000019"]
    assert dataset.labels is CITYSCAPES
    ids = dataset[0].mask[0]
    assert ids[list(CITYSCAPES_LABEL_IDS)].tolist() == list(range(19)) and (ids == 255).sum() == 34 - 19
    back = np.array([*CITYSCAPES_LABEL_IDS, *[0] * 237])[ids.numpy()]
    assert (back[back > 0] == LABELS[0][back > 0]).all() and (back > 0).sum() == 19
    (tmp_path / "gtFine" / "train" / "aachen" / "aachen_000002_000019_gtFine_labelIds.png").unlink()
    message = (
        r"train: 1 of 3 images have no mask in gtFine/train: aachen_000002_000019; Cityscapes is published at http"
    )
    with pytest.raises(ValueError, match=message):
        open_dataset(f"cityscapes:{tmp_path}", "train")


def test_fine_and_coarse_and_extra(tmp_path: Path) -> None:
    fine, coarse = np.full((2, 3), 7, np.uint8), np.full((2, 3), 23, np.uint8)
    put(tmp_path, "train", "ulm_000001_000019", gtFine=fine, gtCoarse=coarse)
    put(tmp_path, "val", "lindau_000000_000019", gtFine=fine, gtCoarse=coarse)
    put(tmp_path, "train_extra", "erlangen_000000_000000", gtCoarse=coarse)
    put(tmp_path, "test", "berlin_000000_000019", gtFine=np.zeros((2, 3), np.uint8))
    there = ["train", "train_coarse", "train_extra", "val", "val_coarse", "test"]
    assert splits(tmp_path) == there
    actual = {name: open_dataset(tmp_path, name)[0] for name in there[:-1]}
    assert {name: int(sample.mask[0, 0]) for name, sample in actual.items()} == {
        "train": 0, "train_coarse": 10, "train_extra": 10, "val": 0, "val_coarse": 10,
    }  # fmt: skip
    assert (
        actual["train"].name == actual["train_coarse"].name and actual["train_extra"].name == "erlangen_000000_000000"
    )
    report = check(tmp_path, allow_empty_classes=True)
    assert report.problems == [], "images with masks of both kinds are no leak"
    assert not any("same" in line for line in report.warnings) and report.splits["test"].unlabelled


def test_the_test_split_is_there_to_be_predicted(tmp_path: Path) -> None:
    put(tmp_path, "test", "berlin_000000_000019")
    assert [item.mask for item in list_split(tmp_path, "test").items] == [None]
    with pytest.raises(
        ValueError, match="leftImg8bit/test: no masks, for Cityscapes keeps the masks of its test split"
    ):
        open_dataset(tmp_path, "test")


def test_extra_images_without_their_masks_are_named(tmp_path: Path) -> None:
    put(tmp_path, "train_extra", "erlangen_000000_000000")
    with pytest.raises(
        ValueError, match=r"1 of 1 images have no mask in gtCoarse/train_extra.*\(leftImg8bit, gtFine, gtC"
    ):
        open_dataset(tmp_path, "train_extra")
    with pytest.raises(
        ValueError, match="no split 'train'; the splits there are train_extra; Cityscapes is published at"
    ):
        open_dataset(f"cityscapes:{tmp_path}", "train")


def test_own_classes_and_clutter_are_not_read_as_cityscapes(tmp_path: Path) -> None:
    put(tmp_path, "train", "ulm_000001_000019", gtFine=LABELS)
    (tmp_path / "leftImg8bit" / "train" / "ulm" / "._ulm_000001_000019_leftImg8bit.png").write_bytes(b"x")
    (tmp_path / "leftImg8bit" / "@eaDir").mkdir()
    assert splits(tmp_path) == ["train"] and len(open_dataset(tmp_path, "train")) == 1
    (tmp_path / "label_colors.txt").write_text("".join(f"0 0 {i} {name}\n" for i, name in enumerate(CITYSCAPES.names)))
    assert len(open_dataset(tmp_path, "train")) == 1
    (tmp_path / "label_colors.txt").write_text("0 0 0 background\n9 9 9 leaf\n")
    with pytest.raises(ValueError, match=r"label_colors\.txt: other classes than Cityscapes' 19, which alone are read"):
        open_dataset(tmp_path, "train")


def test_the_licence_plate_is_ignored_and_an_unknown_id_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "train", "ulm_000001_000019", gtFine=np.array([[7, 255, 33]], np.uint8))
    assert open_dataset(tmp_path, "train")[0].mask.tolist() == [[0, 255, 18]]
    put(tmp_path, "train", "ulm_000001_000019", gtFine=np.array([[7, 34, 34, 254]], np.uint8))
    message = (
        r"ulm_000001_000019_gtFine_labelIds\.png: mask has id 34 \(2 pixels\), 254 \(1 pixels\); expected 0..33 or 255$"
    )
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path, "train")[0]
    assert any("has id 34 (2 pixels)" in line for line in check(tmp_path).problems)


def test_a_colour_map_is_no_mask_of_label_ids(tmp_path: Path) -> None:
    put(tmp_path, "train", "ulm_000001_000019", gtFine=LABELS)
    colours = np.array(CITYSCAPES.palette, np.uint8)[None]
    Image.fromarray(colours).save(tmp_path / "gtFine" / "train" / "ulm" / "ulm_000001_000019_gtFine_labelIds.png")
    with pytest.raises(ValueError, match="mode RGB; expected one channel of class ids"):
        open_dataset(tmp_path, "train")[0]
