"""Estimated time of trainings: the FLOPs of their steps over the FLOPs a second that this machine reaches.

FLOPs are counted on the meta device. The speed is that of finished trainings, or else of two steps on random images.
"""

from __future__ import annotations

import csv
import pickle
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from atrous.evaluation.distributed import distributed_context
from atrous.reproduction.plan import Training
from atrous.training import checkpoint
from atrous.training.config import ModelConfig, Recipe, override
from atrous.training.stages import finished
from atrous.training.state import State, build_model

_PROBE = """
import pickle, sys
from atrous.reproduction.estimate import speed_of_step
print(speed_of_step(*pickle.load(sys.stdin.buffer)))
"""


def seconds_left(trainings: Iterable[Training], device: str | None) -> dict[str, float]:
    """Seconds that each training still takes, by name; none for models that are given.

    Raises:
        RuntimeError: if the trial step fails where no training is finished.
    """
    trainings = list(trainings)
    left = {training.name: flops_left(training) for training in trainings if training.recipe and steps_left(training)}
    if not left:
        return {}
    first = next(training.recipe for training in trainings if training.name in left)
    assert first
    speed = measured_speed(trainings) or probed_speed(first, device)
    return {name: flops / speed for name, flops in left.items()}


def flops_left(training: Training) -> float:
    """FLOPs of the steps that a training has before it; its evaluation is little beside them."""
    return flops_of_step(training.recipe) * steps_left(training) if training.recipe else 0.0


def steps_left(training: Training) -> int:
    """Steps that a training has before it."""
    if training.recipe is None or finished(training.run, training.recipe):
        return 0
    return training.recipe.schedule.iterations - (checkpoint.steps(training.run) or [0])[-1]


def flops_of_step(recipe: Recipe) -> float:
    """FLOPs of one training step: the backward pass costs two forward passes."""
    return 3.0 * flops(replace(recipe.model, weights=None), recipe.data.crop_size) * recipe.optim.batch_size


@lru_cache(maxsize=1024)
def flops(config: ModelConfig, size: tuple[int, int]) -> float:
    """FLOPs of one forward pass on one image of H, W, at the output stride of training.

    Raises:
        ValueError: if the network cannot be built.
    """
    with torch.device("meta"):
        model = build_model(config, 21).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.low_resolution_logits(torch.empty(1, 3, *size, device="meta"))
    return float(counter.get_total_flops())


def measured_speed(trainings: Iterable[Training]) -> float | None:
    """FLOPs a second of the finished trainings, by their ``log.csv``; None if there is none."""
    done, seconds = 0.0, 0.0
    for training in trainings:
        recipe = training.recipe
        if recipe and not training.replicas and finished(training.run, recipe):
            done += flops_of_step(recipe) * recipe.schedule.iterations
            seconds += training_seconds(training.run, recipe.optim.batch_size)
    return done / seconds if seconds else None


def training_seconds(run: Path, batch_size: int) -> float:
    """Seconds that a run spent on its steps, however often it was stopped and resumed."""
    try:
        rows = list(csv.DictReader((run / "log.csv").read_text(encoding="utf-8").splitlines()))
    except OSError:
        return 0.0
    last, seconds = 0, 0.0
    for row in rows:
        if row.get("images_per_second"):
            step = int(row["step"])
            seconds += (step - last) * batch_size / float(row["images_per_second"])
            last = step
    return seconds


def probed_speed(recipe: Recipe, device: str | None) -> float:
    """See `speed_of_step`; in another process, which a GPU's memory and a crash stay in.

    Raises:
        RuntimeError: if the step fails, with its last line.
    """
    job = pickle.dumps((recipe, device))
    process = subprocess.run([sys.executable, "-c", _PROBE], input=job, capture_output=True, check=False)
    if process.returncode:
        lines = process.stderr.decode(errors="replace").splitlines()
        raise RuntimeError(lines[-1] if lines else f"a trial step ended with status {process.returncode}")
    return float(process.stdout.split()[-1])


def speed_of_step(recipe: Recipe, device: str | None) -> float:
    """FLOPs a second of a training step on random images, two at a time on a CPU."""
    with distributed_context(device) as ctx:
        batch = recipe.optim.batch_size if ctx.device.type == "cuda" else min(2, recipe.optim.batch_size)
        changes = {"weights": None, "batch_size": batch, "grad_accum_steps": 1, "class_weights": None, "ema_decay": 0.0}
        tried = override(recipe, changes)
        state = State.build(tried, 21, 255, ctx)
        images = torch.randint(0, 256, (batch, 3, *recipe.data.crop_size), dtype=torch.uint8)
        labels = torch.randint(0, 21, (batch, *recipe.data.crop_size), dtype=torch.uint8)
        for _ in range(2):
            started = time.perf_counter()
            state.take_step([(images, labels, [])], recipe.optim.lr, ctx)
            seconds = time.perf_counter() - started
    return flops_of_step(tried) / seconds
