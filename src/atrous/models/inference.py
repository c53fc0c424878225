"""The inference form of a model: batch norm folded into the convolutions, the machine's best layout and number format.

On a CPU the rectifiers and the additions of residual units go into the convolutions as well (`atrous.ops.packed_conv`),
where oneDNN can be had. What is computed stays the same up to rounding. The dial stays, too: the form's `output_stride`
can be set.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atrous.models.activation_checkpointing import set_checkpointing
from atrous.models.resnet import Basic, Bottleneck, ResNet, Unit
from atrous.ops.conv import AtrousConv2d, AtrousConv2dSame
from atrous.ops.packed_conv import DTYPES, PackedConv2d, PackedConv2dSame, fuses, holds

_PROBE = 65
"""Side of the picture that is sent through a model to see which batch norm reads which convolution."""

Model = TypeVar("Model", bound=nn.Module)


def inference_form(model: Model, dtype: torch.dtype | None = None, *, packed: bool = True) -> Model:
    """A copy of a model for inference alone.

    Args:
        model: takes images, B,3,H,W float, and is on its device.
        dtype: of weights and activations; None for the fastest that the machine multiplies natively (`native_dtype`).
        packed: on a CPU, with what follows a convolution inside it.

    Returns:
        In ``eval()``, without gradients, ``channels_last``, batch norm folded away.
    """
    device = next(model.parameters()).device
    form = copy.deepcopy(model).eval().requires_grad_(False)
    set_checkpointing(form, False)
    pairs = _fold_all(form)
    chosen = dtype or native_dtype(device)
    if packed and device.type == "cpu" and chosen in DTYPES and fuses(chosen, nn.ReLU):
        pack(form, pairs)
    return form.to(dtype=chosen, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def compiled(run: Callable[..., Any], compile: bool | str | Callable[..., Any]) -> Any:
    """By ``torch.compile``, for each size anew: in PyTorch's own backend for True, or in the one that is given."""
    backend = "inductor" if isinstance(compile, bool) else compile
    return torch.compile(run, backend=backend, dynamic=False)


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
    return len(_fold_all(model))


def _fold_all(model: nn.Module) -> dict[str, str]:
    """Path of each batch norm that was folded, to that of its convolution."""
    assert not model.training
    pairs = watch(model)
    for norm_path, conv_path in pairs.items():
        conv, norm = model.get_submodule(conv_path), model.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm)
        _fold(conv, norm)
        put(model, norm_path, what_remains(norm))
    return pairs


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@torch.no_grad()
def watch(model: nn.Module) -> dict[str, str]:
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
        elif isinstance(module, _BatchNorm):
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
        if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm)
    }


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    # In double precision, so that folding adds no rounding of its own.
    weight, bias = (value.to(conv.weight.dtype) for value in folded(conv, norm, torch.float64))
    conv.weight, conv.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))


def folded(conv: nn.Conv2d, norm: _BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Filters and shift of a convolution with the batch norm behind it, in `dtype`; differentiable."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.to(dtype) * (norm.running_var.to(dtype) + norm.eps).rsqrt()
    shift = norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale
    if conv.bias is not None:
        shift = shift + conv.bias.to(dtype) * scale
    return conv.weight.to(dtype) * scale[:, None, None, None], shift


def what_remains(norm: nn.Module) -> nn.Module:
    """Nothing, or the activation that timm's batch norm carries."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    kept = [part for part in parts if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]
    if len(kept) == 1:
        return kept[0]
    return nn.Sequential(*kept) if kept else nn.Identity()


# Convolutions with what follows them --------------------------------------------------------------------------------


def pack(model: nn.Module, pairs: dict[str, str]) -> None:
    """Put a `PackedConv2d` in the place of every plain convolution, in place, with the activation that follows it.

    Args:
        model: with batch norm folded.
        pairs: path of each folded batch norm to that of its convolution.
    """
    after = {conv: norm for norm, conv in pairs.items()}
    for path, module in list(model.named_modules()):
        if isinstance(module, ResNet):
            _pack_resnet(module)
        elif isinstance(module, nn.Sequential):
            _pack_sequence(module)
        elif _is_plain(module) and _is_plain(model.get_submodule(path)):
            _pack_conv(model, path, after.get(path))


def _is_plain(module: nn.Module) -> bool:
    if type(module) not in (nn.Conv2d, AtrousConv2d, AtrousConv2dSame):
        return False
    assert isinstance(module, nn.Conv2d)
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _packed(conv: nn.Module, activation: nn.Module | None = None) -> PackedConv2d:
    assert isinstance(conv, nn.Conv2d)
    kind = PackedConv2dSame if isinstance(conv, AtrousConv2dSame) else PackedConv2d
    return kind(conv, activation)


def _pack_conv(model: nn.Module, path: str, norm_path: str | None) -> None:
    """One convolution; what its batch norm left behind is its activation."""
    conv, activation = model.get_submodule(path), None
    if norm_path is not None and holds(left := model.get_submodule(norm_path)):
        activation = left
        put(model, norm_path, nn.Identity())
    put(model, path, _packed(conv, activation))


def _pack_sequence(layers: nn.Sequential) -> None:
    """Convolution, the place of its batch norm, activation."""
    if len(layers) == 3 and _is_plain(layers[0]) and type(layers[1]) is nn.Identity and holds(layers[2]):
        layers[0], layers[2] = _packed(layers[0], layers[2]), nn.Identity()


def _pack_resnet(net: ResNet) -> None:
    net.conv1 = _packed(net.conv1, nn.ReLU())
    net.relu = nn.Identity()  # type: ignore[assignment]
    for number in range(1, net.last_block + 1):
        for i, unit in enumerate(net.block(number)):
            # What comes from another block is one of the stages that the backbone gives away.
            _fuse_unit(unit, keep=i == 0 and unit.downsample is None)


def _fuse_unit(unit: Unit, *, keep: bool) -> None:
    fused, last = {Basic: (FusedBasic, "conv2"), Bottleneck: (FusedBottleneck, "conv3")}[type(unit)]
    for name, layer in list(unit.named_children()):
        if isinstance(layer, AtrousConv2d):
            setattr(unit, name, _packed(layer, nn.ReLU()))
    assert hasattr(unit, last)
    # A unit with the same parameters, and another way from its input to its output.
    unit.__class__ = fused
    assert isinstance(unit, FusedBasic | FusedBottleneck)
    unit.keep = keep


class FusedBasic(Basic):
    """`Basic` whose convolutions are followed by what they hold."""

    keep: bool

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _joined(self, self.conv2, self.conv1(x), x, self.conv1.stride[0])


class FusedBottleneck(Bottleneck):
    """`Bottleneck` whose convolutions are followed by what they hold."""

    keep: bool

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _joined(self, self.conv3, self.conv2(self.conv1(x)), x, self.conv2.stride[0])


def _joined(unit: FusedBasic | FusedBottleneck, last: nn.Module, y: Tensor, x: Tensor, stride: int) -> Tensor:
    shortcut = unit.shortcut(x, stride).contiguous(memory_format=torch.channels_last)
    found: Tensor = last(y, shortcut, keep=unit.keep and shortcut is x)
    return found
