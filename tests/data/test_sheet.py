"""A sheet shows every class, the rarest first, and says what each region is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.labels import Labels, voc_palette
from atrous.data.overlay import overlay
from atrous.data.sheet import FEWEST, choose, sheet


def test_every_class_is_seen_the_rarest_first() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((100, 20), dtype=np.int64)
    counts[:, 0] = 10_000
    for index in range(1, 20):
        counts[rng.choice(100, index, replace=False), index] = 500
    chosen = choose(counts)
    assert len(chosen) == len({*chosen}) >= FEWEST
    assert (counts[chosen] > 0).any(axis=0).all()
    assert counts[chosen[0], 1], "the class of one image comes first"


def test_as_many_as_are_asked_for() -> None:
    counts = np.ones((5, 2), dtype=np.int64)
    assert len(choose(counts, 3)) == 3 and len(choose(counts, 9)) == 5 and len(choose(counts)) == 5


def test_a_sheet_of_a_data_set(tiny_data: Path, tmp_path: Path) -> None:
    drawn = sheet(tiny_data)
    drawn.save(tmp_path / "sheet.png")
    assert len(drawn.shown) == 12 and drawn.unreadable == () and drawn.examined == (12, 12)
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == drawn.image.size and picture.width > 1000
    assert all(name.startswith("val/") for name in sheet(tiny_data, only=["val"]).shown)
    assert len(sheet(tiny_data, count=2).shown) == 2


def test_a_swapped_class_changes_the_sheet(tiny_data: Path) -> None:
    """Predictions are drawn beside the truth: of the truth itself, both pictures are the same; else they differ."""
    ids = {}

    def truth(item):
        ids[item.name] = np.asarray(Image.open(item.mask))
        return ids[item.name]

    def swapped(item):
        return np.where(truth(item) == 1, 2, np.where(truth(item) == 2, 1, truth(item))).astype(np.uint8)

    right, wrong = (np.asarray(sheet(tiny_data, count=2, predict=one).image, dtype=int) for one in (truth, swapped))
    assert right.shape == wrong.shape and right.shape[1] > 1.4 * sheet(tiny_data, count=2).image.width
    assert (np.abs(right - wrong).max(axis=2) > 60).mean() > 0.01


def test_what_cannot_be_read_is_told(tiny_data: Path, make_data, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 3})
    (data / "masks" / "train" / "train0.png").write_bytes(b"nothing")
    drawn = sheet(data)
    assert len(drawn.shown) == 2 and "train0.png" in drawn.unreadable[0]
    with pytest.raises(ValueError, match="the prediction is 3x2; expected"):
        sheet(data, predict=lambda item: np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="0 pictures; expected 1 or more"):
        sheet(data, count=0)
    for path in (data / "masks" / "train").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no mask can be read"):
        sheet(data)


def test_names_are_written_in_their_regions() -> None:
    labels = Labels(("background", "a", "b"), voc_palette(3))
    image, mask = np.full((200, 300, 3), 90, np.uint8), np.zeros((200, 300), np.uint8)
    mask[20:180, 20:140], mask[0:3, 290:] = 1, 2
    plain, named = (np.asarray(overlay(image, mask, labels, legend=False, names=names)) for names in (False, True))
    rows, columns, _ = np.nonzero(plain != named)
    assert 80 < rows.mean() < 120 and 60 < columns.mean() < 100, "in the middle of a; b is too small for a name"
