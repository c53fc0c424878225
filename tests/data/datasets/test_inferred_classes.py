"""Masks without names: what their values are taken for, how that is said, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from atrous.data.checks.validate import check
from atrous.data.datasets.array_mask import read_values
from atrous.data.datasets.dataset import kind_of, list_split, open_dataset
from atrous.data.datasets.inferred_classes import MOST_READ
from atrous.data.datasets.options import DatasetOptions
from formats import FORMATS
from own_data import ids, photo, stored, text

pytestmark = pytest.mark.filterwarnings("ignore:.*no names of classes", "ignore:.*no split there")


def put(root: Path, values: np.ndarray, suffix: str = ".png", name: str = "masks/a") -> Path:
    photo(root / "images" / "a.jpg", size=values.shape[:2])
    stored(root / f"{name}{suffix}", values)
    return root


@pytest.mark.parametrize(
    ("values", "names", "expected", "said"),
    [
        ([0, 255], ("background", "object"), [0, 1], "0 is background, 255 is object (pixels: 0 (1 pixels), 255 (1"),
        ([0, 1], ("background", "object"), [0, 1], "0 is background, 1 is object"),
        ([0, 128], ("background", "object"), [0, 1], "128 is object"),
        ([0, 1, 255], ("background", "object"), [0, 1, 255], "255 is ignored"),
        ([0, 1, 2], ("background", "class 1", "class 2"), [0, 1, 2], "2 is class 2"),
        ([1, 2, 7], ("class 1", "class 2", "class 7"), [0, 1, 2], "7 is class 7"),
        ([0, 128, 255], ("background", "class 128", "class 255"), [0, 1, 2], "255 is class 255"),
        ([0, 3, 9, 255], ("background", "class 3", "class 9"), [0, 1, 2, 255], "255 is ignored"),
    ],
)
def test_values_become_classes(tmp_path: Path, values: list, names: tuple, expected: list, said: str) -> None:
    put(tmp_path, np.array([values], np.uint8))
    assert kind_of(tmp_path) == "pairs"
    with pytest.warns(UserWarning, match="no names of classes, so that they come from the values in 1 mask"):
        listing = list_split(tmp_path, "all")
    assert listing.labels.names == names and said in listing.read_as
    assert open_dataset(tmp_path, "all")[0].mask.tolist() == [expected]


def test_the_lines_that_are_proposed_say_the_same(tmp_path: Path) -> None:
    put(tmp_path, np.array([[0, 255]], np.uint8))
    read_as = list_split(tmp_path, "all").read_as
    names, mapped, binary = read_as.split("such as `")[1].replace("`, or with `", "` with `")[:-1].split("` with `")
    text(tmp_path / "dataset.yaml", f"{names}\n{mapped}\n")
    assert kind_of(tmp_path) == "folder" and open_dataset(tmp_path, "all")[0].mask.tolist() == [[0, 1]]
    text(tmp_path / "dataset.yaml", f"{binary}\n")
    assert open_dataset(tmp_path, "all")[0].mask.tolist() == [[0, 255]]
    text(tmp_path / "dataset.yaml", "names: [background, object]\n")  # which leaves 255 to be ignored
    assert open_dataset(tmp_path, "all")[0].mask.tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".png", np.uint8), (".bmp", np.uint8), (".gif", np.uint8), (".tif", np.uint8), (".tiff", np.uint16),
        (".png", np.uint16), (".tif", np.int32), (".tif", np.float32), (".npy", np.int64), (".npy", np.float64),
        (".npz", np.uint8), (".npy", np.bool_), (".pgm", np.uint8),
    ],
)  # fmt: skip
def test_masks_of_whole_numbers_are_masks(tmp_path: Path, suffix: str, dtype: type) -> None:
    truth = ids(2, size=(9, 7))
    put(tmp_path, truth.astype(dtype) if dtype in (np.bool_, np.uint8) else truth.astype(dtype) * 200, suffix)
    dataset = open_dataset(tmp_path, "all")
    assert dataset.labels.names == ("background", "object") and np.array_equal(dataset[0].mask.numpy(), truth)


@pytest.mark.parametrize(
    ("values", "suffix", "said"),
    [
        (np.zeros((4, 4), np.uint8), ".jpg", "a mask in JPEG, whose compression changes values; expected PNG"),
        (np.full((4, 4), 0.5, np.float32), ".tif", "16 of 16 values are no whole numbers, such as 0.5; expected ids"),
        (np.full((4, 4), np.nan), ".npy", "no whole numbers, such as nan"),
        (np.zeros((4, 4, 5), np.uint8), ".npy", r"an array of shape \(4, 4, 5\); expected H,W: one band a class"),
        (np.zeros(4), ".npy", r"shape \(4,\); expected H,W"),
        (np.array([["a"]]), ".npy", "an array of <U1; expected whole numbers"),
        (np.array([[None]]), ".npy", "Python objects in dtype"),
        (np.zeros((4, 4, 4), np.uint8), ".png", "a mask with transparent pixels"),
        (
            np.arange(256, dtype=np.uint8).reshape(16, 16),
            ".png",
            "256 values in 1 mask, .*: shades of gray, as of masks",
        ),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path: Path, values: np.ndarray, suffix: str, said: str) -> None:
    photo(tmp_path / "images" / "a.jpg")
    stored(tmp_path / "masks" / f"a{suffix}", values)
    with pytest.raises(ValueError, match=said) as caught:
        list_split(tmp_path, "all")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_blurred_edges_are_refused_with_the_line_that_mends_them(tmp_path: Path) -> None:
    square = np.zeros((90, 90), np.uint8)
    square[30:60, 30:60] = 255
    blurred = np.asarray(Image.fromarray(square).filter(ImageFilter.GaussianBlur(1)))
    put(tmp_path, blurred)
    with pytest.raises(ValueError, match="shades of gray, as of masks that were resized smoothly .* threshold them"):
        open_dataset(tmp_path, "all")
    path = tmp_path / "masks" / "a.png"
    Image.open(path).convert("L").point(lambda v: 255 * (v > 127)).save(path)
    assert np.array_equal(open_dataset(tmp_path, "all")[0].mask.numpy() == 1, blurred > 127)


def test_colours_become_classes(tmp_path: Path) -> None:
    colours = np.array([[[0, 0, 0], [200, 9, 9], [9, 200, 9], [224, 224, 192]]], np.uint8)
    put(tmp_path, colours)
    listing = list_split(tmp_path, "all")
    assert listing.labels.names == ("background", "class 1", "class 2")
    assert (
        listing.labels.palette[1:] == ((9, 200, 9), (200, 9, 9))
        and "a label_colors.txt there names them" in listing.read_as
    )
    assert open_dataset(tmp_path, "all")[0].mask.tolist() == [[0, 2, 1, 255]]


def test_gray_as_rgb_and_gifs_of_other_palettes_are_values(tmp_path: Path) -> None:
    put(tmp_path, np.repeat(np.array([[0, 255]], np.uint8)[:, :, None], 3, axis=2))
    photo(tmp_path / "images" / "b.jpg", size=(1, 2))
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "masks" / "b.gif")  # whose index 0 is white
    dataset = open_dataset(tmp_path, "all")
    assert [mask.tolist() for _, _, mask in dataset] == [[[0, 1]], [[1, 0]]]


def test_a_value_that_only_unread_masks_have_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_READ == 1000
    monkeypatch.setattr("atrous.data.datasets.inferred_classes.MOST_READ", 1)
    put(tmp_path, np.array([[0, 1]], np.uint8))
    photo(tmp_path / "images" / "b.jpg", size=(1, 2))
    stored(tmp_path / "masks" / "b.png", np.array([[0, 7]], np.uint8))
    listing = list_split(tmp_path, "all")
    assert "in 1 of 2 masks" in listing.read_as
    with pytest.raises(ValueError, match=r"b\.png: values 7 \(1 pixels\), which no mask had .* name the classes in"):
        open_dataset(tmp_path, "all")[1]


def test_the_splits_have_the_same_classes(tmp_path: Path) -> None:
    for split, values in (("train", [0, 1, 2]), ("val", [0, 1, 1])):
        photo(tmp_path / split / "images" / "a.jpg", size=(1, 3))
        stored(tmp_path / split / "masks" / "a.png", np.array([values], np.uint8))
    assert open_dataset(tmp_path, "train").labels == open_dataset(tmp_path, "val").labels


def test_a_real_export_of_binary_masks_is_read_to_the_pixel() -> None:
    if not FORMATS.is_dir():
        pytest.skip("no shared/formats beside the repository")
    dataset = open_dataset(FORMATS / "binary-gif-masks", "all")
    assert dataset.labels.names == ("background", "object") and len(dataset) == 5
    for name, _, mask in dataset:
        assert np.array_equal(mask.numpy(), np.array(Image.open(FORMATS / "truth" / f"{name}.png")) > 0)


@settings(max_examples=60)
@given(st.binary(max_size=30), st.integers(0, 160), st.sampled_from([".npy", ".npz", ".tif", ".gif"]))
def test_no_damaged_mask_is_more_than_a_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int, suffix: str
) -> None:
    path = stored(tmp_path_factory.mktemp("mask") / f"a{suffix}", ids(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + content + whole[place + len(content) :])
    try:
        assert read_values(path).ndim in (2, 3)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_blurred_edges_of_several_classes_are_refused_and_many_spread_values_are_not(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 10:40], mask[40:55, 40:70] = 100, 200
    put(tmp_path / "blurred", np.asarray(Image.fromarray(mask).resize((120, 90), Image.Resampling.BILINEAR)))
    with pytest.raises(ValueError, match=r"at edges alone, not inside \(0, 100, 200\): shades of gray"):
        open_dataset(tmp_path / "blurred", "all")
    spread = np.repeat(np.repeat(np.arange(0, 252, 12, dtype=np.uint8).reshape(3, 7), 9, 0), 9, 1)
    put(tmp_path / "spread", spread)
    assert len(open_dataset(tmp_path / "spread", "all").labels) == 21


def test_one_class_and_an_ignored_value_are_not_two_backgrounds(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 10:40] = 255
    put(tmp_path, mask)
    line = check(tmp_path, DatasetOptions.parse({"binary": "ignore"})).problems[0]
    assert "if 255 is object and 0 is background, write `names: [background, object]` and `map: {255: 1}`" in line
