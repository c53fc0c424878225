"""Trainings shared out over workers, each after the one that it starts from; one that fails stops nothing else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from atrous.reproduction.plan import Training
from atrous.reproduction.worker import Worker

Event = Callable[[str, Training, str], None]
"""Called with ``begins``, ``finished``, ``failed`` or ``stopped``, the training, and why."""


class Queue:
    """Runs trainings until all are finished or failed, or a signal comes.

    Args:
        trainings: that are not finished, each after the one that it starts from.
        workers: processes to share them out over.
        event: see `Event`.
        tick: called every second with a line that says how far the running ones are.
    """

    def __init__(
        self,
        trainings: Mapping[str, Training],
        workers: list[Worker],
        event: Event,
        tick: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.all, self.waiting = dict(trainings), dict(trainings)
        self.workers, self.event, self.tick = workers, event, tick
        self.running: set[str] = set()
        self.failed: dict[str, str] = {}
        self.stopped = 0
        self.changed = threading.Condition()

    def run(self) -> None:
        """All of them; returns when nothing runs any more, with `failed` and `stopped` set."""
        threads = [threading.Thread(target=self._serve, args=(worker,)) for worker in self.workers]
        with self._signals():
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(1.0)  # a join without an end would keep signals waiting
                    self.tick("; ".join(how_far(self.all[name]) for name in sorted(self.running)))

    def _serve(self, worker: Worker) -> None:
        try:
            while training := self._next():
                self.event("begins", training, "")
                answer = worker.train(training)
                self._note(training, answer)
        finally:
            worker.close()

    def _next(self) -> Training | None:
        with self.changed:
            while self.waiting and not self.stopped:
                self._drop_those_without_a_start()
                ready = [
                    t for t in self.waiting.values() if t.after not in self.waiting and t.after not in self.running
                ]
                if ready:
                    self.running.add(ready[0].name)
                    return self.waiting.pop(ready[0].name)
                self.changed.wait(0.5)
            return None

    def _drop_those_without_a_start(self) -> None:
        for training in list(self.waiting.values()):
            if training.after in self.failed:
                self._fail(
                    self.waiting.pop(training.name), f"the training that it starts from, {training.after}, failed"
                )

    def _note(self, training: Training, answer: dict[str, Any]) -> None:
        with self.changed:
            self.running.discard(training.name)
            if "stopped" in answer or (self.stopped and "error" in answer):
                self.stopped = self.stopped or signal.SIGINT
                self.event("stopped", training, training.state)
            elif "error" in answer:
                self._fail(training, answer["error"])
            else:
                self.event("finished", training, "")
            self.changed.notify_all()

    def _fail(self, training: Training, why: str) -> None:
        self.failed[training.name] = why
        self.event("failed", training, why)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM are passed on: the workers save and leave, at the second one at once."""

        def note(number: int, _: Any) -> None:
            self.stopped = number
            for worker in self.workers:
                worker.interrupt()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def how_far(training: Training) -> str:
    """The last step that a running training has noted."""
    steps = training.recipe.schedule.iterations if training.recipe else 0
    try:
        step = (training.run / "log.csv").read_text(encoding="utf-8").splitlines()[-1].partition(",")[0]
    except (OSError, IndexError):
        step = ""
    at = f"step {step} of {steps}" if step.isdecimal() and int(step) < steps else "evaluating" if step else "starting"
    return f"{training.name}: {at}"


def gpus(device: str | None) -> list[str | None]:
    """The GPUs to have a worker each; one None where there is one worker, on `device`."""
    import torch

    if device is not None or not torch.cuda.is_available():
        return [None]
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(shown.split(",")) if shown else [str(i) for i in range(torch.cuda.device_count())]
