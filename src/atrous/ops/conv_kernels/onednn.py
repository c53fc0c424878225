"""Convolution, addition and activation in one call of oneDNN, where it has that and gives the right numbers.

The operators that give access to it are those that ``torch.compile`` uses, and have no public name. So they are looked
for, tried on a small case (`fuses`), and left alone where they are missing or give other numbers.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}

ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
    nn.Sigmoid: ("sigmoid", []),
    nn.Tanh: ("tanh", []),
}


def holds(activation: nn.Module) -> bool:
    """Whether a `PackedConv2d` can do an activation itself."""
    return type(activation) in ACTIVATIONS


def fused_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    attribute: tuple[str, list[float]],
    into: Tensor | None = None,
) -> Tensor:
    """Convolution and activation by oneDNN; with `into`, the sum with it is activated, and written there."""
    name, scalars = attribute
    place = (padding, stride, dilation, groups)
    if into is None:
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *place, name, scalars, "")
        return y
    found: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        into, x, weight, bias, *place, "add", 1.0, None if name == "none" else name, scalars, ""
    )
    return found


@functools.cache
def fuses(dtype: torch.dtype, activation: type[nn.Module], added: bool = False) -> bool:
    """Whether oneDNN's fused convolutions are there, and give what the separate operators give, on a small case.

    Args:
        dtype: of map and weights.
        activation: that follows; not every version of PyTorch takes every one.
        added: whether another map is added before it.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return all(_agrees(dtype, activation, groups, added) for groups in (1, 16))
        except (AttributeError, RuntimeError, NotImplementedError, TypeError):
            return False


def _agrees(dtype: torch.dtype, activation: type[nn.Module], groups: int, added: bool) -> bool:
    x, other = (torch.randn(2, 16, 9, 7).to(dtype, memory_format=torch.channels_last) for _ in range(2))
    weight, bias = torch.randn(16, 16 // groups, 3, 3).to(dtype) / (144 / groups) ** 0.5, torch.randn(16).to(dtype)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=2, dilation=2, groups=groups)
    expected = activation()(expected + other.double() if added else expected)
    place = ((2, 2), (1, 1), (2, 2), groups)
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *place, list(x.shape))
    found = [
        fused_convolution(x, w, bias, *place, ACTIVATIONS[activation], other.clone() if added else None)
        for w in (weight, packed)
    ]
    return all(float((y.double() - expected).abs().max()) <= TOLERANCE[dtype] * 4 for y in found)
