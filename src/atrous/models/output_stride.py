"""The one dial: everything that the paper derives from ``output_stride`` (sections 3.1, 3.2, 3.2.1 and 3.3).

The *native* stride of a map is the one that it has without any atrous convolution. Of a layer's own stride remains what
does not exceed ``output_stride``; the stride that was removed before the layer becomes its atrous rate (section 3.1):

>>> dial = Dial(16)
>>> dial.stride_and_rate(16, 32)  # the layer that would exceed output stride 16: stride 1, rate as before
StrideAndRate(stride=1, rate=1)
>>> dial.stride_and_rate(32, 32)  # the layers after it: rate 2
StrideAndRate(stride=1, rate=2)
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
"""Those of the paper: 8 to 256 in Table 1, 4 in appendix C."""

LONGEST_SIDE = 1 << 16
"""Limit of a model's `longest_side`, in pixels."""

ASPP_STRIDE = 16
"""The output stride that ASPP rates are given at (section 3.3)."""


class StrideAndRate(NamedTuple):
    """Stride and atrous rate of one layer."""

    stride: int
    rate: int


@dataclass(frozen=True)
class Dial:
    """Strides and rates for one output stride.

    Args:
        output_stride: ratio of image resolution to feature resolution, one of `OUTPUT_STRIDES`.

    Raises:
        ValueError: if `output_stride` is none of them.
    """

    output_stride: int

    def __post_init__(self) -> None:
        if isinstance(self.output_stride, bool | float) or self.output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride is {self.output_stride!r}, expected one of {_listed(OUTPUT_STRIDES)}")

    def rate(self, native: int) -> int:
        """Atrous rate of a layer whose input has native stride `native` (section 3.1)."""
        return max(1, native // self.output_stride)

    def stride_and_rate(self, native_in: int, native_out: int) -> StrideAndRate:
        """Of a layer that reads a map of native stride `native_in` and writes one of `native_out`."""
        stride = min(native_out, self.output_stride) // min(native_in, self.output_stride)
        return StrideAndRate(max(1, stride), self.rate(native_in))

    def multi_grid(self, native: int, unit_rates: Sequence[int]) -> tuple[int, ...]:
        """Rates in a block at native stride `native`: the block's rate times each unit rate (section 3.2.1)."""
        return tuple(self.rate(native) * unit for unit in unit_rates)

    def aspp_rates(self, rates: Sequence[int]) -> tuple[int, ...]:
        """ASPP rates, given at output stride 16, for this one: doubled at 8, halved at 32 (section 3.3).

        A half is rounded up, and no rate is below 1; both matter from output stride 64 on only.
        """
        return tuple(
            max(1, (2 * rate * ASPP_STRIDE + self.output_stride) // (2 * self.output_stride)) for rate in rates
        )


def check_reachable(output_stride: int, reachable: Collection[int], network: str) -> Dial:
    """The dial at `output_stride`, if `network` has it among its `reachable` ones.

    Raises:
        ValueError: naming the network, the stride asked for and those that it can reach.
    """
    dial = Dial(output_stride)
    if output_stride not in reachable:
        others = (
            f"it can reach {_listed(reachable)}" if reachable else "its features are on no grid; choose another network"
        )
        raise ValueError(f"{network} cannot reach output_stride {output_stride}; {others}")
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
