"""The inference form of a model: batch norm folded into the convolutions, the device's best layout and number format.

On a CPU the rectifiers and the additions of residual units go into the convolutions, too, by oneDNN
(`atrous.ops.packed_conv`). The logits stay the same up to rounding, and `output_stride` can still be set.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from atrous.models.activation_checkpointing import set_checkpointing
from atrous.models.mobilenet import Fused, MobileNet
from atrous.models.resnet import Basic, Bottleneck, ResNet, Unit
from atrous.ops.conv import AtrousConv2d, AtrousConv2dSame, runs_forward_alone
from atrous.ops.conv_kernels.tap_gemm import gains_by_bfloat16
from atrous.ops.packed_conv import DTYPES, PackedConv2d, PackedConv2dSame, begin_pass, fuses, holds, runs_in_blocks

_PROBE = 65
"""Side of the image that is sent through a model to see which batch norm reads which convolution."""

Model = TypeVar("Model", bound=nn.Module)


def inference_form(model: Model, dtype: torch.dtype | None = None, *, compile: bool | str = False) -> Model:
    """A copy of a model for inference alone: `atrous.DeepLabV3.for_inference` has the arguments.

    Returns:
        In ``eval()``, without gradients, ``channels_last``, batch norm folded away.
    """
    with torch.inference_mode(False), torch.no_grad():  # no change of a weight born in inference mode can be seen
        return _inference_form(model, dtype, compile)


def _inference_form(model: Model, dtype: torch.dtype | None, compile: bool | str) -> Model:
    device = next(model.parameters()).device
    form = copy.deepcopy(model).eval().requires_grad_(False)
    set_checkpointing(form, False)
    pairs = fold_batch_norm(form)
    dtype = dtype or native_dtype(device)
    if compile:
        form.__class__ = _compiled_class(type(form))  # type: ignore[assignment, arg-type]
        form.compile_backend = compile  # type: ignore[assignment]
    elif device.type == "cpu" and dtype in DTYPES and fuses(dtype, nn.ReLU) and _is_finite(form):
        pack(form, pairs)
        getattr(form, "backbone", form).register_forward_pre_hook(begin_pass)
    return form.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _is_finite(model: nn.Module) -> bool:
    """Whether no weight is NaN or infinite: a fused activation would hide what comes of it."""
    return all(bool(value.isfinite().all()) for value in model.state_dict().values())


def compiled(run: Callable[..., Any], compile: bool | str | Callable[..., Any]) -> Any:
    """`run` by ``torch.compile``, anew for each size: by PyTorch's own backend for True, or by the one given."""
    return torch.compile(run, backend="inductor" if isinstance(compile, bool) else compile, dynamic=False)


class Compiled:
    """Mixed into a model's class: its `network` by ``torch.compile``. A copy is compiled anew."""

    compile_backend: bool | str

    def network(self, images: Tensor) -> Tensor:
        """As the model's own."""
        if "compiled_network" not in self.__dict__:
            self.__dict__["compiled_network"] = compiled(super().network, self.compile_backend)  # type: ignore[misc]
        logits: Tensor = self.__dict__["compiled_network"](images)
        return logits

    def __getstate__(self) -> Any:
        return {key: value for key, value in self.__dict__.items() if key != "compiled_network"}


@functools.cache
def _compiled_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (Compiled, kind), {"__module__": kind.__module__})


