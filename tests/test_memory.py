"""Memory that a step frees stays for the next: the system is not asked for it again."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from atrous.engine.memory import hand_back, memory_kept

CPU = torch.device("cpu")
PAGES = 3 * (48 << 20) // resource.getpagesize()
"""What three maps take: one step's."""


def step() -> None:
    """Three maps of 48 MB, touched and freed."""
    maps = [torch.ones(12 << 20) for _ in range(3)]
    del maps


def faults(steps: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told to keep memory")
def test_a_later_step_asks_the_system_for_nothing_and_all_is_handed_back() -> None:
    step()
    assert faults(3) > PAGES  # as usual, every page anew
    with memory_kept(CPU) as kept:
        assert kept
        for _ in range(5):  # until the blocks have found their places
            step()
        assert faults(3) < PAGES / 10
        held = resident()
    assert resident() < held - 100e6
    assert faults(3) > PAGES


def test_another_device_or_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_kept(torch.device("meta")) as kept:
        assert not kept
    monkeypatch.setattr("ctypes.CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    with memory_kept(CPU) as kept:
        assert not kept
    hand_back()
