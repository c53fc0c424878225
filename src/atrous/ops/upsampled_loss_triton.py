"""Cross-entropy of upsampled logits on CUDA, as one Triton kernel (section 4.1, "Upsampling logits").

A program takes one cell, the output_stride x output_stride pixels between four features. It holds the four features'
logits, goes through the pixels block by block, and writes the loss of the cell and the four features' gradients:
nothing of the size of the upsampled logits is ever written.

Neighbouring cells share features. So that their gradients can be added without atomic operations, whose order changes
from run to run, cells of even and odd row and column are launched one after the other.

With ``TRITON_INTERPRET=1`` in the environment it runs on the CPU, for tests.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Logits that a program holds at a time, where there are not more classes than that for 16 pixels."""

SHARE = 8
"""Logits of a thread: with 32, registers held half as many threads at a time, and less than a gradient needs."""


def cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, output_stride: int, ignore: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Loss and gradient for `atrous.ops.upsampled_loss.upsampled_cross_entropy_sum`, which checks the shapes.

    Args:
        logits: B,K,h,w float32, float16 or bfloat16 of any strides.
        labels: B,H,W integer.
        class_weights: K float, or None for ones.
        output_stride: pixels from one feature to the next.
        ignore: the label that does not count.
        with_gradient: whether the gradient is wanted.

    Returns:
        The scalar float32 sum, and the gradient, float32 in the shape and strides of the logits, or empty.

    Raises:
        RuntimeError: a label is neither a class nor `ignore`; on CUDA a device-side assertion, later.
    """
    batch, classes, h, w = logits.shape
    weights = torch.ones(classes, device=logits.device) if class_weights is None else class_weights.float().contiguous()
    gradient = torch.zeros_like(logits if with_gradient else logits.new_empty(0), dtype=torch.float32)
    losses = torch.zeros(batch, h, w, device=logits.device)
    wrong = torch.zeros(batch, h, w, dtype=torch.int32, device=logits.device)
    step = 2 if with_gradient else 1
    strides = gradient.stride() if with_gradient else (0,) * 4
    with torch.cuda.device_of(logits):
        for row, column in product(range(min(step, h)), range(min(step, w))):
            cells = (-(-(h - row) // step), -(-(w - column) // step))
            _cells[(batch * cells[0] * cells[1],)](
                *(logits, labels, weights, gradient, losses, wrong),
                *(classes, h, w, labels.shape[1], labels.shape[2]),
                *(*logits.stride(), *labels.stride(), *strides),
                *(row, column, *cells, ignore),
                **_meta(classes, output_stride, step),
            )
    torch._assert_async((wrong == 0).all(), f"labels must be 0 to {classes - 1}, or {ignore} to be ignored")
    return losses.sum(dtype=torch.float64).float(), gradient


def _meta(classes: int, stride: int, step: int) -> dict[str, Any]:
    padded = triton.next_power_of_2(classes)
    block = max(16, min(BLOCK // padded, triton.next_power_of_2(stride * stride)))
    warps = max(1, min(16, padded * block // (32 * SHARE)))
    return {"S": stride, "STEP": step, "KP": padded, "P": block, "num_warps": warps}


@triton.jit  # type: ignore[untyped-decorator]
def _cells(  # type: ignore[no-untyped-def]
    logits,
    labels,
    weights,
    gradient,
    losses,
    wrong,
    K,
    h,
    w,
    H,
    W,
    logits_b,
    logits_k,
    logits_y,
    logits_x,
    labels_b,
    labels_y,
    labels_x,
    gradient_b,
    gradient_k,
    gradient_y,
    gradient_x,
    row,
    column,
    cell_rows,
    cell_columns,
    ignore,
    S: tl.constexpr,
    STEP: tl.constexpr,
    KP: tl.constexpr,
    P: tl.constexpr,
):
    cell = tl.program_id(0)
    i = (cell // cell_columns) % cell_rows * STEP + row
    j = cell % cell_columns * STEP + column
    # 64 bits: a batch of logits or labels may well have more elements than 32 bits count.
    b = (cell // (cell_columns * cell_rows)).to(tl.int64)
    k = tl.arange(0, KP)
    real = k < K
    # Compared as vectors: the interpreter does not take a scalar for a part of a mask.
    right, below = real & (j + 1 + 0 * k < w), real & (i + 1 + 0 * k < h)

    at = logits + b * logits_b + k.to(tl.int64) * logits_k + i.to(tl.int64) * logits_y + j.to(tl.int64) * logits_x
    # Classes that pad K to a power of two vanish in the exponential. Finite, for 0 times infinity would not be 0.
    padding = tl.where(real, 0.0, -1e30)
    v00 = tl.load(at, mask=real, other=0.0).to(tl.float32) + padding
    v01 = tl.load(at + logits_x, mask=right, other=0.0).to(tl.float32) + padding
    v10 = tl.load(at + logits_y, mask=below, other=0.0).to(tl.float32) + padding
    v11 = tl.load(at + logits_y + logits_x, mask=below & right, other=0.0).to(tl.float32) + padding

    g00 = tl.zeros((KP,), tl.float32)
    g01 = tl.zeros((KP,), tl.float32)
    g10 = tl.zeros((KP,), tl.float32)
    g11 = tl.zeros((KP,), tl.float32)
    loss = tl.zeros((P,), tl.float32)
    bad = tl.zeros((P,), tl.int32)
    for start in range(0, S * S, P):
        p = start + tl.arange(0, P)
        y, x = p // S, p % S
        inside = (p < S * S) & (i * S + y < H) & (j * S + x < W)
        place = labels + b * labels_b + (i * S + y).to(tl.int64) * labels_y + (j * S + x).to(tl.int64) * labels_x
        label = tl.load(place, mask=inside, other=0).to(tl.int64)
        counts = inside & (label != ignore)
        known = (label >= 0) & (label < K)
        bad += (counts & (known == 0)).to(tl.int32)
        weight = tl.load(weights + label, mask=counts & known, other=0.0)

        fy, fx = y.to(tl.float32) / S, x.to(tl.float32) / S
        w00, w01 = ((1 - fy) * (1 - fx))[:, None], ((1 - fy) * fx)[:, None]
        w10, w11 = (fy * (1 - fx))[:, None], (fy * fx)[:, None]
        z = w00 * v00[None, :] + w01 * v01[None, :] + w10 * v10[None, :] + w11 * v11[None, :]
        z -= tl.max(z, 1)[:, None]
        own = label[:, None] == k[None, :]
        e = tl.exp(z)
        total = tl.sum(e, 1)
        loss += weight * (tl.log(total) - tl.sum(tl.where(own, z, 0.0), 1))
        if STEP == 2:
            d = (e / total[:, None] - own.to(tl.float32)) * weight[:, None]
            g00 += tl.sum(w00 * d, 0)
            g01 += tl.sum(w01 * d, 0)
            g10 += tl.sum(w10 * d, 0)
            g11 += tl.sum(w11 * d, 0)

    here = b * h * w + i * w + j
    tl.store(losses + here, tl.sum(loss, 0))
    tl.store(wrong + here, tl.sum(bad, 0))
    if STEP == 2:
        to = gradient + b * gradient_b + k.to(tl.int64) * gradient_k
        to += i.to(tl.int64) * gradient_y + j.to(tl.int64) * gradient_x
        tl.store(to, tl.load(to, mask=real) + g00, mask=real)
        to_right, to_below, to_both = to + gradient_x, to + gradient_y, to + gradient_y + gradient_x
        tl.store(to_right, tl.load(to_right, mask=right) + g01, mask=right)
        tl.store(to_below, tl.load(to_below, mask=below) + g10, mask=below)
        tl.store(to_both, tl.load(to_both, mask=below & right) + g11, mask=below & right)
