"""Activation checkpointing: train a batch of 16 (section 4.1) in less memory and more time, with the same numbers.

Of each unit of a backbone only the input is kept; the rest is recomputed in the backward pass, with the same random
numbers and dtypes. Recomputing leaves the running statistics of batch norm as they are.

    set_checkpointing(model.backbone, True)       # or the recipe's ``checkpointing: true``

PyTorch's own wrapper (``torch.distributed.algorithms``) does not fit: it is private, changes the paths of modules, and
has no answer for batch norm.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Checkpointed:
    """Mixed into a unit's class: in training its forward pass keeps the input only."""

    def __call__(self, *inputs: Any) -> Any:
        """As the unit's own."""
        assert isinstance(self, nn.Module)
        if not (self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return super().__call__(*inputs)  # type: ignore[misc]
        contexts = functools.partial(_contexts, self)
        return checkpoint(super().__call__, *inputs, use_reentrant=False, context_fn=contexts)  # type: ignore[misc]


def set_checkpointing(backbone: nn.Module, on: bool) -> None:
    """Checkpoint every unit of a network, or none, in place; no parameter and no key of the state dict changes."""
    for unit in list(units(backbone)) if on else list(backbone.modules()):
        if on and not isinstance(unit, Checkpointed):
            unit.__class__ = _checkpointed(type(unit))  # type: ignore[arg-type]
        elif not on and isinstance(unit, Checkpointed):
            unit.__class__ = type(unit).__bases__[1]


def units(net: nn.Module) -> Iterator[nn.Module]:
    """The units of a network: the outermost modules in its ``nn.Sequential`` that hold convolutions."""
    for child in net.children():
        inside = list(child.children())
        if isinstance(net, nn.Sequential) and inside and not isinstance(child, nn.Sequential):
            if any(isinstance(module, nn.Conv2d) for module in child.modules()):
                yield child
        else:
            yield from units(child)


@functools.cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Checkpointed{kind.__name__}", (Checkpointed, kind), {"__module__": kind.__module__})


def _contexts(unit: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For the forward pass, and for recomputing, which may run in another thread."""
    return nullcontext(), _recomputing(unit)


@contextmanager
def _recomputing(unit: nn.Module) -> Iterator[None]:
    norms = [module for module in unit.modules() if isinstance(module, _BatchNorm)]
    with ExitStack() as stack:
        for norm in norms:
            stack.callback(setattr, norm, "momentum", norm.momentum)
            norm.momentum = 0.0  # the statistics stay what they are; without them other tensors would be kept
            if norm.num_batches_tracked is not None:
                stack.callback(norm.num_batches_tracked.copy_, norm.num_batches_tracked.clone())
        yield
