"""Atrous convolution (section 3.1, equation 1).

``y[i] = sum_k x[i + r * k] * w[k]``: the filter is applied to every ``r``-th value of its input, so that the same
weights see a wider field on a denser map. `AtrousConv2d` is ``nn.Conv2d`` whose stride and rate can be changed at any
time, and `set_stride_and_dilation` changes them in a layer that another library built.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook as has_global_hook
from torch.nn.utils.parametrize import is_parametrized

from atrous.ops.conv_kernels.depthwise import gains_by_wide_gradients, wide_gradients
from atrous.ops.conv_kernels.dispatch import atrous_conv2d_fast, is_recorded


class AtrousConv2d(nn.Conv2d):
    """A convolution with an odd kernel that keeps its map centred at any stride and atrous rate.

    Input B,C,H,W float, output B,K,ceil(H/stride),ceil(W/stride). Output pixel ``i`` is centred on input pixel
    ``stride * i``, whatever the rate. Parameters, and so the state dict, are those of ``nn.Conv2d``.

    Args:
        in_channels: channels read.
        out_channels: filters.
        kernel_size: side of the filter, odd.
        stride: step of the output over the input.
        rate: atrous rate; 1 is the plain convolution.
        groups: as in ``nn.Conv2d``.
        bias: as in ``nn.Conv2d``; off, since batch norm follows almost everywhere.

    Raises:
        ValueError: if the kernel is even, for then it has no centre.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        rate: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number")
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=rate * (kernel_size // 2), dilation=rate,
            groups=groups, bias=bias,
        )  # fmt: skip

    @classmethod
    def over(cls, native: nn.Conv2d) -> AtrousConv2d:
        """Turn a centred convolution of another library into one of this class, in place: the same parameters."""
        rate = native.dilation[0]
        native.__class__ = cls
        native.padding = (rate * (native.kernel_size[0] // 2),) * 2
        assert isinstance(native, cls)
        return native

    @property
    def rate(self) -> int:
        """The atrous rate, the same in both directions."""
        return self.dilation[0]

    def forward(self, x: Tensor) -> Tensor:
        """B,C,H,W float to B,K,ceil(H/stride),ceil(W/stride), by the fastest exact form (`atrous.ops.conv_kernels`)."""
        return _together(x, [self])[0] if self._comes_in_forms() else self.by_library(*self._padded(x))

    def _padded(self, x: Tensor) -> tuple[Tensor, str | tuple[int, ...]]:
        """The input of the library's convolution, and its ``padding`` argument."""
        return x, self.padding

    def _comes_in_forms(self) -> bool:
        """Whether `atrous.ops.conv_kernels` has forms beside the library's: atrous convolutions, plain or depthwise."""
        plain_or_depthwise = self.groups == 1 or self.groups == self.in_channels == self.out_channels
        return self.rate > 1 and self.stride == (1, 1) and plain_or_depthwise and self._is_centred_at_stride_1()

    def _is_centred_at_stride_1(self) -> bool:
        return self.padding == (self.rate * (self.kernel_size[0] // 2),) * 2

    def by_library(self, x: Tensor, padding: str | tuple[int, ...]) -> Tensor:
        """``F.conv2d``, with gradients in the dtype in which they are right and fast."""
        if self.groups > 1 and not isinstance(padding, str):
            inputs, weight = _autocast(x, self.weight)
            if gains_by_wide_gradients(inputs, weight, self.stride, self.dilation):
                y = wide_gradients(inputs, weight, self.stride, padding, self.dilation)
                return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class AtrousConv2dSame(AtrousConv2d):
    """`AtrousConv2d` with TensorFlow's "same" padding: to an output of ceil(H / stride)."""

    def _padded(self, x: Tensor) -> tuple[Tensor, str | tuple[int, ...]]:
        return same_padding(x, self)

    def _is_centred_at_stride_1(self) -> bool:
        return True


def same_padding(x: Tensor, layer: nn.Conv2d) -> tuple[Tensor, tuple[int, int]]:
    """The input of a convolution with TensorFlow's "same" padding, and its ``padding`` argument.

    The input is copied only where the padding is uneven, which it is not on a map on the grid of the stride. An export
    takes every map to be on it, as those of padded images are.

    Raises:
        ValueError: if the example of an export is not.
    """
    if is_recorded():
        if any((length - 1) % stride for length, stride in zip(x.shape[-2:], layer.stride, strict=True)):
            size = "×".join(str(int(length)) for length in x.shape[-2:])
            raise ValueError(f"export with a map of {size} at stride {layer.stride[0]}; expected images on the grid")
        rates, sides = layer.dilation, layer.kernel_size
        return x, (rates[0] * (sides[0] // 2), rates[1] * (sides[1] // 2))
    below, right = (
        max((-(-length // stride) - 1) * stride + rate * (side - 1) + 1 - length, 0)
        for length, side, stride, rate in zip(
            x.shape[-2:], layer.kernel_size, layer.stride, layer.dilation, strict=True
        )
    )
    if below % 2 or right % 2:
        sides = (right // 2, right - right // 2, below // 2, below - below // 2)
        return (F.pad(x.to_dense(), sides).to_mkldnn() if x.is_mkldnn else F.pad(x, sides)), (0, 0)
    return x, (below // 2, right // 2)


def _autocast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As autocast would pass them to a convolution."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weight
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype)


def take_place(layer: nn.Conv2d, native: nn.Conv2d) -> None:
    """Initialise a layer that stands in for a convolution: with the same parameters, geometry and mode."""
    nn.Module.__init__(layer)
    held = vars(native).items()
    vars(layer).update({key: copy.copy(value) if isinstance(value, dict | set) else value for key, value in held})


class PatchConv2d(nn.Conv2d):
    """A convolution with an even kernel at any stride and rate, as in networks that cut their map into patches.

    Output pixel ``i`` reads from input pixel ``stride * i`` on, to the right and down, at any stride.

    Args:
        native: the convolution to stand in for; its parameters become this one's.
    """

    def __init__(self, native: nn.Conv2d) -> None:
        take_place(self, native)
        self.native_stride = self.stride

    def forward(self, x: Tensor) -> Tensor:
        """B,C,H,W float to B,K,ceil(H/stride),ceil(W/stride), or the native floor at its native stride."""
        if self.stride != self.native_stride or self.dilation != (1, 1):
            below, right = (
                rate * (side - 1) for rate, side in zip(self.dilation, _pair(self.kernel_size), strict=True)
            )
            x = F.pad(x, (0, right, 0, below))
        return super().forward(x)


class AtrousPool2d(nn.Module):
    """Mean or maximum over a window, with an atrous rate.

    ``nn.AvgPool2d`` has no rate, ``nn.MaxPool2d`` one for odd windows only.

    At rate 1 and its native stride it is the pooling that it replaces. Otherwise it pools the values that the native
    one would have pooled, and divides a sum by what the native one would have: it may count the padding.

    Args:
        native: the pooling to stand in for.
    """

    def __init__(self, native: nn.AvgPool2d | nn.MaxPool2d) -> None:
        super().__init__()
        self.native = native
        self.kernel_size = _pair(native.kernel_size)
        self.stride = self.native_stride = _pair(native.stride)[0]
        self.rate = 1

    def forward(self, x: Tensor) -> Tensor:
        """B,C,H,W float to B,C,ceil(H/stride),ceil(W/stride)."""
        if self.rate == 1 and self.stride == self.native_stride:
            pooled: Tensor = self.native(x)
            return pooled
        offset = _pair(self.native.padding)[0]
        before, after = offset * self.rate, (self.kernel_size[0] - 1 - offset) * self.rate
        sides, size = (before, after, before, after), (x.shape[-2], x.shape[-1])
        if isinstance(self.native, nn.MaxPool2d):
            return self._taps(F.pad(x, sides, value=float("-inf")), size).amax(0)
        total = self._taps(F.pad(x, sides), size).sum(0)
        if self.native.divisor_override:
            return total / self.native.divisor_override
        counted = torch.ones_like(x[:1, :1])
        if self.native.count_include_pad:  # as far as the padding goes; a window may reach farther
            counted = F.pad(counted, (before, min(before, after)) * 2, value=1.0)
            sides = (0, max(after - before, 0)) * 2
        return total / self._taps(F.pad(counted, sides), size).sum(0)

    def _taps(self, padded: Tensor, size: tuple[int, int]) -> Tensor:
        """The values at each position of the window, stacked, for a map of `size` before it was padded."""
        side, (height, width) = self.kernel_size[0], size
        return torch.stack(
            [
                padded[..., y : y + height : self.stride, z : z + width : self.stride]
                for y in range(0, side * self.rate, self.rate)
                for z in range(0, side * self.rate, self.rate)
            ]
        )


def parallel(x: Tensor, branches: Sequence[nn.Module]) -> list[Tensor]:
    """Branches that read one map, as in ASPP, each of which begins with an `AtrousConv2d`: B,C,H,W float to a list.

    Their convolutions are computed together. With a hook, pruning or another kind of layer the branches are called.
    """
    sequences = [branch for branch in branches if isinstance(branch, nn.Sequential)]
    convolutions = [branch[0] for branch in sequences if type(branch[0]) is AtrousConv2d]
    together = len(convolutions) == len(branches) and all(map(runs_forward_alone, (*sequences, *convolutions)))
    if not convolutions or not together or has_global_hook():
        return [branch(x) for branch in branches]
    return [branch[1:](y) for branch, y in zip(sequences, _together(x, convolutions), strict=True)]


def runs_forward_alone(module: nn.Module) -> bool:
    """Whether calling a module does what its class's ``forward`` does: no hooks, no pruning, no parametrization."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    changed = "forward" in module.__dict__ or module._compiled_call_impl is not None or is_parametrized(module)
    return not (any(hooks) or changed)


def _together(x: Tensor, layers: Sequence[AtrousConv2d]) -> list[Tensor]:
    maps = atrous_conv2d_fast(x, [layer.weight for layer in layers], [layer.rate for layer in layers])
    return [
        y if layer.bias is None else y + layer.bias.to(y.dtype)[:, None, None]
        for y, layer in zip(maps, layers, strict=True)
    ]


def set_stride_and_dilation(layer: nn.Module, stride: int, rate: int) -> None:
    """Give a convolution or pooling layer another stride and atrous rate, in place.

    The padding follows, so that the layer stays centred. One that pads for itself in its forward (`PatchConv2d`,
    `AtrousPool2d`, TensorFlow's "same") only takes the two numbers.

    Args:
        layer: ``nn.Conv2d`` with an odd kernel, `PatchConv2d`, ``nn.MaxPool2d`` with an odd window, or `AtrousPool2d`.
        stride: the new stride, the same in both directions.
        rate: the new atrous rate.
    """
    if isinstance(layer, AtrousPool2d):
        layer.stride, layer.rate = stride, rate
        return
    assert isinstance(layer, nn.Conv2d | nn.MaxPool2d), type(layer)
    pads_itself = isinstance(layer, PatchConv2d) or type(layer).__name__.endswith("Same")
    height, width = (rate * (side // 2) for side in _pair(layer.kernel_size))
    if isinstance(layer, nn.Conv2d):
        layer.stride, layer.dilation = (stride, stride), (rate, rate)
        layer.padding = layer.padding if pads_itself else (height, width)
    else:
        layer.stride, layer.dilation = stride, rate
        layer.padding = layer.padding if pads_itself else height


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
