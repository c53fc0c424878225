"""Shrink images with corners aligned, and choose the size at which a model sees them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops.resize import resize

LARGEST_FACTOR = 2.0
"""The most that `viewing_factor` enlarges."""


def shrunk(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 C,H,W to a smaller `size`, antialiased, with corners aligned; PyTorch's antialiasing moves them.

    A box filter as wide as the factor (an odd width, so that nothing shifts), then bilinear interpolation.
    """
    result = torch.empty(image.shape[0], *size, dtype=torch.uint8, device=image.device)
    spans = [1 + 2 * round((old / new - 1) / 2) for old, new in zip(image.shape[1:], size, strict=True)]
    for plane, small in zip(image, result, strict=True):  # one by one, to save memory
        mean = plane[None, None].float()
        for span in ((spans[0], 1), (1, spans[1])):
            mean = F.avg_pool2d(mean, span, 1, (span[0] // 2, span[1] // 2), count_include_pad=False)
        small.copy_(resize(mean, size)[0, 0].round_())
    return result


def viewing_factor(size: tuple[int, int], longest_side: int | None) -> float:
    """Scale factor that gives an image of `size`, H and W, a longer side of `longest_side` pixels; 1 for None.

    Corners stay aligned. The factor is at most `LARGEST_FACTOR`: enlarging further shows no more detail.
    """
    return min((longest_side - 1) / max(max(size) - 1, 1), LARGEST_FACTOR) if longest_side else 1.0
