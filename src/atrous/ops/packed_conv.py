"""Convolution for inference on a CPU: what follows it, in one call, from weights laid out beforehand (equation 1).

PyTorch runs a convolution, the addition of a residual unit and its rectifier as three passes over memory, and lays the
weights out anew in each call. oneDNN, on which it builds, does all in one pass (`atrous.ops.conv_kernels.onednn`).
Where that cannot be had, the layer computes the same in the usual way. So it does where gradients are wanted, on other
devices, and while PyTorch traces.

    layer = PackedConv2d(conv, nn.ReLU())
    y = layer(x)                    # relu(conv(x))
    y = layer(x, shortcut)          # relu(conv(x) + shortcut)
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrous.ops.conv import AtrousConv2d, same_padding
from atrous.ops.conv_kernels import winograd
from atrous.ops.conv_kernels.autotune import fastest, is_recorded
from atrous.ops.conv_kernels.depthwise import phases_win
from atrous.ops.conv_kernels.dispatch import CHOICES, atrous_conv2d_fast, current_form, forward_form
from atrous.ops.conv_kernels.onednn import ACTIVATIONS, DTYPES, fused_convolution, fuses
from atrous.ops.conv_kernels.space_to_batch import by_phases
from atrous.ops.conv_kernels.winograd import Transformed

Layout = Tensor | Transformed | str
"""Weights in oneDNN's layout, weights for fewer products, or the name of a form of `atrous.ops.conv_kernels`."""


