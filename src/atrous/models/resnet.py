"""The atrous ResNet with multi-grid and the cascaded blocks 5 to 7 (sections 3.1, 3.2 and 3.2.1, Figure 3).

A residual block of the paper (``block1`` to ``block7``) is a ``layer`` here, so that the keys of the state dict are
those of torchvision's ImageNet weights; what the paper calls a unit is one residual bottleneck. A block's stride sits
in its ``last`` unit, as in the paper and its authors' code, or in its ``first``, as in the weights that torchvision
and timm publish (``docs/decisions/002-where-the-stride-sits.md``).

>>> net = ResNet(101, stride_in="last", multi_grid=(1, 2, 4), output_stride=16)
>>> [unit.rate for unit in net.layer4]
[2, 4, 8]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from atrous.models.backbone import Backbone, Features, copy_where_shapes_allow, mismatch
from atrous.models.output_stride import OUTPUT_STRIDES, Dial, check_reachable, check_unit_rates
from atrous.ops.conv import AtrousConv2d, place

StrideIn = Literal["first", "last", "first-dilated"]

ROOT_STRIDE = 4
LAST_BLOCKS = (4, 5, 6, 7)


class Unit(nn.Module):
    """A residual unit that can be placed at any stride and rate; see `Basic` and `Bottleneck`."""

    expansion: int
    conv1: AtrousConv2d
    conv2: AtrousConv2d
    downsample: nn.Sequential | None

    @property
    def rate(self) -> int:
        """Atrous rate of the unit's last 3×3 convolution, the one that the paper's rates speak of."""
        return self.conv2.rate

    def place(self, stride: int, entry_rate: int, rate: int) -> None:
        """Set the unit's stride, the rate of the layer that carries it, and the rate of what follows."""
        raise NotImplementedError

    def shortcut(self, x: Tensor, stride: int) -> Tensor:
        """The input on the output's map: projected, or subsampled as it is."""
        if self.downsample is not None:
            projected: Tensor = self.downsample(x)
            return projected
        return x[..., ::stride, ::stride] if stride > 1 else x


class Basic(Unit):
    """Two 3×3 convolutions; B,C,H,W float to B,width,ceil(H/stride),ceil(W/stride)."""

    expansion = 1

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = AtrousConv2d(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = AtrousConv2d(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(channels, width)

    def place(self, stride: int, entry_rate: int, rate: int) -> None:  # noqa: D102
        self.conv1.place(stride, entry_rate)
        self.conv2.place(1, rate)
        _place_projection(self.downsample, stride)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y = self.relu(y + self.shortcut(x, self.conv1.stride[0]))
        return y


class Bottleneck(Unit):
    """1×1, 3×3 and 1×1 convolutions; B,C,H,W float to B,4*width,ceil(H/stride),ceil(W/stride)."""

    expansion = 4

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = AtrousConv2d(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = AtrousConv2d(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = AtrousConv2d(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(channels, width * self.expansion)

    def place(self, stride: int, entry_rate: int, rate: int) -> None:  # noqa: D102
        del rate  # one spatial convolution: it carries the stride and nothing spatial follows
        self.conv2.place(stride, entry_rate)
        _place_projection(self.downsample, stride)

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
    """ResNet whose `output_stride` is a dial.

    Args:
        depth: 18, 34, 50, 101 or 152.
        stride_in: the unit of a block that carries its stride; ``first-dilated``: the first, which takes the rate of
            the others where it has lost its stride, as in segmentation_models_pytorch.
        multi_grid: unit rates of block4 and of every replica of it, one a unit (section 3.2.1); None for ones.
        last_block: 4, or up to 7 for the cascade (section 3.2).
        output_stride: 4 to 32, and to 256 with `last_block` 7.

    Raises:
        ValueError: for a depth, block, rate or stride that there is not, with those that there are.
    """

    def __init__(
        self,
        depth: int,
        *,
        stride_in: StrideIn = "last",
        multi_grid: Sequence[int] | None = None,
        last_block: int = 4,
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
        self.stride_in = stride_in
        self.last_block = last_block
        self.multi_grid = check_unit_rates(multi_grid or (1,) * counts[3], counts[3], f"block4 of {self.name}")
        self.conv1 = AtrousConv2d(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for block, width, count in _blocks(counts, last_block):
            units = [unit(channels if i == 0 else width * unit.expansion, width) for i in range(count)]
            setattr(self, f"layer{block}", nn.Sequential(*units))
            channels = width * unit.expansion
        self.channels = channels
        self._initialise()
        self.set_output_stride(output_stride)

    @property
    def reachable(self) -> tuple[int, ...]:  # noqa: D102
        # One stride of 2 a block: between blocks where it sits in the last unit, so that the last block has none.
        native = 32 * 2 ** (self.last_block - 4)
        return tuple(stride for stride in OUTPUT_STRIDES if stride <= native)

    def set_output_stride(self, output_stride: int) -> None:  # noqa: D102
        dial = check_reachable(output_stride, self.reachable, self.name)
        native = ROOT_STRIDE
        for block in range(1, self.last_block + 1):
            native = self._place_block(block, native, dial)

    def _place_block(self, block: int, native: int, dial: Dial) -> int:
        """Place the units of one block that reads native stride `native`; the native stride that it writes."""
        units = self.block(block)
        in_last = self.stride_in == "last"
        strided = len(units) - 1 if in_last else 0
        has_stride = block < self.last_block if in_last else block > 1
        after = native * 2 if has_stride else native
        grid = self.multi_grid if block >= 4 else (1,) * len(units)
        for i, unit in enumerate(units):
            came = native if i <= strided else after
            goes = after if i >= strided else native
            stride, entry = dial.place(came, goes)
            # With multi-grid a block has one rate for all of its units (section 3.2.1); without it, the unit that
            # lost its stride keeps the rate of its input, which makes the dense network equal to the strided one.
            if self.stride_in == "first-dilated" or (set(grid) != {1} and not in_last):
                entry = dial.rate(goes)
            unit.place(stride, entry * grid[i], dial.rate(goes) * grid[i])
        return after

    def block(self, number: int) -> list[Unit]:
        """The residual units of block 1 to `last_block`."""
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
        """Load torchvision's ImageNet state dict into blocks 1 to 4, and block4's into its replicas where shapes allow.

        Raises:
            ValueError: if a key is missing or unexpected, or a shape differs, with all of them at once.
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
    """Number, width and count of units of each block: blocks 5 to 7 are replicas of block4."""
    blocks = [(i + 1, 64 * 2**i, count) for i, count in enumerate(counts)]
    return blocks + [(block, 512, counts[3]) for block in range(5, last_block + 1)]


def _projection(channels: int, out_channels: int) -> nn.Sequential | None:
    if channels == out_channels:
        return None
    return nn.Sequential(AtrousConv2d(channels, out_channels, 1), nn.BatchNorm2d(out_channels))


def _place_projection(projection: nn.Sequential | None, stride: int) -> None:
    if projection is not None:
        place(projection[0], stride, 1)
