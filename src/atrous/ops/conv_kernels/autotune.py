"""Which of several ways of computing the same is the fastest here, measured turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

MARGIN = 0.95
"""Another way has to take less than this share of the usual one's time: less is within the noise of a measurement."""

PATIENCE = 0.2
"""Seconds after which a measurement is content with what it has seen."""


def fastest(runs: dict[str, Callable[[], Any]], usual: str, wait: Callable[[], None] | None = None) -> str:
    """Run all turn by turn, after each once to warm up, and name the one with the least time.

    Args:
        runs: name to what is to be timed.
        usual: the one that the others have to beat by `MARGIN`.
        wait: called before the clock is read, to wait for a device; None for work on the CPU.
    """
    # One thread's own time does not count what other processes take of a busy machine.
    clock = time.thread_time if wait is None and torch.get_num_threads() == 1 else time.perf_counter
    wait = wait or (lambda: None)
    for run in runs.values():
        run()
    best, start = dict.fromkeys(runs, float("inf")), clock()
    for turn in range(5):
        for name, run in runs.items():
            if turn == 0 or best[name] < 2 * min(best.values()):
                wait()
                before = clock()
                run()
                wait()
                best[name] = min(best[name], clock() - before)
        if turn and clock() - start > PATIENCE:
            break
    best[usual] *= MARGIN
    return min(best, key=lambda name: best[name])


def is_recorded() -> bool:
    """Whether PyTorch records what is computed, to run it elsewhere: an export, or a trace of TorchScript."""
    return torch.compiler.is_exporting() or bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]
