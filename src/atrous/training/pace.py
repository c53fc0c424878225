"""How long a training takes: measured on a few steps that are not kept, and the schedule that fits a given time.

A plan is the number of steps, and stands in the run's ``recipe.yaml``. So a resume, on a busier machine too, goes on by
the same schedule, and the run ends with the same bytes as one that never stopped.
"""

from __future__ import annotations

import math
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch

from atrous.data.datasets.dataset import SegmentationDataset
from atrous.evaluation.distributed import DistributedContext
from atrous.evaluation.evaluate import in_eval_mode, predict_classes
from atrous.messages import counted
from atrous.training.config import Recipe, override
from atrous.training.loader import crops_of, loader
from atrous.training.state import State

FEWEST_STEPS = 50
"""Steps below which a schedule is not worth its time."""
VALIDATIONS = 12
"""Over a whole run, unless they would take more than `_VALIDATING` of the time."""
_VALIDATING, _RESERVE, _ENDING = 0.15, 0.05, 2.0
_WARM_STEPS, _MOST_STEPS = 2, 8
_MEASURING = 0.05
"""Share of a given time that measuring may take, beyond the first three steps."""
_TRIAL = 4.0
"""Seconds for the same where no time is given."""
_WORTH_MEASURING = 200
"""Steps of a run from which a few more do not matter."""
_FIRST_STEPS = 4
"""Of a run, all but the first of which tell how long it will take."""
_WRONG = 1.25
"""Factor by which an estimate must be wrong to be corrected."""


@dataclass(frozen=True)
class Pace:
    """How fast a training is on this machine.

    Attributes:
        step: seconds of a step, its data included.
        validation: seconds of a validation; 0 without one.
        steps: that were measured.
    """

    step: float
    validation: float = 0.0
    steps: int = 0

    def seconds(self, steps: int, validations: int) -> float:
        """How long this many of both take."""
        return steps * self.step + validations * self.validation


def measure(
    recipe: Recipe,
    dataset: SegmentationDataset,
    held_out: SegmentationDataset | None,
    ctx: DistributedContext,
    *,
    workers: int,
    seconds: float,
) -> Pace:
    """Take a few steps with a state that is then thrown away, and predict one image of those held out."""
    started = time.perf_counter()
    state = State.build(recipe, len(dataset.labels), dataset.labels.ignore, ctx)
    crops = crops_of(dataset, recipe.data, state.model, recipe.run.seed)
    batches = iter(loader(crops, recipe.optim, range(_WARM_STEPS + _MOST_STEPS), workers, ctx))
    took: list[float] = []
    for number in range(_WARM_STEPS + _MOST_STEPS):
        before = time.perf_counter()
        parts = [next(batches) for _ in range(recipe.optim.grad_accum_steps)]
        for part in parts:
            if isinstance(part, Exception):
                raise part
        state.take_step(parts, recipe.lr_at(0), ctx)
        took.append(time.perf_counter() - before)
        if ctx.any(number >= _WARM_STEPS and time.perf_counter() - started > seconds):
            break
    validation = _seconds_of_image(state, held_out) * len(held_out) / ctx.size if held_out else 0.0
    return Pace(statistics.median(took[_WARM_STEPS:]), validation, len(took) - _WARM_STEPS)


