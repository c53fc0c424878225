"""Batch norms with scales and statistics that are not the identity, so that tests see where each of them goes."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def shake_norm(norm: nn.Module) -> None:
    """Shake a batch norm; leave any other layer as it is."""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, std=0.1)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.8, 1.2)


def shake(net: Net) -> Net:
    """Shake all batch norms of a network."""
    for module in net.modules():
        shake_norm(module)
    return net
