"""Choose a recipe for a dataset, with the reasons (``atrous train finetune``).

    recipe, reasons = finetune("my-data")

Everything starts from the recipe that gave the best results on a few hundred images (CamVid), and what depends on the
data follows from it: the weights to start from from the names of the classes, the crop from the size of the pictures,
the steps from their number, the weights of the classes from their shares of the pixels, the sampling from their shares
of the images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from atrous.data.datasets.dataset import splits
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.data.datasets.parts import PARTS, is_undivided
from atrous.data.datasets.split import SHARE
from atrous.data.images.image_io import read_size
from atrous.data.labels import names_alike
from atrous.data.sampling import open_splits, pixel_counts
from atrous.evaluation.distributed import pick_device
from atrous.messages import counted, listed
from atrous.models.classifier import is_classifier
from atrous.models.inference import native_dtype
from atrous.models.tflite import is_tflite
from atrous.models.weights import read_card, resolve
from atrous.training.config import Recipe, override
from atrous.training.pace import with_iterations
from atrous.training.recipes import RECIPES

BASE, BASE_IMAGENET = "camvid-mobilenetv2", "camvid-efficientnet_lite0"
"""The recipes that the others follow from, tuned on `_TUNED` images: from weights that segment, and from ImageNet's."""
ANYTHING, STREETS = "objects-mobilenetv2", "camvid-mobilenet_edgetpu_075"
"""The carried weights to start from: they know everyday photographs, and streets."""

_TUNED = 367
_ROADS = frozenset("road street lane pavement sidewalk kerb curb".split())
_STREET = _ROADS.union(
    "building wall fence pole sign light vegetation tree sky terrain car truck bus vehicle motorcycle bicycle bike "
    "pedestrian person rider bicyclist cyclist".split()
)
_FROM_THE_GROUND = frozenset("sky pole sign light sidewalk pavement kerb curb pedestrian person rider".split())
"""What is not seen from the air, where roads and buildings are, too."""
_SMALL, _ENLARGED, _ENLARGEMENT = 600, 840, 1.75
"""Pictures whose longer side is less than the first are enlarged, up to the second: at output stride 16, thin things in
them are smaller than a feature. CamVid's gain 4 points by it (LOG.md), at the same price of a training step."""
_LARGE, _REDUCED = 2000, 1280
"""Pictures whose longer side is more than the first are made smaller: a crop of one shows too little of it."""
_LEAST = 257
"""Pixels that the shorter side must keep for that."""
_RARE = 0.1
_ENOUGH_TO_DIVIDE = 10
"""Images to train on from which some are held back where there is no split to validate on."""
_LARGEST_CROP = 513
_TUNED_SCALES, _TUNED_SHARE = (0.43, 1.14), 0.56
"""On CamVid: about the size that is seen, and the crop's share of the shorter side at that size."""
_SMALLEST_CROP = 65


@dataclass(frozen=True)
class Survey:
    """What the choice rests on.

    Attributes:
        names: of the K classes.
        pixels: of each class in each image, N,K.
        short_side: median of the shorter sides, in pixels.
        long_side: median of the longer sides.
        splits: that are there.
    """

    names: tuple[str, ...]
    pixels: npt.NDArray[np.int64]
    short_side: int
    long_side: int
    splits: tuple[str, ...]


def finetune(
    data: str | Path, weights: str | None = None, options: DatasetOptions = NO_OPTIONS, device: str | None = None
) -> tuple[Recipe, list[str]]:
    """The recipe for a data set, and a line for each choice: what was chosen, and from what.

    Args:
        data: as for `open_dataset`.
        weights: to start from: ``imagenet``, ``none``, or as for `atrous.models.weights.load`; None for those that the
            package carries and that suit the classes.
        options: how the data is to be read; they are in the recipe.
        device: that it is going to run on; None for a GPU where there is one.

    Raises:
        ValueError: if there is no split to train on; and as `open_dataset`, `pixel_counts` and `resolve`.
        FileNotFoundError: likewise.
    """
    there = tuple(splits(data))
    if is_undivided(there):
        there = PARTS  # which `open_splits` divides it into, and says so
    split = next((name for name in ("trainaug", "train") if name in there), there[0] if len(there) == 1 else None)
    if split is None:
        raise ValueError(f"{data} has the splits {', '.join(there)}; expected one named train")
    dataset = open_splits(data, split, options)
    sizes = np.sort([read_size(item.image) for item in dataset.items])
    short, long = (int(side) for side in np.median(sizes, axis=0))
    survey = Survey(dataset.labels.names, pixel_counts(dataset), short, long, there)
    recipe, reasons = choose(survey, split, weights)
    if native_dtype(pick_device(device)) == torch.bfloat16:
        recipe = override(recipe, {"amp": "bf16"})
        reasons.append("bfloat16: this processor computes it faster than float32 (--amp off for float32)")
    return override(recipe, {"options": options}), reasons


