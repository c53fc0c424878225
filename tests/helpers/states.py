"""What a run has come to, and whether another has come to the same, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from atrous.training import checkpoint


def final_state(run: Path) -> dict[str, Any]:
    """All that the newest whole checkpoint of a run holds."""
    actual = checkpoint.load_newest(run)
    assert actual is not None
    return actual


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
