"""Any convolutional network of timm as a backbone of any output stride.

The paper's framework "could be applied to any network". `TimmBackbone` runs the network once on PyTorch's meta device,
notes the native strides at which each layer reads and writes, and applies the rule of section 3.1 to every layer. It
needs no knowledge of the network's family, and reaches strides that timm does not offer. Whether the features then have
the stride that was asked for is checked by another such run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atrous.messages import did_you_mean
from atrous.models import conventions
from atrous.models.backbone import Backbone, Features, mismatch
from atrous.models.conventions import Convention
from atrous.models.mobilenet import NETWORKS, MobileNet
from atrous.models.output_stride import OUTPUT_STRIDES, Dial, check_reachable, check_unit_rates
from atrous.ops.conv import AtrousConv2d, AtrousConv2dSame, AtrousPool2d, PatchConv2d, set_stride_and_dilation

UNNAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenet_edgetpu_075": ("mobilenet_edgetpu_100", {"channel_multiplier": 0.75}),
    **{
        f"tf_mobilenetv2_{width}": (f"mobilenetv2_{width}", {"pad_type": "same"})
        for width in ("035", "050", "075", "100", "140")
    },
    "mobilenetv2_100_1280": ("mobilenetv2_100", {}),
    **{f"dpn{size}_normed": (f"dpn{size}", {}) for size in ("68", "68b", "92", "98", "107", "131")},
    "resnext101_32x48d": ("resnext101_32x32d", {"base_width": 48}),
    "skresnext50_32x4d_narrow": ("skresnext50_32x4d", {"block_args": {}}),
    **{
        f"skresnet{depth}_narrow": (
            f"skresnet{depth}",
            {"block_args": {"sk_kwargs": {"rd_ratio": 1 / 8, "split_input": True}}},
        )
        for depth in (18, 34)
    },
}
"""Networks that timm can build and does not name; ``tf_``, as in its names, pads as TensorFlow does, ``_1280`` has the
convolution before its classifier as well, ``_normed`` the batch norm there, and ``_narrow`` less in its attention."""

_PROBE = 256
"""Side of the image that is sent through a network to learn its strides; a multiple of all of them."""


class TimmBackbone(Backbone):
    """A network of timm as features at any output stride.

    Args:
        name: timm's name, without a prefix.
        multi_grid: unit rates of the last three units of the last stage, the network's "block4". With None a unit whose
            stride has been removed keeps the rate of its input.
        last_block: 4, or 5 to 7 with replicas of block4 in cascade (section 3.2), for networks whose last stage has
            inverted residuals (EfficientNet, MobileNet). Block4 then ends with the last unit that adds its input: what
            widens its features behind it is left out.
        output_stride: up to the network's own, and up to 8 times that with `last_block` 7.
        consistent_rates: take a `multi_grid` of ones for none.
        convention: whose rates and padding it has; see `atrous.models.conventions`.

    Raises:
        ValueError: if timm has no such network (names the nearest) or cannot return its features, or the network
            cannot take the output stride, the multi-grid, the cascade or the convention.
    """

    def __init__(
        self,
        name: str,
        *,
        multi_grid: Sequence[int] | None = None,
        last_block: int = 4,
        output_stride: int = 16,
        consistent_rates: bool = False,
        convention: Convention = "",
    ) -> None:
        super().__init__()
        self.name = f"timm/{name}"
        self.last_block = last_block
        self.net = _create(name)
        ours = isinstance(self.net, MobileNet)  # which says itself what is learnt of others
        conventions.prepare(self.net, convention, name)
        self.convention = convention
        self.layers: dict[str, tuple[int, int]] = self.net.strides if ours else _layers(name)
        self.rates = {path: rate for path, layer in _spatial(self.net).items() if (rate := _rate(layer)) > 1}
        info = self.net.feature_info
        self.channels = int(info.channels()[-1])
        self.native_stride = int(info.reduction()[-1])
        self.padding = 1 if ours else _padding(name)
        config = self.net.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        ones = set(multi_grid or (1,)) == {1}
        if convention and (last_block > 4 or multi_grid):
            raise ValueError(f"multi_grid and the cascade have rates of their own, and convention is {convention!r}")
        self.multi_grid = None if multi_grid is None or (ones and consistent_rates) else tuple(multi_grid)
        units = _units(self.layers, self.native_stride, consistent_rates)
        if last_block > 4 and units:  # without any, the check below says so
            units = self._end_with_a_residual(units)
        self.grid_units = units[-3:]
        if last_block > 4 or not ones:
            check_unit_rates(self.multi_grid or (1, 1, 1), 3, f"the last stage of {self.name}")
            if len(self.grid_units) < 3:
                raise ValueError(
                    f"multi_grid and the cascade need 3 units; the last stage of {self.name} has {len(self.grid_units)}"
                )
        self.cascade = nn.ModuleDict({f"block{block}": self._replica() for block in range(5, last_block + 1)})
        self.set_output_stride(output_stride)

    @property
    def reachable(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(stride for stride in OUTPUT_STRIDES if self._reaches(stride))

    def _reaches(self, stride: int) -> bool:
        native: int = self.native_stride * 2 ** (self.last_block - 4)
        if stride > native or isinstance(self.net, MobileNet):
            return stride <= native
        return _reaches(self.name.removeprefix("timm/"), min(stride, self.native_stride))

    def set_output_stride(self, output_stride: int) -> None:  # noqa: D102
        # To try one stride takes a hundredth of a second; all are tried for the error alone.
        reached = output_stride in OUTPUT_STRIDES and self._reaches(output_stride)
        dial = check_reachable(output_stride, (output_stride,) if reached else self.reachable, self.name)
        self.output_stride = min(output_stride, self.native_stride)
        grid = self.multi_grid
        unit_rates = dict(zip(self.grid_units, grid, strict=False)) if grid else {}
        _set_strides_and_rates(self.net, self.layers, dial, unit_rates, self.convention, self.name, self.rates)
        native = self.native_stride
        for block in self.cascade.values():
            for i, unit in enumerate(block.children()):
                rates = {"": grid[i]} if grid else {}
                layers = {key: (native if i == 0 else native * 2, native * 2) for key in _spatial(unit)}
                _set_strides_and_rates(unit, layers, dial, rates)
            native *= 2

    def forward(self, images: Tensor) -> Features:
        """B,3,H,W float to features B,C,h,w, and those of every stage by the name of its module."""
        height, width = images.shape[-2:]
        if self.convention == "vainf":
            below, right = (conventions.padding_without_a_stem(x, self.output_stride) for x in (height, width))
            images = F.pad(images, (0, right, 0, below))
        if self.padding > 1:
            # No negative number is divided: exported, such a division rounds towards zero.
            below, right = (self.padding - 1 - (side + self.padding - 1) % self.padding for side in (height, width))
            images = F.pad(images, (0, right, 0, below))
        maps = self.net(images)
        if self.padding > 1:  # what the padding added is cut off: feature j stays on pixel output_stride * j
            strides = [min(native, self.output_stride) for native in self.net.feature_info.reduction()]
            maps = [x[..., : (height + s - 1) // s, : (width + s - 1) // s] for x, s in zip(maps, strides, strict=True)]
        stages = dict(zip(self.net.feature_info.module_name(), maps, strict=True))
        x = maps[-1]
        for name, block in self.cascade.items():
            x = block(x)
            stages[name] = x
        return Features(x, stages)

    def load_imagenet(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102
        wanted = self.net.state_dict()
        mismatch(wanted, {key: state[key] for key in state if key in wanted}, f"ImageNet weights for {self.name}")
        self.net.load_state_dict({key: state[key] for key in wanted})
        for block in self.cascade.values():
            for replica, source in zip(block.children(), self._sources(), strict=True):
                replica.get_submodule("unit").load_state_dict(source.state_dict())

    def _end_with_a_residual(self, units: tuple[str, ...]) -> tuple[str, ...]:
        """Leave out what follows the last of the units that adds its input; the units up to it."""
        ends = [i for i, unit in enumerate(units, 1) if _is_residual(self.net.get_submodule(unit))]
        if not ends:
            kind = type(self.net.get_submodule(units[-1])).__name__
            raise ValueError(f"the cascade needs inverted residuals; the last stage of {self.name} has {kind}")
        last = units[ends[-1] - 1]
        parent, _, place = last.rpartition(".")
        while parent:  # "blocks.5.3": nothing behind unit 3 of stage 5, and no stage behind that
            siblings = self.net.get_submodule(parent)
            for name in list(siblings._modules)[list(siblings._modules).index(place) + 1 :]:
                setattr(siblings, name, nn.Sequential())
            parent, _, place = parent.rpartition(".")
        left = _spatial(self.net)
        self.layers = {path: strides for path, strides in self.layers.items() if path in left}
        self.channels = int(self.net.get_submodule(last).conv_pwl.out_channels)
        return units[: ends[-1]]

    def _sources(self) -> list[nn.Module]:
        """What the three units of a replica are copies of: block4's, or the next one that adds its input."""
        units = [self.net.get_submodule(unit) for unit in self.grid_units]
        return [next(unit for unit in units[i:] if _is_residual(unit)) for i in range(len(units))]

    def _replica(self) -> nn.Sequential:
        return nn.Sequential(*map(_Replica, self._sources()))


