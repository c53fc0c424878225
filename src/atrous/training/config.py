"""Every setting of a training run, as frozen dataclasses and as YAML (the named recipes: `atrous.training.recipes`).

    override(Recipe(), {"crop": 513, "optim.lr": 0.01, "schedule": {"iterations": 100}})

A `Recipe` has parts: network, data, loss, optimisation, schedule, and what a run measures and saves. The names of the
settings are unique over all parts, so that a setting can be named with its part or alone. The defaults are the paper's
first stage on PASCAL VOC 2012 (section 4.1).
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Literal

import yaml

from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.messages import did_you_mean
from atrous.models.output_stride import LONGEST_SIDE
from atrous.training.lr_schedule import poly
from atrous.yaml_io import parse_yaml


@dataclass(frozen=True)
class ModelConfig:
    """The network, and the weights that it starts from.

    Attributes:
        backbone: see `atrous.DeepLabV3`, as for the eight after it.
        head: ``aspp`` or ``cascade``.
        last_block: 4 to 7.
        multi_grid: unit rates, or None for ones.
        aspp_rates: at output stride 16.
        aspp_pointwise: ASPP's 1×1 branch.
        image_pooling: ASPP's image-level features.
        stride_in: ``first``, ``last``, or None for the one that goes with the weights.
        output_stride: in training.
        weights: ``imagenet``; a classifier's file, for the backbone; a named model, a weight file, a run folder or a
            DeepLab graph of TF-Lite to start from; or None.
        reset_head: start with a new classifier, where `weights` are a model's with other classes.
        classes_from: start each class from one of that model's, by id, instead: ``[13, 11]`` for cars and pedestrians
            from Cityscapes' car and person; empty for the same classes.
        batch_norm: ``train``; ``freeze`` it whole (section 4.1, second stage); freeze its ``statistics``; or freeze the
            statistics of the backbone and train all of it in the ``head``.
        batch_norm_decay: of the running statistics.
        activation_checkpointing: compute the backbone's activations again in the backward pass: less memory, more time.
        compile: train with ``torch.compile``, for GPUs: the same numbers up to rounding.
    """

    backbone: str = "resnet101"
    head: Literal["aspp", "cascade"] = "aspp"
    last_block: int | None = None
    multi_grid: tuple[int, ...] | None = (1, 2, 4)
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    aspp_pointwise: bool = True
    image_pooling: bool = True
    stride_in: Literal["first", "last"] | None = None
    output_stride: int = 16
    weights: str | None = "imagenet"
    reset_head: bool = False
    classes_from: tuple[int, ...] = ()
    batch_norm: Literal["train", "statistics", "freeze", "head"] = "train"
    batch_norm_decay: float = 0.9997
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        _check_range(self, 0, 1, "batch_norm_decay")
        if self.reset_head and self.classes_from:
            raise ValueError("reset_head and classes_from exclude each other: a classifier starts anew or from classes")
        if self.classes_from and self.weights in (None, "imagenet"):
            raise ValueError(
                f"classes_from is {list(self.classes_from)}, but weights is {self.weights}: it has no classes"
            )

    @property
    def from_model(self) -> bool:
        """Whether `weights` name a segmentation model: neither ImageNet's, nor a classifier's file, nor none."""
        from atrous.models.classifier import is_classifier  # which imports PyTorch

        return self.weights not in (None, "imagenet") and not is_classifier(self.weights)


@dataclass(frozen=True)
class DataConfig:
    """Which images a run reads, how often each, and how crops of them are augmented.

    Attributes:
        train_split: ``train+val`` joins two splits, ``train*2+pseudo`` has the images of one twice.
        val_split: None for no validation.
        val_share: share of the images of `train_split` that are held back to validate on where `val_split` is None, the
            same for every seed and stratified by class; 0 for none.
        options: how the data is to be read, over what its `dataset.yaml` says: classes to keep, value range, ...
        allow_empty_classes: train although a class has no pixel, or there is one class alone.
        bootstrap: classes whose images are duplicated (section 4.3); ``auto``: the five of lowest IoU of `weights`.
        bootstrap_times: how often such an image is in an epoch.
        repeat_factor_threshold: of repeat-factor sampling, the share of images below which a class is rare; 0 for none.
        crop: side, or height and width, of the training crops in pixels.
        scales: range of the random scale.
        longest_side: resize images to it, in pixels, before `scales` and in prediction; None, as in the paper, for not.
        flip: probability of a left-right flip.
        color_jitter: strength of random brightness, contrast and saturation; the paper has none.
        class_mix: probability that half of the classes of another crop are pasted into a crop; the paper has none.
    """

    train_split: str = "trainaug"
    val_split: str | None = "val"
    val_share: float = 0.0
    options: DatasetOptions = NO_OPTIONS
    allow_empty_classes: bool = False
    bootstrap: tuple[str, ...] | Literal["auto"] = ()
    bootstrap_times: int = 2
    repeat_factor_threshold: float = 0.0
    crop: int | tuple[int, int] = 513
    scales: tuple[float, float] = (0.5, 2.0)
    longest_side: int | None = None
    flip: float = 0.5
    color_jitter: float = 0.0
    class_mix: float = 0.0

    def __post_init__(self) -> None:
        _check_range(self, 1, None, "bootstrap_times")
        _check_range(self, 0, 1, "flip", "color_jitter", "repeat_factor_threshold", "class_mix", "val_share")
        if self.longest_side is not None and not 1 <= self.longest_side <= LONGEST_SIDE:
            raise ValueError(f"longest_side is {self.longest_side}, expected 1 to {LONGEST_SIDE} pixels, or null")

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of `crop`."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: cross-entropy, with the divergence from a teacher where there is one.

    Attributes:
        upsample_logits: loss at the size of the ground truth; off, on ground truth downsampled (Table 8).
        class_weights: one a class, or None.
        teacher: a named model, weight file or run folder to distil from; None for none, as in the paper.
        teacher_weight: share of the loss, 0 to 1, that is the divergence from the teacher's probabilities.
        teacher_temperature: that both logits are divided by for it.
    """

    upsample_logits: bool = True
    class_weights: tuple[float, ...] | None = None
    teacher: str | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0

    def __post_init__(self) -> None:
        _check_range(self, 0, 1, "teacher_weight")
        weights = self.class_weights
        if weights is not None and (min(weights, default=0) < 0 or not any(weights)):
            raise ValueError(f"class_weights is {weights}, expected none below 0 and one above it")
        if not self.teacher_temperature > 0:
            raise ValueError(f"teacher_temperature is {self.teacher_temperature}, expected more than 0")


