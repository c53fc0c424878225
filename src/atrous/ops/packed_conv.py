"""oneDNN convolution with fused activation and residual add, prepacked weights: for inference on a CPU (equation 1).

PyTorch runs a convolution, the addition of a residual unit and its ReLU as three passes over memory, and lays the
weights out anew in each call. oneDNN, on which it builds, does all in one pass. The operators for it are those that
``torch.compile`` uses, and have no public name; they are used where they exist and pass a trial (`fuses`). Elsewhere,
and where gradients are wanted or PyTorch traces, the layer computes the same with PyTorch's usual operators.

    layer = PackedConv2d(conv, nn.ReLU())
    y = layer(x)                    # relu(conv(x))
    y = layer(x, shortcut)          # relu(conv(x) + shortcut)

A small network can be faster in oneDNN's own layout, blocks of channels, than channels-last (`runs_in_blocks`). A layer
takes such a map (``is_mkldnn``) and gives one; where it cannot run so, it goes by a dense copy.

oneDNN's ReLU gives 0 for NaN. So that NaN and infinity reach the logits as in the plain network, a network looks at its
image (`begin_pass`), and each layer once at its weights; from the first that is not within `LARGEST`, the rest of the
network runs with PyTorch's usual operators.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook as has_global_hook

from atrous.ops.conv import AtrousConv2d, runs_forward_alone, same_padding, take_place
from atrous.ops.conv_kernels import winograd
from atrous.ops.conv_kernels.depthwise import reaches_far
from atrous.ops.conv_kernels.dispatch import atrous_conv2d_fast, forward_form, is_recorded, is_transformed
from atrous.ops.conv_kernels.tap_gemm import CAPABILITY, has_onednn
from atrous.ops.conv_kernels.winograd import Winograd
from atrous.ops.trusted import Draw, library_only, trusted

DTYPES = (torch.float32, torch.bfloat16)

ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
    nn.Sigmoid: ("sigmoid", []),
    nn.Tanh: ("tanh", []),
}
"""oneDNN's name and parameters of each activation."""

AFTER_ADDITION = (nn.Identity, nn.ReLU)
"""Those that every version of PyTorch takes after an addition."""

LEAST_IN_BLOCKS = 1 << 17
"""Pixels of an image from which oneDNN's own layout is faster."""

LARGEST = 1e9
"""Of images and weights: below it no sum in a network overflows, above it nothing is an image."""

_current = threading.local()
"""``plain``: whether the forward pass that runs in this thread has met something that is not within `LARGEST`."""


