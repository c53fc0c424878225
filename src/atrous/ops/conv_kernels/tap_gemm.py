"""Atrous convolution as matrix products, exact to rounding (equation 1 in section 3.1).

A channels-last map is a matrix of pixels by channels, and every tap of a filter is a matrix of filters by channels. Two
forms of the passes, beside the library's:

- ``window``: a product for each tap over the pixels that it sees inside the map, and no others (section 3.3, Figure 4:
  at rate 36 on 65×65 only 40% of the taps fall inside);
- ``tap_gemm``: for the forward pass, one product for all taps of all branches, then shifted sums.

All functions of a pass take the map B,C,H,W, the gradients of the outputs B,K,H,W (unused in the forward pass), the
weights K,C,h,w and their rates, and give a list in the dtype and memory order of the map or the weights.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CAPABILITY = torch.backends.cpu.get_cpu_capability()
"""The vector instructions that PyTorch uses here: AVX2, AVX512, or something that is not of x86."""

BLOCK = 1 << 24
"""Elements of the intermediate of ``tap_gemm``: a block of rows is as high as this allows, and at least one row."""


Pass = Callable[[Tensor, list[Tensor], list[Tensor], list[int]], list[Tensor]]


# Geometry -----------------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """Outputs that a tap reaches from inside the map, along one direction, and the inputs that it reads for them."""

    tap: int
    outputs: slice
    inputs: slice


def spans(length: int, side: int, rate: int) -> list[Span]:
    """The taps of a filter with `side` taps that fall inside of `length` values anywhere; the others are left out."""
    shifts = ((tap, rate * (tap - side // 2)) for tap in range(side))
    return [
        Span(tap, slice(max(0, -shift), min(length, length - shift)), slice(max(0, shift), min(length, length + shift)))
        for tap, shift in shifts
        if abs(shift) < length
    ]


def bands(length: int, side: int, rate: int) -> Iterator[tuple[slice, slice]]:
    """Stretches of inputs that the same taps read, and these taps, which follow each other."""
    taps = spans(length, side, rate)
    cuts = sorted({end for span in taps for end in (span.inputs.start, span.inputs.stop)})
    for start, stop in zip(cuts, cuts[1:], strict=False):
        inside = [span.tap for span in taps if span.inputs.start <= start and stop <= span.inputs.stop]
        yield slice(start, stop), slice(inside[0], inside[-1] + 1)


def valid_share(height: int, width: int, side: int, rate: int) -> float:
    """The share of a square filter's products that fall inside the map (section 3.3, Figure 4)."""
    inside = [sum(s.outputs.stop - s.outputs.start for s in spans(n, side, rate)) for n in (height, width)]
    return float(inside[0] * inside[1]) / (height * width * side * side)


# Products -----------------------------------------------------------------------------------------------------------


def _product(a: Tensor, b: Tensor) -> Tensor:
    """M,R by N,R to M,N: `a` times the transpose of `b`.

    In float32 by oneDNN, which took 0.47 to 0.59 of the BLAS's time on an AMD EPYC with AVX-512 (MKL holds back there)
    and 0.89 to 1.05 with AVX2.
    """
    if a.dtype == torch.float32 and a.device.type == "cpu" and has_onednn("_linear_pointwise"):
        # Rows that are not next to each other send oneDNN to its reference loops, a thousand times slower.
        if not (b.is_contiguous() or b.t().is_contiguous()):
            b = b.contiguous()
        y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return y
    return a @ b.t()


def has_onednn(*operators: str) -> bool:
    """Whether this is an x86 processor with oneDNN, switched on, and with operators of it that have no public name."""
    mkldnn = torch.backends.mkldnn
    on = bool(mkldnn.is_available() and mkldnn.enabled)
    return on and CAPABILITY.startswith("AVX") and _has_operators(operators)


@functools.cache
def has_avx512_bf16() -> bool:
    """Whether the processor multiplies pairs of bfloat16, at up to twice the throughput of float32."""
    return _says("_is_avx512_bf16_supported")


@functools.cache
def has_amx() -> bool:
    """Whether it multiplies tiles of bfloat16, at 8 to 16 times the throughput of float32."""
    return _says("_is_amx_tile_supported")


def gains_by_bfloat16() -> bool:
    """Whether networks are faster in bfloat16 than in float32.

    They are with AMX, and with the AVX512-BF16 of an AMD. Intel's takes 1.1 to 1.6 times as long as float32.
    """
    return has_amx() or (has_avx512_bf16() and not is_intel())