def choose(survey: Survey, train_split: str = "train", weights: str | None = None) -> tuple[Recipe, list[str]]:
    """The recipe for what a survey found, with the reasons."""
    base, why = _start(survey, weights)
    images = len(survey.pixels)
    longest, scales = _seen(survey)
    crop, why_crop = _crop_of(survey, longest)
    least = 200 if base.model.from_model else 400
    more = (_LARGEST_CROP / crop) ** 2 if _is_cut(survey, longest) else 1.0
    iterations = int(np.clip(round(base.schedule.iterations * more * (images / _TUNED) ** 0.5, -2), least, 30_000))
    weighted = class_weights(survey.pixels.sum(axis=0))
    rare = _rare(survey)
    val = "val" if "val" in survey.splits and train_split != "val" else None
    held_back = not val and images >= _ENOUGH_TO_DIVIDE
    recipe = override(
        base,
        {
            "train_split": train_split,
            "val_split": val,
            "val_share": SHARE if held_back else 0.0,
            "crop": (crop, crop),
            "scales": scales,
            "longest_side": longest,
            "lr": base.optim.lr if images >= 100 else 0.6 * base.optim.lr,
            "class_weights": weighted,
            "repeat_factor_threshold": _RARE if rare else 0.0,
        },
    )
    recipe = with_iterations(recipe, iterations)
    optim = recipe.optim
    reasons = [
        why,
        _reason_for_size(survey, longest),
        f"crop {crop}, scales {scales[0]} to {scales[1]}: {why_crop}",
        f"{iterations} steps of {optim.batch_size}: {images} images, "
        f"{iterations * optim.batch_size / images:.0f} epochs",
        f"lr {optim.lr:g} with {optim.optimizer}, {optim.head_lr_factor:g} times that for the new layers"
        + ("" if images >= 100 else ": fewer than 100 images, so a smaller one"),
        _reason_for_weights(survey, weighted),
        f"images of {listed(rare, 5)} come more often: each is in fewer than {_RARE:.0%} of the images"
        if rare
        else f"no image comes more often than another: every class is in at least {_RARE:.0%} of the images",
        _reason_for_validation(recipe),
        *_similar_names(survey),
    ]
    return recipe, reasons


def _start(survey: Survey, weights: str | None) -> tuple[Recipe, str]:
    """The recipe that the choice follows from, with the weights to start from, and why these."""
    if weights == "imagenet":
        return RECIPES[BASE_IMAGENET], "starts from ImageNet, as asked for, or since it knows another network"
    if weights == "none":
        return override(RECIPES[BASE_IMAGENET], {"weights": None}), "starts from nothing, as asked for"
    if is_classifier(weights):
        why = f"the backbone starts from {weights}, a classifier of images, as asked for"
        return override(RECIPES[BASE_IMAGENET], {"weights": weights}), why
    if weights is None:
        street = [name for name in survey.names if _words(name) & _STREET]
        seen = frozenset[str]().union(*(_words(name) for name in street))
        streets = 2 * len(street) >= len(survey.names) and bool(seen & _ROADS and seen & _FROM_THE_GROUND)
        weights = STREETS if streets else ANYTHING
        licence = read_card(resolve(weights)).licence
        known = f"{len(street)} of {len(survey.names)} classes are a street's" if streets else "everyday photographs"
        why = f"starts from {weights}: {known} ({licence}; --weights imagenet starts from ImageNet)"
    else:
        why = f"starts from {weights}, as asked for"
    if is_tflite(weights):
        raise ValueError(
            f"finetune cannot start from {weights}: batch norm is folded in a TF-Lite graph, which asks for another "
            "recipe: objects-mobilenetv2 and camvid-mobilenet_edgetpu_075 are such"
        )
    told = read_card(resolve(weights)).arguments
    same = ("backbone", "head", "multi_grid", "aspp_pointwise", "image_pooling")
    kept = {key: told[key] for key in same if key in told}
    if told.get("last_block") != (7 if told.get("head") == "cascade" else 4):
        kept["last_block"] = told.get("last_block")
    kept["aspp_rates"] = told.get("aspp_rates") or list(RECIPES[BASE].model.aspp_rates)
    if told.get("last_conv"):  # 3×3 branches of so many channels would cost twice what the rest of a step does
        kept["aspp_rates"] = told.get("aspp_rates")
    return override(RECIPES[BASE], {**kept, "weights": weights}), why


def _reason_for_validation(recipe: Recipe) -> str:
    every = f"every {recipe.run.val_every} steps; the best weights are kept"
    if recipe.data.val_split:
        return f"validation on val {every}"
    if recipe.data.val_share:
        share = f"{recipe.data.val_share:.0%} of {recipe.data.train_split} are held back for it"
        return f"no split named val: {share}, named in split.json of the run (--set val_share=0 trains on all); {every}"
    return "no split named val, so nothing is validated and the last weights are kept"