@dataclass(frozen=True)
class OptimConfig:
    """How a step is taken.

    Attributes:
        batch_size: images in one step, over all processes and accumulated parts.
        grad_accum_steps: parts that a process's share of the batch is cut into, to fit in memory.
        optimizer: ``sgd`` with momentum, or ``adamw``.
        lr: initial learning rate.
        head_lr_factor: how many times larger the learning rate of the new layers is.
        momentum: of SGD.
        weight_decay: on convolution weights; on batch norm and biases only with `decay_all`.
        decay_all: decay batch norm and biases too.
        ema_decay: of a moving average of the weights, which is then evaluated and kept; 0 for none.
        amp: ``off``, ``bf16`` or ``fp16``: automatic mixed precision.
    """

    batch_size: int = 16
    grad_accum_steps: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.007
    head_lr_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_all: bool = False
    ema_decay: float = 0.0
    amp: Literal["off", "bf16", "fp16"] = "off"

    def __post_init__(self) -> None:
        _check_range(self, 1, None, "batch_size", "grad_accum_steps")
        _check_range(self, 0, None, "lr", "head_lr_factor", "momentum", "weight_decay")
        _check_range(self, 0, 1, "ema_decay")
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size is {self.batch_size}, expected a multiple of grad_accum_steps, {self.grad_accum_steps}"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """How long a run is, and its learning rate over the steps: the "poly" schedule (section 4.1).

    Attributes:
        iterations: steps.
        power: of the schedule.
        schedule_iterations: step at which the schedule reaches 0, None for `iterations`. With a later one the steps
            are, to the bit, the first of the longer training.
        warmup: steps of linear warm-up; the paper has none.
    """

    iterations: int = 30_000
    power: float = 0.9
    schedule_iterations: int | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        _check_range(self, 1, None, "iterations")
        _check_range(self, 0, None, "power", "warmup")
        last = self.schedule_iterations
        if last is not None and last < self.iterations:
            raise ValueError(
                f"schedule_iterations is {last}, expected at least the {self.iterations} iterations, or null: "
                "the learning rate then falls to 0 with the last of them"
            )


@dataclass(frozen=True)
class RunConfig:
    """What a run measures and saves, and its seed.

    Attributes:
        seed: of everything random.
        val_every: steps between validations.
        val_output_stride: of validation, or None for that of training.
        val_pad_to: least height and width that the network sees in validation, in pixels: 513 for VOC (section 4.1);
            None for whole images as they are (appendix C).
        save_every: steps between checkpoints.
    """

    seed: int = 0
    val_every: int = 1_000
    val_output_stride: int | None = None
    val_pad_to: int | None = None
    save_every: int = 500

    def __post_init__(self) -> None:
        _check_range(self, 1, None, "val_every", "save_every")
        if self.val_pad_to is not None:
            _check_range(self, 1, LONGEST_SIDE, "val_pad_to")
        _check_range(self, 0, None, "seed")
        if self.seed >= 2**63:
            raise ValueError(f"seed is {self.seed}, expected less than 2**63")


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run, in parts."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def lr_at(self, step: int) -> float:
        """The learning rate after `step` steps, of all layers but the new ones."""
        schedule = self.schedule
        last = schedule.schedule_iterations or schedule.iterations
        return self.optim.lr * poly(step, last, power=schedule.power, warmup=schedule.warmup)

    @property
    def val_output_stride(self) -> int:
        """Output stride in validation."""
        return self.run.val_output_stride or self.model.output_stride

    def to_yaml(self) -> str:
        """As a file that `load_recipe` reads."""
        plain = json.loads(json.dumps(asdict(self)))  # tuples as lists
        plain["data"]["options"] = self.data.options.as_dict()
        return yaml.safe_dump(plain, sort_keys=False)


PARTS: dict[str, Any] = {
    "model": ModelConfig, "data": DataConfig, "loss": LossConfig, "optim": OptimConfig, "schedule": ScheduleConfig,
    "run": RunConfig,
}  # fmt: skip
PART_OF = {setting.name: part for part, kind in PARTS.items() for setting in fields(kind)}
"""The part that each setting is in."""
RENAMED = {
    "batch": "batch_size", "accumulate": "grad_accum_steps", "ema": "ema_decay", "balance": "repeat_factor_threshold",
    "photometric": "color_jitter", "poly_iterations": "schedule_iterations",
    "checkpointing": "activation_checkpointing",
}  # fmt: skip
"""Names of settings in recipes of before, for the error."""


RESUMABLE = (
    "iterations", "schedule_iterations", "power", "warmup", "lr", "val_every", "val_output_stride", "val_pad_to",
    "save_every",
)  # fmt: skip
"""Settings that a run can be resumed with other values of: later steps alone depend on them."""


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its own name, without its part; plain values alone, which JSON and `override` take."""
    values = {key: getattr(getattr(recipe, part), key) for key, part in PART_OF.items()}
    return values | {"options": recipe.data.options.as_dict()}


