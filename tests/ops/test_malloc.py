"""Memory that a step frees stays for the next: the system is not asked for it again."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys

import pytest
import torch

from atrous.ops.malloc import hand_back, memory_kept

CPU = torch.device("cpu")
PAGES = 3 * (48 << 20) // resource.getpagesize()
"""What three maps take: one step's."""
STEPS = 20


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


def measured() -> dict[str, int]:
    """Page faults of some steps as usual, while memory is kept and afterwards, and what was handed back."""
    torch.set_num_threads(1)
    step()
    actual = {"pages": PAGES, "before": faults(STEPS)}
    with memory_kept(CPU) as kept:
        with memory_kept(CPU):  # as an evaluation within a training: its end hands nothing back
            for _ in range(5):  # until the blocks have found their places: one more may help, by where the heap began
                step()
        actual |= {"kept": int(kept), "during": faults(STEPS), "held": resident()}
    return actual | {"left": resident(), "after": faults(STEPS)}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told to keep memory")
@pytest.mark.slow  # what the heap does depends on what ran before
def test_a_later_step_asks_the_system_for_nothing_and_all_is_handed_back() -> None:
    # In a process of its own: what other tests have left in this one lies between the blocks.
    actual = json.loads(subprocess.run([sys.executable, __file__], capture_output=True, check=True).stdout)
    assert actual["kept"] and actual["before"] > 0.9 * STEPS * actual["pages"]  # as usual, every page anew
    assert actual["during"] < actual["pages"]  # not even one step's, of all those steps
    assert actual["left"] < actual["held"] - 100e6 and actual["after"] > actual["pages"]


def test_another_device_or_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_kept(torch.device("meta")) as kept:
        assert not kept
    monkeypatch.setattr("ctypes.CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    with memory_kept(CPU) as kept:
        assert not kept
    hand_back()


if __name__ == "__main__":
    print(json.dumps(measured()))