def _seconds_of_image(state: State, held_out: SegmentationDataset) -> float:
    network = in_eval_mode(state.evaluated, state.recipe.run.val_output_stride)
    took = []
    for index in (0, len(held_out) // 2):
        before = time.perf_counter()
        predict_classes(network, held_out[index].image[None], pad_to=state.recipe.run.val_pad_to)
        took.append(time.perf_counter() - before)
    return took[-1]


class Forecast:
    """When a run will end, from what its steps have taken.

    Args:
        iterations: steps in all.
        start: steps done before.
        val_every: steps between validations; 0 for none.
        pace: that was measured before the first step, or None.
    """

    def __init__(self, iterations: int, start: int, val_every: int, pace: Pace | None = None) -> None:
        self.iterations, self.start, self.done, self.val_every = iterations, start, start, val_every
        self.pace = pace or Pace(0.0)
        self._expected = self.left
        self._ticks: list[float] = []

    @property
    def left(self) -> float:
        """Seconds to go; 0 while nothing is known."""
        steps = self.iterations - self.done
        return self.pace.seconds(steps, -(-steps // self.val_every) if self.val_every else 0)

    def opening(self) -> str:
        """What is known before the first step, or nothing."""
        if not self._expected:
            return ""
        measured = counted(self.pace.steps, "trial step")
        return f"about {told(self._expected)}: {self.pace.step:.2g} s a step, measured on {measured}"

    def after_step(self, step: int) -> str:
        """Count a step; once the first ones are done, what they say of the end, unless it is what was said before."""
        self.done = step
        self._ticks.append(time.perf_counter())
        if len(self._ticks) != _FIRST_STEPS or self.iterations - self.start <= 2 * _FIRST_STEPS:
            return ""
        self.note_step((self._ticks[-1] - self._ticks[0]) / (_FIRST_STEPS - 1))
        before, self._expected = self._expected, self.left
        if before and 1 / _WRONG < self._expected / before < _WRONG:
            return ""
        return f"{'corrected: ' if before else ''}about {told(self._expected)} to go, {self.pace.step:.2g} s a step"

    def note_step(self, seconds: float) -> None:
        """Take what steps take now."""
        self.pace = replace(self.pace, step=seconds)

    def note_validation(self, seconds: float) -> None:
        """Take what a validation took."""
        self.pace = replace(self.pace, validation=seconds)


def planned(
    recipe: Recipe,
    dataset: SegmentationDataset,
    held_out: SegmentationDataset | None,
    ctx: DistributedContext,
    *,
    workers: int,
    seconds: float | None,
    since: float,
) -> tuple[Recipe, Pace | None]:
    """The recipe as it is to be run, and how fast; None where that is not measured, since the first steps tell soon.

    Raises:
        ValueError: if too few steps fit.
    """
    measured = partial(measure, recipe, dataset, held_out, ctx, workers=workers)
    if seconds is None:
        pace = None
        if ctx.size == 1 and ctx.device.type == "cpu" and recipe.schedule.iterations >= _WORTH_MEASURING:
            with suppress(Exception):  # what is wrong, the run itself says better
                pace = measured(seconds=_TRIAL)
        return recipe, pace
    pace = measured(seconds=_MEASURING * seconds)
    return fitted(recipe, pace, seconds - (time.perf_counter() - since), ctx, seconds), pace


def fitted(recipe: Recipe, pace: Pace, seconds: float, ctx: DistributedContext, asked: float) -> Recipe:
    """The recipe with as many steps as fit into the time that is left; all processes plan the same.

    Raises:
        ValueError: if fewer than `FEWEST_STEPS` fit.
    """
    left = (seconds - _ENDING) * (1 - _RESERVE)
    rounds = min(VALIDATIONS, max(1, int(_VALIDATING * left / pace.validation))) if pace.validation else 0
    fit = int((left - rounds * pace.validation) / pace.step)
    # A rank may be slower than another.
    steps, rounds = (int(ctx.sum(torch.tensor(float(number))) / ctx.size) for number in (fit, rounds))
    if steps < FEWEST_STEPS:
        least = pace.seconds(FEWEST_STEPS, 1) / (1 - _RESERVE) + _ENDING + (asked - seconds)
        raise ValueError(
            f"--time {told(asked)} is enough for {counted(max(0, steps), 'step')} of {pace.step:.1f} s on this "
            f"machine, expected {FEWEST_STEPS}: give at least --time {math.ceil(least * 1.1 / 60)}m, or make a step "
            "cheaper by --batch-size or --set crop=SIDE"
        )
    return with_iterations(recipe, steps, math.ceil(steps / rounds) if rounds else None)


def with_iterations(recipe: Recipe, iterations: int, val_every: int | None = None) -> Recipe:
    """The recipe with another number of steps, and what follows from it: warm-up, moving average, validations."""
    schedule, optim = recipe.schedule, recipe.optim
    average = 1 - (1 - optim.ema_decay) * schedule.iterations / iterations
    changes = {
        "iterations": iterations, "schedule_iterations": None, "warmup": min(schedule.warmup, iterations // 20),
        "ema_decay": round(max(0.0, average), 4) if optim.ema_decay else 0.0,
        "val_every": val_every or max(1, iterations // VALIDATIONS),
    }  # fmt: skip
    return override(recipe, changes)


def told(seconds: float) -> str:
    """A duration as people say it: ``45s``, ``20m``, ``1h30m``."""
    seconds = round(seconds)
    if seconds < 100 and seconds % 60:
        return f"{seconds}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes or not hours else "")
