"""Atrous convolution that keeps channels apart (equation 1 in section 3.1), as the units of EfficientNet do.

Forms of the same passes as in `taps`, for weights C,1,h,w. The library's forward pass is mostly good, its gradients are
not. That of the input is the forward pass of the mirrored filter, at a tenth of the time; that of the weights is a
multiplication and sum for each tap, over the pixels that the tap sees inside the map, at a fifth to a tenth. Where the
library has no kernel for a filter that reaches far, its forward pass is worked out on the phases of the map.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from atrous.ops.conv_kernels.autotune import fastest
from atrous.ops.conv_kernels.space_to_batch import by_phases
from atrous.ops.conv_kernels.tap_gemm import (
    LIBRARY,
    WINDOW,
    Pass,
    finish,
    library_forward,
    library_weight,
    spans,
    sum_dtype,
)

HALVES = (torch.bfloat16, torch.float16)

CAPABILITY = torch.backends.cpu.get_cpu_capability()
"""The vector instructions that PyTorch uses here."""

_CACHED = 1 << 19
"""Elements of products that are still in the cache when they are summed."""


def _pixels(x: Tensor) -> Tensor:
    """B,C,H,W to contiguous B,H,W,C of the dtype that sums are taken in."""
    return x.permute(0, 2, 3, 1).to(sum_dtype(x)).contiguous()


def _shifted_sum(pixels: Tensor, weight: Tensor, rate: int) -> Tensor:
    y, (_, _, rows, columns) = torch.zeros_like(pixels), weight.shape
    taps = weight[:, 0].permute(1, 2, 0).to(pixels.dtype).contiguous()
    for row in spans(pixels.shape[1], rows, rate):
        for column in spans(pixels.shape[2], columns, rate):
            seen = pixels[:, row.inputs, column.inputs]
            y[:, row.outputs, column.outputs].addcmul_(seen, taps[row.tap, column.tap])
    return y.permute(0, 3, 1, 2)


def depthwise_forward(x: Tensor, _: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """A multiplication and sum for each tap over the pixels that it sees inside the map."""
    pixels = _pixels(x)
    return [finish(_shifted_sum(pixels, weight, rate), x) for weight, rate in zip(weights, rates, strict=True)]


def depthwise_input(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The same with the filter mirrored."""
    total = torch.zeros((), dtype=sum_dtype(x), device=x.device)
    for gradient, weight, rate in zip(gradients, weights, rates, strict=True):
        total = total + _shifted_sum(_pixels(gradient), weight.flip(-2, -1), rate)
    return [finish(total, x)]


