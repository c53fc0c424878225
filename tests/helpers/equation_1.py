"""Equation 1 of section 3.1, term by term: what every form of atrous convolution is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def atrous_conv2d(x: Tensor, weight: Tensor, rate: int, stride: int = 1) -> Tensor:
    """Equation 1, term by term, with zeros outside of the map: the reference, not meant to be fast.

    Args:
        x: B,C,H,W float.
        weight: K,C,h,w float, h and w odd.
        rate: atrous rate ``r``.
        stride: keep every `stride`-th output.

    Returns:
        B,K,ceil(H/stride),ceil(W/stride) float.
    """
    height, width = x.shape[-2:]
    reach_y, reach_x = rate * (weight.shape[-2] // 2), rate * (weight.shape[-1] // 2)
    padded = F.pad(x, (reach_x, reach_x, reach_y, reach_y))
    y = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    for i in range(weight.shape[-2]):
        for j in range(weight.shape[-1]):
            shifted = padded[..., i * rate : i * rate + height, j * rate : j * rate + width]
            y = y + torch.einsum("bchw,kc->bkhw", shifted, weight[:, :, i, j])
    return y[..., ::stride, ::stride]
