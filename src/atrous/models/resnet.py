"""The atrous ResNet with multi-grid and the cascaded blocks 5 to 7 (sections 3.1, 3.2 and 3.2.1, Figure 3).

The paper's ``block1`` to ``block7`` are ``layer1`` to ``layer7`` here, as in torchvision's ImageNet weights; a unit of
the paper is one residual unit. A block's stride sits in its ``last`` unit, as in the paper, or in its ``first``, as in
torchvision's and timm's weights (``docs/decisions/002-where-the-stride-sits.md``).

>>> net = ResNet(101, stride_in="last", multi_grid=(1, 2, 4), output_stride=16)
>>> [unit.rate for unit in net.layer4]
[2, 4, 8]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from atrous.models.backbone import Backbone, Features, copy_where_shapes_allow, mismatch
from atrous.models.output_stride import OUTPUT_STRIDES, Dial, check_reachable, check_unit_rates
from atrous.ops.conv import AtrousConv2d, set_stride_and_dilation

StrideIn = Literal["first", "last"]

ROOT_STRIDE = 4
LAST_BLOCKS = (4, 5, 6, 7)


class Unit(nn.Module):
    """A residual unit of any stride and atrous rate; see `Basic` and `Bottleneck`."""

    expansion: int
    conv1: AtrousConv2d
    conv2: AtrousConv2d
    downsample: nn.Sequential | None

    @property
    def rate(self) -> int:
        """Atrous rate of the unit's last 3×3 convolution: the rate in the paper's sense."""
        return self.conv2.rate

    def set_stride_and_rates(self, stride: int, entry_rate: int, rate: int) -> None:
        """Set the unit's stride, the rate of the 3×3 convolution that carries it, and the rate of one after that."""
        first, *others = (conv for conv in (self.conv1, self.conv2) if conv.kernel_size == (3, 3))
        set_stride_and_dilation(first, stride, entry_rate)
        for conv in others:
            set_stride_and_dilation(conv, 1, rate)
        if isinstance(self.downsample, AverageShortcut):
            self.downsample.stride = stride
        elif self.downsample is not None:
            set_stride_and_dilation(self.downsample[0], stride, 1)

    def shortcut(self, x: Tensor, stride: int) -> Tensor:
        """The input at the size of the output: projected, or subsampled as it is."""
        if self.downsample is not None:
            projected: Tensor = self.downsample(x)
            return projected
        return x[..., ::stride, ::stride] if stride > 1 else x


