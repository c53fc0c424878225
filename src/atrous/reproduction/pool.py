"""Trainings in processes of their own, several at once; each waits for the one that it starts from.

A process that dies takes nothing with it. Ctrl-C is passed on: every process saves and leaves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from atrous.reproduction.cell import ERROR, OUTPUT, start
from atrous.reproduction.plan import Options, Training


class Pool:
    """Runs trainings in processes, several at once; a failure stops nothing but what starts from it.

    Args:
        trainings: that are not finished, each after the one that it starts from.
        environments: variables of the processes, one set for each that runs at once.
        options: device and loader workers.
        event: called with ``begins``, ``finished``, ``failed`` or ``stopped``, the training, and why.
        tick: called now and then with a line on the progress.
    """

    def __init__(
        self,
        trainings: Mapping[str, Training],
        environments: Sequence[Mapping[str, str]],
        options: Options,
        event: Callable[[str, Training, str], None],
        tick: Callable[[str], None],
    ) -> None:
        self.waiting, self.free = dict(trainings), list(environments)
        self.options, self.event, self.tick = options, event, tick
        self.running: dict[str, tuple[Training, Mapping[str, str], subprocess.Popen[bytes]]] = {}
        self.failed: dict[str, str] = {}
        self.stopped = 0

    def run(self) -> None:
        """All of them; at the end `failed` and `stopped` (a signal's number) are set."""
        with self._signals():
            while self.running or (self.waiting and not self.stopped):
                self._start_ready()
                time.sleep(0.1)
                for name in [name for name, (*_, process) in self.running.items() if process.poll() is not None]:
                    self._note(name)
                self.tick("; ".join(progress(training) for training, *_ in self.running.values()))

    def _start_ready(self) -> None:
        for name, training in list(self.waiting.items()):
            if training.after in self.failed:
                del self.waiting[name]
                self._fail(training, f"the training that it starts from, {training.after}, failed")
            elif self.free and not self.stopped and training.after not in {*self.waiting, *self.running}:
                del self.waiting[name]
                environment = self.free.pop(0)
                self.event("begins", training, "")
                process = start(training, self.options.device, self.options.workers, environment)
                self.running[name] = training, environment, process
                if self.stopped:  # the signal came while it started, and did not reach it
                    process.send_signal(signal.SIGINT)

    def _note(self, name: str) -> None:
        training, environment, process = self.running.pop(name)
        self.free.append(environment)
        with contextlib.suppress(BrokenPipeError):
            process.communicate()  # closes its standard input
        status = process.returncode
        if status >= 128 or (status and self.stopped):
            self.stopped = self.stopped or signal.SIGINT
            self.event("stopped", training, training.state)
        elif status:
            self._fail(training, _reason(training, status))
        else:
            self.event("finished", training, "")

    def _fail(self, training: Training, why: str) -> None:
        self.failed[training.name] = why
        self.event("failed", training, why)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass SIGINT and SIGTERM on: the processes save and leave, at the second one at once."""

        def forward(number: int, _: Any) -> None:
            self.stopped = number
            for *_, process in self.running.values():
                if sys.platform != "win32":  # there, Ctrl-C reaches every process by itself
                    process.send_signal(signal.SIGINT)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _reason(training: Training, status: int) -> str:
    if status < 0:
        return f"its process died (signal {-status}); see {training.run / OUTPUT}"
    lines = (training.run / OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()
    reasons = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    return reasons[-1] if reasons else f"its process ended with status {status}; see {training.run / OUTPUT}"


def progress(training: Training) -> str:
    """How far a running training is, by the last step in its log."""
    steps = training.recipe.schedule.iterations if training.recipe else 0
    try:
        step = (training.run / "log.csv").read_text(encoding="utf-8").splitlines()[-1].partition(",")[0]
    except (OSError, IndexError):
        step = ""
    at = f"step {step} of {steps}" if step.isdecimal() and int(step) < steps else "evaluating" if step else "starting"
    return f"{training.name}: {at}"


def environments(options: Options, trainings: Mapping[str, Training]) -> list[dict[str, str]]:
    """For each process that runs at once: the GPU that it sees, and its share of the processor's threads."""
    devices = gpus(options.device)
    count = options.parallel or len(devices)
    if any(training.replicas for training in trainings.values()):  # they share out the machine by themselves
        return [{}]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    if count == 1 or "OMP_NUM_THREADS" in os.environ:
        threads = {}
    shown = [{} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu} for gpu in devices]
    return [{**threads, **shown[i % len(shown)]} for i in range(count)]


def gpus(device: str | None) -> list[str | None]:
    """The GPUs to share the trainings out over; one None where all run on `device`."""
    import torch

    if device is not None or not torch.cuda.is_available():
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(visible.split(",")) if visible else [str(i) for i in range(torch.cuda.device_count())]