class _Replica(nn.Module):
    """A copy of a unit that adds its input: as many of the input's pixels as are left, where it is strided."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        unit: Any = copy.deepcopy(source)
        unit.has_skip = False
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        """B,C,h,w float to B,C,ceil(h/stride),ceil(w/stride)."""
        stride = self.unit.conv_dw.stride[0]
        y: Tensor = self.unit(x) + x[..., ::stride, ::stride]
        return y


def _is_residual(unit: nn.Module) -> bool:
    return hasattr(unit, "conv_pw") and bool(getattr(unit, "has_skip", False))


def _create(name: str) -> Any:
    net: Any = MobileNet(name) if name in NETWORKS else _of_timm(name)
    for path, module in list(net.named_modules()):
        stand_in = _stand_in(module)
        if stand_in is not None:
            parent, _, leaf = path.rpartition(".")
            setattr(net.get_submodule(parent), leaf, stand_in)
        if isinstance(module, nn.ReLU6):  # in place, it copies what it reads for its gradient: a map more, not one less
            module.inplace = False
        # timm starts the last batch norm of a residual unit at 0; the authors' code and our ResNets do not.
        if isinstance(module, nn.BatchNorm2d) and not module.weight.is_meta and not module.weight.any():
            nn.init.ones_(module.weight)
    if name == "mobilenet_edgetpu_075":  # timm's has a rectifier here that the authors' network has not
        net.blocks[0][0].bn1.act = nn.Identity()
    return net


def _of_timm(name: str) -> Any:
    import timm

    asked, (name, changes) = name, UNNAMED.get(name, (name, {}))
    if name not in timm.list_models(name) and not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no network {name!r}{did_you_mean(name, timm.list_models(), otherwise='')}")
    try:
        net = timm.create_model(name, features_only=True, **changes)
    except (RuntimeError, AttributeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"timm cannot give the features of {name!r}: {error}") from error
    if asked.endswith("_1280"):
        from timm.models._efficientnet_blocks import ConvBnAct

        net.blocks[-1].append(ConvBnAct(net.feature_info.channels()[-1], 1280, 1, act_layer=nn.ReLU6))
        net.feature_info.info[-1]["num_chs"] = 1280
    elif asked.endswith("_normed"):
        net["features_conv5_bn_ac"] = timm.create_model(name).features.conv5_bn_ac
        net.return_layers["features_conv5_bn_ac"] = net.return_layers.pop(list(net.return_layers)[-1])
    return net


def _stand_in(layer: nn.Module) -> nn.Module | None:
    """A replacement for a layer that cannot be made atrous (mean pooling, even windows) or is slow at it, or None."""
    if isinstance(layer, nn.Conv2d) and _is_centred(layer):
        return AtrousConv2d.over(layer)
    if isinstance(layer, nn.Conv2d) and _pads_as_tensorflow(layer):
        return AtrousConv2dSame.over(layer)
    if isinstance(layer, nn.AvgPool2d) and set(_sides(layer.kernel_size)) != {1}:
        return AtrousPool2d(layer)
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d) or set(_sides(layer.stride)) == {1}:
        return None
    even = any(side % 2 == 0 for side in _sides(layer.kernel_size))
    if isinstance(layer, nn.Conv2d):
        return PatchConv2d(layer) if even and type(layer) is nn.Conv2d and layer.padding == (0, 0) else None
    return AtrousPool2d(layer) if even else None


def _pads_as_tensorflow(layer: nn.Conv2d) -> bool:
    """Whether a layer is timm's "same" convolution, with one odd side, stride and rate."""
    settings = (layer.kernel_size, layer.stride, layer.dilation)
    square = all(len(set(_sides(setting))) == 1 for setting in settings)
    return type(layer).__name__ == "Conv2dSame" and square and layer.kernel_size[0] % 2 == 1


