"""The mask of each image by its name, and the folders that hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from atrous.data.datasets.pairing import paired
from own_data import ids, photo, stored, text

pytestmark = pytest.mark.filterwarnings("ignore:.*no names of classes", "ignore:.*no split there")
WORDS = ["mask", "Mask", "masks", "label", "labels", "seg", "segmentation", "gt", "L", "annotation", "ground_truth"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("form", ["x 1_{}.png", "x 1-{}.png", "{}_x 1.png", "x 1.{}.png", "x 1.jpg.png"])
def test_words_that_say_mask_are_left_out(word: str, form: str) -> None:
    mask = form.format(word)
    assert paired(["x 1.jpg", "y.jpg"], [mask, "y.png"]).pairs == [("x 1", "x 1.jpg", mask), ("y", "y.jpg", "y.png")]


@pytest.mark.parametrize(
    ("image", "mask"),
    [("img_1.jpg", "mask_1.png"), ("image1.jpg", "mask1.png"), ("7_sat.jpg", "7_mask.png"), ("IMG_1.JPG", "img_1.png"),
     ("a/1_image.jpg", "a/1_gt.png"), ("x.tif", "x.npy"), ("12_training.tif", "12_manual1.gif")],
)  # fmt: skip
def test_words_that_say_image_are_left_out(image: str, mask: str) -> None:
    assert [pair[1:] for pair in paired([image], [mask]).pairs] == [(image, mask)]


def test_the_same_stem_comes_before_a_word_that_is_left_out() -> None:
    pairing = paired(["a.png", "a_L.png", "a_R.png"], ["a_L.png", "a_R.png"])
    assert [pair[1:] for pair in pairing.pairs] == [("a_L.png", "a_L.png"), ("a_R.png", "a_R.png")]
    assert pairing.unmasked == ["a.png"] and not pairing.orphans


def test_several_masks_of_an_image_and_several_images_of_a_mask_are_said() -> None:
    assert paired(["a.jpg"], ["a_mask.png", "a_gt.png"]).ambiguous == ["a_mask.png and a_gt.png are masks of a.jpg"]
    assert paired(["a.jpg", "a.png"], ["a.png"]).ambiguous == ["a.jpg and a.png have the same stem"]
    assert "is the mask of" in paired(["img_1.jpg", "rgb_1.jpg"], ["mask_1.png"]).ambiguous[0]


NAMES = st.lists(st.text("ab_-. éL", min_size=1, max_size=8).map(lambda name: f"{name}.png"), max_size=12, unique=True)


@given(NAMES, NAMES)
def test_no_file_is_lost(images: list[str], masks: list[str]) -> None:
    pairing = paired(images, masks)
    assert len({mask for _, _, mask in pairing.pairs}) == len(pairing.pairs)
    assert {*masks} >= {*pairing.orphans} | {mask for _, _, mask in pairing.pairs}
    said = " ".join(pairing.ambiguous)
    for image in images:
        assert image in pairing.unmasked or image in said or any(image == pair[1] for pair in pairing.pairs)


@pytest.mark.parametrize(
    ("image", "mask", "split"),
    [
        ("images/x.jpg", "masks/x.png", "all"),
        ("IMAGES/x.JPG", "Masks/x.PNG", "all"),
        ("imgs/x.jpg", "Ground Truth/x.png", "all"),
        ("image/x.jpg", "segmentation/x_seg.png", "all"),
        ("img_dir/train/x.jpg", "ann_dir/train/x.png", "train"),
        ("images/Training/x.jpg", "labels/Training/x.png", "train"),
        ("validation/Images/x.jpg", "validation/Labels/x.png", "val"),
        ("train_images/x.jpg", "train_masks/x.png", "train"),
        ("images-val/x.jpg", "masks-val/x.png", "val"),
        ("train/x.jpg", "train_masks/x_mask.gif", "train"),
        ("images/scene 1/x.jpg", "masks/scene 1/x.png", "all"),
        ("x.jpg", "x_mask.png", "all"),
        ("train/x.jpg", "train/x-seg.png", "train"),
        ("test/x.jpg", "test/mask_x.png", "test"),
        ("My data/export/images/x.jpg", "My data/export/gt/x.png", "all"),
    ],
)
def test_arrangements_of_folders(tmp_path: Path, image: str, mask: str, split: str) -> None:
    photo(tmp_path / image)
    stored(tmp_path / mask, ids(3))
    assert kind_of(tmp_path) == "pairs" and splits(tmp_path) == [split]
    dataset = open_dataset(tmp_path, split)
    assert len(dataset) == 1 and dataset[0].mask.unique().tolist() == [0, 1, 2]


def test_masks_that_come_after_thousands_of_images_are_found(tmp_path: Path) -> None:
    for number in range(2100):
        (tmp_path / f"img_{number:04d}.jpg").touch()
    photo(tmp_path / "img_2100.jpg")
    stored(tmp_path / "mask_2100.png", ids(3))
    assert kind_of(tmp_path) == "pairs" and len(list_split(tmp_path, "all").items) == 1


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / "images" / f"{name}.jpg")
        stored(tmp_path / "masks" / f"{name}.png", ids(3))
    stored(tmp_path / "masks" / "lost.png", ids(3))
    text(tmp_path / "images" / "notes.json", "{}")
    stored(tmp_path / "labels" / "a.png", ids(3))
    listing = list_split(f"pairs:{tmp_path}", "all")
    assert any("b" in line and "no mask in" in line for line in listing.problems)  # labels comes before masks
    (tmp_path / "labels" / "a.png").unlink()
    listing = list_split(tmp_path, "all")
    assert listing.problems == () and len(listing.items) == 2
    assert [line.rpartition("/")[2] for line in listing.warnings] == [
        "masks: 1 masks have no image: lost.png",
        "images: 1 files are no images: notes.json",
    ]


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train.txt": "a\nb\n", "val.txt": "c\n"}, {"train": ["a", "b"], "val": ["c"]}),
        ({"train.txt": "\ufeff/SegNet/images/a.jpg /SegNet/masks/a.png\r\n", "val.txt": "images/c.jpg"},
         {"train": ["a"], "val": ["c"]}),
        ({"valid.txt": "b.jpg"}, {"train": ["a", "c", "d e"], "val": ["b"]}),
        ({"splits/train.txt": "d e\n", "splits/test.txt": "a"}, {"train": ["d e"], "test": ["a"]}),
    ],
)  # fmt: skip
def test_lists_say_which_images_are_of_which_split(tmp_path: Path, lists: dict, expected: dict) -> None:
    for name in ("a", "b", "c", "d e"):
        photo(tmp_path / "images" / f"{name}.jpg")
        stored(tmp_path / "masks" / f"{name}_L.png", ids(3))
    for name, content in lists.items():
        text(tmp_path / name, content)
    assert {split: open_dataset(tmp_path, split).names for split in splits(tmp_path)} == expected
    listing = list_split(tmp_path, next(iter(expected)))
    assert sum(listing.left_out.values()) == 4 - len(listing.items) and not listing.problems + listing.warnings


def test_names_in_a_list_that_no_image_has_are_a_problem(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    stored(tmp_path / "masks" / "a.png", ids(3))
    text(tmp_path / "train.txt", "a\nlost\ngone\n")
    (line,) = list_split(tmp_path, "train").problems
    assert line.endswith("images: 2 names in the list of the split have no image: gone, lost")
    text(tmp_path / "train.txt", "notes on training\n")  # which lists no image
    assert splits(tmp_path) == ["all"]


@pytest.mark.parametrize("name", ["yes", "on", "1e3", "leaf, wet", "café 北", "null"])
def test_names_of_classes_are_text(tmp_path: Path, name: str) -> None:
    photo(tmp_path / "images" / "x.jpg")
    stored(tmp_path / "masks" / "x.png", ids(2))
    text(tmp_path / "labels.txt", f"\ufeffbackground\r\n{name}\r\n")
    assert open_dataset(tmp_path, "all").labels.names == ("background", name)


def test_a_mask_of_another_size_or_an_empty_file_is_named(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "x.jpg", size=(4, 4))
    stored(tmp_path / "masks" / "x.png", ids(2))
    with pytest.raises(ValueError, match=r"x\.png: mask of 8x6; expected 4x4, the size of .*x\.jpg"):
        open_dataset(tmp_path, "all")[0]
    (tmp_path / "masks" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.png: not an image, but empty"):
        open_dataset(tmp_path, "all")


def test_arrays_are_masks_of_named_classes(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "x.jpg")
    stored(tmp_path / "masks" / "x.npy", ids(3).astype(np.int64))
    text(tmp_path / "dataset.yaml", "names: [a, b, c]\n")
    assert np.array_equal(open_dataset(tmp_path, "all")[0].mask, ids(3))
    stored(tmp_path / "masks" / "x.npy", ids(3).astype(np.int64) * 999)
    with pytest.raises(ValueError, match=r"x\.npy: ids 0 to 1998; expected 0\.\.255"):
        open_dataset(tmp_path, "all")[0]


@pytest.mark.parametrize("white_first", [False, True])
def test_indices_of_a_gif_are_ids_where_its_palette_says_so(tmp_path: Path, white_first: bool) -> None:
    photo(tmp_path / "images" / "x.jpg", size=(1, 2))
    text(tmp_path / "labels.txt", "soil\nleaf\n")
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 255, 255, 0, 0, 0] if white_first else [0, 0, 0, 255, 255, 255])
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks" / "x.gif")
    assert open_dataset(tmp_path, "all")[0].mask.tolist() == ([[255, 0]] if white_first else [[0, 1]])


def test_camvid_as_fast_ai_has_it(tmp_path: Path) -> None:
    for name in ("0001TP_1", "0001TP_2"):
        photo(tmp_path / "camvid" / "images" / f"{name}.png")
        stored(tmp_path / "camvid" / "labels" / f"{name}_P.png", ids(3))
    text(tmp_path / "camvid" / "codes.txt", "Animal\nArchway\nBicyclist")
    text(tmp_path / "camvid" / "valid.txt", "0001TP_2.png\n")
    assert [open_dataset(tmp_path, split).names for split in splits(tmp_path)] == [["0001TP_1"], ["0001TP_2"]]
    assert open_dataset(tmp_path, "val").labels.names == ("Animal", "Archway", "Bicyclist")


def test_camvid_as_it_was_published(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [64, 128, 64], [192, 0, 128]], np.uint8)
    photo(tmp_path / "701_StillsRaw_full" / "0001TP_006690.png")
    stored(tmp_path / "LabeledApproved_full" / "0001TP_006690_L.png", colours[ids(3)])
    text(tmp_path / "label_colors.txt", "64 128 64\tAnimal\n192 0 128\t\tArchway\n0 0 0\t\tVoid\n")
    dataset = open_dataset(tmp_path, "all")
    assert dataset.labels.names == ("Animal", "Archway", "Void")
    assert np.array_equal(dataset[0].mask, np.array([2, 0, 1])[ids(3)])


def test_arrays_may_have_more_than_255_classes(tmp_path: Path) -> None:
    truth = np.arange(300).reshape(15, 20)
    photo(tmp_path / "images" / "x.jpg", size=truth.shape)
    text(tmp_path / "labels.txt", "\n".join(f"class {number}" for number in range(300)))
    for suffix, values in ((".npz", truth), (".npy", truth.astype(np.float64)), (".png", truth.astype(np.uint16))):
        path = stored(tmp_path / "masks" / f"x{suffix}", values)
        assert np.array_equal(open_dataset(tmp_path, "all")[0].mask, truth)
        path.unlink()
