"""What the readers of foreign checkpoints share: `Checkpoint` as it was read, `Converted` in our terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from atrous.models.resnet import UNITS, Bottleneck
from atrous.models.timm_backbone import in_timms_order
from atrous.ops.normalization import IMAGENET

Colour = tuple[float, float, float]
"""A value for red, green and blue."""


@dataclass(frozen=True)
class Checkpoint:
    """A file of another library, as it was read.

    Attributes:
        path: of the file, for messages.
        tensors: by their keys, without the prefixes of wrappers (``module.``, ``_orig_mod.``).
        meta: what else was there: ``config.json``, mmsegmentation's ``meta``, Lightning's ``hyper_parameters``.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    def has(self, *keys: str) -> bool:
        """Whether all of these keys are there."""
        return all(key in self.tensors for key in keys)

    def starts(self, *prefixes: str) -> bool:
        """Whether some key starts with one of these."""
        return any(key.startswith(prefixes) for key in self.tensors)


@dataclass(frozen=True)
class Choices:
    """What a checkpoint does not say, as a user gives it; None or empty for the library's default, which is then said.

    Attributes:
        backbone: as of `DeepLabV3`.
        output_stride: that it was trained at.
        aspp_rates: of the 3×3 branches at that output stride, as the library counts them.
        names: of the classes.
    """

    backbone: str | None = None
    output_stride: int | None = None
    aspp_rates: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """A checkpoint in our terms.

    Attributes:
        library: it is from.
        arguments: of `DeepLabV3`, without `num_classes`.
        tensors: by our keys.
        output_stride: that it was trained at.
        epsilon: of batch norm in its backbone, and in its head; None for ours.
        mean: of each colour, white being 1.
        std: likewise.
        names: of the classes; empty if the checkpoint does not say.
        palette: of the classes, or empty.
        guesses: what the checkpoint does not say and was assumed, a clause each with the flag that overrules it.
        dropped: what was left out, a clause each.
    """

    library: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]
    output_stride: int
    epsilon: tuple[float | None, float | None] = (None, None)
    mean: Colour = IMAGENET.mean
    std: Colour = IMAGENET.std
    names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    guesses: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


Reader = Callable[[Checkpoint, Choices], Converted | None]
"""Reads a library's checkpoints: None for one of another library; ValueError for one that is its, but no DeepLabv3."""

ASPP_OF_TORCHVISION = {
    "convs.0.": "pointwise.",
    "convs.1.": "atrous.0.",
    "convs.2.": "atrous.1.",
    "convs.3.": "atrous.2.",
    "convs.4.1.": "image_pooling.project.0.",
    "convs.4.2.": "image_pooling.project.1.",
    "project.": "project.",
}
"""torchvision's ASPP, which segmentation_models_pytorch and VainF have as well."""


def renamed(tensors: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors with our prefix in place of theirs, the first that fits; those without one are left as they are."""
    return {replace_prefix(key, prefixes) or key: value for key, value in tensors.items()}


def replace_prefix(key: str, prefixes: Mapping[str, str]) -> str:
    """The key with our prefix in place of theirs; empty if it has none of theirs."""
    return next((ours + key.removeprefix(theirs) for theirs, ours in prefixes.items() if key.startswith(theirs)), "")


def under(prefix: str, prefixes: Mapping[str, str]) -> dict[str, str]:
    """The same renaming of keys that start with `prefix`, to keys of our head."""
    return {prefix + theirs: f"head.{ours}" for theirs, ours in prefixes.items()}


def without(tensors: Mapping[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    """The tensors whose keys start with none of these."""
    return {key: value for key, value in tensors.items() if not key.startswith(tuple(prefixes))}


def resnet_of(tensors: Mapping[str, Tensor], layer: str = "backbone.layer{}.") -> str:
    """The name of the ResNet that has as many units of the same kind.

    Raises:
        ValueError: if there is none.
    """
    layers = [layer.format(number) for number in range(1, 5)]
    counts = tuple(
        len({key.removeprefix(start).split(".")[0] for key in tensors if key.startswith(start)}) for start in layers
    )
    bottleneck = f"{layers[0]}0.conv3.weight" in tensors
    for depth, (unit, units) in UNITS.items():
        if units == counts and (unit is Bottleneck) == bottleneck:
            return f"resnet{depth}"
    raise ValueError(f"its stages have {counts} units; expected those of ResNet-18, 34, 50, 101 or 152")


def backbone_in_order(tensors: Mapping[str, Tensor], prefix: str, backbone: str) -> dict[str, Tensor]:
    """Give the tensors under `prefix` the keys of the backbone ``timm/NAME``, one after the other.

    Raises:
        ValueError: as `in_timms_order`.
    """
    theirs = {key: value for key, value in tensors.items() if key.startswith(prefix)}
    ours = in_timms_order(theirs, backbone.removeprefix("timm/"), "the backbone")
    return {**{f"backbone.net.{key}": value for key, value in ours.items()}, **without(tensors, [prefix])}


def in_definition_order(tensors: Mapping[str, Tensor], prefix: str, words: Sequence[str]) -> dict[str, Tensor]:
    """The tensors under `prefix` in the order of their layers: safetensors has its keys in alphabetical order.

    Args:
        tensors: of a whole model; those without the prefix come last.
        prefix: of its backbone.
        words: all parts of the keys that are no numbers, a layer's before those of the layers after it.

    Raises:
        ValueError: if a key has another part.
    """
    ranks = {word: i for i, word in enumerate([*words, *_PARTS])}

    def place(key: str) -> list[int]:
        return [int(part) if part.isdecimal() else ranks[part] for part in key.removeprefix(prefix).split(".")]

    theirs = [key for key in tensors if key.startswith(prefix)]
    if odd := next((key for key in theirs for part in key.removeprefix(prefix).split(".")
                    if part not in ranks and not part.isdecimal()), None):  # fmt: skip
        raise ValueError(f"{odd} is none of its backbone's tensors")
    return {**{key: tensors[key] for key in sorted(theirs, key=place)}, **without(tensors, [prefix])}


_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def rates_at_16(rates: Sequence[int], output_stride: int, flag: str = "--aspp-rates") -> list[int]:
    """ASPP's rates as `DeepLabV3` takes them, given at output stride 16.

    Raises:
        ValueError: if they are no whole numbers there.
    """
    scaled = [rate * output_stride / 16 for rate in rates]
    if any(rate != int(rate) or rate < 1 for rate in scaled):
        said = ", ".join(str(rate)[:20] for rate in rates)
        raise ValueError(f"{flag}: {said} at output stride {output_stride} are no whole rates at 16")
    return [int(rate) for rate in scaled]


def colours_reversed(tensors: Mapping[str, Tensor], first: str = "") -> dict[str, Tensor]:
    """The tensors of a network that reads blue first, for one that reads red first: its first filters, reversed.

    Args:
        tensors: by our keys.
        first: key of the first filters; by default those of our ResNets.
    """
    deep = "backbone.conv1.0.weight"
    first = first or (deep if deep in tensors else "backbone.conv1.weight")
    return {**tensors, first: tensors[first].flip(1)}