class PackedConv2d(AtrousConv2d):
    """A convolution together with its activation, and an addition before it, for inference.

    Parameters and state dict are those of the convolution. A copy of the weights in oneDNN's layout is held besides,
    for the size of map that was seen last; it is made when a size comes for the second time in a row. In float32, 3×3
    convolutions of stride 1 are then measured against minimal filtering (`atrous.ops.conv_kernels.winograd`), whose
    weights take up to 4 times the memory; ``ATROUS_WINOGRAD`` set to ``always`` or ``never`` forces that choice.

    Args:
        native: the convolution to stand in for, with centred or no padding; its parameters become this one's.
        activation: what follows, one of those that `holds` is true for; None for nothing.
    """

    def __init__(self, native: nn.Conv2d, activation: nn.Module | None = None) -> None:
        with torch.device("meta"):
            nn.Conv2d.__init__(
                self,
                native.in_channels,
                native.out_channels,
                native.kernel_size,  # type: ignore[arg-type]
                native.stride,  # type: ignore[arg-type]
                native.padding,  # type: ignore[arg-type]
                native.dilation,  # type: ignore[arg-type]
                native.groups,
                native.bias is not None,
            )
        self.weight, self.bias = native.weight, native.bias
        self.activation = activation or nn.Identity()
        self._attribute = ACTIVATIONS[type(self.activation)]
        self._layout: tuple[Any, Layout | None] = (None, None)
        self.train(native.training)

    def forward(self, x: Tensor, other: Tensor | None = None, *, keep: bool = True) -> Tensor:
        """B,C,H,W float to activation(convolution + other), B,K,h,w.

        Args:
            x: the map.
            other: of the shape of the result, added before the activation.
            keep: leave `other` as it is; otherwise the result may be written over it.
        """
        x, padding = self._padded(x)
        if not self._fuses(x, other):
            return self._plain(x, other, padding)
        if self._goes_by_phases(x, padding):
            return self._finished(by_phases(x, self.weight, self.bias, self.rate), other)
        layout = self._laid_out(x, padding)
        if isinstance(layout, str):
            return self._finish(self._biased(self._in_form(x, layout)), other)
        if isinstance(layout, Transformed):
            return self._finished(layout(x), other)
        return self._fused(x, layout, None if other is None else other.clone() if keep else other, padding)

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        assert not isinstance(self.padding, str)
        return x, (self.padding[0], self.padding[-1])

    def _fuses(self, x: Tensor, other: Tensor | None) -> bool:
        if torch.compiler.is_compiling() or is_recorded() or x.device.type != "cpu":
            return False
        if x.dtype != self.weight.dtype or x.dtype not in DTYPES or x.numel() == 0:
            return False
        if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
            return False
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return False
        if type(x) is not Tensor:  # traced with tensors that hold no data
            return False
        if other is not None and not other.is_contiguous(memory_format=torch.channels_last):
            return False
        return fuses(x.dtype, type(self.activation), other is not None)  # type: ignore[arg-type]

    def _plain(self, x: Tensor, other: Tensor | None, padding: tuple[int, int]) -> Tensor:
        if self._has_forms(padding):
            return self._finish(self._biased(atrous_conv2d_fast(x, [self.weight], [self.rate])[0]), other)
        y = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return self._finish(y, other)

    def _has_forms(self, padding: tuple[int, int]) -> bool:
        return self.groups == 1 and self._is_atrous(padding)

    def _is_atrous(self, padding: tuple[int, int]) -> bool:
        centred = padding == (self.rate * (self.kernel_size[0] // 2), self.rate * (self.kernel_size[1] // 2))
        return self.rate > 1 and self.stride == (1, 1) and centred

    def _goes_by_phases(self, x: Tensor, padding: tuple[int, int]) -> bool:
        """Whether it is depthwise, reaches farther than the library does, and the clock may choose a form."""
        if not self.in_channels == self.out_channels == self.groups > 1 or not self._is_atrous(padding):
            return False
        side = self.kernel_size[0]
        if self.kernel_size != (side, side) or self.dilation != (self.rate, self.rate) or current_choice() != "auto":
            return False
        return phases_win(side, self.rate, x.dtype, torch.get_num_threads())

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]

    def _finish(self, y: Tensor, other: Tensor | None) -> Tensor:
        found: Tensor = self.activation(y if other is None else y + other)
        return found

    def _finished(self, y: Tensor, other: Tensor | None) -> Tensor:
        """The same, over a result that nobody else has."""
        y = y if other is None else y.add_(other)
        return y.relu_() if type(self.activation) is nn.ReLU else self._finish(y, None)

    def _fused(self, x: Tensor, weight: Tensor, into: Tensor | None, padding: tuple[int, int]) -> Tensor:
        setting = (padding, self.stride, self.dilation, self.groups)
        return fused_convolution(x, weight, self.bias, *setting, self._attribute, into)

    def _laid_out(self, x: Tensor, padding: tuple[int, int]) -> Layout:
        """The weights as oneDNN wants them for this map; a layout made for another size can be ten times slower."""
        weight = self.weight
        version = 0 if weight.is_inference() else weight._version
        form, choice = self._form(x, padding), (current_choice(), winograd.setting())
        place = (padding, self.stride, self.dilation)
        key = (x.shape, place, weight.data_ptr(), version, form, choice, torch.get_num_threads())
        seen, layout = self._layout
        if seen != key:  # maps of ever new sizes: laying out takes as long as it saves in one call
            self._layout = (key, None)
            return weight if form == "library" else form
        if layout is None:
            with torch.no_grad():
                layout = self._best_layout(x, padding, form)
            self._layout = (key, layout)
        return layout

    def _form(self, x: Tensor, padding: tuple[int, int]) -> str:
        """Of those of an atrous convolution; ``library`` for all others."""
        if not self._has_forms(padding):
            return "library"
        return forward_form(x, [self.weight], [self.rate], lambda: [self._fused(x, self.weight, None, padding)])

    def _in_form(self, x: Tensor, form: str) -> Tensor:
        return atrous_conv2d_fast(x, [self.weight], [self.rate], form)[0]

    def _best_layout(self, x: Tensor, padding: tuple[int, int], form: str) -> Layout:
        """The weights laid out or, where that is faster, transformed for fewer products; else the name of a form."""
        place = (padding, self.stride, self.dilation, self.groups)
        packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *place, list(x.shape))
        if not self._is_filter(x, padding) or winograd.setting() == "never":
            return packed if form == "library" else form
        if winograd.setting() == "always":
            return self._transformed(x)
        if current_choice() != "auto" or not winograd.may_gain(x, self.weight, self.rate):
            return packed if form == "library" else form
        return self._measured(x, packed, form, padding)

    def _is_filter(self, x: Tensor, padding: tuple[int, int]) -> bool:
        """Whether it is what `atrous.ops.conv_kernels.winograd` computes."""
        rate = (self.rate, self.rate)
        plain = padding == rate and self.dilation == rate and self.stride == (1, 1) and self.groups == 1
        return plain and x.dtype == torch.float32 and self.kernel_size == (3, 3) and winograd.works()

    def _transformed(self, x: Tensor) -> Transformed:
        return Transformed(self.weight.detach(), None if self.bias is None else self.bias.detach(), x.shape, self.rate)

    def _measured(self, x: Tensor, packed: Tensor, form: str, padding: tuple[int, int]) -> Layout:
        """The fastest, which is measured once for a shape and remembered."""
        key = ("layout", x.shape, self.weight.shape, self.rate, form, x.dtype, torch.get_num_threads())
        transformed = self._transformed(x) if CHOICES.get(key, "winograd") == "winograd" else None
        if key not in CHOICES:
            assert transformed is not None
            runs = {"library": lambda: self._fused(x, packed, None, padding), "winograd": lambda: transformed(x)}
            if form != "library":
                runs[form] = lambda: self._in_form(x, form)
            CHOICES[key] = fastest(runs, "library")
        name = CHOICES[key]
        return transformed if name == "winograd" and transformed else packed if name == "library" else form

    def __getstate__(self) -> dict[str, Any]:
        """Without the layout, which can neither be copied nor stored."""
        return {**self.__dict__, "_layout": (None, None)}


class PackedConv2dSame(PackedConv2d):
    """The same for a convolution that pads as TensorFlow does: to an output of ceil(H / stride)."""

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return same_padding(x, self)


def current_choice() -> str:
    """``auto`` where a form may be chosen by the clock; else what has been set."""
    form = os.environ.get("ATROUS_CONV") or current_form()
    return "model" if form == "auto" and torch.are_deterministic_algorithms_enabled() else form
