"""The poly learning rate schedule (section 4.1, "Learning rate policy")."""

from __future__ import annotations


def poly(step: int, iterations: int, *, power: float = 0.9, warmup: int = 0) -> float:
    """What the initial learning rate is multiplied by at `step`: ``(1 - step / iterations) ** power``.

    Args:
        step: steps done, from 0.
        iterations: steps in all; from there on the factor is 0.
        power: of the paper's policy, 0.9.
        warmup: steps over which the factor first rises linearly; 0, as in the paper, for none.

    Returns:
        From 0 to 1.
    """
    factor: float = max(0.0, 1 - step / iterations) ** power
    return factor * min(1.0, (step + 1) / warmup) if warmup else factor