@functools.cache
def is_intel() -> bool:
    """Whether Intel made the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return "GenuineIntel" in file.read(4096)
    except OSError:  # another system than Linux
        return "GenuineIntel" in platform.processor()


def _says(probe: str) -> bool:
    supported = getattr(torch.cpu, probe, None)
    return bool(supported and supported())


@functools.cache
def _has_operators(operators: tuple[str, ...]) -> bool:
    return all(hasattr(torch.ops.mkldnn, operator) for operator in operators)


def sum_dtype(x: Tensor) -> torch.dtype:
    """That of `x`, but float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def order(x: Tensor) -> torch.memory_format:
    """Channels-last where it is that and nothing else; contiguous otherwise."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def finish(y: Tensor, like: Tensor) -> Tensor:
    """`y` in the dtype and memory order of `like`.

    A side of 1 may have any stride, which is harmless but in a batch of one: PyTorch takes such maps for contiguous,
    and joins them in that order.
    """
    y = y.to(like.dtype).contiguous(memory_format=order(like))
    if order(like) is torch.channels_last and y.shape[0] == 1 and y.stride(0) != y.numel():
        y = y.as_strided(y.shape, (y.numel(), *y.stride()[1:]))
    return y


def _rows_first(x: Tensor, columns: slice) -> Tensor:
    """B,C,H,W to contiguous H,B,w,C: rows that follow each other are then one matrix, in any batch."""
    return x[..., columns].permute(2, 0, 3, 1).contiguous()


# Library ------------------------------------------------------------------------------------------------------------


def _padding(weight: Tensor, rate: int) -> list[int]:
    return [rate * (weight.shape[2] // 2), rate * (weight.shape[3] // 2)]


def library_forward(x: Tensor, _: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """What PyTorch does."""
    return [
        F.conv2d(x, weight, padding=_padding(weight, rate), dilation=rate, groups=x.shape[1] // weight.shape[1])
        for weight, rate in zip(weights, rates, strict=True)
    ]


def _library_gradients(
    x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int], mask: list[bool]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    backward = torch.ops.aten.convolution_backward.default
    return [
        backward(g, x, w, None, [1, 1], _padding(w, rate), [rate, rate], False, [0, 0], x.shape[1] // w.shape[1], mask)
        for g, w, rate in zip(gradients, weights, rates, strict=True)
    ]


def library_input(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """What PyTorch does; the branches' gradients added."""
    terms = [each[0] for each in _library_gradients(x, gradients, weights, rates, [True, False, False])]
    return [functools.reduce(torch.add, terms)]


