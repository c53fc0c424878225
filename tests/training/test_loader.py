"""A signal does not wait for a loader that stalls, in the training process or in a worker of one of several ranks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from atrous.training.interrupts import Signals, Stopped
from atrous.training.loader import next_part


class Stalls(Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        time.sleep(600)


def stalls() -> Iterator[Any]:
    time.sleep(600)
    yield


def test_alone_it_is_saved_and_left_at_once() -> None:
    saved: list[bool] = []
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with Signals() as signals, pytest.raises(Stopped, match="stopped at step 7 and saved") as stopped:
        next_part(stalls(), 7, signals, alone=True, save=lambda: saved.append(True))
    assert stopped.value.status == 143 and saved == [True]


def test_a_signal_that_came_before_the_wait_counts() -> None:
    with Signals() as signals, pytest.raises(Stopped, match="stopped at step 7 and saved"):
        signals.received = signal.SIGTERM
        next_part(stalls(), 7, signals, alone=True, save=lambda: None)


def test_among_ranks_a_stalled_worker_is_waited_for_no_longer_than_some_seconds() -> None:
    batches: Any = iter(DataLoader(Stalls(), num_workers=1, timeout=0.3))
    workers = batches._workers
    with Signals() as signals, pytest.raises(Stopped, match="step 7, waiting for data; --resume goes on") as stopped:
        signals.received = signal.SIGINT
        next_part(batches, 7, signals, alone=False, save=lambda: pytest.fail("the others wait for this rank"))
    assert stopped.value.status == 130
    assert [worker.join(30) or worker.exitcode for worker in workers] == [-signal.SIGKILL]
