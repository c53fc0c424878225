"""Depthwise atrous convolution (equation 1 in section 3.1), as in the units of EfficientNet and MobileNet.

The three passes for weights C,1,h,w on a CPU. The library's forward pass is mostly good, its gradients are not. The
gradient of the input is the forward pass of the mirrored filter, in a tenth of the time. The gradient of the weights is
a multiplication and sum for each tap, over the pixels that the tap sees inside the map, in a fifth to a tenth of the
time. Where the library has no kernel for a filter that reaches far, its forward pass runs by `space_to_batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from atrous.ops.conv_kernels.space_to_batch import space_to_batch
from atrous.ops.conv_kernels.tap_gemm import (
    CAPABILITY,
    LIBRARY,
    Pass,
    finish,
    library_forward,
    library_weight,
    spans,
    sum_dtype,
)

HALVES = (torch.bfloat16, torch.float16)

_CACHED = 1 << 19
"""Elements of products that are still in the cache when they are summed."""

_REACH = {("AVX2", torch.float32): 4, ("AVX512", torch.float32): 6, ("AVX512", torch.bfloat16): 6}
"""Pixels from a filter's centre to its edge that oneDNN has kernels for."""


def is_depthwise(x: Tensor, weights: list[Tensor]) -> bool:
    """Whether each filter reads the channel of its own number alone."""
    channels = x.shape[1]
    return channels > 1 and len(weights) > 0 and all(w.shape[0] == channels and w.shape[1] == 1 for w in weights)


def lacks_kernel(x: Tensor, weight: Tensor, rate: int) -> bool:
    """Whether oneDNN falls back to its reference loops, 2 to 20 times slower: where a filter reaches far."""
    rows, columns = weight.shape[2:]
    if x.device.type != "cpu" or rows != columns or not is_depthwise(x, [weight]):
        return False
    return reaches_far(rows, rate, x.dtype)


def reaches_far(side: int, rate: int, dtype: torch.dtype) -> bool:
    """Whether a depthwise filter of a side reaches further from its centre than oneDNN has kernels for."""
    return rate > 1 and rate * (side // 2) > _REACH.get((CAPABILITY, dtype), rate * side)


# Passes -------------------------------------------------------------------------------------------------------------


def depthwise_forward(x: Tensor, _: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The library's forward pass, by `space_to_batch` where the library has no kernel."""
    return [
        finish(space_to_batch(x, weight, rate), x)
        if lacks_kernel(x, weight, rate)
        else library_forward(x, [], [weight], [rate])[0]
        for weight, rate in zip(weights, rates, strict=True)
    ]


def depthwise_input(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The forward pass with the filter mirrored."""
    triples = zip(gradients, weights, rates, strict=True)
    terms = [depthwise_forward(g, [], [w.flip(-2, -1)], [rate])[0].to(sum_dtype(x)) for g, w, rate in triples]
    return [finish(torch.stack(terms).sum(0) if len(terms) > 1 else terms[0], x)]


def depthwise_weight(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """For each tap the product of what it read with the gradient of what it gave, summed over pixels."""
    pixels = _pixels(x)
    return [
        finish(_correlation(pixels, _pixels(gradient), weight, rate), weight)
        for gradient, weight, rate in zip(gradients, weights, rates, strict=True)
    ]


def _pixels(x: Tensor) -> Tensor:
    """B,C,H,W to contiguous B,H,W,C of the dtype that sums are taken in."""
    return x.permute(0, 2, 3, 1).to(sum_dtype(x)).contiguous()


def _correlation(pixels: Tensor, gradient: Tensor, weight: Tensor, rate: int) -> Tensor:
    channels, _, rows, columns = weight.shape
    sums = pixels.new_zeros(rows, columns, channels)
    images = max(1, _CACHED // max(1, pixels[:1].numel()))
    for row in spans(pixels.shape[1], rows, rate):
        for column in spans(pixels.shape[2], columns, rate):
            # A few images at a time: their products are still in the cache when they are summed, twice as fast.
            for read, given in zip(torch.split(pixels, images), torch.split(gradient, images), strict=True):
                products = read[:, row.inputs, column.inputs] * given[:, row.outputs, column.outputs]
                sums[row.tap, column.tap] += products.sum((0, 1, 2))
    return sums.permute(2, 0, 1)[:, None]


# Gradients in float32 -----------------------------------------------------------------------------------------------


def is_wrong_in_half(x: Tensor, weights: list[Tensor], rates: Sequence[int]) -> bool:
    """Whether the library's gradient of the weights is noise or NaN, not a gradient.

    So it is on a CPU, PyTorch 2.10 and 2.15, in bfloat16 with channels-last maps and an atrous rate.
    """
    return x.device.type == "cpu" and x.dtype in HALVES and max(rates, default=1) > 1 and is_depthwise(x, weights)


def right_library_weight(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The library's gradient of the weights, in float32 where it is wrong in half precision."""
    if not is_wrong_in_half(x, weights, rates):
        return library_weight(x, gradients, weights, rates)
    dtype = sum_dtype(x)
    wide = library_weight(x.to(dtype), [g.to(dtype) for g in gradients], [w.to(dtype) for w in weights], rates)
    return [finish(gradient, weight) for gradient, weight in zip(wide, weights, strict=True)]


class _WideGradients(torch.autograd.Function):
    """A convolution whose gradients are taken in float32, whatever it is computed in."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, dilation)
        return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        backward = torch.ops.aten.convolution_backward.default
        wide = (gradient.float(), x.float(), weight.float())
        mask = [*ctx.needs_input_grad[:2], False]
        gradients = backward(*wide, None, *ctx.geometry, False, [0, 0], x.shape[1], mask)
        of_x, of_weight = (g if g is None else finish(g, like) for g, like in zip(gradients, (x, weight), strict=False))
        return of_x, of_weight, None, None, None


def wide_gradients(
    x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """``F.conv2d`` in groups of one channel, with gradients taken in float32; no second derivative."""
    y: Tensor = _WideGradients.apply(x, weight, list(stride), list(padding), list(dilation))
    return y


def gains_by_wide_gradients(x: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> bool:
    """Whether oneDNN is slow at the gradients in bfloat16: strided, or with a filter of 5×5 and more; or wrong."""
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not wanted or x.device.type != "cpu" or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    if is_wrong_in_half(x, [weight], dilation):
        return True
    return x.dtype == torch.bfloat16 and is_depthwise(x, [weight]) and (max(stride) > 1 or max(weight.shape[2:]) > 3)


RIGHT_LIBRARY: dict[str, Pass] = {**LIBRARY, "weight": right_library_weight}
DEPTHWISE: dict[str, Pass] = {"forward": depthwise_forward, "input": depthwise_input, "weight": depthwise_weight}
