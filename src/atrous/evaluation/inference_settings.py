"""Evaluate at each inference setting of Tables 4, 6 and 12: finer output stride, then more scales, then flips.

    atrous eval camvid-efficientnet_lite0 --data camvid --ladder

One pass over the images serves all rows. At one output stride a row averages what the row before averages and some
more, so the sum of probabilities grows from row to row and no pass is computed twice. Scales and flips run one after
another, so memory holds one sum and one pass, whatever the number of rows: an image and its flip as a batch of two was
measured and is slower on a CPU (`docs/results.md`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atrous.evaluation.evaluate import (
    PAPER_SCALES,
    Evaluation,
    Pass,
    Setting,
    check_scales,
    evaluate_settings,
    in_eval_mode,
    run_pass,
)
from atrous.evaluation.preprocessor import Preprocessor
from atrous.messages import markdown_table
from atrous.models.deeplab import DeepLabV3
from atrous.ops.tiled_upsample import class_dtype
from atrous.ops.tta import mean_probabilities

if TYPE_CHECKING:
    from atrous.data.datasets.dataset import SegmentationDataset


def rungs(finest: int = 8, scales: Sequence[float] = PAPER_SCALES, pad_to: int | None = None) -> tuple[Setting, ...]:
    """The rows of Table 4: output stride 16 and its halves down to `finest`, then scales, then flips.

    Raises:
        ValueError: if `finest` is none of 16, 8 and 4, or a scale is out of range.
    """
    if finest not in (16, 8, 4):
        raise ValueError(f"the ladder goes from output stride 16 down to 16, 8 or 4, found {finest}")
    check_scales(scales)
    plain = [Setting(stride, pad_to=pad_to) for stride in (16, 8, 4) if stride >= finest]
    return (*plain, *(Setting(finest, tuple(scales), flip, pad_to) for flip in (False, True)))


def ladder(
    model: DeepLabV3,
    dataset: SegmentationDataset,
    rows: Sequence[Setting],
    *,
    names: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Evaluation]:
    """Evaluate a model at several settings in one pass over a data set.

    Args:
        model: on its device; it is not changed.
        dataset: images and masks of any size.
        rows: settings in any order.
        names: of the model's classes: see `evaluate`.
        progress: called with the number of images done.

    Returns:
        What `evaluate` returns for each row. A row's seconds are those of all of its passes, shared ones included.

    Raises:
        ValueError: if the data set's classes are not the model's, or the model cannot take a setting.
    """
    for row in rows:
        check_scales(row.scales)
    largest = max((scale for row in rows for scale in row.scales), default=1.0)
    networks = {row.output_stride: in_eval_mode(model, row.output_stride) for row in rows}
    chains = list(_chains(rows))

    @torch.inference_mode()
    def predict(image: Tensor) -> Iterator[tuple[int, Tensor, float]]:
        view = Preprocessor(model).views(image[None], largest)
        for chain in chains:
            settings = [rows[i] for i in chain]
            predictions = _predict_chain(
                networks[settings[0].output_stride], view, (image.shape[-2], image.shape[-1]), settings
            )
            for i, (mask, seconds) in zip(chain, predictions, strict=True):
                yield i, mask, seconds

    return evaluate_settings(model, dataset, rows, predict, names=names, progress=progress)


def _chains(rows: Sequence[Setting]) -> Iterator[list[int]]:
    """Indices of the rows in chains, where each row's passes contain those of the row before and all else is equal."""
    left = sorted(range(len(rows)), key=lambda i: (rows[i].output_stride, rows[i].pad_to or 0, len(rows[i].passes)))
    while left:
        chain = [left.pop(0)]
        for i in list(left):
            row, last = rows[i], rows[chain[-1]]
            if (row.output_stride, row.pad_to) == (last.output_stride, last.pad_to) and row.passes >= last.passes:
                chain.append(i)
                left.remove(i)
        yield chain


def _predict_chain(
    model: DeepLabV3, view: Callable[[float], Tensor], size: tuple[int, int], settings: Sequence[Setting]
) -> Iterator[tuple[Tensor, float]]:
    """The mask, H,W, of each setting of a chain, and the seconds since the chain's start."""
    started, done = time.perf_counter(), frozenset[Pass]()
    total: Tensor | None = None
    for setting in settings:
        preprocess = Preprocessor(model, pad_to=setting.pad_to)
        for scale, flipped in sorted(setting.passes - done):
            logits = run_pass(model, preprocess, view, scale, flipped)
            probabilities = mean_probabilities([logits], size, model.output_stride)
            total = probabilities if total is None else total.add_(probabilities)
        done = setting.passes
        assert total is not None
        yield total.argmax(1)[0].to(class_dtype(total.shape[1])).cpu(), time.perf_counter() - started


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """The rows in the form of Table 4."""
    strides = sorted({row.output_stride for row in evaluations}, reverse=True)
    lines = [[*(f"OS={stride}" for stride in strides), "MS", "Flip", "mIOU", "seconds an image"]]
    for row in evaluations:
        ticks = Setting(row.output_stride, row.scales, row.flip).ticks
        strides_ticked = ["✓" if stride == row.output_stride else "" for stride in strides]
        spent = row.seconds / max(1, row.images)
        lines.append([*strides_ticked, *ticks.values(), f"{100 * row.scores.miou:.2f}", f"{spent:.3g}"])
    scales = next((row.scales for row in evaluations if len(row.scales) > 1), None)
    note = f"\n\nMS: scales {', '.join(f'{scale:g}' for scale in scales)}." if scales else ""
    return markdown_table(lines) + note + "\n"