def begin_pass(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A forward pre-hook of a network: packed layers run plain where the image has numbers not within `LARGEST`."""
    if not torch.compiler.is_compiling() and not is_recorded():
        _current.plain = not _is_within(inputs[0])


class _Call(NamedTuple):
    """A fused convolution that was run: what it depended on (`PackedConv2d._state`), its arguments behind the map."""

    state: tuple[Any, ...]
    arguments: tuple[Any, ...]


class PackedConv2d(AtrousConv2d):
    """A convolution together with its activation, and an addition before it, for inference.

    Parameters and state dict are those of the convolution. A copy of the weights in oneDNN's layout is held besides,
    for the size of the last map. 3×3 convolutions of stride 1 run by `atrous.ops.conv_kernels.winograd` where that is
    faster; their transformed weights take up to 4 times the memory. Which form runs depends on the shape of the map
    alone, so that an image gives the same bytes whatever came before.

    Args:
        native: the convolution to stand in for, with centred or no padding; its parameters become this one's.
        activation: what follows, one of those that `holds` is true for; None for nothing.
    """

    def __init__(self, native: nn.Conv2d, activation: nn.Module | None = None) -> None:
        take_place(self, native)
        self.activation = activation or nn.Identity()
        self._layout: tuple[Any, Tensor | Winograd | None] = (None, None)
        self._within: tuple[Any, bool] = (None, False)
        self._call: _Call | None = None
        self.train(native.training)

    def forward(self, x: Tensor, other: Tensor | None = None, *, keep: bool = True) -> Tensor:
        """B,C,H,W float to activation(convolution + other), B,K,h,w.

        Args:
            x: the map.
            other: of the shape of the result, added before the activation.
            keep: leave `other` as it is; otherwise the result may be written over it.
        """
        x, padding = self._padded(x)
        assert not isinstance(padding, str)
        geometry = (padding, self.stride, self.dilation, self.groups)
        call = self._call  # read once: another thread may come with a map of another size
        if other is None and call and self._is_again(call, x, geometry):
            return _pointwise(x, *call.arguments)
        if not self._fuses(x, other) or self._runs_plain() or self._has_faster_form(x, padding):
            return self._plain(x, other, padding)
        weight = self._laid_out(x, geometry)
        if isinstance(weight, Winograd) and not winograd.is_tame(x):
            weight = self.weight  # oneDNN lays them out in the call
        if isinstance(weight, Winograd):
            y = weight(x)
            y = y if other is None else y.add_(other)
            return y.relu_() if type(self.activation) is nn.ReLU else self._activated(y)
        if weight is self._layout[1]:
            arguments = (weight, self.bias, *geometry, *ACTIVATIONS[type(self.activation)], "")
            self._call = _Call(self._state(x, geometry), arguments)
        into = other.clone() if other is not None and keep else other
        return fused_convolution(x, weight, self.bias, *geometry, type(self.activation), into)

    def _is_again(self, call: _Call, x: Tensor, geometry: tuple[Any, ...]) -> bool:
        """Whether all that `forward` would ask has the answers that it had at `call`.

        A small network is calls above all: a tenth of its time went into asking the same again.
        """
        if torch.compiler.is_compiling() or is_recorded() or type(x) is not Tensor or not x.is_cpu:
            return False
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or getattr(_current, "plain", False):
            return False
        if library_only() or not has_onednn() or is_transformed():
            return False
        return call.state == self._state(x, geometry)

    def _state(self, x: Tensor, geometry: tuple[Any, ...]) -> tuple[Any, ...]:
        return x.shape, x.dtype, x.is_mkldnn, geometry, self._weights_state(), torch.get_num_threads()

    def _fuses(self, x: Tensor, other: Tensor | None) -> bool:
        if torch.compiler.is_compiling() or is_recorded() or x.device.type != "cpu":
            return False
        if x.dtype != self.weight.dtype or x.numel() == 0 or torch.is_autocast_enabled("cpu"):
            return False
        read = [tensor for tensor in (x, self.weight, self.bias, other) if tensor is not None]
        if is_transformed() or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in read)):
            return False
        if type(x) is not Tensor:  # traced with tensors that hold no data
            return False
        if other is not None and not other.is_contiguous(memory_format=torch.channels_last):
            return False
        return fuses(x.dtype, type(self.activation), other is not None)

    def _runs_plain(self) -> bool:
        """Whether this forward pass, begun by `begin_pass`, has met numbers not within `LARGEST`."""
        state = self._weights_state()
        if self._within[0] != state:
            self._within = (state, _is_within(self.weight) and (self.bias is None or _is_within(self.bias)))
        if not self._within[1]:
            _current.plain = True
        return getattr(_current, "plain", False)

    def _weights_state(self) -> tuple[Any, ...]:
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        if weight.is_inference() or (bias is not None and bias.is_inference()):
            return (object(),)  # like no other: their changes are not counted
        state = (weight.data_ptr(), weight._version)
        return state if bias is None else (*state, bias.data_ptr(), bias._version)

    def _has_faster_form(self, x: Tensor, padding: tuple[int, ...]) -> bool:
        return self._is_centred(padding) and forward_form(x, self.weight, self.rate) != "library"

    def _is_centred(self, padding: tuple[int, ...]) -> bool:
        centred = padding == (self.rate * (self.kernel_size[0] // 2), self.rate * (self.kernel_size[1] // 2))
        return centred and self._comes_in_forms()

    def _plain(self, x: Tensor, other: Tensor | None, padding: tuple[int, ...]) -> Tensor:
        if x.is_mkldnn:
            x = x.to_dense().contiguous(memory_format=torch.channels_last)
            return self._plain(x, other, padding).to_mkldnn()
        if self._is_centred(padding):
            (y,) = atrous_conv2d_fast(x, [self.weight], [self.rate])
            y = y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]
        else:
            y = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return self._activated(y if other is None else y + other)

    def _activated(self, y: Tensor) -> Tensor:
        result: Tensor = self.activation(y)
        return result

    def _laid_out(self, x: Tensor, geometry: tuple[Any, ...]) -> Tensor | Winograd:
        """The weights as oneDNN wants them for this map; a layout made for another size can be ten times slower."""
        key = self._state(x, geometry)
        last, layout = self._layout
        if last == key and layout is not None:
            return layout
        with torch.no_grad():
            if x.is_mkldnn:
                layout = _for_blocks(self.weight.detach())
            elif self._goes_by_winograd(x, geometry[0]):
                layout = Winograd(self.weight, self.bias, x.shape, self.rate)
            elif last == key:
                layout = torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *geometry, list(x.shape))
            else:  # the first map of a size: oneDNN lays the weights out in the call, in the same time
                layout = None
        self._layout = (key, layout)
        return self.weight if layout is None else layout

    def _goes_by_winograd(self, x: Tensor, padding: tuple[int, ...]) -> bool:
        rate = (self.rate, self.rate)
        plain = padding == rate and self.dilation == rate and self.stride == (1, 1) and self.groups == 1
        if not plain or self.kernel_size != (3, 3) or not winograd.gains(x, self.weight, self.rate):
            return False
        return winograd.has_tame_weights(self.weight) and winograd.works(x.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Without the layout, which can neither be copied nor stored."""
        return {**self.__dict__, "_layout": (None, None), "_within": (None, False), "_call": None}


class PackedConv2dSame(PackedConv2d):
    """The same for a convolution that pads as TensorFlow does: to an output of ceil(H / stride)."""

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return same_padding(x, self)

    def _is_centred_at_stride_1(self) -> bool:
        return True


def holds(activation: nn.Module) -> bool:
    """Whether a `PackedConv2d` can do an activation itself."""
    return type(activation) in ACTIVATIONS


def fused_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    activation: type[nn.Module],
    into: Tensor | None = None,
) -> Tensor:
    """Convolution and activation by oneDNN; with `into`, the sum with it is activated, and written there."""
    name, scalars = ACTIVATIONS[activation]
    geometry = (padding, stride, dilation, groups)
    if into is None:
        return _pointwise(x, weight, bias, *geometry, name, scalars, "")
    total: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        into, x, weight, bias, *geometry, "add", 1.0, None if name == "none" else name, scalars, ""
    )
    return total


