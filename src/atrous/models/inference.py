"""The inference form of a model: batch norm folded into the convolutions, the machine's best layout and number format.

What is computed stays the same up to rounding. The dial stays, too: the form's `output_stride` can be set.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_PROBE = 65
"""Side of the picture that is sent through a model to see which batch norm reads which convolution."""

Model = TypeVar("Model", bound=nn.Module)


def inference_form(model: Model, dtype: torch.dtype | None = None) -> Model:
    """A copy of a model for inference alone.

    Args:
        model: takes images, B,3,H,W float, and is on its device.
        dtype: of weights and activations; None for the fastest that the machine multiplies natively (`native_dtype`).

    Returns:
        In ``eval()``, without gradients, ``channels_last``, batch norm folded away.
    """
    device = next(model.parameters()).device
    form = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norm(form)
    chosen = dtype or native_dtype(device)
    return form.to(dtype=chosen, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies matrices of it in hardware of its own, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32
    return torch.float32


def _cpu_multiplies_bf16() -> bool:
    # AVX512-BF16 multiplies pairs, at up to twice the rate of float32; AMX tiles at 8 to 16 times. PyTorch emulates the
    # format elsewhere, at a loss.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)


def fold_batch_norm(model: nn.Module) -> int:
    """Fold every batch norm that reads a convolution's output into that convolution, in place.

    Which reads which is seen by running the model once, so that it holds for any network.

    Returns:
        How many were folded.
    """
    assert not model.training
    pairs = _watch(model)
    for norm_path, conv_path in pairs.items():
        conv, norm = model.get_submodule(conv_path), model.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        _fold(conv, norm)
        parent, _, leaf = norm_path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _what_remains(norm))
    return len(pairs)


@torch.no_grad()
def _watch(model: nn.Module) -> dict[str, str]:
    """Path of each batch norm whose input is the output of a convolution, to the path of that convolution."""
    made: dict[int, tuple[str, Tensor]] = {}  # holding the tensors keeps their ids from being used again
    pairs: dict[str, str] = {}
    handles = []

    def note_conv(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            made[id(output)] = (path, output)

        return hook

    def note_norm(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in made:
                pairs[path] = made[id(inputs[0])][0]

        return hook

    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note_conv(path)))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(note_norm(path)))
    parameter = next(model.parameters())
    model(torch.zeros(1, 3, _PROBE, _PROBE, dtype=parameter.dtype, device=parameter.device))
    for handle in handles:
        handle.remove()
    return pairs | _adjacent(model)


def _adjacent(model: nn.Module) -> dict[str, str]:
    """Convolution and batch norm side by side in a sequence: ASPP works its 3×3 ones out past their own forward."""
    sequences = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Sequential)]
    return {
        f"{path}.{after}": f"{path}.{before}"
        for path, layers in sequences
        for (before, conv), (after, norm) in itertools.pairwise(layers.named_children())
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    }


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    # In double precision, so that folding adds no rounding of its own.
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)


def _what_remains(norm: nn.BatchNorm2d) -> nn.Module:
    """Nothing, or the activation that timm's batch norm carries."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    kept = [part for part in parts if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]
    return nn.Sequential(*kept) if kept else nn.Identity()
