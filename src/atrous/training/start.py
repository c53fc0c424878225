"""What every training does before its first step: open and check the data, claim the run folder, build the state."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atrous.data.datasets.dataset import SegmentationDataset
from atrous.data.datasets.mask_values import Drawn
from atrous.evaluation.distributed import DistributedContext
from atrous.models.output_stride import check_reachable
from atrous.training import checkpoint
from atrous.training.config import Recipe
from atrous.training.loader import check_masks, open_data, own_split, sampled
from atrous.training.pace import Pace, planned
from atrous.training.run_folder import claim, headline_of, refuse_foreign, refuse_taken, saved_state, write_split
from atrous.training.run_page import RunPage
from atrous.training.state import State


@dataclass(frozen=True)
class Start:
    """A run that is about to begin, or to go on.

    Attributes:
        recipe: as it is run.
        state: to begin with.
        saved: the checkpoint that it is from, or None.
        dataset: to train on, with images repeated as the recipe says.
        held_out: to validate on, or None.
        page: shows the run.
        pace: that was measured, or None.
    """

    recipe: Recipe
    state: State
    saved: dict[str, Any] | None
    dataset: SegmentationDataset
    held_out: SegmentationDataset | None
    page: RunPage
    pace: Pace | None


def start(
    recipe: Recipe,
    data: str | Path,
    run: Path,
    ctx: DistributedContext,
    claimed: ExitStack,
    *,
    resume: bool,
    workers: int,
    seconds: float | None = None,
) -> Start:
    """Begin a run, or go on with it.

    Raises:
        ValueError: as of `train`.
    """
    since, drawn = time.perf_counter(), list[Drawn]()
    if ctx.first:
        refuse_foreign(run)
    dataset, held_out = open_data(data, recipe.data, recipe.loss)
    empty, split = recipe.data.allow_empty_classes, recipe.data.train_split
    presence = check_masks(dataset, split=split, allow_empty_classes=empty, drawn=drawn)
    if held_out:
        check_masks(held_out, to_train=False, drawn=drawn)
    dataset = sampled(dataset, presence, recipe.data, recipe.model.weights, recipe.run.seed)
    if ctx.first:
        claimed.enter_context(checkpoint.lock(run))
    refuse_taken(run, resume)
    pace = None
    if not checkpoint.steps(run):
        recipe, pace = planned(recipe, dataset, held_out, ctx, workers=workers, seconds=seconds, since=since)
    changed = claim(run, recipe, ctx)
    if held_out and ctx.first and own_split(data, recipe.data):
        write_split(run, dataset, held_out)
    saved = saved_state(run, dataset) if resume else None
    state = State.build(recipe, len(dataset.labels), dataset.labels.ignore, ctx, saved)
    if saved:
        state.take_best(run, held_out)
    if held_out:
        check_reachable(recipe.val_output_stride, state.model.backbone.reachable, "val")
    headline = headline_of(recipe, data, run, state, dataset, held_out) + changed
    page = RunPage(run, recipe, data, dataset.labels, presence, held_out, headline)
    return Start(recipe, state, saved, dataset, held_out, page, pace)
