"""Training by ``torch.compile``: a form of the network that takes the place of its layers, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import compiled


def set_compile(model: DeepLabV3, compile: bool | str | Callable[..., Any]) -> None:
    """Train by ``torch.compile``; evaluation, which meets many sizes, stays as it is.

    Args:
        model: in any mode.
        compile: True for PyTorch's own backend, which on a CPU needs a C++ compiler; a backend or its name; False
            for none. Meant for GPUs: on a CPU nothing is gained (``LOG.md``).
    """
    model.training_form = CompiledForm(model, compile) if compile else None


class CompiledForm:
    """The network of a model in training, compiled at its first images; again where stride or what is frozen change."""

    def __init__(self, model: DeepLabV3, compile: bool | str | Callable[..., Any]) -> None:
        self.run = compiled(model.plain_network, compile)

    def __call__(self, inputs: Tensor) -> Tensor:
        """As ``DeepLabV3.plain_network``."""
        logits: Tensor = self.run(inputs)
        return logits

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the model is not compiled until it is asked to be."""
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Nor is one that is stored."""
        return type(None), ()
