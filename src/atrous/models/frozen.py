"""Training with frozen batch norm (section 4.1, second stage), without what batch norm costs.

A batch norm with frozen statistics scales and shifts, each channel by itself, and so can be done to the filters of the
convolution before it in place of its output: a few thousand products for millions, forward and backward. Unlike the
inference form, which folds once, this folds at every step, differentiably: the parameters and their gradients stay
those of convolution and batch norm. Hooks on a frozen batch norm, or on the convolution before it, see nothing of this.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.func import functional_call

from atrous.models.inference import folded, put, watch, what_remains

if TYPE_CHECKING:
    from atrous.models.deeplab import DeepLabV3


class FrozenForm:
    """The network of a model in training, for as long as stride, layers and what is frozen stay as they are.

    A frozen batch norm that follows no convolution stays the layer that it is.

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
            layer: Any = skeleton.get_submodule(conv)
            if layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
            put(skeleton, norm, what_remains(skeleton.get_submodule(norm)))
        self.skeleton = _Network(skeleton.to("meta"))  # its values would only take memory: all are given at each call
        held = (*skeleton.named_parameters(remove_duplicate=False), *skeleton.named_buffers(remove_duplicate=False))
        self.wanted = {key for key, _ in held}

    def __call__(self, inputs: Tensor) -> Tensor:
        """As ``DeepLabV3._network``."""
        held = (*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers(remove_duplicate=False))
        given = {key: value for key, value in held if key in self.wanted}
        for norm, conv in self.pairs.items():
            layer: Any = self.model.get_submodule(conv)
            behind: Any = self.model.get_submodule(norm)
            given[f"{conv}.weight"], given[f"{conv}.bias"] = folded(layer, behind, layer.weight.dtype)
        assert given.keys() == self.wanted, self.wanted - given.keys()
        modes = {path: module.training for path, module in self.model.named_modules()}
        for path, module in self.skeleton.model.named_modules():
            module.training = modes.get(path, True)
        tensors = {f"model.{key}": value for key, value in given.items()}
        logits: Tensor = functional_call(self.skeleton, tensors, (inputs,))
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
