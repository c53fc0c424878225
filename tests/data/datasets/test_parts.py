"""Data sets without splits: train and val are the same for every command, and that they were made is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atrous.data.datasets.dataset import list_split, open_dataset, splits
from own_data import photo, stored, text

pytestmark = pytest.mark.filterwarnings("ignore:.*no split there")


def put(root: Path, count: int = 20, rare: tuple[int, ...] = (3, 11)) -> Path:
    """Images of background and leaf, of which some have a stem."""
    text(root / "labels.txt", "background\nleaf\nstem\n")
    for number in range(count):
        photo(root / "images" / f"{number:02d}.png", number, (2, 3))
        mask = np.array([[0, 1, 1], [0, 1, 2 if number in rare else 1]], np.uint8)
        stored(root / "masks" / f"{number:02d}.png", mask)
    return root


def test_all_is_divided_where_train_or_val_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path)
    assert splits(tmp_path) == ["all"] and len(list_split(tmp_path, "all").items) == 20
    with pytest.warns(
        UserWarning, match="no split there: divided into 16 images to train on and 4 to validate on, seed"
    ):
        train = open_dataset(tmp_path, "train")
    val = open_dataset(tmp_path, "val")
    assert sorted(train.names + val.names) == [f"{number:02d}" for number in range(20)] and len(val) == 4
    assert any(mask.max() == 2 for _, _, mask in train) and any(mask.max() == 2 for _, _, mask in val)
    assert "divided into 16 images to train on and 4 to validate on" in list_split(tmp_path, "val").read_as
    assert train.labels == val.labels


@pytest.mark.integration
def test_another_process_and_another_place_give_the_same(tmp_path: Path) -> None:
    put(tmp_path / "a")
    names = open_dataset(tmp_path / "a", "val").names
    shutil.move(tmp_path / "a", tmp_path / "b")
    code = "import json, sys; from atrous.data.datasets.dataset import open_dataset; "
    code += "print(json.dumps(open_dataset(sys.argv[1], 'val').names))"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "b")]
    assert json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout) == names


def test_a_changed_mask_counts(tmp_path: Path) -> None:
    put(tmp_path, rare=())
    before = open_dataset(tmp_path, "val").names
    train = [name for name in open_dataset(tmp_path, "train").names if name not in before][:2]
    for name in train:
        stored(tmp_path / "masks" / f"{name}.png", np.array([[0, 1, 1], [0, 2, 2]], np.uint8))
    assert {*train} & {*open_dataset(tmp_path, "val").names}  # one of two images with stem


def test_many_images_are_divided_by_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atrous.data.datasets.parts.MOST_READ", 19)
    put(tmp_path)
    assert ", by name" in list_split(tmp_path, "train").read_as


def test_what_cannot_be_divided_is_said(tmp_path: Path) -> None:
    put(tmp_path, 1)
    with pytest.raises(ValueError, match=r"images: 1 image; expected two or more, to divide them"):
        open_dataset(tmp_path, "val")
    (tmp_path / "masks" / "00.png").rename(tmp_path / "masks" / "x.png")
    with pytest.raises(ValueError, match="1 of 1 images have no mask in"):
        open_dataset(tmp_path, "train")


def test_a_mask_that_cannot_be_read_is_reported_where_it_is_read(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / "masks" / "05.png").write_bytes(b"")
    split = "val" if "05" in open_dataset(tmp_path, "val").names else "train"
    dataset = open_dataset(tmp_path, split)
    with pytest.raises(ValueError, match=r"05\.png: not an image, but empty"):
        dataset[dataset.names.index("05")]


def test_other_splits_are_not_made(tmp_path: Path) -> None:
    put(tmp_path)
    with pytest.raises(ValueError, match="no split 'test'; the splits there are all"):
        open_dataset(tmp_path, "test")
