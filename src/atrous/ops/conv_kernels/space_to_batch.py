"""Space to batch: an atrous convolution as a plain one on every rate-th pixel (equation 1 in section 3.1).

A filter at rate r reads pixels that are r apart, so the map splits into r × r smaller maps that never meet, and on each
of them the filter is an ordinary one. Stacked as images of a batch they take one call of the library. The price is two
passes over memory, and products with the zeros that pad small maps of unequal size.

    y = space_to_batch(x, weight, rate)

It is used where the library has no kernel for a depthwise filter that reaches far (`depthwise.lacks_kernel`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split(x: Tensor, rate: int) -> Tensor:
    """The rate × rate small maps of a map, as a batch.

    Args:
        x: B,C,H,W.
        rate: the atrous rate.

    Returns:
        rate * rate * B,C,ceil(H / rate),ceil(W / rate), channels last; zeros where the map has ended.
    """
    batch, channels, height, width = x.shape
    below, right = -height % rate, -width % rate
    x = F.pad(x, (0, right, 0, below)) if below or right else x
    rows, columns = (height + below) // rate, (width + right) // rate
    small = x.permute(0, 2, 3, 1).reshape(batch, rows, rate, columns, rate, channels).permute(2, 4, 0, 1, 3, 5)
    return small.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)


def merge(small: Tensor, rate: int, height: int, width: int) -> Tensor:
    """The map of these small maps: the inverse of `split`, B,C,H,W, channels last."""
    _, channels, rows, columns = small.shape
    y = small.permute(0, 2, 3, 1).reshape(rate, rate, -1, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
    y = y.reshape(-1, rows * rate, columns * rate, channels)[:, :height, :width]
    return y.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def space_to_batch(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    """An atrous convolution as a plain one on each of the map's rate × rate small maps; the same products.

    Args:
        x: B,C,H,W, channels last.
        weight: K,C,h,w, or C,1,h,w for a depthwise one, with odd h and w; the map is padded by rate * (side // 2).
        rate: the atrous rate.

    Returns:
        B,K,H,W, channels last.
    """
    padding, groups = (weight.shape[2] // 2, weight.shape[3] // 2), x.shape[1] // weight.shape[1]
    return merge(F.conv2d(split(x, rate), weight, padding=padding, groups=groups), rate, *x.shape[-2:])
