"""Training with frozen batch norm (section 4.1, second stage), folded into the convolutions at every step.

A batch norm with frozen statistics scales and shifts each channel, which can be done to the filters of the convolution
before it: a few thousand products in place of millions, forward and backward. Unlike the inference form, which folds
once, this folds at every step and is differentiable: parameters and gradients stay those of convolution and batch norm.
Hooks on a frozen batch norm, or on the convolution before it, do not run.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from atrous.models.activation_checkpointing import Checkpointed
from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import find_conv_of_norm, put, what_remains


class FoldedBatchNorm:
    """A model's low-resolution logits in training, with whatever batch norm is frozen folded into the convolutions.

    The model itself computes them where nothing is frozen, where activations are checkpointed and while
    ``torch.compile`` traces.

    Args:
        model: its parameters, output stride and what is frozen by its own methods may change between calls; layers, and
            what is set in them by hand, may not. To see what reads what, it is run once on a small image of zeros.
    """

    def __init__(self, model: DeepLabV3) -> None:
        self.model = model
        self.skeleton: Skeleton | None = None
        self._made_for: object = None

    def __call__(self, images: Tensor) -> Tensor:
        """As `DeepLabV3.low_resolution_logits`."""
        if not self.model.training or self.model.frozen is None or self._must_not_fold():
            self.skeleton = None
            return self.model.low_resolution_logits(images)
        return self.current()(images)

    def current(self) -> Skeleton:
        """The skeleton for the output stride and what is frozen now."""
        settings = self.model.output_stride, self.model.frozen, [norm.momentum for norm in self.model.batch_norms()]
        if self.skeleton is None or self._made_for != settings:
            self.skeleton, self._made_for = Skeleton(self.model), settings
        return self.skeleton

    def _must_not_fold(self) -> bool:
        checkpointed = any(isinstance(module, Checkpointed) for module in self.model.backbone.modules())
        return checkpointed or torch.compiler.is_compiling()


class Skeleton:
    """A model's layers without values and without the frozen batch norms, run with the model's own tensors.

    A frozen batch norm that follows no convolution stays a layer.

    Args:
        model: in ``train()``, with at least a part of its batch norm frozen.
    """

    def __init__(self, model: DeepLabV3) -> None:
        self.model = model
        layers = copy.deepcopy(model)
        layers.unfreeze_batch_norm()
        pairs = find_conv_of_norm(layers.eval())
        self.pairs = {norm: conv for norm, conv in pairs.items() if not model.get_submodule(norm).training}
        for norm, conv in self.pairs.items():
            layer: Any = layers.get_submodule(conv)
            if layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
            put(layers, norm, what_remains(layers.get_submodule(norm)))
        self.layers: Any = layers.to("meta")  # its values would only take memory: all are given at each call
        self.layers.forward = layers.low_resolution_logits  # type: ignore[method-assign]
        self.wanted = set(_tensors_of(layers))

    def __call__(self, images: Tensor) -> Tensor:
        """As `DeepLabV3.low_resolution_logits`."""
        given = {key: value for key, value in _tensors_of(self.model).items() if key in self.wanted}
        for norm, conv in self.pairs.items():
            layer: Any = self.model.get_submodule(conv)
            given[f"{conv}.weight"], given[f"{conv}.bias"] = _folded(layer, self.model.get_submodule(norm))
        assert given.keys() == self.wanted, self.wanted - given.keys()
        modes = {path: module.training for path, module in self.model.named_modules()}
        for path, module in self.layers.named_modules():
            module.training = modes.get(path, True)
        logits: Tensor = functional_call(self.layers, given, (images,))
        return logits


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by key, those that no state dict holds included."""
    return dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))


def _folded(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm behind it; `torch.nn.utils.fusion` is not differentiable."""
    dtype = conv.weight.dtype
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    scale = scale if norm.weight is None else norm.weight.to(dtype) * scale
    shift = -norm.running_mean.to(dtype) * scale
    shift = shift if norm.bias is None else norm.bias.to(dtype) + shift
    if conv.bias is not None:
        shift = shift + conv.bias.to(dtype) * scale
    return conv.weight * scale[:, None, None, None], shift
