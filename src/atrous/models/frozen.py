"""Training with frozen batch norm (section 4.1, second stage), without what batch norm costs.

A batch norm with frozen statistics scales and shifts, each channel by itself, and so can be done to the filters of the
convolution before it in place of its output: a few thousand products for millions, forward and backward. Unlike the
inference form, which folds once, this folds at every step, differentiably: the parameters and their gradients stay
those of convolution and batch norm.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from atrous.models.inference import watch, what_remains

if TYPE_CHECKING:
    from atrous.models.deeplab import DeepLabV3


class FrozenForm:
    """The network of a model in training, for as long as stride, layers and what is frozen stay as they are.

    Args:
        model: in ``train()``, with at least a part of its batch norm frozen.
    """

    def __init__(self, model: DeepLabV3) -> None:
        self.model = model
        skeleton = copy.deepcopy(model)
        skeleton.unfreeze_batch_norm()
        pairs = watch(skeleton.eval())
        self.pairs = {norm: conv for norm, conv in pairs.items() if not model.get_submodule(norm).training}
        for norm, conv in self.pairs.items():
            layer = skeleton.get_submodule(conv)
            layer.bias = (
                layer.bias if layer.bias is not None else nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
            )
            parent, _, leaf = norm.rpartition(".")
            setattr(skeleton.get_submodule(parent), leaf, what_remains(skeleton.get_submodule(norm)))
        # Without values, so that a parameter that would not be given is an error and takes no memory.
        self.skeleton = _Network(skeleton.train().to("meta"))
        self.wanted = {key.removeprefix("model.") for key in self.skeleton.state_dict()}

    def __call__(self, inputs: Tensor) -> Tensor:
        """As ``DeepLabV3._network``."""
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        given = {key: value for key, value in tensors.items() if key in self.wanted}
        for norm, conv in self.pairs.items():
            given[f"{conv}.weight"], given[f"{conv}.bias"] = _folded(
                self.model.get_submodule(conv), self.model.get_submodule(norm)
            )
        logits: Tensor = functional_call(
            self.skeleton, {f"model.{key}": value for key, value in given.items()}, (inputs,)
        )
        return logits

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the model makes its own."""
        return None


class _Network(nn.Module):
    def __init__(self, model: DeepLabV3) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model._network(inputs)


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], shift
