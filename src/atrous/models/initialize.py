"""Load the weights that a training starts from: our weight files, or a TF-Lite graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from atrous.models.aspp import ASPP
from atrous.models.deeplab import DeepLabV3
from atrous.models.tflite import is_tflite, load_tflite
from atrous.models.weights import load, load_into


def initialize(model: DeepLabV3, source: str | Path, *, reset_head: bool = False) -> None:
    """Load the weights of `source` into a model, and the normalisation that they were trained with.

    Args:
        model: receives them.
        source: as for `atrous.load`; or a DeepLab graph of TF-Lite, see `atrous.models.tflite`.
        reset_head: keep the model's own classifier, for other classes, and the whole head where the shapes differ.

    Raises:
        ValueError: if they do not fit.
        FileNotFoundError: if there is no such graph.
    """
    (load_tflite if is_tflite(source) else load_into)(model, source, reset_head=reset_head)


@torch.no_grad()
def keep_head(model: DeepLabV3, source: str | Path, rows: Sequence[int]) -> None:
    """Take what fits from the head of `source`: the branches of ASPP, and the classifier's rows of known classes.

    Branches that `source` lacks have no share in the projection at first, so the model begins as `source` was.

    Args:
        model: with the weights of `source` and a new head, see `initialize`.
        source: as for `atrous.load`.
        rows: for each class of the model, the id of the class of `source` that it is; -1 for one that it lacks.

    Raises:
        ValueError: if the number of rows is not that of the classes, a row is no class, or there is no ASPP to keep.
    """
    theirs, _ = load(source)
    if len(rows) != model.num_classes or not all(-1 <= row < theirs.num_classes for row in rows):
        raise ValueError(
            f"known_classes is {list(rows)}, expected {model.num_classes} ids, each one of the {theirs.num_classes} "
            f"classes of {source}, or -1"
        )
    if not isinstance(theirs.head, ASPP) or not isinstance(model.head, ASPP):
        raise ValueError("known_classes goes with the head aspp alone, before and after")
    _keep_branches(model.head, theirs.head)
    weight, bias = model.classifier.weight, model.classifier.bias
    known, kept = theirs.classifier.weight, theirs.classifier.bias
    assert bias is not None and kept is not None
    for i, row in enumerate(rows):
        if row >= 0:
            weight[i], bias[i] = known[row], kept[row]


def _keep_branches(head: ASPP, source: ASPP) -> None:
    """Load the branches that `source` has, and its projection, in which the others have weights of 0."""
    theirs, width = dict(_branches(source)), source.channels
    state, own = source.project.state_dict(), head.project.state_dict()
    shares = dict(zip(theirs, state["0.weight"].split(width, dim=1), strict=True))
    columns = []
    for kind, branch in _branches(head):
        if kind in theirs:
            branch.load_state_dict(theirs[kind].state_dict())
        columns.append(shares.get(kind, torch.zeros_like(own["0.weight"][:, :width])))
    head.project.load_state_dict({**state, "0.weight": torch.cat(columns, 1)})


def _branches(head: ASPP) -> Iterator[tuple[str, nn.Module]]:
    """The branches by what they are, in the order of the projection's inputs."""
    if head.pointwise is not None:
        yield "pointwise", head.pointwise
    for rate, branch in zip(head.rates, head.atrous, strict=True):
        yield f"rate {rate}", branch
    if head.image_pooling is not None:
        yield "image pooling", head.image_pooling
