"""A recipe says a whole training run (the named ones are in `atrous.training.recipes`).

Frozen dataclasses, and YAML files of the same keys: whoever has a run's recipe and its data can make it again. The
defaults of `Recipe` are the paper's first stage on PASCAL VOC 2012 (section 4.1).
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import yaml

from atrous.models.output_stride import LONGEST_SIDE
from atrous.training.lr_schedule import poly

MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run.

    Attributes:
        backbone: see `atrous.DeepLabV3`, as for the seven after it.
        head: ``aspp`` or ``cascade``.
        last_block: 4 to 7.
        multi_grid: unit rates, or None for ones.
        aspp_rates: at output stride 16.
        aspp_pointwise: ASPP's 1×1 branch.
        image_pooling: ASPP's image-level features.
        stride_in: ``first``, ``last``, or None for the one that goes with the weights.
        weights: ``imagenet``; a named model, a weight file, a run folder or a DeepLab graph of TF-Lite to start from;
            or None.
        reset_head: start the classifier anew, where `weights` are a model's with other classes.
        train_split: of the data; ``train+val`` joins two, ``train*2+pseudo`` has the images of one twice.
        val_split: of the data, or None for no validation.
        bootstrap: classes whose images are duplicated (section 4.1); ``auto`` takes the five of lowest IoU that the
            model in `weights` was measured with.
        bootstrap_times: how often such an image is in an epoch.
        balance: threshold of repeat-factor sampling, the share of images below which a class is rare; 0 for none.
        crop: side, or height and width, of the training crops in pixels.
        scales: range of the random scale.
        longest_side: pictures are brought to it, in pixels, before `scales` and in prediction; None for the pictures as
            they are, as in the paper.
        flip: probability of a left-right flip.
        photometric: strength of random brightness, contrast and saturation; the paper has none.
        class_mix: probability that half of the classes of another crop are laid over a crop; the paper has none.
        output_stride: in training.
        batch: images in one step, over all processes and accumulated parts.
        accumulate: parts that a process's share of the batch is cut into, to fit in memory.
        iterations: steps.
        optimizer: ``sgd`` with momentum, or ``adamw``.
        lr: initial learning rate.
        power: of the "poly" schedule.
        poly_iterations: step at which that schedule reaches 0, or None for `iterations`. A later one ends a training
            while the rate is still high, at a step that turned out best on val: all else being the same, its steps are
            the first of the longer training, to the bit.
        warmup: steps of linear warm-up; the paper has none.
        head_lr_factor: how many times larger the rate of the new layers is.
        momentum: of SGD.
        weight_decay: on convolution weights; never on batch norm and biases where `decay_all` is off.
        decay_all: decay batch norm and biases too.
        batch_norm: ``train``; ``freeze`` it whole (section 4.1, second stage); freeze its ``statistics``; or freeze the
            statistics of the backbone and train all of it in the ``head``.
        batch_norm_decay: of the running statistics.
        upsample_logits: loss at the size of the ground truth; off, on ground truth downsampled (Table 8).
        class_weights: one a class, or None.
        teacher: a named model, weight file or run folder that is distilled from; None for none, as in the paper.
        teacher_weight: share of the loss, 0 to 1, that is the divergence from the teacher's probabilities.
        teacher_temperature: that both logits are divided by for it.
        ema: decay of an exponential moving average of the weights, which is then what is evaluated and kept; 0 for
            none.
        amp: ``off``, ``bf16`` or ``fp16``: automatic mixed precision.
        checkpointing: keep only what enters each unit of the backbone for the backward pass, and compute the rest anew:
            less memory for more time, the same numbers (with frozen batch norm, up to rounding).
        compile: train by ``torch.compile``, for GPUs: a minute or two at the start, the same numbers up to rounding. On
            a CPU it needs a C++ compiler and gains nothing.
        seed: of everything random.
        val_every: steps between validations.
        val_output_stride: of validation, or None for that of training.
        save_every: steps between checkpoints.
    """

    backbone: str = "resnet101"
    head: Literal["aspp", "cascade"] = "aspp"
    last_block: int | None = None
    multi_grid: tuple[int, ...] | None = (1, 2, 4)
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    aspp_pointwise: bool = True
    image_pooling: bool = True
    stride_in: Literal["first", "last"] | None = None
    weights: str | None = "imagenet"
    reset_head: bool = False
    train_split: str = "trainaug"
    val_split: str | None = "val"
    bootstrap: tuple[str, ...] | Literal["auto"] = ()
    bootstrap_times: int = 2
    balance: float = 0.0
    crop: int | tuple[int, int] = 513
    scales: tuple[float, float] = (0.5, 2.0)
    longest_side: int | None = None
    flip: float = 0.5
    photometric: float = 0.0
    class_mix: float = 0.0
    output_stride: int = 16
    batch: int = 16
    accumulate: int = 1
    iterations: int = 30_000
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.007
    power: float = 0.9
    poly_iterations: int | None = None
    warmup: int = 0
    head_lr_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_all: bool = False
    batch_norm: Literal["train", "statistics", "freeze", "head"] = "train"
    batch_norm_decay: float = 0.9997
    upsample_logits: bool = True
    class_weights: tuple[float, ...] | None = None
    teacher: str | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0
    ema: float = 0.0
    amp: Literal["off", "bf16", "fp16"] = "off"
    checkpointing: bool = False
    compile: bool = False
    seed: int = 0
    val_every: int = 1_000
    val_output_stride: int | None = None
    save_every: int = 500

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {lowest}")
        for name in ("flip", "photometric", "ema", "batch_norm_decay", "balance", "teacher_weight", "class_mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        if self.longest_side is not None and not 1 <= self.longest_side <= LONGEST_SIDE:
            raise ValueError(f"longest_side is {self.longest_side}, expected 1 to {LONGEST_SIDE} pixels, or null")
        weights = self.class_weights
        if weights is not None and (min(weights, default=0) < 0 or not any(weights)):
            raise ValueError(f"class_weights is {weights}, expected none below 0 and one above it")
        if not self.teacher_temperature > 0:
            raise ValueError(f"teacher_temperature is {self.teacher_temperature}, expected more than 0")
        if self.seed >= 2**63:
            raise ValueError(f"seed is {self.seed}, expected less than 2**63")
        if self.batch % self.accumulate:
            raise ValueError(f"batch is {self.batch}, expected a multiple of accumulate, {self.accumulate}")
        self._check_end()

    def _check_end(self) -> None:
        last = self.poly_iterations
        if last is not None and last < self.iterations:
            raise ValueError(
                f"poly_iterations is {last}, expected at least the {self.iterations} iterations, or null: "
                "the rate then falls to 0 with the last of them"
            )

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of `crop`."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    def lr_at(self, step: int) -> float:
        """The learning rate after `step` steps, of the layers whose rate is not a multiple of it."""
        return self.lr * poly(step, self.poly_iterations or self.iterations, power=self.power, warmup=self.warmup)

    def to_yaml(self) -> str:
        """As a file that `load_recipe` reads."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return yaml.safe_dump(plain, sort_keys=False)


_LOWEST: dict[str, float] = {
    "batch": 1, "accumulate": 1, "iterations": 1, "val_every": 1, "save_every": 1, "bootstrap_times": 1,
    "seed": 0, "warmup": 0,
    "lr": 0, "power": 0, "head_lr_factor": 0, "weight_decay": 0, "momentum": 0,
}  # fmt: skip


def override(recipe: Recipe, values: Mapping[Any, Any]) -> Recipe:
    """A recipe with other values for some keys.

    Raises:
        ValueError: for an unknown key, with the nearest, or a value of the wrong kind.
    """
    kinds = typing.get_type_hints(Recipe)
    for key in values:
        if key not in kinds:
            raise ValueError(f"a recipe has no key {key!r}{nearest(str(key), kinds)}")
    return replace(recipe, **{key: _fit(key, value, kinds[key]) for key, value in values.items()})


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``key=value`` words, the values read as YAML: ``lr=0.01``, ``scales=[0.75, 2]``, ``multi_grid=null``.

    Raises:
        ValueError: for a word without ``=`` or with a value that is not YAML.
    """
    values = {}
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, found {word!r}")
        try:
            values[key.strip()] = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f"--set {key}: {text!r} cannot be read as a value") from error
    return values


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Every key in which two recipes differ, as ``key: one, other``; a schedule as long as the training is no other."""
    if (one.iterations, one.poly_iterations or one.iterations) == (
        other.iterations,
        other.poly_iterations or other.iterations,
    ):
        other = replace(other, poly_iterations=one.poly_iterations)
    return [
        f"{f.name}: {getattr(one, f.name)}, {getattr(other, f.name)}"
        for f in fields(Recipe)
        if getattr(one, f.name) != getattr(other, f.name)
    ]


def parse_yaml(text: str) -> Any:
    """The plain values that a text stands for.

    Raises:
        ValueError: if it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    # Values that do not go with their tag, such as !!int '', make PyYAML stumble in many ways.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _fit(key: str, value: Any, kind: Any) -> Any:
    """The value as the field's type, or an error that says what was found and what was expected."""
    options = (
        typing.get_args(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
        else (kind,)
    )
    for option in options:
        fitted = _fit_one(value, option)
        if fitted is not _MISFIT:
            return fitted
    expected = " or ".join(_described(option) for option in options)
    raise ValueError(f"{key} is {value!r}, expected {expected}")


_MISFIT = object()


def _fit_one(value: Any, kind: Any) -> Any:
    if kind is type(None):
        return value if value is None else _MISFIT
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        # YAML reads a bare off as false.
        value = "off" if value is False and "off" in inner else value
        return value if isinstance(value, str) and value in inner else _MISFIT
    if origin is tuple:
        if not isinstance(value, list | tuple) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            return _MISFIT
        parts = [_fit_one(part, inner[0]) for part in value]
        return _MISFIT if any(part is _MISFIT for part in parts) else tuple(parts)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _number(value)
    return value if type(value) is kind else _MISFIT


def _number(value: int | float | str) -> Any:
    # YAML 1.1 takes 1e-4 for a word; people do not.
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _MISFIT
    return number if number - number == 0 else _MISFIT


def _described(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(repr(choice) for choice in inner)
    if origin is tuple:
        count = "a list" if inner[-1] is Ellipsis else f"a list of {len(inner)}"
        return f"{count} of {_described(inner[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """For the end of an error: the known word that is the nearest to one that is not, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"