def depthwise_weight(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """For each tap the products of what it saw with what came of it, summed over pixels, a few images at a time."""
    pixels = _pixels(x)
    return [
        finish(_correlation(pixels, _pixels(gradient), weight, rate), weight)
        for gradient, weight, rate in zip(gradients, weights, rates, strict=True)
    ]


def _correlation(pixels: Tensor, gradient: Tensor, weight: Tensor, rate: int) -> Tensor:
    channels, _, rows, columns = weight.shape
    found = pixels.new_zeros(rows, columns, channels)
    images = max(1, _CACHED // max(1, pixels[:1].numel()))
    for row in spans(pixels.shape[1], rows, rate):
        for column in spans(pixels.shape[2], columns, rate):
            # The products of a large image are still in the cache when they are summed: twice as fast.
            for seen, came in zip(torch.split(pixels, images), torch.split(gradient, images), strict=True):
                products = seen[:, row.inputs, column.inputs] * came[:, row.outputs, column.outputs]
                found[row.tap, column.tap] += products.sum((0, 1, 2))
    return found.permute(2, 0, 1)[:, None]


def is_depthwise(x: Tensor, weights: list[Tensor]) -> bool:
    """Whether each filter reads the channel of its own number alone."""
    channels = x.shape[1]
    return channels > 1 and len(weights) > 0 and all(w.shape[0] == channels and w.shape[1] == 1 for w in weights)


def mirrored_input(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The forward pass with the filter mirrored, and its filters and channels in each other's place."""
    mirrored = [w.flip(-2, -1) if is_depthwise(x, [w]) else w.transpose(0, 1).flip(-2, -1) for w in weights]
    triples = zip(gradients, mirrored, rates, strict=True)
    found = [far_forward(g, [], [w], [rate])[0].to(sum_dtype(x)) for g, w, rate in triples]
    return [finish(torch.stack(found).sum(0) if len(found) > 1 else found[0], x)]


def far_forward(x: Tensor, _: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The library's forward pass, by phases where the library has no kernel."""
    return [
        finish(by_phases(x, weight, None, rate), x)
        if lacks_kernel(x, weight, rate)
        else library_forward(x, [], [weight], [rate])[0]
        for weight, rate in zip(weights, rates, strict=True)
    ]


def wide_weight(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The library's, in float32: in bfloat16 oneDNN takes up to five times as long, and sums less exactly."""
    dtype = sum_dtype(x)
    wide = library_weight(x.to(dtype), [g.to(dtype) for g in gradients], [w.to(dtype) for w in weights], rates)
    return [finish(found, weight) for found, weight in zip(wide, weights, strict=True)]


class _WideGradients(torch.autograd.Function):
    """A convolution whose gradients are taken in float32, whatever it is computed in."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.place = (stride, padding, dilation)
        return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        backward = torch.ops.aten.convolution_backward.default
        wide = (gradient.float(), x.float(), weight.float())
        mask = [*ctx.needs_input_grad[:2], False]
        found = backward(*wide, None, *ctx.place, False, [0, 0], x.shape[1], mask)
        of_x, of_weight = (g if g is None else finish(g, like) for g, like in zip(found, (x, weight), strict=False))
        return of_x, of_weight, None, None, None


def wide_gradients(
    x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """``F.conv2d`` in groups of one channel, with gradients taken in float32; no second derivative."""
    y: Tensor = _WideGradients.apply(x, weight, list(stride), list(padding), list(dilation))
    return y


def sound_weight(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The library's, but in float32 where it is wrong in bfloat16."""
    run = wide_weight if is_wrong_in_half(x, weights, rates) else library_weight
    return run(x, gradients, weights, rates)


def is_wrong_in_half(x: Tensor, weights: list[Tensor], rates: Sequence[int]) -> bool:
    """Whether the library's gradient of the weights is wrong, not inexact: noise of the size of the gradient, or NaN.

    So it is on a CPU, PyTorch 2.10 and 2.15, in bfloat16 with channels-last maps and an atrous rate.
    """
    return x.device.type == "cpu" and x.dtype in HALVES and max(rates, default=1) > 1 and is_depthwise(x, weights)


def gains_by_wide_gradients(x: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> bool:
    """Whether oneDNN is slow at the gradients in bfloat16: strided, or with a filter of 5×5 and more; or wrong."""
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not wanted or x.device.type != "cpu" or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    if is_wrong_in_half(x, [weight], dilation):
        return True
    return x.dtype == torch.bfloat16 and is_depthwise(x, [weight]) and (max(stride) > 1 or max(weight.shape[2:]) > 3)


LIBRARY_DEPTHWISE: dict[str, Pass] = {**LIBRARY, "weight": sound_weight}
DEPTHWISE: dict[str, Pass] = {
    "forward": depthwise_forward,
    "input": depthwise_input,
    "weight": depthwise_weight,
}
MIRROR: dict[str, Pass] = {**WINDOW, "forward": library_forward, "input": mirrored_input}
MIRROR_DEPTHWISE: dict[str, Pass] = {"forward": far_forward, "input": mirrored_input, "weight": wide_weight}


_REACH = 6
"""Pixels from a filter's centre to its edge that the library has kernels for everywhere."""


def lacks_kernel(x: Tensor, weight: Tensor, rate: int) -> bool:
    """Whether oneDNN falls back to its reference loops: with AVX2, in float32, where a filter reaches over 6 pixels.

    A rule, not a measurement, so that training gives the same bytes each time.
    """
    rows, columns = weight.shape[2:]
    if x.device.type != "cpu" or x.dtype != torch.float32 or rows != columns or not is_depthwise(x, [weight]):
        return False
    return rate > 1 and rate * (rows // 2) > _REACH and CAPABILITY == "AVX2"


@functools.lru_cache(maxsize=256)
def phases_win(side: int, rate: int, dtype: torch.dtype, threads: int) -> bool:
    """Whether `by_phases` is faster here: by 14 times where the library has no kernel for a filter that reaches so far.

    Measured once on a small map, in a few milliseconds; with AVX2 it is so for 5×5 filters at rate 4.
    """
    del threads
    if rate * (side // 2) <= _REACH:
        return False
    x = torch.ones(1, 64, 12 * rate, 12 * rate, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(64, 1, side, side, dtype=dtype)
    runs = {
        "phases": lambda: by_phases(x, weight, None, rate),
        "library": lambda: F.conv2d(x, weight, None, 1, rate * (side // 2), rate, 64),
    }
    return fastest(runs, "library") == "phases"
