"""MobileNetV2, EfficientNet-Lite and MobileNet EdgeTPU, layer for layer as timm builds them.

They are what the shipped models have for a backbone. To import timm, and torchvision with it, takes longer than to load
a model and segment a photograph with it, and as much memory; so these are built without. Parameters, the random numbers
that they start from, and features are timm's to the bit (``tests/models/test_mobilenet.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from atrous.ops.normalization import IMAGENET


class Stage(NamedTuple):
    """Units of a stage, of which the first has the stride."""

    kind: str
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int
    skip: bool = True


@dataclass(frozen=True)
class Family:
    """A network of width 1: what its stages are, and how it is made wider and deeper.

    Attributes:
        stages: lists of units; all those of a list have one resolution.
        activation: kind of its activations.
        scales_ends: whether the stem is made wider, and the first and last stage deeper, too.
    """

    stages: tuple[tuple[Stage, ...], ...]
    activation: type[nn.Module]
    scales_ends: bool


_MOBILENET_V2 = Family(
    (
        (Stage("separable", 1, 3, 1, 1, 16),),
        (Stage("inverted", 2, 3, 2, 6, 24),),
        (Stage("inverted", 3, 3, 2, 6, 32),),
        (Stage("inverted", 4, 3, 2, 6, 64),),
        (Stage("inverted", 3, 3, 1, 6, 96),),
        (Stage("inverted", 3, 3, 2, 6, 160),),
        (Stage("inverted", 1, 3, 1, 6, 320),),
    ),
    nn.ReLU6,
    scales_ends=True,
)
_EFFICIENTNET_LITE = Family(
    (
        (Stage("separable", 1, 3, 1, 1, 16),),
        (Stage("inverted", 2, 3, 2, 6, 24),),
        (Stage("inverted", 2, 5, 2, 6, 40),),
        (Stage("inverted", 3, 3, 2, 6, 80),),
        (Stage("inverted", 3, 5, 1, 6, 112),),
        (Stage("inverted", 4, 5, 2, 6, 192),),
        (Stage("inverted", 1, 3, 1, 6, 320),),
    ),
    nn.ReLU6,
    scales_ends=False,
)
_EDGETPU = Family(
    (
        (Stage("plain", 1, 1, 1, 1, 16),),
        (Stage("fused", 1, 3, 2, 8, 32), Stage("fused", 3, 3, 1, 4, 32)),
        (Stage("fused", 1, 3, 2, 8, 48), Stage("fused", 3, 3, 1, 4, 48)),
        (Stage("inverted", 1, 3, 2, 8, 96), Stage("inverted", 3, 3, 1, 4, 96)),
        (Stage("inverted", 1, 3, 1, 8, 96, skip=False), Stage("inverted", 3, 3, 1, 4, 96)),
        (Stage("inverted", 1, 5, 2, 8, 160), Stage("inverted", 3, 5, 1, 4, 160)),
        (Stage("inverted", 1, 3, 1, 8, 192),),
    ),
    nn.ReLU,
    scales_ends=True,
)

# Family, width, depth, whether it pads as TensorFlow does.
_WIDTHS = {"035": 0.35, "050": 0.5, "075": 0.75, "100": 1.0, "140": 1.4}
_LITES = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8)]
NETWORKS: dict[str, tuple[Family, float, float, bool]] = {
    **{f"mobilenetv2_{name}": (_MOBILENET_V2, width, 1.0, False) for name, width in _WIDTHS.items()},
    **{f"tf_mobilenetv2_{name}": (_MOBILENET_V2, width, 1.0, True) for name, width in _WIDTHS.items()},
    **{f"efficientnet_lite{i}": (_EFFICIENTNET_LITE, *scale, False) for i, scale in enumerate(_LITES)},
    **{f"tf_efficientnet_lite{i}": (_EFFICIENTNET_LITE, *scale, True) for i, scale in enumerate(_LITES)},
    "mobilenet_edgetpu_075": (_EDGETPU, 0.75, 1.0, False),
    "mobilenet_edgetpu_100": (_EDGETPU, 1.0, 1.0, False),
}
"""By timm's names, and by those of `atrous.models.timm_backbone.UNNAMED`."""


class Conv2dSame(nn.Conv2d):
    """A convolution that pads as TensorFlow does; `atrous.ops.conv.AtrousConv2dSame` stands in for it."""


class ActivatedBatchNorm(nn.BatchNorm2d):
    """Batch norm and the activation after it, which has no name of its own in timm's state dicts."""

    def __init__(self, channels: int, eps: float, activation: nn.Module) -> None:
        super().__init__(channels, eps)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        """B,C,h,w float to the same."""
        y: Tensor = self.act(super().forward(x))
        return y


class FeatureInfo(NamedTuple):
    """Where the features of each resolution come from, as timm's ``feature_info`` says it."""

    names: list[str]
    widths: list[int]
    strides: list[int]

    def module_name(self) -> list[str]:  # noqa: D102
        return self.names

    def channels(self) -> list[int]:  # noqa: D102
        return self.widths

    def reduction(self) -> list[int]:  # noqa: D102
        return self.strides


