"""The interface of a backbone: features at any output stride that it can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from atrous.ops.normalization import IMAGENET


class Features(NamedTuple):
    """The last map of a backbone, B,C,h,w float, and that of every stage by name."""

    out: Tensor
    stages: dict[str, Tensor]


class Backbone(nn.Module):
    """Images, B,3,H,W float, to features, B,channels,h,w, at the output stride that was set.

    Attributes:
        name: as the user gave it.
        channels: channels of the last map.
        mean: of each colour, white being 1, that its weights were trained with.
        std: likewise.
    """

    name: str
    channels: int
    mean: tuple[float, float, float] = IMAGENET.mean
    std: tuple[float, float, float] = IMAGENET.std

    @property
    def reachable(self) -> tuple[int, ...]:
        """The output strides that the network can take."""
        raise NotImplementedError

    def set_output_stride(self, output_stride: int) -> None:
        """Give every layer its stride and rate for `output_stride`; no parameter changes.

        Raises:
            ValueError: if the network cannot reach it; says what it can.
        """
        raise NotImplementedError

    def load_imagenet(self, state: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights with the keys that they are published with.

        Raises:
            ValueError: if a key is missing or unexpected, or a shape differs.
        """
        raise NotImplementedError


def copy_where_shapes_allow(source: nn.Module, target: nn.Module) -> None:
    """Start a replica of a block from the block's weights (section 3.2)."""
    theirs, own = source.state_dict(), target.state_dict()
    same = {key: value for key, value in theirs.items() if key in own and own[key].shape == value.shape}
    target.load_state_dict({**own, **same})


def mismatch(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Compare two state dicts by key, shape and kind of number.

    Raises:
        ValueError: where they differ: one line that counts the differences and names the first three of a kind.
    """
    differences = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(
            f"{key} {tuple(given[key].shape)} for {tuple(wanted[key].shape)}"
            for key in wanted.keys() & given.keys()
            if wanted[key].shape != given[key].shape
        ),
        "of another kind": sorted(
            f"{key} {given[key].dtype} for {wanted[key].dtype}"
            for key in wanted.keys() & given.keys()
            if wanted[key].is_floating_point() and not given[key].is_floating_point()
        ),
    }
    parts = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in differences.items()
        if keys
    ]
    if parts:
        raise ValueError(f"{what} do not fit: {'; '.join(parts)}")


def check_classes_from(classes_from: Sequence[int], classes: int, theirs: int, source: str | Path) -> list[int]:
    """The classes to start from, as a list that indexes a classifier's rows.

    Raises:
        ValueError: if there is not one for each class, or one that the source does not have.
    """
    if len(classes_from) != classes or not all(0 <= one < theirs for one in classes_from):
        raise ValueError(
            f"classes_from is {list(classes_from)}, expected for each of {classes} classes one of {source}, 0 to "
            f"{theirs - 1}"
        )
    return list(classes_from)
