"""One confusion matrix over a whole data set, and the scores that come from it (section 4).

The benchmark's mIoU is intersection over union averaged across the classes. A mean over images or over batches is
another number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atrous.ops.resize import IGNORE


class ConfusionMatrix:
    """Counts of pixels by true class (row) and predicted class (column).

    Args:
        num_classes: K.
        ignore: the label that does not count.
    """

    def __init__(self, num_classes: int, *, ignore: int = IGNORE) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.ignore = ignore

    def update(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Count one image or batch; its own counts, int64 K,K.

        Args:
            prediction: int, class ids.
            truth: int, of the same shape, class ids or `ignore`.

        Raises:
            ValueError: if the shapes differ, or an id is no class.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"the prediction is {tuple(prediction.shape)}, the truth {tuple(truth.shape)}")
        classes = len(self.counts)
        truth = truth.to(prediction.device).long()
        valid = truth != self.ignore
        rows, columns = truth[valid], prediction.long()[valid]
        for what, ids in (("truth", rows), ("prediction", columns)):
            wrong = ids[(ids < 0) | (ids >= classes)]
            if wrong.numel():
                raise ValueError(f"the {what} has class {int(wrong[0])}, expected 0 to {classes - 1}")
        flat = torch.bincount(rows * classes + columns, minlength=classes * classes)
        counted = flat.view(classes, classes).cpu()
        self.counts += counted
        return counted

    def scores(self, names: Sequence[str]) -> Scores:
        """The scores, with the classes' names."""
        hit = self.counts.diagonal().double()
        true, predicted = self.counts.sum(1).double(), self.counts.sum(0).double()
        union = true + predicted - hit
        present = true > 0
        return Scores(
            names=tuple(names), iou=tuple((hit / union).tolist()), accuracy=tuple((hit / true).tolist()),
            miou=_mean((hit / union)[union > 0]), mean_accuracy=_mean((hit / true)[present]),
            pixel_accuracy=float(hit.sum() / true.sum()) if true.sum() else float("nan"),
        )  # fmt: skip


LEAST_UNION = 0.005
"""Share of an image's pixels below which a class does not count for its IoU: a few stray pixels are no object."""


def image_iou(counts: Tensor) -> float:
    """Mean IoU of one image over the classes that truth and prediction have at least `LEAST_UNION` of together.

    Args:
        counts: its confusion matrix, int64 K,K.

    Returns:
        0 to 1; not a number for an image without a valid pixel.
    """
    hit = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hit
    seen = union > LEAST_UNION * counts.sum()
    return float((hit[seen].double() / union[seen]).mean()) if seen.any() else float("nan")


@dataclass(frozen=True)
class Scores:
    """All from 0 to 1; not a number where there is nothing to count.

    Attributes:
        names: of the classes.
        iou: per class: intersection over union. Not a number for a class in neither truth nor prediction.
        accuracy: per class: share of its pixels that were found.
        miou: mean of `iou` over the classes in truth or prediction.
        mean_accuracy: mean of `accuracy` over the classes in the truth.
        pixel_accuracy: share of all valid pixels.
    """

    names: tuple[str, ...]
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    miou: float
    mean_accuracy: float
    pixel_accuracy: float

    @property
    def left_out(self) -> tuple[str, ...]:
        """Classes in neither truth nor prediction, which the mean leaves out."""
        return tuple(name for name, value in zip(self.names, self.iou, strict=True) if value != value)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Name and value of each mean."""
        yield "miou", self.miou
        yield "mean_accuracy", self.mean_accuracy
        yield "pixel_accuracy", self.pixel_accuracy

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is not a number becomes null."""
        iou = dict(zip(self.names, self.iou, strict=True))
        return {
            **{name: _or_none(value) for name, value in self},
            "iou": {name: _or_none(value) for name, value in iou.items()},
            "left_out": list(self.left_out),
        }


def _mean(values: Tensor) -> float:
    # Class by class, as the script of Cityscapes' server sums.
    return float(values.cumsum(0)[-1] / values.numel()) if values.numel() else float("nan")


def _or_none(value: float) -> float | None:
    return value if value == value else None