def _similar_names(survey: Survey) -> list[str]:
    """A line for classes that are probably one, written in two ways."""
    seen = (survey.pixels > 0).sum(axis=0)
    groups = [[f"{survey.names[i]!r} ({counted(int(seen[i]), 'image')})" for i in group]
              for group in names_alike(survey.names)]  # fmt: skip
    advice = "are trained as different classes, though their names differ in case or spaces alone"
    return [f"{' and '.join(group)} {advice} (atrous data check says how to join them)" for group in groups]


def _words(name: str) -> set[str]:
    """Of a class's name, in lower case, plurals as singulars: ``TrafficSigns`` is traffic and sign."""
    parts = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return {*parts, *(part.removesuffix("s") for part in parts)}


def class_weights(pixels: Sequence[int] | npt.NDArray[np.int64]) -> tuple[float, ...] | None:
    """Weights of the loss by the square root of median-frequency balancing (Eigen and Fergus 2015), or None.

    The square root, because the whole of it costs more on the common classes than the rare ones gain. None where no
    class has four times the pixels of another.

    Args:
        pixels: of each class, K. A class without any has weight 1.
    """
    counts = np.asarray(pixels, dtype=np.float64)
    present = counts[counts > 0]
    if len(present) < 2 or present.max() < 4 * present.min():
        return None
    weights = np.sqrt(np.median(present) / np.where(counts > 0, counts, np.median(present))).clip(0.3, 4.0)
    return tuple(round(float(weight), 2) for weight in weights)


def _seen(survey: Survey) -> tuple[int | None, tuple[float, float]]:
    """The longest side that the network sees pictures at, None for as they are, and the range of scales about it."""
    if survey.long_side < _SMALL:
        return min(_ENLARGED, round(_ENLARGEMENT * survey.long_side)), _TUNED_SCALES
    if survey.long_side > _LARGE and survey.short_side * _REDUCED > _LEAST * survey.long_side:
        return _REDUCED, (0.75, 2.0)
    if _is_cut(survey, None):
        return None, _TUNED_SCALES
    return None, (0.5, 2.0) if survey.short_side >= 1.5 * _crop(survey.short_side) else (0.75, 2.0)


def _is_cut(survey: Survey, longest: int | None) -> bool:
    """Whether pictures are seen as they are, and are somewhat larger than the largest crop, so that it would cut them.

    Smaller crops show as much of them where they are made smaller as well, and cost half as much. So there are more.
    """
    return longest is None and _LARGEST_CROP < survey.short_side <= _LARGEST_CROP / _TUNED_SHARE


def _crop_of(survey: Survey, longest: int | None) -> tuple[int, str]:
    """The side of the crops, and why."""
    if longest is not None and longest > survey.long_side:
        why = f"as for the pictures of {survey.long_side} pixels, so that a step costs no more"
        return _crop(survey.short_side), why
    if _is_cut(survey, longest):
        share = f"{_TUNED_SHARE:.0%} of the shorter side, {survey.short_side} (median)"
        why = f"{share}: smaller crops cost less, so there are more"
        return _crop(_TUNED_SHARE * survey.short_side), why
    seen = f", {survey.short_side * longest // survey.long_side} as seen" if longest else ""
    why = f"the shorter side of the pictures is {survey.short_side} (median{seen}), and a crop larger than the picture "
    shrunk = longest / survey.long_side if longest else 1.0
    return _crop(survey.short_side * shrunk), why + "would be padding"


def _crop(short_side: float) -> int:
    """A crop of 16 k + 1 pixels within the picture."""
    return int(np.clip((short_side - 1) // 16 * 16 + 1, _SMALLEST_CROP, _LARGEST_CROP))


def _reason_for_size(survey: Survey, longest: int | None) -> str:
    if longest is None:
        return f"pictures as they are: their longer side is {survey.long_side} (median)"
    why = "thin things would be lost" if longest > survey.long_side else "a crop would show too little of them"
    return f"pictures are resized to a longest side of {longest}, now {survey.long_side} (median): {why}"


def _rare(survey: Survey) -> list[str]:
    share = (survey.pixels > 0).mean(axis=0)
    return [name for name, value in zip(survey.names, share, strict=True) if 0 < value < _RARE]


def _reason_for_weights(survey: Survey, weights: tuple[float, ...] | None) -> str:
    if weights is None:
        return "no weights of classes: none has four times the pixels of another"
    total = survey.pixels.sum(axis=0)
    order = [int(i) for i in np.argsort(total) if total[i]]
    least, most = order[0], order[-1]
    return (
        f"classes weighted from {min(weights)} to {max(weights)}: {survey.names[most]} has "
        f"{total[most] / total.sum():.1%} of the pixels, {survey.names[least]} {total[least] / total.sum():.2%}"
    )
