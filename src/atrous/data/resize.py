"""Photographs at another size: corners aligned, every pixel counted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops.resize import resize

LARGEST_FACTOR = 2.0
"""By which `viewing_factor` enlarges at most."""


def shrunk(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A photograph made smaller, uint8 C,H,W: corners aligned, every pixel counted.

    A mean over as many pixels as become one (an odd number, so that nothing moves), then bilinear between these means.
    PyTorch's own antialiasing moves the corners.
    """
    found = torch.empty(image.shape[0], *size, dtype=torch.uint8, device=image.device)
    spans = [1 + 2 * round((old / new - 1) / 2) for old, new in zip(image.shape[1:], size, strict=True)]
    for plane, small in zip(image, found, strict=True):  # one by one, for the memory
        mean = plane[None, None].float()
        for span in ((spans[0], 1), (1, spans[1])):
            mean = F.avg_pool2d(mean, span, 1, (span[0] // 2, span[1] // 2), count_include_pad=False)
        small.copy_(resize(mean, size)[0, 0].round_())
    return found


def viewing_factor(size: tuple[int, int], longest_side: int | None) -> float:
    """By how much a picture of `size`, H and W, is scaled so that its longer side has `longest_side` pixels.

    1 for None. Corners stay aligned. Nothing is enlarged more than `LARGEST_FACTOR` times: there is no more to see.
    """
    return min((longest_side - 1) / max(max(size) - 1, 1), LARGEST_FACTOR) if longest_side else 1.0
