"""Trainings shared out over processes: order, failures, death, stopping, GPUs. The processes only pretend to train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from atrous.reproduction import pool as pool_module
from atrous.reproduction.cell import OUTPUT
from atrous.reproduction.plan import Options, Training
from atrous.reproduction.pool import Pool, environments, gpus, progress

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
FAILS = "import sys; print('a traceback'); print('error: ValueError: why'); sys.exit(1)"
STOPPED = "import sys; sys.exit(130)"
SLEEPS = "import sys, time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(130)"
ENVIRONMENT = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"


class Recorder:
    """A pool whose cells run a line of Python in place of a training, and what happened in it."""

    def __init__(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: dict[str, str | None], **code: str
    ) -> None:
        self.folder, self.code = tmp_path, code
        self.trainings = {
            name: Training(name, None, "D", tmp_path / name, after=source) for name, source in after.items()
        }
        self.events: list[tuple[str, str]] = []
        monkeypatch.setattr(pool_module, "start", self.start)

    def start(self, training: Training, *options: Any) -> subprocess.Popen[bytes]:
        environment: Mapping[str, str] = options[-1]
        training.run.mkdir(parents=True, exist_ok=True)
        with open(training.run / OUTPUT, "ab") as output:
            line = [sys.executable, "-S", "-c", self.code.get(training.name, "")]
            return subprocess.Popen(line, stdout=output, env={**os.environ, **environment}, process_group=0)

    def run(self, parallel: int = 1, variables: list[dict[str, str]] | None = None, **more: Any) -> Pool:
        pool = Pool(
            self.trainings, variables or [{}] * parallel, Options(),
            lambda event, training, why: self.events.append((event, training.name)), lambda line: None,
        )  # fmt: skip
        if "signal" in more:
            sender = threading.Thread(target=self._send, args=(pool, more["signal"]))
            sender.start()
        pool.run()
        return pool

    def _send(self, pool: Pool, number: int) -> None:
        while len(pool.running) < 2:
            time.sleep(0.01)
        time.sleep(0.3)  # until they sleep
        os.kill(os.getpid(), number)

    def at(self, event: str, name: str) -> int:
        return self.events.index((event, name))


def test_one_at_a_time_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, monkeypatch, {"a": None, "b": "a", "c": None})
    pool = recorder.run()
    assert recorder.events == [(event, name) for name in "abc" for event in ("begins", "finished")]
    assert not pool.failed and not pool.stopped


def test_a_failure_stops_nothing_but_what_starts_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = {"a": None, "b": "a", "c": "b", "d": None}
    recorder = Recorder(tmp_path, monkeypatch, after, a=FAILS)
    pool = recorder.run()
    assert [event for event in recorder.events if event[0] != "failed"] == [
        ("begins", "a"),
        ("begins", "d"),
        ("finished", "d"),
    ]
    assert pool.failed["a"] == "ValueError: why"
    assert "starts from, a, failed" in pool.failed["b"] and "starts from, b, failed" in pool.failed["c"]


def test_a_process_that_dies_takes_nothing_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, monkeypatch, {"a": None, "b": None, "c": None}, a=DIES)
    pool = recorder.run(2)
    assert (
        list(pool.failed) == ["a"] and pool.failed["a"] == f"its process died (signal 9); see {tmp_path / 'a' / OUTPUT}"
    )
    assert ("finished", "b") in recorder.events and ("finished", "c") in recorder.events


def test_what_starts_from_a_running_training_waits_and_the_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, monkeypatch, {"a": None, "b": "a", "c": None}, a="import time; time.sleep(0.5)")
    recorder.run(2)
    assert recorder.at("begins", "c") < recorder.at("finished", "a") < recorder.at("begins", "b")


def test_one_that_is_stopped_stops_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, monkeypatch, {"a": None, "b": None, "c": None}, b=STOPPED)
    pool = recorder.run()
    assert recorder.events[-1] == ("stopped", "b") and pool.stopped and not pool.failed and list(pool.waiting) == ["c"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, monkeypatch, {"a": None, "b": None, "c": None}, a=SLEEPS, b=SLEEPS)
    before = signal.getsignal(number)
    pool = recorder.run(2, signal=number)
    assert pool.stopped == number and not pool.failed
    assert recorder.events[2:] == [("stopped", "a"), ("stopped", "b")] or recorder.events[2:] == [
        ("stopped", "b"),
        ("stopped", "a"),
    ]
    assert signal.getsignal(number) is before


def test_each_process_sees_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, monkeypatch, {"a": None, "b": None}, a=ENVIRONMENT, b=ENVIRONMENT)
    recorder.run(variables=[{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}])
    assert [(tmp_path / name / OUTPUT).read_text() for name in "ab"] == ["4\n", "6\n"]


def test_how_many_at_once_and_on_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert gpus("cpu") == [None] and environments(Options(device="cpu"), {}) == [{}]
    assert environments(Options(device="cpu", parallel=4), {}) == [{"OMP_NUM_THREADS": "4"}] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environments(Options(device="cpu", parallel=2), {}) == [{}] * 2, "what the user has set stays"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus(None) == ["0", "1"] and gpus("cuda:1") == [None]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments(Options(), {})] == ["0", "1"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments(Options(parallel=3), {})] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert gpus(None) == ["4", "6"]
    replicas = {"r": Training("r", None, "D", Path("r"), replicas=2)}
    assert environments(Options(parallel=3), replicas) == [{}], "replicas share out the machine by themselves"


def test_progress_is_the_last_step_in_the_log(tmp_path: Path, tiny: Any) -> None:
    training = Training("t", tiny, "D", tmp_path)
    assert progress(training) == "t: starting"
    (tmp_path / "log.csv").write_text("step,loss\n2,0.5\n")
    assert progress(training) == "t: step 2 of 4"
