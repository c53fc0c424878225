"""One value range for all images of a data set, from training to prediction."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.datasets.dataset import SegmentationDataset, open_dataset
from atrous.data.datasets.options import DatasetOptions
from atrous.data.images.image_io import read_image
from atrous.data.images.samples import GUESSED_BITS, ImageRule
from atrous.data.value_range import SAMPLE, decided

HIGH, WIDE = 20, 30


@pytest.fixture(autouse=True)
def no_guess_was_made_before() -> None:
    GUESSED_BITS.clear()


def put(root: Path, tops: list[int], split: str = "train", kind: str = "png") -> Path:
    """Images of 16 bits whose values end at `tops`, and masks of two classes."""
    for index, top in enumerate(tops):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        values = np.linspace(0, top, HIGH * WIDE).astype(np.uint16).reshape(HIGH, WIDE)
        Image.fromarray(values).save(root / "images" / split / f"{index}.{kind}")
        Image.fromarray((values > top // 2).astype(np.uint8)).save(root / "masks" / split / f"{index}.png")
    (root / "dataset.yaml").write_text("names: [dark, light]")
    return root


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_all_images_are_read_by_the_range_of_the_widest(tmp_path: Path, kind: str) -> None:
    root = put(tmp_path, [4095, 900, 200], kind=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset, said = decided(open_dataset(root, "train"))
        assert dataset.rule == ImageRule((0, 4095))
        assert said.startswith("3 of 3 images looked at have 16 bits and use 0 to 4095 of them, such as ")
        assert [int(image.max()) for _, image, _ in dataset] == [255, 56, 12]
        with pytest.warns(UserWarning, match="--value-range 0,65535"):
            assert read_image(root / "images" / "train" / f"1.{kind}").max() > 200, "alone, it is taken for 10 bits"


def test_what_is_told_is_not_decided(tmp_path: Path) -> None:
    root = put(tmp_path, [4095])
    told = open_dataset(root, "train", DatasetOptions(value_range=(0, 8190)))
    assert decided(told) == (told, "") and int(told[0].image.max()) == 128
    (root / "dataset.yaml").write_text("names: [dark, light]\nvalue_range: [0, 1000]\n")
    assert open_dataset(root, "train").rule.value_range == (0, 1000)
    flat = open_dataset(root, "train", DatasetOptions(value_range=(0, 9)))
    assert flat.rule.value_range == (0, 9), "what is given overrules the file"


def test_16_bits_that_are_used_and_8_bits_need_no_word(tmp_path: Path) -> None:
    dataset, said = decided(open_dataset(put(tmp_path / "wide", [65535, 3000]), "train"))
    assert (dataset.rule.value_range, said) == ((0, 65535), "")
    root = put(tmp_path / "narrow", [200])
    Image.new("RGB", (WIDE, HIGH)).save(root / "images" / "train" / "0.png")
    narrow = open_dataset(root, "train")
    assert decided(narrow) == (narrow, "")
    assert decided(SegmentationDataset([], narrow.labels))[1] == ""


def test_a_sample_is_looked_at_and_broken_files_are_left_to_the_check(tmp_path: Path) -> None:
    root = put(tmp_path, [1000] * 3)
    (root / "images" / "train" / "1.png").write_bytes(b"no image")
    dataset = open_dataset(root, "train")
    assert decided(dataset)[0].rule.value_range == (0, 1023)
    many = dataset.with_items([item._replace(image=tmp_path / f"{i}.png") for item in dataset.items for i in range(99)])
    assert SAMPLE == 64 and decided(many)[1] == "", "none of them is there"
