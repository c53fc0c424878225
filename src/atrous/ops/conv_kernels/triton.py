"""Atrous convolution on CUDA in one Triton kernel (equation 1 in section 3.1), for the shapes of ASPP (section 3.3).

An implicit matrix product: a program makes a rectangle of pixels for some filters, tap by tap, with sums in float32.
A tap that falls outside of the map for all of the rectangle is skipped, so that at large rates (Figure 4) about as much
is computed as counts. The gradient of the input is the same kernel with the rate negated, which mirrors the filter, and
with filters and channels in each other's place. That of the weights is products of windows (`taps`).

`gemm` takes this form only where it has measured that it beats cuDNN. With ``TRITON_INTERPRET=1`` in the environment
before the import, the kernel runs on the CPU: the tests do so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from atrous.ops.conv_kernels.tap_gemm import WINDOW, Pass, order


class Blocks(NamedTuple):
    """What a program makes and reads at once; powers of two, of at least 16 pixels, filters and channels."""

    rows: int = 8
    columns: int = 16
    filters: int = 128
    channels: int = 64
    warps: int = 8
    stages: int = 3


BLOCKS = Blocks()
BLOCKS_TF32 = Blocks(channels=32)


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    y,
    height,
    width,
    channels,
    filters,
    rate,
    x_batch,
    x_row,
    x_column,
    x_channel,
    w_filter,
    w_channel,
    w_row,
    w_column,
    y_batch,
    y_row,
    y_column,
    y_filter,
    SIDE_Y: tl.constexpr,
    SIDE_X: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FILTERS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Outputs of a rectangle of ROWS by COLUMNS pixels for FILTERS filters; the strides are in elements."""
    across = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * across
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    top, left = (tile // across) * ROWS, (tile % across) * COLUMNS
    pixel = tl.arange(0, ROWS * COLUMNS)
    row, column = top + pixel // COLUMNS, left + pixel % COLUMNS
    filter = tl.program_id(1) * FILTERS + tl.arange(0, FILTERS)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros((ROWS * COLUMNS, FILTERS), dtype=tl.float32)
    for i in range(SIDE_Y):
        dy = (i - SIDE_Y // 2) * rate
        for j in range(SIDE_X):
            dx = (j - SIDE_X // 2) * rate
            # The part of the rectangle inside the map is what has to be met, not the rectangle.
            seen_y = (top + dy < height) & (tl.minimum(top + ROWS, height) + dy > 0)
            seen_x = (left + dx < width) & (tl.minimum(left + COLUMNS, width) + dx > 0)
            if seen_y & seen_x:
                from_row, from_column = row + dy, column + dx
                inside = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
                pixels = x + image * x_batch + from_row.to(tl.int64) * x_row + from_column * x_column
                taps = weight + i * w_row + j * w_column + filter.to(tl.int64) * w_filter
                for first in range(0, channels, CHANNELS):
                    left_over = first + channel < channels
                    a = tl.load(
                        pixels[:, None] + (first + channel)[None, :] * x_channel,
                        mask=inside[:, None] & left_over[None, :],
                        other=0.0,
                    )
                    b = tl.load(
                        taps[None, :] + (first + channel)[:, None] * w_channel,
                        mask=(filter < filters)[None, :] & left_over[:, None],
                        other=0.0,
                    )
                    if WIDEN:
                        a, b = a.to(tl.float32), b.to(tl.float32)
                    total = tl.dot(a, b, total, input_precision="tf32")
    out = y + image * y_batch + row.to(tl.int64) * y_row + column * y_column
    kept = ((row < height) & (column < width))[:, None] & (filter < filters)[None, :]
    tl.store(out[:, None] + filter[None, :].to(tl.int64) * y_filter, total.to(y.dtype.element_ty), mask=kept)


def convolve(x: Tensor, weight: Tensor, rate: int, y: Tensor, blocks: Blocks | None = None) -> Tensor:
    """Fill `y` with the atrous convolution of `x`, in any memory order; channels-last is the fast one.

    Args:
        x: B,C,H,W bfloat16, float16 or float32 (multiplied as tf32).
        weight: K,C,h,w of the dtype of `x`, h and w odd.
        rate: atrous rate; a negative one turns the filter by half a turn.
        y: B,K,H,W of any of these dtypes.
        blocks: what a program does; None for the usual.

    Returns:
        `y`.
    """
    batch, channels, height, width = x.shape
    filters = weight.shape[0]
    # What is summed over lies side by side, as in a channels-last model: only so is it loaded 16 bytes at a time.
    weight = weight.contiguous(memory_format=torch.channels_last)
    blocks = blocks or (BLOCKS_TF32 if x.dtype == torch.float32 else BLOCKS)
    tiles = triton.cdiv(height, blocks.rows) * triton.cdiv(width, blocks.columns)
    grid = (batch * tiles, triton.cdiv(filters, blocks.filters))
    launch: Any = _kernel[grid]
    launch(
        *(x, weight, y, height, width, channels, filters, rate),
        *(x.stride(0), x.stride(2), x.stride(3), x.stride(1)),
        *weight.stride(),
        *(y.stride(0), y.stride(2), y.stride(3), y.stride(1)),
        SIDE_Y=weight.shape[2],
        SIDE_X=weight.shape[3],
        ROWS=blocks.rows,
        COLUMNS=blocks.columns,
        FILTERS=blocks.filters,
        CHANNELS=blocks.channels,
        WIDEN=not x.is_cuda,  # The interpreter multiplies the bits of bfloat16 as whole numbers.
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return y


def triton_forward(x: Tensor, _: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The kernel for each branch."""
    batch, _channels, height, width = x.shape
    x, memory = x.contiguous(memory_format=torch.channels_last), order(x)
    outputs = [
        torch.empty((batch, len(w), height, width), dtype=x.dtype, device=x.device, memory_format=memory)
        for w in weights
    ]
    return [convolve(x, w, rate, y) for w, rate, y in zip(weights, rates, outputs, strict=True)]


def triton_input(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The kernel with its filters mirrored, for each branch; the sum over branches is rounded once."""
    dtype = x.dtype if len(weights) == 1 else torch.float32
    total: Tensor | None = None
    for gradient, weight, rate in zip(gradients, weights, rates, strict=True):
        g = gradient.contiguous(memory_format=torch.channels_last)
        found = convolve(g, weight.transpose(0, 1), -rate, torch.empty_like(x, dtype=dtype))
        total = found if total is None else total.add_(found)
    assert total is not None
    return [total.to(x.dtype)]


TRITON: dict[str, Pass] = {"forward": triton_forward, "input": triton_input, "weight": WINDOW["weight"]}