@lru_cache(maxsize=16)
def _without_data(name: str) -> Any:
    try:
        with torch.device("meta"):
            return _create(name).eval()
    except ValueError:  # some networks look at the values of their tensors while they are built
        return _create(name).eval().to("meta")


@lru_cache(maxsize=16)
def _shapes_alone(name: str) -> Any:
    """Without the layers that keep the shape of their map, which take most of the time of a pass without data."""
    net = copy.deepcopy(_without_data(name))
    for path, module in list(net.named_modules()):
        parent, _, leaf = path.rpartition(".")
        hooked = any(
            layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules()
        )  # timm takes maps there
        if not hooked and isinstance(module, (_BatchNorm, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)):
            owner = net.get_submodule(parent)
            if not isinstance(owner, nn.Identity):  # an activation of a batch norm that is gone
                setattr(owner, leaf, nn.Identity())
    return net


def _is_centred(layer: nn.Conv2d) -> bool:
    """Whether a layer is a plain convolution that the atrous one can stand in for: with a spatial, centred filter."""
    if type(layer) is not nn.Conv2d or layer.kernel_size[0] != layer.kernel_size[1] or layer.padding_mode != "zeros":
        return False
    side, rate = layer.kernel_size[0], layer.dilation[0]
    return side > 1 and side % 2 == 1 and layer.padding == (rate * (side // 2),) * 2 and layer.dilation == (rate, rate)


def _twin(name: str) -> Any:
    """A copy of the network on the meta device, to look at its shapes."""
    return copy.deepcopy(_shapes_alone(name))


def _spatial(net: nn.Module) -> dict[str, nn.Module]:
    """The layers on which stride or rate have any effect."""
    layers = {
        name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d | AtrousPool2d)
    }
    stood_in = {f"{name}.native" for name, layer in layers.items() if isinstance(layer, AtrousPool2d)}
    return {name: layer for name, layer in layers.items() if name not in stood_in and not _is_pointwise(layer)}


def _is_pointwise(layer: Any) -> bool:
    return set(_sides(layer.kernel_size)) == {1} and set(_sides(layer.stride)) == {1}


def _rate(layer: Any) -> int:
    return 1 if isinstance(layer, AtrousPool2d) else _sides(layer.dilation)[0]


def _sides(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


@lru_cache(maxsize=64)
def _layers(name: str) -> dict[str, tuple[int, int]]:
    """Native strides at which every spatial layer of a network reads and writes."""
    net = _twin(name)
    strides: dict[str, tuple[int, int]] = {}

    def note(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            strides[path] = (_PROBE // inputs[0].shape[-1], _PROBE // output.shape[-1])

        return hook

    for path, layer in _spatial(net).items():
        layer.register_forward_hook(note(path))
    try:
        net(_probe(net, _PROBE))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"timm/{name} does not take images of {_PROBE}x{_PROBE} pixels: {error}") from error
    return strides


@lru_cache(maxsize=64)
def _padding(name: str) -> int:
    """The multiple that images are padded to, so that features are on the grid; 1 for centred convolutions."""
    native = int(_twin(name).feature_info.reduction()[-1])
    return 1 if _side(name, native, _PROBE + 1) == _PROBE // native + 1 else native


@lru_cache(maxsize=256)
def _reaches(name: str, output_stride: int) -> bool:
    """Whether a network set to `output_stride` has features on its grid."""
    multiple = _padding(name)
    size = -(-(_PROBE + 1) // multiple) * multiple
    return _side(name, output_stride, size) == -(-size // output_stride)


def _side(name: str, output_stride: int, size: int) -> int:
    """Side of the features of a square image, 0 if the network fails on it."""
    net = _twin(name)
    _set_strides_and_rates(net, _layers(name), Dial(output_stride), {})
    try:
        return int(net(_probe(net, size))[-1].shape[-1])
    except (RuntimeError, AssertionError, ValueError, TypeError):
        return 0


def _probe(net: nn.Module, size: int) -> Tensor:
    """A square image without data, in the dtype that the network has: the default was another when it was built."""
    return torch.empty(1, 3, size, size, device="meta", dtype=next(net.parameters()).dtype)


def _set_strides_and_rates(
    net: nn.Module,
    layers: Mapping[str, tuple[int, int]],
    dial: Dial,
    unit_rates: Mapping[str, int],
    convention: Convention = "",
    name: str = "",
    rates: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Apply the dial to every layer, and to the units named in `unit_rates` multi-grid (section 3.2.1).

    `rates` are those that layers have at the network's own stride, where they are not 1.
    """
    for path, native in layers.items():
        own = rates.get(path, 1)
        stride, rate = conventions.stride_and_rate(convention, name.removeprefix("timm/"), path, native, own, dial)
        for unit, unit_rate in unit_rates.items():
            if path == unit or path.startswith(f"{unit}.") or not unit:
                rate = dial.rate(native[1]) * own * unit_rate
        set_stride_and_dilation(net.get_submodule(path), stride, rate)
    if convention == "vainf":
        conventions.pad_units(net)


def _units(layers: Mapping[str, tuple[int, int]], native_stride: int, nested: bool) -> tuple[str, ...]:
    """Names of the modules with a spatial layer on the network's coarsest map: the last three are block4's.

    With `nested` a shortcut inside a unit counts as one, as it did when older weights were trained.
    """
    paths = [path.rpartition(".")[0] for path, (_, native_out) in layers.items() if native_out == native_stride]
    units = tuple(dict.fromkeys(paths))
    return tuple(unit for unit in units if nested or not any(unit.startswith(f"{other}.") for other in units))


def tensors_of(name: str) -> dict[str, Tensor]:
    """The tensors of a network of timm without its classifier, by timm's names, on the meta device."""
    state: dict[str, Tensor] = _without_data(name).state_dict()
    return state


def in_timms_order(
    theirs: Mapping[str, Tensor], name: str, source: str, *, classifier: bool = False
) -> dict[str, Tensor]:
    """The tensors under timm's names, where the layers of both are defined in one order.

    Args:
        theirs: in the order of their definition.
        name: of the network of timm, without its classifier.
        source: for messages.
        classifier: whether more tensors may follow, which are then left out.

    Raises:
        ValueError: at the first tensor whose shape differs, or if one has more tensors than the other.
    """
    wanted = tensors_of(name)
    for (key, value), (own, expected) in zip(theirs.items(), wanted.items(), strict=False):
        if value.shape != expected.shape:
            raise ValueError(
                f"{source} is not timm/{name}: {key} has the shape {tuple(value.shape)}, {own} {tuple(expected.shape)}"
            )
    if len(theirs) < len(wanted) or (len(theirs) > len(wanted) and not classifier):
        raise ValueError(f"{source} is not timm/{name}: it has {len(theirs)} tensors, timm's {len(wanted)}")
    return dict(zip(wanted, theirs.values(), strict=False))