def override(recipe: Recipe, values: Mapping[Any, Any]) -> Recipe:
    """A recipe with other values for some settings.

    Args:
        recipe: is left as it is.
        values: by a setting's name (``crop``), its full name (``data.crop``), or in a mapping under its part.

    Raises:
        ValueError: for an unknown name, with the nearest, or a value of the wrong kind.
    """
    changes: dict[str, dict[str, Any]] = {}
    for key, value in _leaves(values):
        part = changes.setdefault(PART_OF[key], {})
        if key in part:
            raise ValueError(f"{key} is given twice")
        part[key] = _checked(key, value)
    return replace(recipe, **{name: replace(getattr(recipe, name), **part) for name, part in changes.items()})


def _leaves(values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting with its value, whichever way it is named."""
    for key, value in values.items():
        if key in PARTS:
            if not isinstance(value, Mapping):
                names = ", ".join(name for name, part in PART_OF.items() if part == key)
                raise ValueError(f"{key} is {value!r}, expected settings: {names}")
            yield from ((_leaf(inner, key), each) for inner, each in value.items())
        else:
            part, dot, name = str(key).rpartition(".")
            yield _leaf(name if dot else key, part), value


def _leaf(name: Any, part: str) -> str:
    if name in RENAMED:
        raise ValueError(f"{name} is called {RENAMED[name]}")
    if name not in PART_OF:
        known = [*PART_OF, *PARTS] if not part else [key for key, at in PART_OF.items() if at == part] or PART_OF
        raise ValueError(f"a recipe has no key {f'{part}.{name}' if part else name!r}{did_you_mean(name, known)}")
    if part and PART_OF[name] != part:
        raise ValueError(f"a recipe has no key '{part}.{name}'; did you mean {PART_OF[name]}.{name}?")
    return str(name)


def _checked(key: str, value: Any) -> Any:
    from pydantic import ValidationError

    if key == "options":
        return _options(value)
    value = tuple(value) if isinstance(value, list) else value
    value = "off" if key == "amp" and value is False else value  # YAML reads a bare off as false
    kind = typing.get_type_hints(PARTS[PART_OF[key]])[key]
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        raise ValueError(f"{key} is {value!r}, expected {_described(kind)}") from None


def _options(value: Any) -> DatasetOptions:
    if isinstance(value, DatasetOptions):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"options is {value!r}, expected keys of dataset.yaml, such as {{classes: [leaf, stem]}}")
    try:
        return DatasetOptions.parse(value)
    except ValueError as error:
        raise ValueError(f"options: {error}") from None


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))


def _described(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType) or origin is typing.Union:
        return " or ".join(_described(option) for option in inner)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in inner)
    if origin is tuple:
        count = "a list" if inner[-1] is Ellipsis else f"a list of {len(inner)}"
        return f"{count} of {_described(inner[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}[kind]


def _check_range(config: object, low: float, high: float | None, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if value < low or (high is not None and value > high):
            expected = f"at least {low}" if high is None else f"{low} to {high}"
            raise ValueError(f"{key} is {value}, expected {expected}")


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``key=value`` words as settings, the values read as YAML: ``lr=0.01``, ``data.scales=[0.75, 2]``.

    Of a setting that is given twice the last counts.

    Raises:
        ValueError: for a word without ``=``, a value that is not YAML, or an unknown name.
    """
    values: dict[str, Any] = {}
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, found {word!r}")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f"--set {key}: {text!r} cannot be read as a value") from error
        values |= _leaves({key.strip(): value})
    return values


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Every setting in which two recipes differ, as ``key: one, other``.

    A `schedule_iterations` that equals `iterations` is the same as none.
    """
    ours, theirs = settings_of(one), settings_of(other)
    ends = [(s["iterations"], s["schedule_iterations"] or s["iterations"]) for s in (ours, theirs)]
    if ends[0] == ends[1]:
        theirs["schedule_iterations"] = ours["schedule_iterations"]
    return [f"{key}: {ours[key]}, {theirs[key]}" for key in ours if ours[key] != theirs[key]]
