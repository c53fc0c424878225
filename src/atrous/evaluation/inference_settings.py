"""The inference ladder of Tables 4, 6 and 12: output stride 16, 8 (and 4), then scales, then flips, each row on top.

    atrous eval camvid-efficientnet_lite0 --data camvid --ladder

One pass over the images serves all rows. Within an output stride a row's inputs are those of the row before and some
more, so the sum of probabilities grows from row to row and nothing is computed twice. Scales and flips run one after
another, so memory holds one sum of probabilities and one pass, whatever the number of rows: running a picture and its
mirror image as a batch of two was measured and is slower on a CPU (`docs/results.md`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atrous.evaluation.evaluate import PAPER_SCALES, Evaluation, as_seen, check_scales, inference, probabilities_of_pass
from atrous.evaluation.metrics import ConfusionMatrix
from atrous.models.deeplab import DeepLabV3
from atrous.models.output_stride import check_reachable
from atrous.ops.normalization import Normalization

if TYPE_CHECKING:
    from atrous.data.datasets.dataset import SegmentationDataset

Pass = tuple[float, bool]
"""A scale, and whether the picture is flipped."""


@dataclass(frozen=True)
class Setting:
    """How one row evaluates: see `evaluate`."""

    output_stride: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def passes(self) -> frozenset[Pass]:
        """What is averaged."""
        return frozenset((scale, flipped) for scale in self.scales for flipped in {False, self.flip})

    @property
    def slug(self) -> str:
        """For the name of a file."""
        scales = "" if self.scales == (1.0,) else "-scales" + "-".join(f"{scale:g}" for scale in self.scales)
        return f"os{self.output_stride}{scales}{'-flip' if self.flip else ''}"

    @property
    def ticks(self) -> dict[str, str]:
        """The columns of Table 4 beside the stride."""
        return {"MS": "✓" if len(self.scales) > 1 else "", "Flip": "✓" if self.flip else ""}


def rungs(finest: int = 8, scales: Sequence[float] = PAPER_SCALES) -> tuple[Setting, ...]:
    """The rows of Table 4: output stride 16 and its halves down to `finest`, then scales, then flips.

    Raises:
        ValueError: if `finest` is none of 16, 8 and 4, or a scale is no scale.
    """
    if finest not in (16, 8, 4):
        raise ValueError(f"the ladder goes from output stride 16 down to 16, 8 or 4, found {finest}")
    check_scales(scales)
    plain = [Setting(stride) for stride in (16, 8, 4) if stride >= finest]
    return (*plain, Setting(finest, tuple(scales)), Setting(finest, tuple(scales), True))


def ladder(
    model: DeepLabV3,
    dataset: SegmentationDataset,
    rows: Sequence[Setting],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Evaluation]:
    """Evaluate a model at several settings in one pass over a data set.

    Args:
        model: on its device; left as it was found.
        dataset: images and masks of any size.
        rows: settings in any order.
        progress: called with the number of images done.

    Returns:
        What `evaluate` returns for each row. A row's seconds are those of all of its passes, shared ones included.

    Raises:
        ValueError: if the data set's classes are not as many as the model's, or the model cannot take a setting.
    """
    if len(dataset.labels) != model.num_classes:
        raise ValueError(f"the data has {len(dataset.labels)} classes, the model {model.num_classes}")
    for row in rows:
        check_scales(row.scales)
        check_reachable(row.output_stride, model.backbone.reachable, model.backbone.name)
    device = next(model.parameters()).device
    normalise = Normalization(model.mean, model.std)
    matrices = [ConfusionMatrix(model.num_classes, ignore=dataset.labels.ignore) for _ in rows]
    seconds = [0.0] * len(rows)
    chains, scales = list(_chains(rows)), [scale for row in rows for scale in row.scales]
    with inference(model):
        for done in range(len(dataset)):
            sample = dataset[done]
            image = normalise(as_seen(model, sample.image, scales)[None].to(device))
            size = (sample.image.shape[-2], sample.image.shape[-1])
            for chain in chains:
                for i, ids, took in _climb(model, image, size, rows, chain):
                    matrices[i].update(ids[0].cpu(), sample.mask)
                    seconds[i] += took
            progress(done + 1)
    return [
        Evaluation(
            matrix.scores(dataset.labels.names), len(dataset), spent, row.output_stride, row.scales, row.flip,
            model.longest_side,
        )
        for matrix, spent, row in zip(matrices, seconds, rows, strict=True)
    ]  # fmt: skip


def _chains(rows: Sequence[Setting]) -> Iterator[list[int]]:
    """The rows' indices in chains of one output stride in which each row's passes contain those of the row before."""
    left = sorted(range(len(rows)), key=lambda i: (rows[i].output_stride, len(rows[i].passes)))
    while left:
        chain = [left.pop(0)]
        for i in list(left):
            last = rows[chain[-1]]
            if rows[i].output_stride == last.output_stride and rows[i].passes >= last.passes:
                chain.append(i)
                left.remove(i)
        yield chain


def _climb(
    model: DeepLabV3, image: Tensor, size: tuple[int, int], rows: Sequence[Setting], chain: Iterable[int]
) -> Iterator[tuple[int, Tensor, float]]:
    """Index of each row of a chain, the classes that it finds, B,H,W, and the seconds since the chain's start."""
    started = time.perf_counter()
    total: Tensor | None = None
    done: frozenset[Pass] = frozenset()
    for i in chain:
        model.output_stride = rows[i].output_stride
        for scale, flipped in sorted(rows[i].passes - done):
            probabilities = probabilities_of_pass(model, image, size, scale, flipped)
            total = probabilities if total is None else total.add_(probabilities)
        done = rows[i].passes
        assert total is not None
        ids = total.argmax(1).to(torch.uint8).cpu()
        yield i, ids, time.perf_counter() - started


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """The rows in the form of Table 4."""
    strides = sorted({found.output_stride for found in evaluations}, reverse=True)
    head = [*(f"OS={stride}" for stride in strides), "MS", "Flip", "mIOU", "seconds an image"]
    lines = [head, ["---"] * len(head)]
    for found in evaluations:
        row = Setting(found.output_stride, found.scales, found.flip)
        strides_ticked = ["✓" if stride == found.output_stride else "" for stride in strides]
        spent = found.seconds / max(1, found.images)
        lines.append([*strides_ticked, *row.ticks.values(), f"{100 * found.scores.miou:.2f}", f"{spent:.3g}"])
    scales = next((found.scales for found in evaluations if len(found.scales) > 1), None)
    note = f"\n\nMS: scales {', '.join(f'{scale:g}' for scale in scales)}." if scales else ""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + note + "\n"
