"""The time of a run: measured on steps that leave no trace, and a schedule that fits into what is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from atrous.data.datasets.dataset import open_dataset
from atrous.evaluation.distributed import DistributedContext
from atrous.training import pace as pace_file
from atrous.training.config import Recipe, override
from atrous.training.loop import train
from atrous.training.pace import Forecast, Pace, fitted, measure, told, with_iterations
from atrous.training.recipes import RECIPES, load_recipe
from states import final_state, same

CTX = DistributedContext(0, 1, torch.device("cpu"))
BASE = RECIPES["camvid-mobilenetv2"]


def test_the_steps_that_fit_are_planned() -> None:
    planned = fitted(BASE, Pace(1.0, 10.0, 5), 1200.0, CTX, 1200.0)
    steps = planned.schedule.iterations
    validations = -(-steps // planned.run.val_every)
    assert 900 < steps < 1100 and 1000 < Pace(1.0, 10.0).seconds(steps, validations) < 1200
    assert planned.lr_at(steps) == 0 and planned.lr_at(steps - 1) > 0  # the schedule is whole
    assert planned == fitted(BASE, Pace(1.0, 10.0, 5), 1200.0, CTX, 1200.0)


def test_slow_validations_are_fewer() -> None:
    planned = fitted(BASE, Pace(1.0, 100.0), 1200.0, CTX, 1200.0)
    assert planned.run.val_every == planned.schedule.iterations
    assert fitted(BASE, Pace(1.0), 1200.0, CTX, 1200.0).schedule.iterations > 1100


def test_too_little_time_is_refused_with_what_would_do() -> None:
    with pytest.raises(
        ValueError, match=r"--time 2m is enough for 11 steps of 10\.0 s .* expected 50: give .*--time (\d+)m"
    ) as caught:
        fitted(BASE, Pace(10.0), 120.0, CTX, 120.0)
    minutes = int(str(caught.value).split("at least --time ")[1].split("m")[0])
    assert fitted(BASE, Pace(10.0), 60.0 * minutes, CTX, 60.0 * minutes).schedule.iterations >= 50


def test_what_follows_from_the_steps_changes_with_them() -> None:
    half = with_iterations(BASE, 500)
    assert half.optim.ema_decay == pytest.approx(0.98) and half.run.val_every == 41 and half.schedule.warmup == 25
    assert with_iterations(BASE, BASE.schedule.iterations).optim == BASE.optim
    assert with_iterations(override(BASE, {"ema_decay": 0.0}), 10).optim.ema_decay == 0
    assert with_iterations(BASE, 5).optim.ema_decay == 0  # not below


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0m"), (45, "45s"), (60, "1m"), (90, "90s"), (1200, "20m"), (5400, "1h30m"), (7200, "2h")]
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert told(seconds) == text


def test_a_forecast_counts_the_validations_to_come() -> None:
    forecast = Forecast(1000, 0, 100, Pace(1.0, 20.0, 3))
    assert forecast.left == 1200 and forecast.opening() == "about 20m: 1 s a step, measured on 3 trial steps"
    forecast.after_step(950)
    assert forecast.left == 70
    forecast.note_validation(40.0)
    assert forecast.left == 90
    assert Forecast(10, 0, 0).opening() == "" and Forecast(10, 0, 0).left == 0


def test_measuring_leaves_no_trace(tiny: Recipe, tiny_data: Path) -> None:
    data, val = open_dataset(tiny_data, "train"), open_dataset(tiny_data, "val")
    measured = measure(tiny, data, val, CTX, workers=0, seconds=0.0)
    assert measured.steps == 1 and measured.step > 0 and measured.validation > 0


def test_a_run_in_a_given_time_has_a_plan_and_ends_as_one_of_that_many_steps(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(tiny, {"ema_decay": 0.9, "warmup": 3})

    def fit(recipe: Recipe, *_: Any) -> Recipe:
        return with_iterations(recipe, 6, 3)

    monkeypatch.setattr(pace_file, "fitted", fit)
    train(recipe, tiny_data, tmp_path / "timed", workers=0, device="cpu", seconds=60.0)
    plan = load_recipe(tmp_path / "timed" / "recipe.yaml")
    assert plan == with_iterations(recipe, 6, 3)
    monkeypatch.undo()
    train(plan, tiny_data, tmp_path / "plain", workers=0, device="cpu")
    assert same(final_state(tmp_path / "timed"), final_state(tmp_path / "plain"))
    assert (tmp_path / "timed/best/model.safetensors").read_bytes() == (
        tmp_path / "plain/best/model.safetensors"
    ).read_bytes()


def test_a_real_minute_is_planned_for(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Recipe] = []
    real = pace_file.fitted

    def short(*arguments: Any) -> Recipe:
        plans.append(real(*arguments))
        return with_iterations(plans[0], 2)

    monkeypatch.setattr(pace_file, "fitted", short)
    train(tiny, tiny_data, tmp_path, workers=0, device="cpu", seconds=60.0)
    assert plans[0].schedule.iterations > 50
