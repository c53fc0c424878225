"""Shrink images with corners aligned, and choose the size at which a model sees them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops.resize import resize

LARGEST_FACTOR = 2.0
"""The most that `viewing_factor` enlarges."""


_STRIP = 256


def shrunk(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 C,H,W to a smaller `size`, antialiased, with corners aligned; PyTorch's antialiasing moves them.

    A box filter as wide as the factor (an odd width, so that nothing shifts), then bilinear interpolation.
    """
    result = torch.empty(image.shape[0], *size, dtype=torch.uint8, device=image.device)
    spans = [1 + 2 * round((old / new - 1) / 2) for old, new in zip(image.shape[1:], size, strict=True)]
    for plane, small in zip(image, result, strict=True):  # one by one and in strips, to save memory
        means = torch.empty(plane.shape, device=image.device)
        for top in range(0, len(plane), _STRIP):
            means[top : top + _STRIP] = _means(plane, top, spans)
        small.copy_(resize(means[None, None], size)[0, 0].round_())
    return result


def _means(plane: Tensor, top: int, spans: list[int]) -> Tensor:
    """The mean around each pixel of some rows of uint8 H,W, over windows of `spans` pixels, float32.

    At the edges, over the pixels that there are. Equal to `F.avg_pool2d`, whose loop over pixels takes longer.
    """
    above = min(top, spans[0] // 2)
    mean = plane[top - above : top + _STRIP + spans[0] // 2].float()
    for dim, span in enumerate(spans):
        half, length = span // 2, mean.shape[dim]
        padded = F.pad(mean, (0, 0, half, half) if dim == 0 else (half, half))
        mean = padded.narrow(dim, 0, length).clone()
        for i in range(1, span):
            mean += padded.narrow(dim, i, length)
        place = torch.arange(length, device=plane.device)
        count = (place + half).clamp_(max=length - 1) - (place - half).clamp_(min=0) + 1
        mean /= count.view(-1, 1) if dim == 0 else count
    return mean[above : above + _STRIP]


def viewing_factor(size: tuple[int, int], longest_side: int | None) -> float:
    """Scale factor that gives an image of `size`, H and W, a longer side of `longest_side` pixels; 1 for None.

    Corners stay aligned. The factor is at most `LARGEST_FACTOR`: enlarging further shows no more detail.
    """
    return min((longest_side - 1) / max(max(size) - 1, 1), LARGEST_FACTOR) if longest_side else 1.0
