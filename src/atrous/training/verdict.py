"""Say in words how good a training came out, what would help most, and which commands come next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from atrous.training.log_file import Log

Counts = npt.NDArray[np.int64]
"""K,K: pixels by true class (row) and predicted class (column)."""

_ALL = 4
"""Classes up to which each is named."""
_WEAK = 0.6
"""IoU below which a class is what to work on."""
_RARE = 0.15
"""Share of the images below which a class is rare."""
_FEW = 100
"""Images below which more of them help most."""


class Mistake(NamedTuple):
    """`share` of the pixels of the class `true` were taken for `taken_for`."""

    true: int
    taken_for: int
    share: float


def shares_of(counts: Counts) -> npt.NDArray[np.float64]:
    """The rows as shares of the class's pixels, K,K; rows of classes without a pixel are not a number."""
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return shares


def mistakes(counts: Counts, most: int = 5, least: float = 0.02) -> list[Mistake]:
    """The largest shares of a class that were taken for another, at most one a class, the largest first."""
    shares = np.nan_to_num(shares_of(counts))
    np.fill_diagonal(shares, 0.0)
    worst = [Mistake(i, int(row.argmax()), float(row.max())) for i, row in enumerate(shares)]
    return sorted((one for one in worst if one.share >= least), key=lambda one: -one.share)[:most]


@dataclass(frozen=True)
class Outcome:
    """What a verdict is about.

    Attributes:
        names: of the K classes.
        images: to train on.
        with_class: how many of these have each class, K.
        log: of the run.
        iterations: steps of the run.
        iou: of each class, K, of the weights that are kept; none without a validation.
        mistakes: of the same weights, the largest first.
    """

    names: tuple[str, ...]
    images: int
    with_class: tuple[int, ...]
    log: Log
    iterations: int
    iou: tuple[float, ...] = ()
    mistakes: tuple[Mistake, ...] = field(default=())

    @property
    def order(self) -> list[int]:
        """The classes that were scored, the best first."""
        return sorted((i for i, iou in enumerate(self.iou) if iou == iou), key=lambda i: -self.iou[i])


def verdict(outcome: Outcome) -> str:
    """How good it is, class by class; of many classes the best and the worst.

    ``leaf 0.91, stem 0.44: the rarest class, in 6 of 30 images``.
    """
    order = outcome.order
    if not order:
        return "nothing was validated, so nobody knows how good it is"
    said = [f"{outcome.names[i]} {outcome.iou[i]:.2f}" for i in order]
    if len(order) > _ALL:
        said = [*said[:2], "...", *said[-2:]]
    words = ", ".join(said).replace(", ..., ", " ... ")
    if len(order) == 1:
        return words
    worst = order[-1]
    held, rarest = outcome.with_class[worst], _rarest(outcome)
    if held == outcome.images:
        return words
    which = "the rarest class, in" if worst == rarest else "in"
    return f"{words}: {which} {held} of {outcome.images} images"


def _rarest(outcome: Outcome) -> int | None:
    """The class in the fewest images, if it is one alone."""
    there = [(count, i) for i, count in enumerate(outcome.with_class) if count]
    fewest = min(there, default=(0, 0))[0]
    alone = [i for count, i in there if count == fewest]
    return alone[0] if len(alone) == 1 else None


def advice(outcome: Outcome) -> str:
    """What would help most: one sentence."""
    order = outcome.order
    if not order:
        return "Hold some images back to validate on: a split named val."
    worst = order[-1]
    name, iou, held = outcome.names[worst], outcome.iou[worst], outcome.with_class[worst]
    if iou < _WEAK and held < min(outcome.images, max(10, _RARE * outcome.images)):
        return f"Label more photographs with {name}: {held} of {outcome.images} have it."
    if outcome.mistakes and outcome.mistakes[0].share >= 0.25:
        true, taken, share = outcome.mistakes[0]
        return (
            f"Look at {outcome.names[true]}: {share:.0%} of its pixels are taken for {outcome.names[taken]}. If both "
            "are labelled as they should be, label more photographs that show them."
        )
    if _still_rising(outcome.log):
        return f"Train longer: it was still getting better at the end ({2 * outcome.iterations} steps, say)."
    best = outcome.log.best
    if best and best[0] < 0.6 * outcome.iterations and outcome.log.miou[-1][1] < best[1] - 0.01:
        return f"More photographs: from step {best[0]} on it learnt these by heart, and did worse on those held back."
    if outcome.images < _FEW:
        return f"More photographs: {outcome.images} are few."
    return f"More photographs like those in predictions.jpg, where it does worst; {name} has the lowest IoU."


def _still_rising(log: Log) -> bool:
    """Whether the last validation is the best, and better by half a point than all of the first two thirds."""
    scores = [score for _, score in log.miou]
    if len(scores) < 4:
        return False
    return scores[-1] == max(scores) and scores[-1] > max(scores[: -(len(scores) // 3)]) + 0.005


def next_commands(run: Path, data: str, *, validated: bool) -> tuple[str, str]:
    """The two commands that come next."""
    folder = shlex.quote(str(run))
    predict = f"atrous predict {folder} photos/ --out found"
    if validated:
        return predict, f"atrous eval {folder} --data {shlex.quote(data)} --output-stride 8"
    return predict, f"atrous data check {shlex.quote(data)}"