class Basic(Unit):
    """Two 3×3 convolutions; B,C,H,W float to B,width,ceil(H/stride),ceil(W/stride)."""

    expansion = 1

    def __init__(self, channels: int, width: int, average: bool = False) -> None:
        super().__init__()
        self.conv1 = AtrousConv2d(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = AtrousConv2d(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(channels, width, average)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y = self.relu(y + self.shortcut(x, self.conv1.stride[0]))
        return y


class Bottleneck(Unit):
    """1×1, 3×3 and 1×1 convolutions; B,C,H,W float to B,4*width,ceil(H/stride),ceil(W/stride)."""

    expansion = 4

    def __init__(self, channels: int, width: int, average: bool = False) -> None:
        super().__init__()
        self.conv1 = AtrousConv2d(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = AtrousConv2d(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = AtrousConv2d(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(channels, width * self.expansion, average)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y = self.relu(y + self.shortcut(x, self.conv2.stride[0]))
        return y


UNITS: dict[int, tuple[type[Basic] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(Backbone):
    """ResNet with any output stride.

    Args:
        depth: 18, 34, 50, 101 or 152.
        stride_in: the unit that carries a block's stride.
        consistent_rates: with ``first`` and no multi-grid, let the unit whose stride has been removed keep the rate of
            its input. Denser features, subsampled, then equal the strided ones, as they do with ``last``. The paper has
            one rate in a block.
        multi_grid: unit rates of block4 and of every replica of it, one a unit (section 3.2.1); None for ones.
        last_block: 4, or up to 7 for the cascade (section 3.2).
        stem: channels of three 3×3 convolutions in place of the 7×7 one, as mmsegmentation's v1c and v1d (32, 32, 64)
            and detectron2's DeepLab (64, 64, 128) have; empty, as in the paper, for the 7×7 one.
        average_shortcut: average a projected shortcut where it is strided, as mmsegmentation's v1d does.
        convention: with ``mmsegmentation`` the second convolution of a unit without a bottleneck is never atrous.
        output_stride: 4 to 32, and to 256 with `last_block` 7.

    Raises:
        ValueError: for a depth, block, unit rate or stride that there is not; says which there are.
    """

    def __init__(
        self,
        depth: int,
        *,
        stride_in: StrideIn = "last",
        consistent_rates: bool = False,
        multi_grid: Sequence[int] | None = None,
        last_block: int = 4,
        stem: Sequence[int] = (),
        average_shortcut: bool = False,
        convention: str = "",
        output_stride: int = 16,
    ) -> None:
        super().__init__()
        if depth not in UNITS:
            raise ValueError(f"there is no ResNet-{depth}; there are {', '.join(map(str, UNITS))}")
        if stride_in not in get_args(StrideIn):
            raise ValueError(f"stride_in is {stride_in!r}, expected one of {', '.join(get_args(StrideIn))}")
        if last_block not in LAST_BLOCKS:
            raise ValueError(f"last_block is {last_block!r}, expected one of 4, 5, 6, 7")
        unit, counts = UNITS[depth]
        self.name = f"resnet{depth}"
        self.stride_in, self.consistent_rates = stride_in, consistent_rates
        self.last_block, self.convention = last_block, convention
        self.multi_grid = check_unit_rates(multi_grid or (1,) * counts[3], counts[3], f"block4 of {self.name}")
        if stem and (len(stem) != 3 or any(not 1 <= width <= 1024 for width in stem)):
            raise ValueError(f"stem is {tuple(stem)}, expected three numbers of channels, or none")
        self.conv1 = _deep_stem(*stem) if stem else AtrousConv2d(3, 64, 7, stride=2)
        channels = stem[-1] if stem else 64
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for block, width, count in _blocks(counts, last_block):
            inputs = [channels, *[width * unit.expansion] * (count - 1)]
            units = [unit(before, width, average_shortcut) for before in inputs]
            setattr(self, f"layer{block}", nn.Sequential(*units))
            channels = width * unit.expansion
        self.channels = channels
        self._initialise()
        self.set_output_stride(output_stride)

    @property
    def reachable(self) -> tuple[int, ...]:  # noqa: D102
        # A stride of 4 before block1 and of 2 in every block but one: the first, or where it sits last, the last.
        native = 32 * 2 ** (self.last_block - 4)
        return tuple(stride for stride in OUTPUT_STRIDES if stride <= native)

    def set_output_stride(self, output_stride: int) -> None:  # noqa: D102
        dial = check_reachable(output_stride, self.reachable, self.name)
        native = ROOT_STRIDE  # of the map that a block reads
        for block in range(1, self.last_block + 1):
            native = self._set_block(block, native, dial)

    def _set_block(self, block: int, native: int, dial: Dial) -> int:
        """Set the units of a block that reads a map of native stride `native`; returns that of the map it writes."""
        units = self.block(block)
        in_last = self.stride_in == "last"
        strided = len(units) - 1 if in_last else 0
        has_stride = block < self.last_block if in_last else block > 1
        native_out = native * 2 if has_stride else native
        unit_rates = self.multi_grid if block >= 4 else (1,) * len(units)
        for i, (unit, unit_rate) in enumerate(zip(units, unit_rates, strict=True)):
            reads = native if i <= strided else native_out
            writes = native_out if i >= strided else native
            stride, entry_rate = dial.stride_and_rate(reads, writes)
            if not in_last and not (self.consistent_rates and set(unit_rates) == {1}):
                entry_rate = dial.rate(writes)  # one rate for all units of a block, as in the paper
            second = 1 if self.convention == "mmsegmentation" else dial.rate(writes) * unit_rate
            unit.set_stride_and_rates(stride, entry_rate * unit_rate, second)
        return native_out

    def block(self, number: int) -> list[Unit]:
        """The residual units of a block, from 1 to `last_block`."""
        layer: nn.Sequential = getattr(self, f"layer{number}")
        return [unit for unit in layer if isinstance(unit, Unit)]

    def forward(self, images: Tensor) -> Features:
        """B,3,H,W float to features B,C,ceil(H/output_stride),ceil(W/output_stride), and those of every block."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        stages = {}
        for block in range(1, self.last_block + 1):
            x = getattr(self, f"layer{block}")(x)
            stages[f"block{block}"] = x
        return Features(x, stages)

    def load_imagenet(self, state: Mapping[str, Tensor]) -> None:
        """Load torchvision's ImageNet weights into blocks 1 to 4, and block4's into its replicas where shapes allow.

        Raises:
            ValueError: if a key is missing or unexpected, or a shape differs; counts them all.
        """
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        own = self.state_dict()
        wanted = {key: value for key, value in own.items() if not key.startswith(("layer5.", "layer6.", "layer7."))}
        mismatch(wanted, state, f"ImageNet weights for {self.name}")
        self.load_state_dict({**own, **state})
        self._start_replicas()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._start_replicas()

    def _start_replicas(self) -> None:
        for block in range(5, self.last_block + 1):
            copy_where_shapes_allow(self.get_submodule("layer4"), self.get_submodule(f"layer{block}"))


def _blocks(counts: tuple[int, int, int, int], last_block: int) -> list[tuple[int, int, int]]:
    """Number, width and number of units of each block; blocks 5 to 7 are replicas of block4 (section 3.2)."""
    blocks = [(i + 1, 64 * 2**i, count) for i, count in enumerate(counts)]
    return blocks + [(block, 512, counts[3]) for block in range(5, last_block + 1)]


def _deep_stem(first: int, second: int, third: int) -> nn.Sequential:
    """Three 3×3 convolutions, with batch norm and rectifiers between them: B,3,H,W to B,third,ceil(H/2),ceil(W/2)."""
    layers: list[nn.Module] = []
    for channels, filters, stride in ((3, first, 2), (first, second, 1)):
        layers += [AtrousConv2d(channels, filters, 3, stride=stride), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, AtrousConv2d(second, third, 3))


class AverageShortcut(nn.Sequential):
    """A projected shortcut that averages `stride` × `stride` pixels before it, cut off at the edges."""

    stride = 1

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        for layer in self:
            x = layer(x)
        return x


def _projection(channels: int, out_channels: int, average: bool) -> nn.Sequential | None:
    if channels == out_channels:
        return None
    kind = AverageShortcut if average else nn.Sequential
    return kind(AtrousConv2d(channels, out_channels, 1), nn.BatchNorm2d(out_channels))
