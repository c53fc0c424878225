"""Malloc tuning: keep the memory of a training step, or of one image, on a CPU for the next.

A step allocates and frees maps of tens of megabytes, the same ones every time. glibc returns such blocks to the system
and asks for them again, and the system zeroes every page of them: a third of the processor's time in a training with a
backbone of small layers, a sixth in a prediction at 630×840 (`docs/performance.md`).
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""glibc's numbers for the parameters of `mallopt`."""

_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20}
_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}
"""glibc's defaults. It raises the thresholds by itself until a program sets one: these are the highest it goes to."""

_blocks, _lock = 0, threading.Lock()
"""How many blocks of `memory_kept` have been entered and not left."""


@contextlib.contextmanager
def memory_kept(device: torch.device) -> Iterator[bool]:
    """Keep freed memory in the process within the block, then return it to the system: from the outermost of several.

    Args:
        device: that computes; nothing is done on any but a CPU.

    Yields:
        Whether it is kept: only glibc can be told so.
    """
    global _blocks
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield False
        return
    with _lock:
        _blocks += 1
        kept = all([libc.mallopt(parameter, value) for parameter, value in _KEPT.items()])
    try:
        yield kept
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                for parameter, value in _USUAL.items():
                    libc.mallopt(parameter, value)
                libc.malloc_trim(0)


def hand_back() -> None:
    """Return freed memory to the system: glibc keeps what lies between blocks in use."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:  # macOS, Windows, musl
        return None
