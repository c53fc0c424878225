"""Trainings shared out over workers that only pretend: order, failures, stopping, two GPUs."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from atrous.reproduction.plan import Training
from atrous.reproduction.scheduler import Queue, gpus, how_far


class Pretender:
    """A worker that answers from a table, and notes what ran beside what."""

    def __init__(self, answers: dict[str, dict[str, Any]], seconds: float = 0.0) -> None:
        self.answers, self.seconds = answers, seconds
        self.ran: list[str] = []
        self.interrupted, self.closed = threading.Event(), 0

    def train(self, training: Training) -> dict[str, Any]:
        self.ran.append(training.name)
        if self.interrupted.wait(self.seconds):
            return {"stopped": True, "error": "Stopped"}
        return self.answers.get(training.name, {"done": True})

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        self.closed += 1


def trainings(**after: str | None) -> dict[str, Training]:
    return {name: Training(name, None, "D", Path(name), after=source) for name, source in after.items()}


def queued(wanted: dict[str, Training], *workers: Pretender) -> tuple[Queue, list[tuple[str, str, str]]]:
    events: list[tuple[str, str, str]] = []
    queue = Queue(wanted, list(workers), lambda kind, training, why: events.append((kind, training.name, why)))  # type: ignore[arg-type]
    return queue, events


def test_one_worker_does_all_in_order() -> None:
    worker = Pretender({})
    queue, events = queued(trainings(a=None, b="a", c=None), worker)
    queue.run()
    assert worker.ran == ["a", "b", "c"] and worker.closed == 1
    assert [event[:2] for event in events] == [(kind, name) for name in "abc" for kind in ("begins", "finished")]
    assert not queue.failed and not queue.stopped


def test_a_failure_stops_nothing_but_what_starts_from_it() -> None:
    worker = Pretender({"a": {"error": "the loss is nan"}})
    queue, _ = queued(trainings(a=None, b="a", c="b", d=None), worker)
    queue.run()
    assert worker.ran == ["a", "d"]
    assert queue.failed["a"] == "the loss is nan" and "starts from, a, failed" in queue.failed["b"]
    assert "starts from, b, failed" in queue.failed["c"]


def test_two_workers_share_and_keep_the_order_of_what_depends() -> None:
    workers = Pretender({}, 0.05), Pretender({}, 0.05)
    queue, events = queued(trainings(a=None, b="a", c=None, d=None, e=None), *workers)
    queue.run()
    assert sorted(workers[0].ran + workers[1].ran) == list("abcde") and all(len(worker.ran) >= 2 for worker in workers)
    told = [event[:2] for event in events]
    assert told.index(("finished", "a")) < told.index(("begins", "b"))


def test_what_waits_for_another_workers_training_waits() -> None:
    slow, quick = Pretender({}, 0.3), Pretender({}, 0.0)
    queue, events = queued(trainings(a=None, b="a"), slow, quick)
    queue.run()
    told = [event[:2] for event in events]
    assert told == [("begins", "a"), ("finished", "a"), ("begins", "b"), ("finished", "b")]


def test_a_stop_leaves_the_rest_undone() -> None:
    worker = Pretender({"b": {"stopped": True, "error": "Stopped: at step 3"}})
    queue, events = queued(trainings(a=None, b=None, c=None), worker)
    queue.run()
    assert worker.ran == ["a", "b"] and queue.stopped and not queue.failed
    assert events[-1][:2] == ("stopped", "b")


def test_a_signal_reaches_every_worker_once() -> None:
    import os
    import signal

    workers = Pretender({}, 30.0), Pretender({}, 30.0)
    queue, _ = queued(trainings(a=None, b=None, c=None), *workers)
    threading.Thread(target=lambda: (time.sleep(0.3), os.kill(os.getpid(), signal.SIGTERM))).start()
    before = signal.getsignal(signal.SIGTERM)
    queue.run()
    assert queue.stopped == signal.SIGTERM and all(worker.interrupted.is_set() for worker in workers)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert gpus("cpu") == [None]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus(None) == ["0", "1", "2"] and gpus("cuda:1") == [None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert gpus(None) == ["4", "6"]


def test_how_far_a_training_is(tmp_path: Path, tiny: Any) -> None:
    training = Training("t", tiny, "D", tmp_path)
    assert how_far(training) == "t: starting"
    (tmp_path / "log.csv").write_text("step,loss\n2,0.5\n")
    assert how_far(training) == "t: step 2 of 4"
