"""The one dial: everything that the paper derives from ``output_stride`` (sections 3.1, 3.2, 3.2.1 and 3.3).

A network is described by its *native* strides, those that it has with no atrous convolution at all. A layer that
reads a map of native stride ``i`` and writes one of native stride ``o`` keeps, under the dial, the part of its stride
that still fits below ``output_stride``; what was taken away before it becomes its atrous rate:

>>> dial = Dial(16)
>>> dial.place(16, 32)  # the layer that would leave output stride 16: its stride goes, its rate stays
Placement(stride=1, rate=1)
>>> dial.place(32, 32)  # the layers after it: rate 2
Placement(stride=1, rate=2)
>>> dial.multi_grid(32, (1, 2, 4))  # section 3.2.1
(2, 4, 8)
>>> Dial(8).aspp_rates((6, 12, 18))  # section 3.3: doubled at 8
(12, 24, 36)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

OUTPUT_STRIDES = (4, 8, 16, 32, 64, 128, 256)
"""Every output stride that the paper speaks of: Table 1, and 4 in appendix C."""

LONGEST_SIDE = 1 << 16
"""The most that a picture may be brought to before the network sees it, in pixels."""

ASPP_STRIDE = 16
"""ASPP rates are given for this output stride (section 3.3)."""


class Placement(NamedTuple):
    """What the dial decides for one layer: its stride and its atrous rate."""

    stride: int
    rate: int


@dataclass(frozen=True)
class Dial:
    """Strides and rates for one output stride.

    Args:
        output_stride: ratio of the size of the input to the size of the features, one of `OUTPUT_STRIDES`.

    Raises:
        ValueError: if `output_stride` is no such number.
    """

    output_stride: int

    def __post_init__(self) -> None:
        if isinstance(self.output_stride, bool) or self.output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride is {self.output_stride!r}, expected one of {_listed(OUTPUT_STRIDES)}")

    def rate(self, native: int) -> int:
        """Atrous rate of a layer whose input has native stride `native` (section 3.1)."""
        return max(1, native // self.output_stride)

    def place(self, native_in: int, native_out: int) -> Placement:
        """Stride and rate of a layer that, natively, takes a map from stride `native_in` to `native_out`."""
        stride = min(native_out, self.output_stride) // min(native_in, self.output_stride)
        return Placement(max(1, stride), self.rate(native_in))

    def multi_grid(self, native: int, unit_rates: Sequence[int]) -> tuple[int, ...]:
        """Rates in a block at native stride `native`: the block's rate times each unit rate (section 3.2.1)."""
        return tuple(self.rate(native) * unit for unit in unit_rates)

    def aspp_rates(self, rates: Sequence[int]) -> tuple[int, ...]:
        """ASPP rates, given at output stride 16, for this one: doubled at 8, halved at 32 (section 3.3).

        A half is rounded up and no rate falls below 1, which matters from output stride 64 on only.
        """
        return tuple(
            max(1, (2 * rate * ASPP_STRIDE + self.output_stride) // (2 * self.output_stride)) for rate in rates
        )


def check_reachable(output_stride: int, reachable: Collection[int], network: str) -> Dial:
    """The dial at `output_stride`, if `network` can reach it.

    Raises:
        ValueError: naming the network, the stride asked for and those that it can reach.
    """
    dial = Dial(output_stride)
    if output_stride not in reachable:
        raise ValueError(f"{network} cannot reach output_stride {output_stride}; it can reach {_listed(reachable)}")
    return dial


def check_unit_rates(unit_rates: Sequence[int], units: int, network: str) -> tuple[int, ...]:
    """`unit_rates` as a tuple, if there is one positive rate for each of `units` units.

    Raises:
        ValueError: naming the network, the rates and how many it needs.
    """
    rates = tuple(unit_rates)
    if len(rates) != units or any(not isinstance(rate, int) or rate < 1 for rate in rates):
        raise ValueError(f"multi_grid is {rates}, expected {units} whole numbers of at least 1 for {network}")
    return rates


def _listed(strides: Collection[int]) -> str:
    return ", ".join(map(str, sorted(strides)))
