"""What a training on a CPU tells the allocator: keep the memory of a step for the next one.

A step makes and frees maps of tens of megabytes, the same ones every time. glibc gives such blocks back to the system
and asks for them anew, and the system zeroes every page of them: a third of the processor's time, with a backbone of
small layers (`docs/performance.md`).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""glibc's numbers of what `mallopt` sets."""

_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20}
_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}
"""As glibc starts, but for the thresholds that it moves until one sets anything: those as far as it moves them."""


@contextlib.contextmanager
def memory_kept(device: torch.device) -> Iterator[bool]:
    """Keep freed memory in the process while this lasts, then hand it back.

    Args:
        device: that is trained on; on another than a CPU nothing is done.

    Yields:
        Whether it is kept: glibc alone can be told so.
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield False
        return
    try:
        yield all([libc.mallopt(what, value) for what, value in _KEPT.items()])
    finally:
        for what, value in _USUAL.items():
            libc.mallopt(what, value)
        libc.malloc_trim(0)


def hand_back() -> None:
    """Give freed memory back to the system: glibc keeps what lies between blocks in use."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:  # macOS, Windows, musl
        return None
