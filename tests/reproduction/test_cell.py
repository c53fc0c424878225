"""The process of a cell: it trains and evaluates, says why it failed, and ends with its parent."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from atrous.evaluation.evaluate import Setting
from atrous.reproduction.cell import ERROR, OUTPUT, do, start
from atrous.reproduction.plan import Training
from atrous.training.config import Recipe, override


def test_a_job_trains_and_evaluates(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    recipe = override(tiny, {"iterations": 2, "val_every": 2})
    settings = (Setting(8), Setting(16, (1.0,), True))
    training = Training("run", recipe, str(tiny_data), tmp_path / "run", settings)
    do(training, "cpu", 0)
    assert training.state == "finished" and not (tmp_path / "run" / "checkpoints").exists()
    result = json.loads(training.result(settings[1]).read_text())
    assert result["images"] == 4 and result["flip"] and result["split"] == "val" and 0 <= result["miou"] <= 1


def test_only_what_is_missing_is_evaluated(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    training = Training(
        "run", override(tiny, {"iterations": 2, "val_every": 2}), str(tiny_data), tmp_path / "run", (Setting(8),)
    )
    do(training, "cpu", 0)
    before = training.result(Setting(8)).stat().st_mtime_ns
    more = replace(training, settings=(Setting(8), Setting(16)))
    do(more, "cpu", 0)
    assert more.state == "finished" and training.result(Setting(8)).stat().st_mtime_ns == before


@pytest.mark.integration
def test_a_failure_is_the_last_line_that_it_prints(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    training = Training("f", override(tiny, {"train_split": "nosuch"}), str(tiny_data), tmp_path / "f")
    assert start(training, "cpu", 0, {}).wait() == 1
    last = (tmp_path / "f" / OUTPUT).read_text().splitlines()[-1]
    assert last.startswith(f"{ERROR}ValueError: ") and "no split 'nosuch'" in last


@pytest.mark.integration
def test_workers_of_a_cell_start_while_it_listens_to_its_parent(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    recipe = override(tiny, {"iterations": 1, "val_split": None})
    cell = start(Training("run", recipe, str(tiny_data), tmp_path / "run"), "cpu", 1, {})
    try:
        assert cell.wait(timeout=240) == 0
    finally:
        cell.kill()


@pytest.mark.integration
@pytest.mark.parametrize("signalled", ["SIGINT", "parent"])
def test_it_ends_by_a_signal_or_with_its_parent(signalled: str, tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = Training(
        "run", override(tiny, {"iterations": 10**6, "val_split": None}), str(tiny_data), run, (Setting(16),)
    )
    cell = start(training, "cpu", 0, {})
    while not (run / "log.csv").exists():
        assert cell.poll() is None
        time.sleep(0.05)
    if signalled == "parent":
        assert cell.stdin
        cell.stdin.close()
    else:
        cell.send_signal(signal.SIGINT)
    assert cell.wait(timeout=60) == (1 if signalled == "parent" else 130)
    assert bool(list(run.glob("checkpoints/step-*"))) == (signalled == "SIGINT")
