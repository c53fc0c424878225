"""Estimates of the time: FLOPs against known networks, speeds against logs written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atrous.reproduction import estimate
from atrous.reproduction.estimate import (
    flops,
    flops_left,
    flops_of_step,
    measured_speed,
    probed_speed,
    seconds_left,
    speed_of_step,
    training_seconds,
)
from atrous.reproduction.plan import Options, Training, plan
from atrous.training.config import ModelConfig, Recipe, override
from atrous.training.stages import mark_finished


@pytest.fixture
def training(tiny_data: Path, tmp_path: Path) -> Training:
    options = Options("tiny", data=str(tiny_data), out=tmp_path / "out", iterations=4)
    return next(iter(plan("table-9", options).trainings.values()))


def test_flops_are_those_of_the_layers() -> None:
    aspp = ModelConfig("resnet50", multi_grid=None, weights=None)
    # Half the stride makes block4 and ASPP four times as large, and leaves the blocks before them as they are.
    at = {stride: flops(replace(aspp, output_stride=stride), (257, 257)) for stride in (8, 16, 32)}
    assert 2 < at[8] / at[16] < 4 and 1 < at[16] / at[32] < 4
    bare = replace(aspp, head="cascade", last_block=4, output_stride=32)
    # torchvision's ResNet-50 has 4.09 GMAC on 224x224 at stride 32, 2 operations each.
    assert flops(bare, (224, 224)) == pytest.approx(2 * 4.09e9, rel=0.08)


def test_the_estimate_shrinks_as_steps_are_done(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    assert training.recipe
    whole = flops_left(training)
    assert whole == pytest.approx(4 * flops_of_step(training.recipe))
    (training.run / "checkpoints" / "step-3").mkdir(parents=True)
    assert whole - flops_left(training) == pytest.approx(3 * flops_of_step(training.recipe))
    monkeypatch.setattr(estimate, "probed_speed", lambda recipe, device: whole / 28)
    assert seconds_left([training], None) == {training.name: pytest.approx(7)}


def test_the_speed_is_that_of_finished_runs(training: Training) -> None:
    assert training.recipe and measured_speed([training]) is None
    training.run.mkdir(parents=True)
    (training.run / "recipe.yaml").write_text(training.recipe.to_yaml())
    # 2 steps at 4 a second, then, resumed, 2 more at 8: images, of which a step has `batch`.
    batch = training.recipe.optim.batch_size
    (training.run / "log.csv").write_text(
        f"step,loss,lr,images_per_second,memory_mb,miou\n2,1,1,{4 * batch},9,\n4,1,1,{8 * batch},9,\n4,,,,,0.5\n"
    )
    mark_finished(training.run, 0.5)
    assert training_seconds(training.run, batch) == pytest.approx(2 / 4 + 2 / 8)
    assert measured_speed([training]) == pytest.approx(4 * flops_of_step(training.recipe) / 0.75)
    assert seconds_left([training], None) == {}


@pytest.fixture
def small(training: Training) -> Recipe:
    assert training.recipe
    return override(training.recipe, {"backbone": "timm/lcnet_050", "aspp_rates": (1,), "crop": 33, "batch_size": 4})


def test_two_steps_are_timed(small: Recipe) -> None:
    assert speed_of_step(small, "cpu") > 0


@pytest.mark.integration
def test_without_a_finished_run_another_process_times_them(small: Recipe) -> None:
    assert probed_speed(small, "cpu") > 0


def test_what_fails_in_the_other_process_is_said(small: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="nosuch") as failed:
        speed_of_step(override(small, {"backbone": "timm/nosuch"}), "cpu")
    # The same failure in the other process, without the seconds in which that imports PyTorch.
    monkeypatch.setattr(estimate, "_PROBE", f"print('a step')\nraise RuntimeError({str(failed.value)!r})")
    with pytest.raises(RuntimeError, match="^RuntimeError: .*nosuch"):
        probed_speed(small, "cpu")


def test_a_model_that_is_given_has_no_estimate(tmp_path: Path) -> None:
    assert flops_left(Training("x", None, None, tmp_path)) == 0
    assert seconds_left([Training("x", None, None, tmp_path)], None) == {}
