"""How a run ends before its last step: one line each. The whole of it, in processes: test_reliability."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from atrous.training.config import Recipe, override
from atrous.training.interrupts import Signals, Stopped, explained

RECIPE = override(Recipe(), {"batch_size": 8, "grad_accum_steps": 2, "crop": (100, 200)})


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    # A shell starts what is sent to the background with SIGINT ignored.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    yield
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    signal.signal(signal.SIGINT, ours)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_acted_on_when_asked(number: int) -> None:
    with Signals() as signals:
        signals.leave(3)
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped, match="stopped at step 3 and saved") as caught:
            signals.leave(3)
    assert caught.value.status == 128 + number


def test_a_second_signal_is_not_held_back() -> None:
    with Signals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_while_it_starts_a_signal_ends_it_at_once() -> None:
    with Signals() as signals, pytest.raises(Stopped, match="nothing to save") as caught, signals.starting():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")
    assert caught.value.status == 143


def test_what_a_library_swallowed_is_raised_when_all_is_set_up() -> None:
    with Signals() as signals, pytest.raises(Stopped, match="nothing to save"), signals.starting():
        with suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at", [True, False])
def test_a_signal_as_the_wait_begins_or_ends_saves_and_leaves(at: bool) -> None:
    class Hit(Signals):
        """Gets a signal once, right after the wait has begun or right before it ends."""

        _waiting, _sent = False, False

        @property
        def waiting(self) -> bool:  # type: ignore[override]
            return self._waiting

        @waiting.setter
        def waiting(self, value: bool) -> None:
            self._waiting = self._waiting or value
            if value == at and not self._sent:
                self._sent = True
                os.kill(os.getpid(), signal.SIGTERM)
            self._waiting = value

    saved: list[int] = []
    with Hit() as signals, pytest.raises(Stopped, match="stopped at step 3 and saved") as caught:
        with signals.interrupting(True, 3, lambda: saved.append(3)):
            pass
    assert caught.value.status == 143 and saved == [3] and not signals.waiting


def test_a_handler_that_was_not_set_from_python_gives_way_to_the_default() -> None:
    with Signals() as signals:
        signals._before[signal.SIGINT] = None  # what signal.signal returns for one
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    signal.signal(signal.SIGINT, signal.default_int_handler)


ERRORS = {
    "no memory": (
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 40000000000 bytes."
        ),
        MemoryError,
        "out of memory at step 7, asking for 40.0 GB at once with 4 crops of 100x200 .* at output stride 16: lower",
    ),
    "no memory on a GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
        MemoryError,
        "asking for 20.00 GiB at once",
    ),
    "no memory for Python": (MemoryError(), MemoryError, "out of memory at step 7, working with 4 crops"),
    "a dead loader": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore"),
        Stopped,
        r"a process that loads data died at step 7: DataLoader worker \(pid 7\) is killed by .*; --resume",
    ),
    "a lost rank": (
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"),
        Stopped,
        "another process of the run is gone at step 7: .*; --resume goes on",
    ),
    "a lost rank on GPUs": (torch.distributed.DistBackendError("NCCL error"), Stopped, "another process of the run is"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), OSError, "the disk of run is full at step 7"),
    "a quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), OSError, "the disk of run is full at step 7"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_what_ends_a_run_is_one_line(what: str) -> None:
    error, kind, message = ERRORS[what]
    with pytest.raises(kind, match=message) as caught, explained(RECIPE, Path("run"), lambda: 7):
        raise error
    assert "\n" not in str(caught.value)
    assert getattr(caught.value, "status", 1) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug of ours"), OSError(errno.EIO, "Input/output error"), KeyError(1)]
)
def test_what_nobody_foresaw_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained(RECIPE, Path("run"), lambda: 7):
        raise error
    assert caught.value is error