def _pointwise(x: Tensor, *arguments: Any) -> Tensor:
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, *arguments)
    return y


def fuses(dtype: torch.dtype, activation: type[nn.Module], added: bool = False) -> bool:
    """Whether oneDNN's fused convolutions are there, and have passed their trial.

    Args:
        dtype: of map and weights.
        activation: that follows.
        added: whether another map is added before it.
    """
    if dtype not in DTYPES or (added and activation not in AFTER_ADDITION):
        return False
    if not has_onednn("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight"):
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    name = f"oneDNN's convolution with {'addition and ' * added}{activation.__name__}"
    return trusted(name, functools.partial(_trial, activation, added), torch.device("cpu"), dtype)


def _trial(activation: type[nn.Module], added: bool, draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    geometry = ((2, 2), (1, 1), (2, 2))
    for groups in (1, 16):
        x, other, bias = draw(2, 16, 9, 7), draw(2, 16, 9, 7), draw(16)
        weight = draw(16, 16 // groups, 3, 3, scale=(groups / 144) ** 0.5)
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=2, dilation=2, groups=groups)
        exact = activation()(exact + other.double() if added else exact)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, groups, list(x.shape))
        for laid_out in (weight, packed):
            into = other.clone() if added else None
            yield fused_convolution(x, laid_out, bias, *geometry, groups, activation, into), exact


def runs_in_blocks(network: nn.Module, x: Tensor) -> bool:
    """Whether a network of small layers is faster on an image, B,3,H,W, in oneDNN's own layout; a rule, as measured.

    So it is in float32 with AVX2: depthwise convolutions take half the time, and those that write large maps less; with
    AVX512 nothing is gained. But one that reaches far would go by a dense copy each time, and weights are laid out for
    each image, however small.
    """
    if torch.compiler.is_compiling() or is_recorded() or type(x) is not Tensor or torch.is_autocast_enabled("cpu"):
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[-2] * x.shape[-1] < LEAST_IN_BLOCKS:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in network.parameters())):
        return False
    if CAPABILITY != "AVX2" or not has_onednn("_convolution_pointwise") or has_global_hook() or is_transformed():
        return False
    for layer in network.modules():
        if not runs_forward_alone(layer):  # a hook is given maps as PyTorch has them
            return False
        if (
            isinstance(layer, PackedConv2d)
            and layer.groups > 1
            and reaches_far(layer.kernel_size[0], layer.rate, x.dtype)
        ):
            return False
    return trusted("oneDNN's convolution in blocks of channels", _trial_in_blocks, x.device, x.dtype)


def _trial_in_blocks(draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    """A stem, a depthwise atrous convolution to which its input is added, and one across channels."""
    layers: list[tuple[Tensor, int, int, int, int, type[nn.Module]]] = [
        (draw(16, 3, 3, 3, scale=0.2), 1, 2, 1, 1, nn.ReLU6),
        (draw(16, 1, 3, 3, scale=0.3), 2, 1, 2, 16, nn.ReLU),
        (draw(16, 16, 1, 1, scale=0.2), 0, 1, 1, 1, nn.Identity),
    ]
    image, bias = draw(2, 3, 19, 15), draw(16)
    x, exact = image.to_mkldnn(), image.double()
    for weight, padding, stride, rate, groups, activation in layers:
        geometry = ((padding, padding), (stride, stride), (rate, rate))
        y = fused_convolution(x, _for_blocks(weight), bias, *geometry, groups, activation)
        wide = activation()(F.conv2d(exact, weight.double(), bias.double(), stride, padding, rate, groups))
        x, exact = (y, wide) if groups == 1 else (y + x, wide + exact)
        yield x.to_dense(), exact


def _for_blocks(weight: Tensor) -> Tensor:
    """Weights whose strides do not say channels-last, not even where a side of 1 leaves them open.

    PyTorch lays them out in each call. Laid out before, as for other maps, they would make the result channels-last.
    """
    return weight.flatten().view(weight.shape)


def _is_within(x: Tensor) -> bool:
    """Whether every number is finite and at most `LARGEST` in absolute value."""
    low, high = torch.aminmax(x.detach())
    return -LARGEST <= float(low) and float(high) <= LARGEST
