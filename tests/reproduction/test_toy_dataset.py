"""The generated data set: the same bytes every time, and what preset tiny needs of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from atrous.data.datasets.dataset import open_dataset
from atrous.reproduction.toy_dataset import NAMES, SIZE, SPLITS, WHEEL_EVERY, draw, write_toy_dataset


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(
        b"".join(path.relative_to(folder).as_posix().encode() + path.read_bytes() for path in files)
    ).hexdigest()


def test_it_is_the_same_every_time_and_made_once(tmp_path: Path) -> None:
    one, two = write_toy_dataset(tmp_path / "one"), write_toy_dataset(tmp_path / "two")
    assert digest(one) == digest(two)
    (one / "images" / "train" / "train000.png").unlink()
    assert len(list((write_toy_dataset(one) / "images" / "train").iterdir())) == SPLITS["train"] - 1
    assert not list(tmp_path.glob(".*partial"))


def test_every_class_is_there_and_the_wheel_is_rare_and_thin(tmp_path: Path) -> None:
    for split, count in SPLITS.items():
        dataset = open_dataset(write_toy_dataset(tmp_path / "shapes"), split)
        assert len(dataset) == count and dataset.labels.names == NAMES
        masks = [dataset[i].mask.numpy() for i in range(count)]
        assert all(mask.shape == SIZE for mask in masks)
        pixels = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=5)
        assert all(pixels) and pixels[4] == min(pixels)
        with_wheel = [i for i, mask in enumerate(masks) if (mask == 4).any()]
        assert with_wheel == list(range(0, count, WHEEL_EVERY))
        # Thin: nowhere is a square of 7 pixels all wheel.
        windows = np.lib.stride_tricks.sliding_window_view(masks[0] == 4, (7, 7))
        assert not windows.all((2, 3)).any()


def test_no_picture_is_another_and_train_is_not_val() -> None:
    pictures = [draw((split, i))[0].tobytes() for split in (0, 1) for i in range(8)]
    assert len(set(pictures)) == 16
