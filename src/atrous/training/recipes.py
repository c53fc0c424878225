"""The named recipes: the paper's and ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from atrous.messages import did_you_mean
from atrous.training.config import Recipe, override
from atrous.yaml_io import parse_yaml

MAX_RECIPE_BYTES = 1 << 20
VOC_HARD_CLASSES = ("bicycle", "chair", "diningtable", "pottedplant", "sofa")
"""Section 4.3: the classes whose images are duplicated."""


def _over(base: Recipe, **settings: Any) -> Recipe:
    return override(base, settings)


_VOC = _over(Recipe(), val_pad_to=513)  # section 4.1: crops of 513 in training and test


_CAMVID = _over(
    Recipe(), backbone="timm/tf_efficientnet_lite0", multi_grid=None, train_split="train", crop=(353, 353),
    scales=(0.43, 1.14), longest_side=840, color_jitter=0.3,
    class_weights=(0.5, 0.45, 2.1, 0.4, 1.0, 0.7, 2.0, 2.0, 0.9, 2.6, 3.5), batch_size=8, iterations=2_400,
    optimizer="adamw", lr=5e-4, warmup=50, head_lr_factor=4.0, weight_decay=0.02, batch_norm_decay=0.99,
    ema_decay=0.998, val_every=200, save_every=100,
)  # fmt: skip


_CAMVID_LITE2 = _over(
    _CAMVID, backbone="timm/tf_efficientnet_lite2", longest_side=None, scales=(0.75, 2.0), amp="bf16", iterations=2_200,
    val_every=400,
)  # fmt: skip


# VOC's classes from a few hundred labelled photographs, and a split `pseudo` that a teacher labelled (`atrous label`).
_OBJECTS = _over(
    _CAMVID, backbone="timm/tf_efficientnet_lite2", train_split="train*2+pseudo", repeat_factor_threshold=0.1,
    class_weights=None, scales=(0.5, 1.25), longest_side=640, color_jitter=0.4, lr=4e-4, head_lr_factor=5.0,
    amp="bf16", iterations=2_300, val_every=460,
)  # fmt: skip


# The same from a published graph that knows these classes, which is given by --weights PATH where it lies elsewhere.
_OBJECTS_MOBILENET = _over(
    _OBJECTS, backbone="timm/mobilenetv2_100", aspp_rates=(), weights="deeplabv3_mnv2_pascal_quant.tflite", crop=417,
    scales=(0.5, 1.5), color_jitter=0.3, lr=4e-5, head_lr_factor=2.0, warmup=30, batch_norm="statistics", amp="off",
    ema_decay=0.98, iterations=400, val_every=100,
)  # fmt: skip


# Streets from a published graph that knows Cityscapes' classes: its backbone and head, and for each class of CamVid the
# row of its classifier that comes nearest (bicyclist: rider).
_CAMVID_EDGETPU = _over(
    _CAMVID, backbone="timm/mobilenet_edgetpu_075", aspp_rates=(), batch_norm="statistics", crop=449, scales=(0.6, 1.5),
    weights="deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite", longest_side=960, color_jitter=0.5,
    classes_from=(10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12), lr=1e-4, head_lr_factor=2.0, warmup=30, ema_decay=0.99,
    iterations=500, schedule_iterations=700,
)  # fmt: skip


# The same from weights that the package carries and that know no street: what `finetune` follows from.
_CAMVID_MOBILENET = _over(
    _CAMVID, backbone="timm/mobilenetv2_100", reset_head=True, batch_norm="head", weights="objects-mobilenetv2",
    lr=3e-4, warmup=30, ema_decay=0.99, iterations=1_000,
)  # fmt: skip


_FOLDER = _over(_CAMVID, class_weights=None, scales=(0.75, 2.0), longest_side=None)


def _second_stage(first: str, base: Recipe, split: str, lr: float, **changes: Any) -> Recipe:
    """Section 4.1's second stage: output stride 8 and batch norm frozen, from the first's weights.

    It trains on the validation images, too, so that there is nothing left to validate on.
    """
    return _over(
        base, weights=f"runs/{first}", train_split=split, val_split=None, output_stride=8, batch_norm="freeze", lr=lr,
        warmup=0, **changes,
    )  # fmt: skip


RECIPES: dict[str, Recipe] = {
    # Section 4.1: trainaug at output stride 16, then trainval at 8 with batch norm frozen, from the first's weights.
    "voc-resnet101": _VOC,
    "voc-resnet101-trainval": _second_stage("voc-resnet101", _VOC, "trainval", 0.001),
    # Section 4.3: COCO, then VOC at a rate of 0.0001, then trainval with the images of hard classes duplicated. The
    # paper says the rate of fine-tuning on VOC once, so both stages have it; the protocol
    # on COCO is section 4.1's. COCO's trainval_minus_minival has been called train since 2017.
    "coco-resnet101": _over(_VOC, train_split="train", val_pad_to=None),
    "voc-resnet101-coco": _over(_VOC, lr=0.0001, weights="runs/coco-resnet101"),
    "voc-resnet101-test": _second_stage("voc-resnet101-coco", _VOC, "trainval", 0.0001, bootstrap=VOC_HARD_CLASSES),
    # Appendix C: train_fine, 90K steps, crops of 769, whole images in test; then "further" on trainval_coarse, for how
    # many steps and at which learning rate it does not say: the same again is our reading.
    "cityscapes-resnet101": _over(Recipe(), train_split="train", crop=769, iterations=90_000),
    "cityscapes-resnet101-coarse": _over(
        Recipe(), train_split="train+val+train_extra", val_split=None, crop=769, iterations=90_000,
        weights="runs/cityscapes-resnet101",
    ),
    # The weights that the package carries, and the second stage on CamVid.
    "camvid-efficientnet_lite0": _CAMVID,
    "camvid-efficientnet_lite0-trainval": _second_stage("camvid-efficientnet_lite0", _CAMVID, "train+val", 7e-5),
    # The larger one: pictures as they are first, then enlarged. The second stage was chosen on val, trained on train.
    "camvid-efficientnet_lite2": _CAMVID_LITE2,
    "camvid-efficientnet_lite2-trainval": _over(
        _CAMVID_LITE2, weights="runs/camvid-efficientnet_lite2", train_split="train+val", val_split=None,
        longest_side=840, scales=(0.75, 1.35), crop=(449, 449), lr=1.5e-4, warmup=30, ema_decay=0.99, iterations=500,
    ),
    "camvid-mobilenet_edgetpu_075": _CAMVID_EDGETPU,
    "camvid-mobilenet_edgetpu_075-trainval": _second_stage(
        "camvid-mobilenet_edgetpu_075", _CAMVID_EDGETPU, "train+val", 5e-5, classes_from=(), ema_decay=0.97,
        iterations=140, schedule_iterations=280,
    ),
    "camvid-mobilenetv2": _CAMVID_MOBILENET,
    "objects-efficientnet_lite2": _OBJECTS,
    "objects-mobilenetv2": _OBJECTS_MOBILENET,
    # A folder of one's own, with any classes: alone, its second stage, or from a run on other data (its head anew).
    "folder-efficientnet_lite0": _FOLDER,
    "folder-efficientnet_lite0-trainval": _second_stage("folder-efficientnet_lite0", _FOLDER, "train+val", 7e-5),
    "folder-efficientnet_lite0-pretrained": _over(
        _FOLDER, lr=1e-4, weights="camvid-efficientnet_lite0", reset_head=True
    ),
}  # fmt: skip
"""The named recipes."""


def load_recipe(source: str | Path) -> Recipe:
    """A named recipe, or one read from a YAML file, whose keys stand over a named one's (``base:``) or the defaults.

    Raises:
        ValueError: for a name or key that there is not, with the nearest; for a value of the wrong kind.
    """
    if str(source) in RECIPES:
        return RECIPES[str(source)]
    path = Path(source)
    if not os.path.isfile(path):  # unlike Path's, false for a name too long for any file
        raise ValueError(f"there is no recipe {str(source)!r}{did_you_mean(str(source), [*RECIPES, 'finetune'])}")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected a recipe of at most {MAX_RECIPE_BYTES}")
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds {type(raw).__name__}, expected keys and values of a recipe")
    base = raw.pop("base", None)
    try:
        if base is not None and (not isinstance(base, str) or base not in RECIPES):
            raise ValueError(f"base: there is no recipe {base!r}{did_you_mean(str(base), RECIPES)}")
        return override(RECIPES[base] if base is not None else Recipe(), raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
