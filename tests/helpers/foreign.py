"""Networks of other libraries, rebuilt from their published description, for tests of conversion."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from shaken import shake_norm


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics of batch norm that show where each of them goes."""
    torch.manual_seed(seed)
    for module in net.modules():
        shake_norm(module)
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net.eval()


class Units(nn.Module):
    """A bottleneck whose layers have the names that a library gives them."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, rate: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, rate, rate, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        if shortcut is not None:
            self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class BasicUnit(nn.Module):
    """mmsegmentation's unit without a bottleneck: its first convolution alone is atrous."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, rate: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, rate, rate, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        if shortcut is not None:
            self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


def mmseg_stage(
    unit: Any, channels: int, width: int, count: int, stride: int, rate: int, average: bool
) -> nn.Sequential:
    """mmsegmentation's: the first unit at half the rate, as ``contract_dilation`` has it."""
    filters = width * unit.expansion
    layers: list[nn.Module] = []
    if average and stride != 1:
        layers.append(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False))
    conv = nn.Conv2d(channels, filters, 1, 1 if average else stride, bias=False)
    shortcut = nn.Sequential(*layers, conv, nn.BatchNorm2d(filters)) if (stride, channels) != (1, filters) else None
    units = [unit(channels, width, stride, max(1, rate // 2), shortcut)]
    units += [unit(filters, width, 1, rate, None) for _ in range(count - 1)]
    return nn.Sequential(*units)


class ConvModule(nn.Module):
    """mmcv's: convolution, batch norm, rectifier."""

    def __init__(self, channels: int, filters: int, side: int, rate: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, side, padding=rate * (side // 2), dilation=rate, bias=False)
        self.bn = nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class MMSegBackbone(nn.Module):
    def __init__(self, kind: str, strides: tuple[int, ...], rates: tuple[int, ...], depth: int = 50) -> None:
        super().__init__()
        unit = Units if depth >= 50 else BasicUnit
        counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
        if kind == "plain":
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        else:
            layers: list[nn.Module] = []
            for channels, filters, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
                layers += [nn.Conv2d(channels, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
            self.stem = nn.Sequential(*layers)
        channels = 64
        for i, count in enumerate(counts):
            width = 64 * 2**i
            stage = mmseg_stage(unit, channels, width, count, strides[i], rates[i], kind == "v1d")
            setattr(self, f"layer{i + 1}", stage)
            channels = unit.expansion * width
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) if hasattr(self, "stem") else F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x


class MMSegHead(nn.Module):
    def __init__(self, inputs: int, classes: int, channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(inputs, channels, 1))
        self.aspp_modules = nn.ModuleList(ConvModule(inputs, channels, 1 if rate == 1 else 3, rate) for rate in rates)
        self.bottleneck = ConvModule((len(rates) + 1) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = [F.interpolate(self.image_pool(x), x.shape[-2:], mode="bilinear")]
        maps += [module(x) for module in self.aspp_modules]
        return self.conv_seg(self.bottleneck(torch.cat(maps, 1)))


class MMSegmentation(nn.Module):
    """mmsegmentation's encoder and decoder with a ResNet-18, 34, 50 or 101, and its auxiliary head."""

    def __init__(
        self, kind: str = "v1c", classes: int = 5, channels: int = 512, output_stride: int = 8, depth: int = 50
    ) -> None:
        super().__init__()
        strides, rates = ((1, 2, 1, 1), (1, 1, 2, 4)) if output_stride == 8 else ((1, 2, 2, 1), (1, 1, 1, 2))
        aspp = (1, 12, 24, 36) if output_stride == 8 else (1, 6, 12, 18)
        self.backbone = MMSegBackbone(kind, strides, rates, depth)
        self.decode_head = MMSegHead(self.backbone.channels, classes, channels, aspp)
        self.auxiliary_head = nn.Module()
        self.auxiliary_head.convs = nn.Sequential(ConvModule(self.backbone.channels // 2, 256, 3))
        self.auxiliary_head.conv_seg = nn.Conv2d(256, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.decode_head(self.backbone(x)), x.shape[-2:], mode="bilinear", align_corners=False)


class D2Conv(nn.Conv2d):
    """detectron2's convolution, which holds its batch norm."""

    def __init__(
        self, channels: int, filters: int, side: int, stride: int = 1, rate: int = 1, norm: bool = True
    ) -> None:
        super().__init__(channels, filters, side, stride, rate * (side // 2), rate, bias=not norm)
        if norm:
            self.norm = nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.norm(y) if hasattr(self, "norm") else y


class D2Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, rate: int) -> None:
        super().__init__()
        if channels != 4 * width:
            self.shortcut = D2Conv(channels, 4 * width, 1, stride)
        self.conv1 = D2Conv(channels, width, 1)
        self.conv2 = D2Conv(width, width, 3, stride, rate)
        self.conv3 = D2Conv(width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class D2Backbone(nn.Module):
    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.stem = nn.Module()
        channels = 128 if deep else 64
        if deep:
            self.stem.conv1, self.stem.conv2 = D2Conv(3, 64, 3, 2), D2Conv(64, 64, 3)
            self.stem.conv3 = D2Conv(64, 128, 3)
        else:
            self.stem.conv1 = D2Conv(3, 64, 7, 2)
        rates = ((1,) * 3, (1,) * 4, (1,) * 6, (2, 4, 8))
        for i, (width, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 1))):
            inputs = [channels, *[4 * width] * (len(rates[i]) - 1)]
            blocks = [
                D2Block(before, width, stride if j == 0 else 1, rate)
                for j, (before, rate) in enumerate(zip(inputs, rates[i], strict=True))
            ]
            setattr(self, f"res{i + 2}", nn.Sequential(*blocks))
            channels = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.stem.children():
            x = F.relu(conv(x))
        x = F.max_pool2d(x, 3, 2, 1)
        for number in range(2, 6):
            x = getattr(self, f"res{number}")(x)
        return x


class Detectron2(nn.Module):
    """detectron2's DeepLabV3 with a ResNet-50, output stride 16 and multi-grid 1, 2, 4."""

    def __init__(self, deep: bool = True, classes: int = 5) -> None:
        super().__init__()
        self.backbone = D2Backbone(deep)
        head = self.sem_seg_head = nn.Module()
        head.aspp = nn.Module()
        convs = [D2Conv(2048, 256, 1), *(D2Conv(2048, 256, 3, 1, rate) for rate in (6, 12, 18))]
        pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), D2Conv(2048, 256, 1, norm=False))
        head.aspp.convs = nn.ModuleList([*convs, pooling])
        head.aspp.project = D2Conv(5 * 256, 256, 1)
        head.predictor = nn.Conv2d(256, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        features, aspp = self.backbone(x), self.sem_seg_head.aspp
        maps = [F.relu(conv(features)) for conv in aspp.convs]
        maps[-1] = F.interpolate(maps[-1], features.shape[-2:], mode="bilinear", align_corners=False)
        y = self.sem_seg_head.predictor(F.relu(aspp.project(torch.cat(maps, 1))))
        return F.interpolate(y, scale_factor=16, mode="bilinear", align_corners=False)


class VainF(nn.Module):
    """DeepLabV3 of VainF's DeepLabV3Plus-Pytorch with a ResNet-50: torchvision's parts under other names."""

    def __init__(self, classes: int = 4, output_stride: int = 16) -> None:
        super().__init__()
        dilated, rates = [False, output_stride == 8, True], (6, 12, 18) if output_stride == 16 else (12, 24, 36)
        net = resnet50(weights=None, replace_stride_with_dilation=dilated)
        self.backbone = IntermediateLayerGetter(net, {"layer4": "out"})
        self.classifier = nn.Module()
        self.classifier.classifier = nn.Sequential(*DeepLabHead(2048, classes, rates))

    def forward(self, x: Tensor) -> Tensor:
        y = self.classifier.classifier(self.backbone(x)["out"])
        return F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False)


class PaddedUnit(nn.Module):
    """VainF's inverted residual: it pads what it reads, and no convolution of it pads."""

    def __init__(self, channels: int, filters: int, stride: int, rate: int, expansion: int) -> None:
        super().__init__()
        width, self.rate, self.adds = channels * expansion, rate, stride == 1 and channels == filters
        layers: list[nn.Module] = [] if expansion == 1 else [unpadded(channels, width, 1)]
        layers += [unpadded(width, width, 3, stride, rate, width), nn.Conv2d(width, filters, 1, bias=False)]
        self.conv = nn.Sequential(*layers, nn.BatchNorm2d(filters))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x, (self.rate,) * 4))
        return x + y if self.adds else y


def unpadded(channels: int, filters: int, side: int, stride: int = 1, rate: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, filters, side, stride, 0, rate, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters), nn.ReLU6())


class VainFMobileNet(nn.Module):
    """DeepLabV3 of VainF's DeepLabV3Plus-Pytorch with its MobileNetV2."""

    def __init__(self, classes: int = 4, output_stride: int = 16) -> None:
        super().__init__()
        features: list[nn.Module] = [unpadded(3, 32, 3, 2)]
        channels, reached, rate = 32, 2, 1
        for expansion, filters, count, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            before = rate
            if reached == output_stride:
                rate, stride = rate * stride, 1
            reached *= stride
            for i in range(count):
                unit = (stride, before) if i == 0 else (1, rate)
                features.append(PaddedUnit(channels, filters, *unit, expansion))
                channels = filters
        self.backbone = nn.Module()
        names = [str(i) for i in range(len(features))]
        self.backbone.low_level_features = nn.Sequential(dict_of(names[:4], features[:4]))
        self.backbone.high_level_features = nn.Sequential(dict_of(names[4:], features[4:]))
        self.classifier = nn.Module()
        rates = (6, 12, 18) if output_stride == 16 else (12, 24, 36)
        self.classifier.classifier = nn.Sequential(*DeepLabHead(320, classes, rates))

    def forward(self, x: Tensor) -> Tensor:
        y = self.backbone.high_level_features(self.backbone.low_level_features(x))
        return F.interpolate(self.classifier.classifier(y), x.shape[-2:], mode="bilinear", align_corners=False)


def dict_of(names: list[str], layers: list[nn.Module]) -> OrderedDict[str, nn.Module]:
    return OrderedDict(zip(names, layers, strict=True))


def mobilenet_of_transformers() -> nn.Module:
    """The authors' DeepLabv3 with half a MobileNetV2, as transformers has it."""
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    config = MobileNetV2Config(num_labels=4, output_stride=16, depth_multiplier=0.5, tf_padding=True)
    return shaken(MobileNetV2ForSemanticSegmentation(config))


def tensorflow_names(net: nn.Module) -> dict[str, np.ndarray]:
    """The variables of the authors' graph for a network of transformers, which was made from them."""
    layers = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}
    head = {"conv_pool": "image_pooling", "conv_aspp": "aspp0", "conv_projection": "concat_projection"}
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    variables = {}
    for key, value in net.state_dict().items():
        *place, kind, part = key.split(".")
        if part == "num_batches_tracked" or "conv_1x1" in place:
            continue
        if place == ["segmentation_head", "classifier"]:
            name = "logits/semantic"
        elif place[0] == "segmentation_head":
            name = head[place[1]]
        elif place[-1] == "first_conv":
            name = "MobilenetV2/Conv"
        else:  # what transformers calls the stem has the first unit's two layers
            unit = 0 if place[1] == "conv_stem" else int(place[2]) + 1
            name = f"MobilenetV2/expanded_conv{f'_{unit}' if unit else ''}/{layers[place[-1]]}"
        if kind == "normalization":
            variables[f"{name}/BatchNorm/{norm[part]}"] = value
        elif part == "bias":
            variables[f"{name}/biases"] = value
        elif name.endswith("depthwise"):
            variables[f"{name}/depthwise_weights"] = value.permute(2, 3, 0, 1)
        else:
            variables[f"{name}/weights"] = value.permute(2, 3, 1, 0)
    variables["MobilenetV2/Conv/weights/Momentum"] = variables["MobilenetV2/Conv/weights"]
    variables["global_step"] = torch.tensor(3)
    return {name: value.numpy() for name, value in variables.items()}
