"""Training with frozen batch norm (section 4.1, second stage), without what batch norm costs.

A batch norm with frozen statistics scales and shifts, each channel by itself, and so can be done to the filters of the
convolution before it in place of its output: a few thousand products for millions, forward and backward. Unlike the
inference form, which folds once, this folds at every step, differentiably: the parameters and their gradients stay
those of convolution and batch norm. Hooks on a frozen batch norm, or on the convolution before it, see nothing of this.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from atrous.models.activation_checkpointing import Checkpointed
from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import folded, put, watch, what_remains


def fold_frozen(model: DeepLabV3) -> None:
    """Compute frozen batch norm inside the convolutions in training, whatever is frozen then; nothing else changes."""
    model.training_form = FoldedForm(model)


class FoldedForm:
    """The network of a model in training, its frozen batch norm folded at every step.

    Without any it is the plain network; so it is where activations are computed anew or the network is compiled, for
    neither would find what is folded.
    """

    def __init__(self, model: DeepLabV3) -> None:
        self.model = model
        self.frozen: FrozenForm | None = None
        self._made_for: object = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """As ``DeepLabV3.plain_network``."""
        if not self.model.frozen or self._must_not_fold():
            self.frozen = None
            return self.model.plain_network(inputs)
        return self.current()(inputs)

    def current(self) -> FrozenForm:
        """The form for the stride and what is frozen now: made anew where they have changed."""
        settings = self.model.output_stride, self.model.frozen, [norm.momentum for norm in self.model.batch_norms()]
        if self.frozen is None or self._made_for != settings:
            self.frozen, self._made_for = FrozenForm(self.model), settings
        return self.frozen

    def _must_not_fold(self) -> bool:
        again = any(isinstance(module, Checkpointed) for module in self.model.backbone.modules())
        return again or torch.compiler.is_compiling()

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the model has its layers until it is asked for more."""
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Nor is it stored."""
        return type(None), ()


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
        """As ``DeepLabV3.plain_network``."""
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


class _Network(nn.Module):
    def __init__(self, model: DeepLabV3) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model.plain_network(inputs)
