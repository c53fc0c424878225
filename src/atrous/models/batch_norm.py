"""Batch norm as section 4.1 trains it: the decay of its statistics, and freezing it for the second stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also trains on a batch with one value a channel, where it uses the running statistics.

    The image-level features of a single image are such a batch: they have no variance, and ``nn.BatchNorm2d`` refuses
    to train on them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """B,C,h,w float to the same."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def batch_norms_of(module: nn.Module) -> Iterator[_BatchNorm]:
    """Every batch norm of a module, synchronised ones and timm's included."""
    return (layer for layer in module.modules() if isinstance(layer, _BatchNorm))


class FreezableBatchNorm(nn.Module):
    """Base class of a model with a backbone and a head, whose batch norm can be frozen.

    Attributes:
        frozen: what is frozen, ``statistics`` or ``all``, and whether in the head, too; None for nothing.
    """

    backbone: nn.Module
    last_conv: nn.Module
    frozen: tuple[Literal["statistics", "all"], bool] | None = None

    def batch_norms(self) -> Iterator[_BatchNorm]:
        """Every batch norm, synchronised ones and timm's included."""
        return batch_norms_of(self)

    def set_batch_norm_decay(self, decay: float) -> None:
        """Decay of the running statistics (section 4.1): 0.9997 is PyTorch's ``momentum=0.0003``."""
        for norm in self.batch_norms():
            norm.momentum = 1 - decay

    def freeze_batch_norm(self, *, affine: bool = True, head: bool = True) -> None:
        """Freeze batch norm, as in the second stage of section 4.1; ``train()`` leaves it frozen.

        Args:
            affine: freeze scale and shift too; otherwise only the statistics, and scale and shift are trained.
            head: freeze it in the head, too; otherwise in the backbone alone.
        """
        self.unfreeze_batch_norm()
        self.frozen = "all" if affine else "statistics", head
        self._apply_freeze()

    def unfreeze_batch_norm(self) -> None:
        """Train batch norm again."""
        self.frozen = None
        for norm in self.batch_norms():
            norm.train(self.training).requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; frozen batch norm stays frozen."""
        super().train(mode)
        self._apply_freeze()
        return self

    def _apply_freeze(self) -> None:
        if self.frozen is None:
            return
        what, in_head = self.frozen
        parts = (self,) if in_head else (self.backbone, self.last_conv)
        for norm in (norm for part in parts for norm in batch_norms_of(part)):
            norm.eval().requires_grad_(what == "statistics")
