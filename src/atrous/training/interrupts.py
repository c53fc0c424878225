"""Stop a run cleanly: signals, a dead data worker or rank, no memory left, a full disk.

Each ends in one line that says what happened and what to do, with checkpoints from which ``--resume`` continues.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from atrous.training.config import Recipe

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Stopped(Exception):
    """A run ended before its last step, and ``--resume`` goes on.

    Attributes:
        status: of the process: 128 plus a signal's number, or 1.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Interrupted(BaseException):
    """A signal came while files were waited for; not an Exception, lest a library takes it for an error of its own."""


class Signals:
    """Notes SIGINT and SIGTERM, so that the loop can save and leave; a second one ends the process at once."""

    received = 0
    at_once = False
    waiting = False

    def __enter__(self) -> Signals:
        self._before: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not in the main thread: whoever runs us handles signals
            pass
        return self

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While there is nothing to save: a signal raises `Stopped` wherever the process is."""
        self.at_once = True
        try:
            yield
        finally:
            self.at_once = False
        if self.received:  # a library's `except Exception` took what was raised
            self._leave_at_once()

    @contextmanager
    def interrupting(self, allowed: bool, step: int, save: Callable[[], None] = lambda: None) -> Iterator[None]:
        """While files are read, which a network may keep for ever: a signal saves and raises `Stopped` at once.

        Args:
            allowed: not where other ranks would wait for this one.
            step: steps done.
            save: what is not saved yet.
        """
        try:
            try:
                self.waiting = allowed
                if allowed and self.received:
                    raise Interrupted
                yield
            finally:
                self.waiting = False
        except Interrupted:  # from the lines around `yield` as well
            self.waiting = False
            save()
            self.leave(step)

    def leave(self, step: int, received: int = 0) -> None:
        """Raise `Stopped` if a signal has come, here or (`received`) at another process; all has been saved before."""
        received = received or self.received
        if received:
            raise Stopped(f"stopped at step {step} and saved; the same command with --resume goes on", 128 + received)

    def _leave_at_once(self) -> None:
        raise Stopped("stopped while starting; there was nothing to save", 128 + self.received)

    def _note(self, number: int, _: Any) -> None:
        self.received = number
        signal.signal(number, self._before[number] or signal.SIG_DFL)  # None: it was not set from Python
        if self.at_once:
            self._leave_at_once()
        if self.waiting:
            raise Interrupted

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def explained(recipe: Recipe, run: Path, step: Callable[[], int]) -> Iterator[None]:
    """Turn the errors of a dead worker or rank, of no memory and of a full disk into one line each.

    Raises:
        Stopped: if a process that loads data, or another rank, died.
        MemoryError: with the size of the batch, and what makes it smaller.
        OSError: if the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        why = f"the disk of {run} is full at step {step()} ({error}); --resume goes on from the newest checkpoint"
        raise OSError(why) from error
    except (RuntimeError, MemoryError) as error:
        if is_dead_loader(error):
            raise dead_loader(error, step(), "--resume goes on from the newest checkpoint") from error
        if is_lost_rank(error):
            raise Stopped(
                f"another process of the run is gone at step {step()}: {_first_line(error)}; --resume goes on from the "
                "newest checkpoint, and torchrun --max-restarts does so by itself",
                1,
            ) from error
        if not is_out_of_memory(error):
            raise
        crop, optim = recipe.data.crop_size, recipe.optim
        raise MemoryError(
            f"out of memory at step {step()}, {_asked_for(error)} with {optim.batch_size // optim.grad_accum_steps} "
            f"crops of {crop[0]}x{crop[1]} at a time (over all processes) at output stride "
            f"{recipe.model.output_stride}: "
            "lower crop or batch_size, or raise grad_accum_steps or output_stride"
        ) from error


def is_dead_loader(error: BaseException) -> bool:
    """Whether PyTorch says that a process that loads data has died."""
    return "DataLoader worker (pid" in str(error)


def dead_loader(error: BaseException, step: int, what_now: str) -> Stopped:
    """What to raise for one."""
    return Stopped(f"a process that loads data died at step {step}: {_first_line(error)}; {what_now}", 1)


def is_lost_rank(error: BaseException) -> bool:
    """Whether what is to be added up over all processes does not come, for one of them is gone."""
    return isinstance(error, dist.DistError) or bool(re.search(r"gloo/transport|by peer|ncclRemoteError", str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's error, PyTorch's for a GPU, or its plain one for the CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or bool(re.search(r"[Cc]an(not|'t) allocate memory|not enough memory|_ALLOC_FAILED", str(error)))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _asked_for(error: BaseException) -> str:
    match = re.search(r"allocate (\d+) bytes", str(error)) or re.search(r"allocate ([\d.]+ [KMGT]iB)", str(error))
    if not match:
        return "working"
    amount = match[1]
    return f"asking for {int(amount) / 1e9:.1f} GB at once" if amount.isdecimal() else f"asking for {amount} at once"
