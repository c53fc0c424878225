"""Joined splits, bootstrapping, repeat-factor sampling: against hand counts and VOC 2012's own statistics."""

from __future__ import annotations

import io
import math
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.labels import VOC, Labels
from atrous.data.sampling import bootstrap_factors, open_splits, repeat_factors, repeated
from atrous.training import loader as training
from atrous.training.config import Recipe, override
from atrous.training.recipes import VOC_HARD_CLASSES

VOC_FOLDER = Path(__file__).parents[3] / "shared" / "data" / "voc2012"

# The published statistics of PASCAL VOC 2012's segmentation task: images of train that hold each class.
VOC_TRAIN_IMAGES = {
    "aeroplane": 88, "bicycle": 65, "bird": 105, "boat": 78, "bottle": 87, "bus": 78, "car": 128, "cat": 131,
    "chair": 148, "cow": 64, "diningtable": 82, "dog": 121, "horse": 68, "motorbike": 81, "person": 442,
    "pottedplant": 82, "sheep": 63, "sofa": 93, "train": 83,
}  # fmt: skip

LABELS = Labels(("ground", "red", "green", "blue"), ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)), 255)
PRESENCE = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]], dtype=bool)


def test_joined_splits_hold_each_as_often_as_asked(tiny_data: Path) -> None:
    joined = open_splits(tiny_data, "train*2+val")
    counts = Counter(joined.names)
    assert {name: counts[name] for name in counts} == {
        **{f"train{i}": 2 for i in range(8)},
        **{f"val{i}": 1 for i in range(4)},
    }
    assert joined[19].name == "val3"


@pytest.mark.parametrize("splits", ["train*0", "train*x", "train*-1", "train*", "nothing", "train+nothing", "+train"])
def test_splits_that_are_none_are_refused(tiny_data: Path, splits: str) -> None:
    with pytest.raises(ValueError, match="split"):
        open_splits(tiny_data, splits)


def test_bootstrapping_duplicates_the_images_of_hard_classes() -> None:
    assert bootstrap_factors(PRESENCE, LABELS, ("green", "blue"), 2).tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"names gren; the classes are ground, red, green, blue"):
        bootstrap_factors(PRESENCE, LABELS, ("gren",), 2)


def test_repeat_factors_are_those_of_the_definition() -> None:
    # Shares of the images: 1, 1/2, 1/4, 1/4.
    expected = [1, 1, math.sqrt(0.36 / 0.25), math.sqrt(0.36 / 0.25)]
    np.testing.assert_allclose(repeat_factors(PRESENCE, 0.36), expected, rtol=1e-12)
    assert repeat_factors(PRESENCE, 0.0).tolist() == [1, 1, 1, 1]
    nowhere = np.pad(PRESENCE, ((0, 0), (0, 1)))
    np.testing.assert_allclose(repeat_factors(nowhere, 0.36), expected, rtol=1e-12)


def test_a_fraction_is_a_chance_drawn_once(tiny_data: Path) -> None:
    dataset = open_splits(tiny_data, "train*500")
    factors = np.full(len(dataset), 2.25)
    once, again = repeated(dataset, factors, seed=3), repeated(dataset, factors, seed=3)
    assert once.names == again.names != repeated(dataset, factors, seed=4).names
    # 4,000 draws with a chance of 1/4: a standard deviation of 0.0068.
    assert len(once) / len(dataset) == pytest.approx(2.25, abs=0.03)
    assert repeated(dataset, np.ones(len(dataset))).names == dataset.names


def test_vocs_hard_classes_on_its_real_masks() -> None:
    archive = VOC_FOLDER / "SegmentationClass.tar"
    if not archive.is_file():
        pytest.skip(f"VOC's masks are not at {archive}")
    wanted = (VOC_FOLDER / "train.txt").read_text().split()
    presence = np.zeros((len(wanted), len(VOC)), dtype=bool)
    with tarfile.open(archive) as tar:
        for row, name in enumerate(wanted):
            member = tar.extractfile(f"SegmentationClass/{name}.png")
            assert member is not None
            counts = Image.open(io.BytesIO(member.read())).histogram()
            presence[row] = np.array(counts[: len(VOC)]) > 0
    actual = dict(zip(VOC.names, presence.sum(axis=0).tolist(), strict=True))
    assert {name: actual[name] for name in VOC_TRAIN_IMAGES} == VOC_TRAIN_IMAGES
    factors = bootstrap_factors(presence, VOC, VOC_HARD_CLASSES, 2)
    assert (len(wanted), int(factors.sum())) == (1464, 1464 + int((factors == 2).sum()))
    hard = {i for name in VOC_HARD_CLASSES for i in np.flatnonzero(presence[:, VOC.names.index(name)])}
    assert set(np.flatnonzero(factors == 2)) == hard


def test_a_recipe_lengthens_the_epoch(tiny_data: Path, tiny: Recipe) -> None:
    dataset = open_splits(tiny_data, "train")
    presence = training.check_masks(dataset)
    ids = [set(np.unique(dataset[i].mask)) - {255} for i in range(len(dataset))]
    assert [set(np.flatnonzero(row)) for row in presence] == ids
    longer = training.sampled(
        dataset, presence, override(tiny, {"bootstrap": ("blue",), "bootstrap_times": 3}).data, None, 0
    )
    assert Counter(longer.names) == {f"train{i}": 3 if 3 in actual else 1 for i, actual in enumerate(ids)}
    assert training.sampled(dataset, presence, tiny.data, None, 0).names == dataset.names


def test_auto_takes_the_classes_of_lowest_iou(trained: Path, tiny: Recipe) -> None:
    from atrous.models.weights import read_card, resolve

    by_class = read_card(resolve(trained)).metrics["val"]["iou"]
    recipe = override(tiny, {"bootstrap": "auto", "weights": str(trained)})
    assert training.hardest_classes(recipe.model.weights, count=2) == tuple(
        sorted(by_class, key=lambda name: by_class[name])[:2]
    )
    with pytest.raises(ValueError, match="expected weights of a run"):
        training.hardest_classes("imagenet")


def test_the_same_masks_are_read_once(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_splits(tiny_data, "train*3")
    read = []
    original = dataset.read_checked
    monkeypatch.setattr(dataset, "read_checked", lambda item, size: read.append(item.name) or original(item, size))
    assert training.check_masks(dataset).shape == (24, 4)
    assert sorted(read) == sorted(open_splits(tiny_data, "train").names)
