"""The process of the cells: jobs and answers, one that dies, one that fails; nothing but answers on its output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atrous.evaluation.evaluate import Setting
from atrous.reproduction import worker
from atrous.reproduction.plan import Training
from atrous.reproduction.worker import OUTPUT, Worker, _answer
from atrous.training.config import Recipe, override


def job(recipe: Recipe | None, data: Path, run: Path, **more: Any) -> dict[str, Any]:
    settings = [[8, [1.0], False], [16, [1.0], True]]
    told = {"run": str(run), "recipe": recipe.to_yaml() if recipe else None, "model": None, "data": str(data),
            "replicas": 0, "settings": settings, "device": "cpu", "workers": 0}  # fmt: skip
    return {**told, **more}


def test_a_job_trains_and_evaluates(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    recipe = override(tiny, {"iterations": 2, "val_every": 2})
    assert _answer(job(recipe, tiny_data, tmp_path / "run")) == {"done": True}
    training = Training("run", recipe, str(tiny_data), tmp_path / "run", (Setting(8), Setting(16, (1.0,), True)))
    assert training.state == "finished" and not (tmp_path / "run" / "checkpoints").exists()
    found = json.loads(training.result(Setting(16, (1.0,), True)).read_text())
    assert found["images"] == 4 and found["flip"] and found["split"] == "val" and 0 <= found["miou"] <= 1


def test_a_job_that_fails_says_why_on_one_line(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    answer = _answer(job(override(tiny, {"lr": 1e30, "iterations": 9}), tiny_data, tmp_path / "run"))
    assert answer["error"].startswith("FloatingPointError: ") and "\n" not in answer["error"]
    assert "stopped" not in answer
    assert "ValueError" in _answer(job(override(tiny, {"train_split": "nosuch"}), tiny_data, tmp_path / "r"))["error"]


def test_an_interrupted_job_is_stopped_and_not_failed(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_train", interrupted)
    assert _answer(job(tiny, tiny_data, tmp_path / "run"))["stopped"] is True


def test_the_process_answers_survives_a_failure_and_comes_back_after_its_death(
    tiny: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    worker = Worker(None, "cpu", 0)
    failing = Training("f", override(tiny, {"train_split": "nosuch"}), str(tiny_data), tmp_path / "f", (Setting(16),))
    try:
        assert "no split 'nosuch'" in worker.train(failing)["error"]
        assert worker.process and worker.process.poll() is None
        assert (tmp_path / "f" / OUTPUT).exists()
        worker.process.kill()
        worker.process.wait()
        first = worker.process
        worker.process.poll = lambda: None  # type: ignore[method-assign]  # it died after it was last looked at
        assert "its process died (signal 9); see " in worker.train(failing)["error"]
        del first.poll
    finally:
        worker.close()


def test_the_process_leaves_when_its_parent_is_gone() -> None:
    source = "from atrous.reproduction.worker import serve; serve(2**22)"  # no process has this number
    orphan = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE)
    assert orphan.wait(timeout=60) == 1, "though its standard input stays open, as it does for a job at work"
