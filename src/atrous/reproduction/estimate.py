"""How long trainings will take: their multiplications over the rate of this machine.

Multiplications are counted on the network without data. The rate comes from the runs of the plan that are finished, or
else from a probe: two steps of the base recipe, with random weights on random pictures.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from atrous.data.image_io import read_size
from atrous.data.sampling import open_splits
from atrous.models.deeplab import DeepLabV3
from atrous.reproduction.plan import Training
from atrous.training import checkpoint
from atrous.training.config import Recipe, override
from atrous.training.stages import finished

USUAL = {False: (1_449, 375, 500), True: (500, 1024, 2048)}
"""Count, height and width of VOC's val, and of Cityscapes', for an estimate without the data."""


def seconds_left(trainings: Iterable[Training], rate: float) -> dict[str, float]:
    """Seconds that each training still takes, by name, at `rate` multiplications a second in training."""
    return {training.name: work_left(training) / rate for training in trainings}


def steps_left(training: Training) -> int:
    """Steps that a training has before it."""
    if training.recipe is None or finished(training.run, training.recipe):
        return 0
    return training.recipe.schedule.iterations - (checkpoint.steps(training.run) or [0])[-1]


def work_left(training: Training) -> float:
    """Multiplications and additions that a training and its evaluations still take; 0 for a model that is given."""
    recipe = training.recipe
    if recipe is None:
        return 0.0
    trained = work_of_a_step(recipe) * steps_left(training)
    count, height, width = val_images(training)
    passes = [(setting.output_stride, scale) for setting in training.missing for scale, _ in setting.passes]
    # Settings of one output stride share their passes, so a set of them counts each once; flips are left out of it.
    evaluated = sum(flops(recipe, (height, width), stride) * scale**2 for stride, scale in set(passes))
    twice = 2.0 if any(setting.flip for setting in training.missing) else 1.0
    validated = (
        flops(recipe, (height, width), recipe.model.output_stride)
        if steps_left(training) and recipe.data.val_split
        else 0
    )
    return trained + count * (twice * evaluated + validated)


def work_of_a_step(recipe: Recipe) -> float:
    """Multiplications and additions of one training step: a backward pass is two forward ones."""
    return 3.0 * flops(recipe, recipe.data.crop_size, recipe.model.output_stride) * recipe.optim.batch_size


def val_images(training: Training) -> tuple[int, int, int]:
    """Count, height and width of the images that a training is evaluated on; a guess without data."""
    if training.data is None or training.recipe is None or not training.recipe.data.val_split:
        return USUAL[training.recipe is not None and training.recipe.data.crop == 769]
    dataset = open_splits(training.data, training.recipe.data.val_split)
    height, width = read_size(dataset.items[0].image)[:2]
    return len(dataset), height, width


@lru_cache(maxsize=1024)
def flops(recipe: Recipe, size: tuple[int, int], output_stride: int) -> float:
    """Of one forward pass on one image.

    Raises:
        ValueError: if the recipe's network cannot be built, or cannot take the stride.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = recipe.model
    parts = (config.backbone, config.head, config.last_block, config.multi_grid, config.aspp_rates)
    model = _without_data(*parts, config.aspp_pointwise, config.image_pooling, config.output_stride)
    model.output_stride = output_stride
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.low_resolution_logits(torch.empty(1, 3, *size, device="meta"))
    return float(counter.get_total_flops())


@lru_cache(maxsize=64)
def _without_data(
    backbone: str,
    head: Any,
    last_block: int | None,
    multi_grid: tuple[int, ...] | None,
    aspp_rates: tuple[int, ...],
    aspp_pointwise: bool,
    image_pooling: bool,
    output_stride: int,
) -> DeepLabV3:
    import torch

    with torch.device("meta"):
        return DeepLabV3(
            backbone,
            head=head,
            last_block=last_block,
            multi_grid=multi_grid,
            aspp_rates=aspp_rates,
            aspp_pointwise=aspp_pointwise,
            image_pooling=image_pooling,
            output_stride=output_stride,
        ).eval()


def measured_rate(trainings: Iterable[Training]) -> float | None:
    """Multiplications a second of the trainings that are finished, by their ``log.csv``; None if none is."""
    done, spent = 0.0, 0.0
    for training in trainings:
        recipe = training.recipe
        if recipe and not training.replicas and finished(training.run, recipe):
            done += work_of_a_step(recipe) * recipe.schedule.iterations
            spent += training_seconds(training.run, recipe.optim.batch_size)
    return done / spent if spent else None


def training_seconds(run: Path, batch: int) -> float:
    """Seconds that a run spent on its steps, over all the times that it was stopped and resumed."""
    try:
        rows = list(csv.DictReader((run / "log.csv").read_text(encoding="utf-8").splitlines()))
    except OSError:
        return 0.0
    before, spent = 0, 0.0
    for row in rows:
        if row.get("images_per_second"):
            step = int(row["step"])
            spent += (step - before) * batch / float(row["images_per_second"])
            before = step
    return spent


def probed_rate(recipe: Recipe, device: str | None) -> float:
    """Multiplications a second in a training step of the recipe, on a small batch where there is no GPU."""
    import torch

    from atrous.evaluation.distributed import distributed_context
    from atrous.training.state import State

    with distributed_context(device) as ctx:
        batch = recipe.optim.batch_size if ctx.device.type == "cuda" else min(2, recipe.optim.batch_size)
        changes = {"weights": None, "batch_size": batch, "grad_accum_steps": 1, "class_weights": None, "ema_decay": 0.0}
        tried = override(recipe, changes)
        state = State.build(tried, 21, 255, ctx)
        crop = recipe.data.crop_size
        images = torch.randint(0, 256, (batch, 3, *crop), dtype=torch.uint8)
        labels = torch.randint(0, 21, (batch, *crop), dtype=torch.uint8)
        for _ in range(2):
            started = time.perf_counter()
            state.take_step([(images, labels, [])], recipe.optim.lr, ctx)
            spent = time.perf_counter() - started
    return work_of_a_step(tried) / spent