class _Layers:
    """Makes the layers of one network."""

    def __init__(self, family: Family, same: bool, tensorflow: bool) -> None:
        self.family, self.same = family, same
        self.eps = 1e-3 if tensorflow else 1e-5

    def conv(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        kind = Conv2dSame if self.same and stride > 1 else nn.Conv2d
        padding = 0 if kind is Conv2dSame else kernel // 2
        return kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def norm(self, channels: int, active: bool = True) -> nn.BatchNorm2d:
        activation = self.family.activation(inplace=True) if active else nn.Identity()
        return ActivatedBatchNorm(channels, self.eps, activation)


class Unit(nn.Module):
    """Convolutions in a row, each with its batch norm, and the input added where it has the shape of the output."""

    order: tuple[str, ...] = ()

    def __init__(self, inputs: int, stage: Stage, outputs: int, stride: int) -> None:
        super().__init__()
        self.has_skip = stage.skip and stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """B,C,h,w float to B,K,ceil(h/stride),ceil(w/stride)."""
        y = x
        for i, name in enumerate(self.order, 1):
            y = getattr(self, f"bn{i}")(getattr(self, name)(y))
        return y + x if self.has_skip else y


class Plain(Unit):
    """A convolution."""

    order = ("conv",)

    def __init__(self, layers: _Layers, inputs: int, stage: Stage, outputs: int, stride: int) -> None:
        super().__init__(inputs, stage, outputs, stride)
        self.has_skip = False
        self.conv, self.bn1 = layers.conv(inputs, outputs, stage.kernel, stride), layers.norm(outputs)


class Separable(Unit):
    """A depthwise convolution, and a linear one across channels."""

    order = ("conv_dw", "conv_pw")

    def __init__(self, layers: _Layers, inputs: int, stage: Stage, outputs: int, stride: int) -> None:
        super().__init__(inputs, stage, outputs, stride)
        self.conv_dw, self.bn1 = layers.conv(inputs, inputs, stage.kernel, stride, inputs), layers.norm(inputs)
        self.conv_pw, self.bn2 = layers.conv(inputs, outputs), layers.norm(outputs, active=False)


class Fused(Unit):
    """A convolution to more channels, and a linear one back to fewer."""

    order = ("conv_exp", "conv_pwl")

    def __init__(self, layers: _Layers, inputs: int, stage: Stage, outputs: int, stride: int) -> None:
        super().__init__(inputs, stage, outputs, stride)
        wide = rounded(inputs * stage.expansion)
        self.conv_exp, self.bn1 = layers.conv(inputs, wide, stage.kernel, stride), layers.norm(wide)
        self.conv_pwl, self.bn2 = layers.conv(wide, outputs), layers.norm(outputs, active=False)


class Inverted(Unit):
    """The inverted residual of MobileNetV2: to more channels, a depthwise convolution there, and back to fewer."""

    order = ("conv_pw", "conv_dw", "conv_pwl")

    def __init__(self, layers: _Layers, inputs: int, stage: Stage, outputs: int, stride: int) -> None:
        super().__init__(inputs, stage, outputs, stride)
        wide = rounded(inputs * stage.expansion)
        self.conv_pw, self.bn1 = layers.conv(inputs, wide), layers.norm(wide)
        self.conv_dw, self.bn2 = layers.conv(wide, wide, stage.kernel, stride, wide), layers.norm(wide)
        self.conv_pwl, self.bn3 = layers.conv(wide, outputs), layers.norm(outputs, active=False)


_KINDS = {"plain": Plain, "separable": Separable, "fused": Fused, "inverted": Inverted}


class MobileNet(nn.Module):
    """One of `NETWORKS`, from images B,3,H,W to the last map of each resolution.

    Attributes:
        feature_info: of those maps.
        pretrained_cfg: ``mean`` and ``std`` of each colour that timm's ImageNet weights want.
        strides: native strides at which each layer that is no 1×1 convolution reads and writes, by its path.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        family, width, depth, same = NETWORKS[name]
        tensorflow = name.startswith("tf_efficientnet")
        half = (0.5, 0.5, 0.5)
        self.pretrained_cfg = {
            "mean": half if tensorflow else IMAGENET.mean,
            "std": half if tensorflow else IMAGENET.std,
        }
        layers = _Layers(family, same, tensorflow)
        channels = rounded(32 * width) if family.scales_ends else 32
        self.conv_stem, self.bn1 = layers.conv(3, channels, 3, stride=2), layers.norm(channels)
        for _ in range(2):
            nn.Conv2d(8, 8, 1)  # timm tries a layer here, so that one seed gives both the same weights
        self.blocks, self.feature_info, reduction = nn.Sequential(), FeatureInfo([], [], []), 2
        self.strides = {"conv_stem": (1, 2)}
        for i, stage in enumerate(family.stages):
            deeper = depth if family.scales_ends or 0 < i < len(family.stages) - 1 else 1.0
            units = nn.Sequential()
            for part in stage:
                for j in range(math.ceil(part.repeats * deeper)):
                    stride, outputs = (part.stride if j == 0 else 1), rounded(part.channels * width)
                    units.append(_KINDS[part.kind](layers, channels, part, outputs, stride))
                    channels = outputs
            self.blocks.append(units)
            for path, layer in units.named_modules():
                if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                    self.strides[f"blocks.{i}.{path}"] = (reduction, reduction * layer.stride[0])
                    reduction *= layer.stride[0]
            if i + 1 == len(family.stages) or family.stages[i + 1][0].stride > 1:
                for values, value in zip(self.feature_info, (f"blocks.{i}", channels, reduction), strict=True):
                    values.append(value)  # type: ignore[attr-defined]
        self._initialize()

    def _initialize(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:  # where it takes longer than with data
                fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
                nn.init.normal_(layer.weight, 0, math.sqrt(2.0 / fan_out))

    def forward(self, images: Tensor) -> list[Tensor]:
        """B,3,H,W float to maps B,C,h,w, of which `feature_info` speaks."""
        return list(self._maps(images))

    def _maps(self, images: Tensor) -> Iterator[Tensor]:
        x = self.bn1(self.conv_stem(images))
        for i, block in enumerate(self.blocks):
            x = block(x)
            if f"blocks.{i}" in self.feature_info.names:
                yield x


def rounded(channels: float) -> int:
    """The multiple of 8 that is nearest, or the next one where it would be less than 0.9 of the number."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near