def library_weight(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """What PyTorch does."""
    return [each[1] for each in _library_gradients(x, gradients, weights, rates, [False, True, False])]


# Window -------------------------------------------------------------------------------------------------------------


def window_forward(x: Tensor, _: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """A product for each tap over the pixels that it sees inside the map, and their sum in float32."""
    return [finish(_window_sum(x, weight, rate), x) for weight, rate in zip(weights, rates, strict=True)]


def _window_sum(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    """One branch: for each column of taps its window of the map, for each tap in it a product and a sum."""
    batch, channels, height, width = x.shape
    filters, _, rows, columns = weight.shape
    y = x.new_zeros(height, batch, width, filters, dtype=sum_dtype(x))
    for column in spans(width, columns, rate):
        window = _rows_first(x, column.inputs)
        for row in spans(height, rows, rate):
            part = _product(window[row.inputs].view(-1, channels), weight[:, :, row.tap, column.tap])
            y[row.outputs, :, column.outputs] += part.view(-1, *window.shape[1:3], filters)
    return y.permute(1, 3, 0, 2)


def window_input(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """A product for each rectangle of the map that the same taps read, over these taps and no others."""
    batch, channels, height, width = x.shape
    # One branch writes every pixel once; the sum over several is rounded once.
    dtype = x.dtype if len(weights) == 1 else sum_dtype(x)
    total = x.new_zeros(batch, height, width, channels, dtype=dtype)
    for gradient, weight, rate in zip(gradients, weights, rates, strict=True):
        _add_window_input(total, gradient, weight, rate)
    return [finish(total.permute(0, 3, 1, 2), x)]


def _add_window_input(total: Tensor, gradient: Tensor, weight: Tensor, rate: int) -> None:
    """One branch: the map falls into rectangles that the same taps read, and each takes one product."""
    g, (_, channels, rows, columns) = gradient.permute(0, 2, 3, 1), weight.shape
    height, width = total.shape[1:3]
    taps = weight.permute(2, 3, 0, 1)
    for inputs_y, taps_y in bands(height, rows, rate):
        for inputs_x, taps_x in bands(width, columns, rate):
            patches = [
                g[:, _moved(inputs_y, rate * (rows // 2 - i)), _moved(inputs_x, rate * (columns // 2 - j))]
                for i in range(taps_y.start, taps_y.stop)
                for j in range(taps_x.start, taps_x.stop)
            ]
            matrix = taps[taps_y, taps_x].reshape(-1, channels)
            area = total[:, inputs_y, inputs_x]
            area += _product(torch.cat(patches, -1).flatten(0, 2), matrix.t()).view(area.shape)


def _moved(stretch: slice, by: int) -> slice:
    return slice(stretch.start + by, stretch.stop + by)


def window_weight(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """A product for each tap over the pixels that it sees inside the map."""
    return [
        finish(_window_correlation(x, gradient, weight, rate), weight)
        for gradient, weight, rate in zip(gradients, weights, rates, strict=True)
    ]


def _window_correlation(x: Tensor, gradient: Tensor, weight: Tensor, rate: int) -> Tensor:
    (filters, channels, rows, columns), (height, width) = weight.shape, x.shape[2:]
    sums = x.new_zeros(filters, rows, columns, channels)
    for column in spans(width, columns, rate):
        window, g = _rows_first(x, column.inputs), _rows_first(gradient, column.outputs)
        for row in spans(height, rows, rate):
            read, given = window[row.inputs].view(-1, channels), g[row.outputs].view(-1, filters)
            sums[:, row.tap, column.tap] = _product(given.t(), read.t())
    return sums.permute(0, 3, 1, 2)


# Tap GEMM ---------------------------------------------------------------------------------------------------------


class _Taps:
    """The taps of all branches that fall inside the map anywhere, as rows of one matrix."""

    def __init__(self, x: Tensor, weights: list[Tensor], rates: list[int]) -> None:
        self.height, self.width = x.shape[2:]
        self.places = [
            (branch, row, column)
            for branch, (weight, rate) in enumerate(zip(weights, rates, strict=True))
            for row in spans(self.height, weight.shape[2], rate)
            for column in spans(self.width, weight.shape[3], rate)
        ]
        self.filters = [len(weights[branch]) for branch, _, _ in self.places]
        self.weights = weights

    def matrix(self) -> Tensor:
        """Taps times filters, channels."""
        return torch.cat([self.weights[branch][:, :, row.tap, column.tap] for branch, row, column in self.places])

    def blocks(self, batch: int) -> Iterator[tuple[slice, slice]]:
        """Images and rows that fit in `BLOCK` at once."""
        line = self.width * sum(self.filters)
        rows = min(self.height, max(1, BLOCK // line))
        images = max(1, BLOCK // (line * rows)) if rows == self.height else 1
        for first in range(0, batch, images):
            for top in range(0, self.height, rows):
                yield slice(first, min(first + images, batch)), slice(top, min(top + rows, self.height))


def _overlap(inputs: slice, outputs: slice, rows: slice) -> tuple[slice, slice]:
    """The part of `inputs` in `rows`, and of the `outputs` that belong to them."""
    start = max(inputs.start, rows.start)
    part = slice(start, max(start, min(inputs.stop, rows.stop)))
    return part, _moved(part, outputs.start - inputs.start)


def tap_gemm_forward(x: Tensor, _: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
    """One product of a block of rows with all taps of all branches, then shifted sums in float32."""
    batch, channels, height, width = x.shape
    taps, pixels = _Taps(x, weights, rates), x.permute(0, 2, 3, 1)
    matrix = taps.matrix()
    sums = [x.new_zeros(batch, height, width, len(weight), dtype=sum_dtype(x)) for weight in weights]
    for images, rows in taps.blocks(batch):
        part = _product(pixels[images, rows].reshape(-1, channels), matrix)
        part = part.view(-1, rows.stop - rows.start, width, len(matrix))
        for (branch, row, column), values in zip(taps.places, torch.split(part, taps.filters, -1), strict=True):
            inputs, outputs = _overlap(row.inputs, row.outputs, rows)
            sums[branch][images, outputs, column.outputs] += values[:, _moved(inputs, -rows.start), column.inputs]
    return [finish(y.permute(0, 3, 1, 2), x) for y in sums]


LIBRARY: dict[str, Pass] = {"forward": library_forward, "input": library_input, "weight": library_weight}
WINDOW: dict[str, Pass] = {"forward": window_forward, "input": window_input, "weight": window_weight}
TAP_GEMM: dict[str, Pass] = {**WINDOW, "forward": tap_gemm_forward}
