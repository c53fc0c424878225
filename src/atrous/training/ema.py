"""An exponential moving average of a model's weights, off unless a recipe asks for it; the paper has none.

Not `torch.optim.swa_utils.AveragedModel`: its first update copies the weights, where the warm-up here averages from the
first step on, and its state dict has other names, so that older checkpoints would not resume.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Weights and batch-norm statistics averaged over the steps.

    The decay starts low and rises to `decay`, so that the first, random weights are soon forgotten.

    Args:
        model: to follow; a copy of it holds the average, in ``eval()``.
        decay: share of the old average that a step keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps, counted from 1."""
        keep = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = self.model.state_dict(), model.state_dict()
        floats = [key for key in ours if ours[key].is_floating_point()]
        torch._foreach_lerp_([ours[key] for key in floats], [theirs[key] for key in floats], 1 - keep)
        for key in ours.keys() - set(floats):
            ours[key].copy_(theirs[key])