def native_dtype(device: torch.device) -> torch.dtype:
    """A half-precision format where the device is faster in it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if gains_by_bfloat16() else torch.float32
    return torch.float32


def fold_batch_norm(model: nn.Module) -> dict[str, str]:
    """Fold every batch norm that alone reads a convolution's output into that convolution, in place.

    Args:
        model: in ``eval()``, from images of three channels. It is run once to see what reads what.

    Returns:
        Path of each batch norm that was folded, to that of its convolution.
    """
    assert not model.training
    pairs = find_conv_of_norm(model)
    for norm_path, conv_path in pairs.items():
        conv, norm = model.get_submodule(conv_path), model.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None and norm.running_var is not None
        bias, gain, shift = (None if x is None else _exact(x) for x in (conv.bias, norm.weight, norm.bias))
        mean, variance = _exact(norm.running_mean), _exact(norm.running_var)
        folded = fuse_conv_bn_weights(_exact(conv.weight), bias, mean, variance, norm.eps, gain, shift)
        conv.weight, conv.bias = (nn.Parameter(each.detach().to(conv.weight), requires_grad=False) for each in folded)
        put(model, norm_path, what_remains(norm))
    return pairs


def _exact(x: Tensor) -> Tensor:
    """In double precision, so that folding adds no rounding of its own; on the CPU, for not every device has that."""
    return x.detach().to("cpu", torch.float64)


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the module at `path`."""
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def find_conv_of_norm(model: nn.Module) -> dict[str, str]:
    """Path of each batch norm that alone reads the output of a convolution, to the path of that convolution.

    Left out are layers with hooks, pruning or parametrizations, those of classes that may compute something else, those
    that are called more than once or have two names, and norms that normalise by the image's own statistics.

    Args:
        model: in ``eval()``, from images of three channels. It is run once.
    """
    names = Counter(id(layer) for _, layer in model.named_modules(remove_duplicate=False))
    layers = [
        (path, layer)
        for path, layer in model.named_modules()
        if (_is_conv(layer) or _is_norm(layer)) and names[id(layer)] == 1 and runs_forward_alone(layer)
    ]
    calls, readers = Counter[str](), _Readers()
    outputs: dict[int, tuple[str, Tensor, int]] = {}  # holding the tensors keeps their ids from being used again
    pairs: dict[str, str] = {}

    def note_conv(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            calls[path] += 1
            outputs[id(output)] = (path, output, output._version)
            readers.counts[id(output)] = 0  # another tensor may have had this id

        return hook

    def note_norm(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[path] += 1
            read = outputs.get(id(inputs[0]))
            if read is not None and inputs[0]._version == read[2]:  # not changed in place on the way
                pairs[path] = read[0]

        return hook

    handles = [
        layer.register_forward_hook(note_conv(path))
        if _is_conv(layer)
        else layer.register_forward_pre_hook(note_norm(path))
        for path, layer in layers
    ]
    parameter = next(model.parameters())
    with torch.inference_mode(False), torch.no_grad(), readers:
        model(torch.zeros(1, 3, _PROBE, _PROBE, dtype=parameter.dtype, device=parameter.device))
    for handle in handles:
        handle.remove()
    alone = {path for path, output, _ in outputs.values() if readers.counts[id(output)] == 1}
    return {norm: conv for norm, conv in pairs.items() if calls[norm] == calls[conv] == 1 and conv in alone}


class _Readers(TorchFunctionMode):
    """Counts the operations that read each tensor, by its ``id``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor | tuple | list):  # not its shape, for one
            given = (x for x in (*args, *(kwargs or {}).values()))
            flat = (y for x in given for y in (x if isinstance(x, tuple | list) else (x,)))
            self.counts.update({id(x) for x in flat if isinstance(x, Tensor)})
        return result


def _is_conv(layer: nn.Module) -> bool:
    """Whether a layer computes a convolution: another subclass may change its weights first."""
    return isinstance(layer, nn.Conv2d) and _is_known(layer, "Conv2d", "Conv2dSame")


def _is_norm(layer: nn.Module) -> bool:
    """Whether a layer computes a batch norm by running statistics, with what `what_remains` knows after it."""
    known = _is_known(layer, "BatchNorm2d", "SyncBatchNorm", "BatchNormAct2d", "SyncBatchNormAct")
    return isinstance(layer, _BatchNorm) and known and layer.running_mean is not None


def _is_known(layer: nn.Module, *names: str) -> bool:
    """Whether its class is ours, or PyTorch's or timm's of one of these names."""
    library = type(layer).__module__.partition(".")[0]
    return library == "atrous" or (library in ("torch", "timm") and type(layer).__name__ in names)


def what_remains(norm: nn.Module) -> nn.Module:
    """What a folded batch norm leaves: nothing, or the activation that timm's carries."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    kept = [part for part in parts if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]
    if len(kept) == 1:
        return kept[0]
    return nn.Sequential(*kept) if kept else nn.Identity()


def pack(model: nn.Module, pairs: dict[str, str]) -> None:
    """Replace every plain convolution by a `PackedConv2d` with the activation that follows it, in place."""
    after = {conv: norm for norm, conv in pairs.items()}
    for path, module in list(model.named_modules()):
        if type(module) is ResNet and all(map(runs_forward_alone, module.modules())) and _is_fusible(module):
            _pack_resnet(module)
        elif isinstance(module, nn.Sequential):
            _pack_sequence(module)
        elif _is_plain(module) and _is_plain(model.get_submodule(path)):
            _pack_conv(model, path, after.get(path))
    for module in model.modules():
        if type(module) is MobileNet and _is_packed(module) and not any(isinstance(m, Fused) for m in module.modules()):
            module.__class__ = BlockedMobileNet


def _is_packed(network: nn.Module) -> bool:
    """Whether a network computes by packed convolutions alone."""
    packed = {part for module in network.modules() if isinstance(module, PackedConv2d) for part in module.modules()}
    others = (module for module in network.modules() if module not in packed and not any(module.children()))
    return all(isinstance(module, nn.Identity) for module in others)


def _is_plain(module: nn.Module) -> bool:
    if type(module) not in (nn.Conv2d, AtrousConv2d, AtrousConv2dSame) or not runs_forward_alone(module):
        return False
    assert isinstance(module, nn.Conv2d)
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _is_held(module: nn.Module) -> bool:
    return holds(module) and runs_forward_alone(module)


def _packed(conv: nn.Module, activation: nn.Module | None = None) -> PackedConv2d:
    assert isinstance(conv, nn.Conv2d)
    kind = PackedConv2dSame if isinstance(conv, AtrousConv2dSame) else PackedConv2d
    return kind(conv, activation)


def _pack_conv(model: nn.Module, path: str, norm_path: str | None) -> None:
    """One convolution; what its folded batch norm left is its activation."""
    conv, activation = model.get_submodule(path), None
    if norm_path is not None and _is_held(left := model.get_submodule(norm_path)):
        activation = left
        put(model, norm_path, nn.Identity())
    put(model, path, _packed(conv, activation))


def _pack_sequence(layers: nn.Sequential) -> None:
    """Convolution, what its batch norm left, activation."""
    if len(layers) == 3 and _is_plain(layers[0]) and type(layers[1]) is nn.Identity and _is_held(layers[2]):
        layers[0], layers[2] = _packed(layers[0], layers[2]), nn.Identity()


def _is_fusible(net: ResNet) -> bool:
    """Whether `_pack_resnet` leaves nothing out: units are ours, batch norms folded, and what activates is ReLU."""
    units = [unit for number in range(1, net.last_block + 1) for unit in net.block(number)]
    layers = [(name, type(layer)) for part in (net, *units) for name, layer in part.named_children()]
    return all(type(unit) in (Basic, Bottleneck) for unit in units) and all(
        (kind is nn.Identity or not name.startswith("bn")) and (kind is nn.ReLU or name != "relu")
        for name, kind in layers
    )


def _pack_resnet(net: ResNet) -> None:
    if isinstance(net.conv1, AtrousConv2d):  # a deep stem's convolutions are packed one by one
        net.conv1 = _packed(net.conv1, nn.ReLU())
        net.relu = nn.Identity()  # type: ignore[assignment]
    for number in range(1, net.last_block + 1):
        for i, unit in enumerate(net.block(number)):
            # A map from another block is one of the stages that the backbone returns: it must not be written over.
            _fuse_unit(unit, keep=i == 0 and unit.downsample is None)


def _fuse_unit(unit: Unit, *, keep: bool) -> None:
    fused, last = {Basic: (FusedBasic, "conv2"), Bottleneck: (FusedBottleneck, "conv3")}[type(unit)]
    for name, layer in list(unit.named_children()):
        if isinstance(layer, AtrousConv2d):
            setattr(unit, name, _packed(layer, nn.ReLU()))
    assert hasattr(unit, last)
    # The same parameters, another forward.
    unit.__class__ = fused
    assert isinstance(unit, FusedBasic | FusedBottleneck)
    unit.keep = keep


class FusedBasic(Basic):
    """`Basic` whose convolutions hold what follows them."""

    keep: bool

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _joined(self, self.conv2, self.conv1(x), x, self.conv1.stride[0])


class FusedBottleneck(Bottleneck):
    """`Bottleneck` whose convolutions hold what follows them."""

    keep: bool

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _joined(self, self.conv3, self.conv2(self.conv1(x)), x, self.conv2.stride[0])


class BlockedMobileNet(MobileNet):
    """`MobileNet` whose maps are in oneDNN's own layout on the way, where that is faster: not with `Fused` units."""

    def forward(self, images: Tensor) -> list[Tensor]:  # noqa: D102
        if not runs_in_blocks(self, images):
            return super().forward(images)
        *stages, last = (x.to_dense() for x in self._maps(images.to_mkldnn()))
        return [*stages, last.contiguous(memory_format=torch.channels_last)]


def _joined(unit: FusedBasic | FusedBottleneck, last: nn.Module, y: Tensor, x: Tensor, stride: int) -> Tensor:
    shortcut = unit.shortcut(x, stride).contiguous(memory_format=torch.channels_last)
    output: Tensor = last(y, shortcut, keep=unit.keep and shortcut is x)
    return output


def with_output_stride(model: Model, output_stride: int) -> Model:
    """A copy at another output stride that shares the model's parameters and buffers; the model stays as it is.

    It costs little memory, and lets threads that share a model predict at different output strides.

    Raises:
        ValueError: if the model cannot reach it.
    """
    tensors = [*model.parameters(), *model.buffers()]
    # A pruned layer's weights are neither: they are an attribute that its hook sets.
    tensors += [value for layer in model.modules() for value in vars(layer).values() if isinstance(value, Tensor)]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    if output_stride != twin.output_stride:  # else rates that were set by hand would be lost
        twin.output_stride = output_stride  # type: ignore[assignment]
    return twin
