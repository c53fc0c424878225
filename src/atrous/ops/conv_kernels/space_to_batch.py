"""Atrous convolution by phases: a plain convolution of every rate-th pixel (equation 1 in section 3.1).

A filter at rate r reads pixels that are r apart, so the map falls into r × r phases that never meet, and on each of
them it is an ordinary filter. Put side by side as images of a batch they take one call of the library, whose plain
convolutions are everywhere its best. The price is two passes over memory, and products with the zeros that fill up
phases of unequal size and lie around each; at large rates on small maps these are most (Figure 4).

    y = by_phases(x, weight, bias, rate)

The gradient of the weights is not taken so: over a batch of many phases the library sums it in half precision, with
five times the error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops.conv_kernels.tap_gemm import WINDOW, Pass, finish, sum_dtype


def split(x: Tensor, rate: int) -> Tensor:
    """The phases of a map as a batch.

    Args:
        x: B,C,H,W.
        rate: the atrous rate.

    Returns:
        rate * rate * B,C,ceil(H / rate),ceil(W / rate), channels last; zeros where the map has ended.
    """
    batch, channels, height, width = x.shape
    below, right = -height % rate, -width % rate
    x = F.pad(x, (0, right, 0, below)) if below or right else x
    high, wide = (height + below) // rate, (width + right) // rate
    phases = x.permute(0, 2, 3, 1).reshape(batch, high, rate, wide, rate, channels).permute(2, 4, 0, 1, 3, 5)
    return phases.reshape(-1, high, wide, channels).permute(0, 3, 1, 2)


def merge(phases: Tensor, rate: int, height: int, width: int) -> Tensor:
    """The map of these phases: the inverse of `split`, B,C,H,W, channels last."""
    _, channels, high, wide = phases.shape
    y = phases.permute(0, 2, 3, 1).reshape(rate, rate, -1, high, wide, channels).permute(2, 3, 0, 4, 1, 5)
    y = y.reshape(-1, high * rate, wide * rate, channels)[:, :height, :width]
    return y.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def by_phases(x: Tensor, weight: Tensor, bias: Tensor | None, rate: int) -> Tensor:
    """An atrous convolution as a plain one on each of the map's rate × rate phases; the same products.

    Args:
        x: B,C,H,W, channels last.
        weight: K,C,h,w, or C,1,h,w to keep channels apart, with odd h and w; the map is padded by rate * (side // 2).
        bias: K, or None.
        rate: the atrous rate.

    Returns:
        B,K,H,W, channels last.
    """
    padding, groups = (weight.shape[2] // 2, weight.shape[3] // 2), x.shape[1] // weight.shape[1]
    y = F.conv2d(split(x, rate), weight, bias, padding=padding, groups=groups)
    return merge(y, rate, *x.shape[-2:])


def phases_forward(x: Tensor, _: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The library's forward pass on the phases."""
    return [finish(by_phases(x, weight, None, rate), x) for weight, rate in zip(weights, rates, strict=True)]


def phases_input(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """The same with the filter mirrored, and its filters and channels in each other's place."""
    dtype = x.dtype if len(weights) == 1 else sum_dtype(x)
    total = torch.zeros((), dtype=dtype, device=x.device)
    for gradient, weight, rate in zip(gradients, weights, rates, strict=True):
        total = total + by_phases(gradient, weight.transpose(0, 1).flip(-2, -1), None, rate)
    return [finish(total, x)]


PHASES: dict[str, Pass] = {"forward": phases_forward, "input": phases_input, "weight": WINDOW["weight"]}
