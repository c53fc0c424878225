"""Match the tensors of two implementations of one network by the order of their definition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atrous.models.timm_backbone import TimmBackbone


def in_order(tensors: Mapping[str, Tensor], prefix: str, backbone: str) -> dict[str, Tensor]:
    """Give the tensors under `prefix` the keys of a network of timm, one after the other.

    Args:
        tensors: of a whole model.
        prefix: of its backbone.
        backbone: ``timm/NAME``.

    Raises:
        ValueError: at the first tensor whose shape differs, or if one has more tensors than the other.
    """
    theirs = {key: value for key, value in tensors.items() if key.startswith(prefix)}
    with torch.device("meta"):
        ours = TimmBackbone(backbone.removeprefix("timm/"), output_stride=32).state_dict()
    wanted = {f"backbone.{key}": value for key, value in ours.items()}
    for (key, value), (own, expected) in zip(theirs.items(), wanted.items(), strict=False):
        if value.shape != expected.shape:
            raise ValueError(
                f"{key} has the shape {tuple(value.shape)} where {backbone} has {tuple(expected.shape)} ({own})"
            )
    if len(theirs) != len(wanted):
        raise ValueError(f"the backbone has {len(theirs)} tensors, {backbone} has {len(wanted)}")
    rest = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
    return {**dict(zip(wanted, theirs.values(), strict=True)), **rest}
