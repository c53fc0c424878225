"""Winograd convolution: 3×3 filters of stride 1 with fewer products, exact to rounding (equation 1 in section 3.1).

Winograd (1980), and for networks Lavin and Gray (2016): ``m`` outputs of a filter with 3 taps need no more than
``m + 2`` products of sums of inputs with sums of weights, where the definition has ``3 m``. In two dimensions the
counts multiply: F(4×4, 3×3) has 36 products for 16 outputs in place of 144. An atrous convolution of rate ``r`` is the
same filter on each of ``r × r`` phases, every ``r``-th pixel, so the tiles of all phases lie side by side in the same
matrix products.

At large rates the phases are short, and what lies beside them is known to be zero (section 3.3, Figure 4). Three forms
make use of it: one pixel takes 1 product, two take 3 (Karatsuba), three take 5, with no number in them above 1.

    layer = Winograd(weight, bias, x.shape, rate)    # once
    y = layer(x)                                     # F.conv2d(x, weight, bias, padding=rate, dilation=rate)

The transformed weights take 1.8 to 4 times the memory of the weights. The products run in oneDNN, as a grouped 1×1
convolution with as many groups as there are products, in float32 or bfloat16.

**Rounding.** Inputs of one tile are added before they are multiplied, so the error of an output is that of the largest
input of its tile, not of its own sum: 1.3 to 3.6 times the direct form's where inputs are alike, but up to 1e-5 of
``sum |weights of a channel| * |its spike|`` beside a spike, however small the output itself. So the direct form runs
where a value of a map is above `PEAK` times their root mean square, or a weight above `RANGE` times their mean. In
bfloat16 each sum is float32 and rounded once; a layer's error is 2 to 6.5 times the direct form's, that of a network's
logits 1.02 to 1.05 times, for every map between two layers is rounded anyway.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops.conv_kernels.tap_gemm import has_amx, has_avx512_bf16, has_onednn, valid_share
from atrous.ops.trusted import Draw, trusted

TAPS = 3

CHANNELS = {torch.float32: 128, torch.bfloat16: 256}
"""With fewer channels in or out, the sums cost more than the products that they spare; in bfloat16, 128 gain little."""

SHARE = 0.7
"""Above this share of the products inside the map, sparing them is not worth the sums: at 0.67 they take 0.7 to 0.85 of
the time of the direct form, at 0.83 as long."""

TILES_OF_A_PRODUCT = 24
"""With fewer tiles, reading the transformed weights takes longer than the products that they spare."""

PEAK = 32
"""Largest value of a map over its root mean square; 5 or 6 where convolutional networks were looked at."""

RANGE = 300
"""Largest weight of a filter over the mean of their absolute values, above which sums of weights lose digits."""

CACHED_WEIGHTS = 1 << 20
"""Weights whose transformed form stays in the cache."""

BLOCK = 1 << 23
"""Elements of transformed inputs at once: with more, memory is fetched anew in each call (by measurement)."""

Number = int | Fraction

Matrix = Sequence[Sequence[Number]]


class Form(NamedTuple):
    """A filter ``w`` of 3 taps along one direction: ``y = outputs · ((weights · w) ∘ (inputs · x))``.

    The matrices are m,p and p,3 and p,n, for `p` products, `m` outputs and `n` inputs.
    """

    outputs: Matrix
    weights: Matrix
    inputs: Matrix

    @property
    def length(self) -> int:
        """How many outputs."""
        return len(self.outputs)

    @property
    def products(self) -> int:
        """How many."""
        return len(self.weights)

    @property
    def before(self) -> int:
        """Inputs before the first output: one, or none where it is known to be zero."""
        return (len(self.inputs[0]) - self.length) // 2


def toom_cook(points: Sequence[Number]) -> Form:
    """F(m, 3) from ``m + 1`` points and infinity, at which polynomials of m and 3 coefficients are multiplied.

    The filter is the transpose of that product.
    """
    values, m = [Fraction(point) for point in points], len(points) - 1
    others = [[b for b in values if b != a] for a in values]
    powers = [[_power(a, k) for k in range(max(m, TAPS))] for a in values]
    scales = [math.prod((a - b for b in rest), start=Fraction(1)) for a, rest in zip(values, others, strict=True)]
    weights = [[power / scale for power in row[:TAPS]] for row, scale in zip(powers, scales, strict=True)]
    infinity = [Fraction(k == TAPS - 1) for k in range(TAPS)]
    return Form(
        outputs=[[*(row[j] for row in powers), Fraction(j == m - 1)] for j in range(m)],
        weights=[*weights, infinity],
        inputs=[*([*_with_roots(rest), Fraction(0)] for rest in others), _with_roots(values)],
    )


def _power(base: Fraction, exponent: int) -> Fraction:
    return math.prod([base] * exponent, start=Fraction(1))


def _with_roots(roots: Iterable[Fraction]) -> list[Fraction]:
    """Coefficients of the polynomial with these roots, from the constant up."""
    coefficients = [Fraction(1)]
    for root in roots:
        raised, same = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
        coefficients = [a - root * b for a, b in zip(raised, same, strict=True)]
    return coefficients


HALF, THIRD, QUARTER = Fraction(1, 2), Fraction(1, 3), Fraction(1, 4)

TILES = (toom_cook((0, 1, -2, -HALF)), toom_cook((0, 3 * HALF, -3 * HALF, 2 * THIRD, -2 * THIRD)))
"""F(3, 3) and F(4, 3). The points are those with the least rounding error among small fractions: in two dimensions
about 4 and 5.5 times that of the definition; with the usual ±1 and ±2 it is 6.5 and 12 times. In bfloat16 F(3, 3)
alone runs, whose factors have no more than 8 binary digits, in two dimensions, too."""

ONE = Form([[1]], [[0, 1, 0]], [[1]])
"""A phase of one pixel: the centre tap."""

TWO = Form([[1, 1, 0], [1, 0, 1]], [[0, 1, 0], [0, -1, 1], [1, -1, 0]], [[1, 1], [0, 1], [1, 0]])
"""A phase of two pixels: Karatsuba's product."""

THREE = Form(
    outputs=[[1, 1, 1, -1, 0], [1, -1, -1, -1, 1], [1, 1, -1, 1, 0]],
    weights=[
        [QUARTER, QUARTER, QUARTER],
        [-QUARTER, QUARTER, -QUARTER],
        [0, HALF, 0],
        [HALF, 0, -HALF],
        [HALF, HALF, -HALF],
    ],
    inputs=[[1, 1, 1], [1, -1, 1], [1, 0, -1], [0, 1, 0], [1, 1, -1]],
)
"""A phase of three pixels: their cyclic product of length 4, in whose fourth number the two meet that nobody wants."""


# Geometry -----------------------------------------------------------------------------------------------------------


class Strip(NamedTuple):
    """Tiles of one form along one direction: the places that each reads and those that it gives; -1 is outside."""

    form: Form
    inputs: list[list[int]]
    outputs: list[list[int]]


@functools.cache
def strips(length: int, rate: int, dtype: torch.dtype = torch.float32) -> list[Strip]:
    """A direction of `length` pixels at an atrous rate, in the way with the fewest products."""
    phases = [list(range(first, length, rate)) for first in range(min(length, rate))]
    longest = len(phases[0])
    if longest <= 2:
        return [_strip(form, those) for form in (TWO, ONE) if (those := [p for p in phases if len(p) == form.length])]
    tiles = TILES if dtype == torch.float32 else TILES[:1]
    ways = [_strip(form, phases) for form in ([THREE] if longest == 3 else tiles)]
    return [min(ways, key=_count)]


def _strip(form: Form, phases: list[list[int]]) -> Strip:
    starts = [(phase, first) for phase in phases for first in range(0, len(phase), form.length)]

    def places(count: int, before: int) -> list[list[int]]:
        return [[_at(phase, first - before + i) for i in range(count)] for phase, first in starts]

    return Strip(form, places(len(form.inputs[0]), form.before), places(form.length, 0))


def _at(phase: list[int], index: int) -> int:
    return phase[index] if 0 <= index < len(phase) else -1


def _count(strip: Strip) -> int:
    return strip.form.products * len(strip.outputs)


def share(height: int, width: int, rate: int, dtype: torch.dtype = torch.float32) -> float:
    """Products of the best forms over those of the definition inside the map."""
    products = math.prod(sum(map(_count, strips(length, rate, dtype))) for length in (height, width))
    return products / (valid_share(height, width, TAPS, rate) * height * width * TAPS**2)


def gains(x: Tensor, weight: Tensor, rate: int) -> bool:
    """Whether this is faster than the direct form for a convolution of a map, B,C,H,W: a rule, from measurements."""
    if x.dtype not in CHANNELS or min(weight.shape[:2]) < CHANNELS[x.dtype]:
        return False
    _, _, height, width = x.shape
    tiles = [sum(len(strip.outputs) for strip in strips(length, rate, x.dtype)) for length in (height, width)]
    enough = x.shape[0] * tiles[0] * tiles[1] >= TILES_OF_A_PRODUCT or weight.numel() <= CACHED_WEIGHTS
    return enough and share(height, width, rate, x.dtype) <= SHARE


def is_tame(x: Tensor) -> bool:
    """Whether all values of a map are finite, and none is more than `PEAK` times their root mean square."""
    values = x.permute(0, 2, 3, 1).reshape(-1)
    low, high = torch.aminmax(values)
    peak = max(-float(low), float(high))
    norm = float(torch.linalg.vector_norm(values))
    return math.isfinite(peak) and math.isfinite(norm) and peak <= PEAK * norm / math.sqrt(len(values))


def has_tame_weights(weight: Tensor) -> bool:
    """Whether all weights are finite, and none is more than `RANGE` times the mean of its filter."""
    filters = weight.detach().abs().flatten(1)
    largest = filters.amax(1)
    return bool((largest.isfinite() & (largest <= RANGE * filters.mean(1))).all())


def works(dtype: torch.dtype = torch.float32) -> bool:
    """Whether the operators that it is made of are there, and give what the convolution gives, on a small case.

    In bfloat16 where AVX512-BF16 multiplies it. With AMX the sums would take longer than the products (not measured).
    """
    if not has_onednn("_convolution_pointwise", "_reorder_convolution_weight"):
        return False
    if dtype == torch.bfloat16 and (has_amx() or not has_avx512_bf16()):
        return False
    return trusted("Winograd convolution", _trial, torch.device("cpu"), dtype)


def _trial(draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    x, weight, bias = draw(1, 16, 9, 11), draw(32, 16, 3, 3, scale=0.1), draw(32)
    for rate in (1, 3, 7):
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=rate, dilation=rate)
        yield Winograd(weight, bias, x.shape, rate)(x), exact


# Layer --------------------------------------------------------------------------------------------------------------


class Sums:
    """Weighted sums of the rows of a matrix, as PyTorch's bags of embeddings: all in one pass over the memory.

    Args:
        row: of the result, for every term.
        column: the row of the matrix that is read.
        factor: what it is multiplied by.
        count: rows of the result.
        dtype: of matrix and result; bfloat16 is summed in float32.
    """

    def __init__(self, row: Tensor, column: Tensor, factor: Tensor, count: int, dtype: torch.dtype) -> None:
        row, order = row.sort(stable=True)
        self.indices, self.factors = column[order].int(), factor[order].to(dtype)
        sizes = torch.bincount(row, minlength=count)
        self.offsets = (sizes.cumsum(0) - sizes).int()

    def __call__(self, matrix: Tensor) -> Tensor:
        """Rows, C to the sums, C."""
        sums: Tensor = F.embedding_bag(self.indices, matrix, self.offsets, mode="sum", per_sample_weights=self.factors)
        return sums


class Region:
    """The tiles of one form in each direction, and the weights transformed for it.

    Args:
        weight: K,C,3,3 float32 or bfloat16.
        rows: along the height.
        columns: along the width.
        shape: B,C,H,W of the map.
    """

    def __init__(self, weight: Tensor, rows: Strip, columns: Strip, shape: torch.Size) -> None:
        channels, self.products = shape[1], rows.form.products * columns.form.products
        tiles = shape[0] * len(rows.inputs) * len(columns.inputs)
        blocks = -(-tiles * self.products * channels // BLOCK)
        each = -(-tiles // blocks) * self.products  # the last block may end in tiles of nothing
        number, pixel, factor = _terms(rows, columns, "inputs", shape)
        parts = [number.div(each, rounding_mode="floor") == block for block in range(blocks)]
        self.sums = [Sums(number[part] % each, pixel[part], factor[part], each, weight.dtype) for part in parts]
        both = torch.kron(_matrix(rows.form.weights), _matrix(columns.form.weights))
        transformed = (both @ weight.double().flatten(2).permute(2, 0, 1).flatten(1)).to(weight.dtype)
        size = [1, self.products * channels, each // self.products, 1]
        self.weight = _laid_out(transformed.view(-1, channels, 1, 1), self.products, size)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Pixels of the maps, B·H·W,C, to the products of every tile, K channels each, in blocks."""
        return [self._multiplied(sums(pixels)) for sums in self.sums]

    def _multiplied(self, sums: Tensor) -> Tensor:
        beside = sums.view(1, -1, 1, self.products * sums.shape[1]).permute(0, 3, 1, 2)
        return _multiplied(beside, self.weight, self.products).permute(0, 2, 3, 1).reshape(len(sums), -1)


_GEOMETRY = ((0, 0), (1, 1), (1, 1))


def _laid_out(weight: Tensor, groups: int, size: list[int]) -> Tensor:
    """The weights of a grouped 1×1 convolution as oneDNN wants them for a map of a size."""
    layout: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *_GEOMETRY, groups, size)
    return layout


def _multiplied(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """That convolution."""
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, None, *_GEOMETRY, groups, "none", [], "")
    return y


class Winograd:
    """A convolution of 3×3 taps, stride 1 and one group, its weights transformed for maps of one shape.

    Args:
        weight: K,C,3,3 float32 or bfloat16 on the CPU.
        bias: K, or None.
        shape: B,C,H,W of the map.
        rate: atrous rate; the padding is the same.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, shape: torch.Size, rate: int) -> None:
        self.shape, self.bias = shape, bias
        pairs = list(itertools.product(*(strips(length, rate, weight.dtype) for length in shape[2:])))
        self.regions = [Region(weight, rows, columns, shape) for rows, columns in pairs]
        sizes = [sum(len(sums.offsets) for sums in region.sums) for region in self.regions]
        firsts = itertools.accumulate(sizes, initial=0)
        terms = [_terms(rows, columns, "outputs", shape) for rows, columns in pairs]
        number = torch.cat([numbers + first for (numbers, _, _), first in zip(terms, firsts, strict=False)])
        pixel, factor = (torch.cat([term[i] for term in terms]) for i in (1, 2))
        self.outputs = Sums(pixel, number, factor, shape[0] * shape[2] * shape[3], weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """B,C,H,W of that shape to B,K,H,W, channels last."""
        batch, channels, height, width = self.shape
        pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
        products = [part for region in self.regions for part in region(pixels)]
        y = self.outputs(products[0] if len(products) == 1 else torch.cat(products))
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _matrix(numbers: Matrix) -> Tensor:
    return torch.tensor([[float(number) for number in row] for row in numbers], dtype=torch.float64, device="cpu")


def _terms(rows: Strip, columns: Strip, side: str, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """What connects pixels and products: the number of the product, tile by tile, that of the pixel, and the factor."""
    (tile_y, product_y, y, factor_y), (tile_x, product_x, x, factor_x) = (
        _along(strip, side) for strip in (rows, columns)
    )
    tile = tile_y[:, None] * len(columns.inputs) + tile_x
    product = product_y[:, None] * columns.form.products + product_x
    products = rows.form.products * columns.form.products
    number, pixel = tile * products + product, y[:, None] * shape[3] + x
    image = torch.arange(shape[0], device="cpu")[:, None, None]
    number = image * (len(rows.inputs) * len(columns.inputs) * products) + number
    pixel = image * (shape[2] * shape[3]) + pixel
    factor = (factor_y[:, None] * factor_x).expand_as(pixel)
    return number.flatten(), pixel.flatten(), factor.flatten()


def _along(strip: Strip, side: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same in one direction, with the tile and the product in it apart; terms of 0 left out."""
    places = torch.tensor(getattr(strip, side), device="cpu")
    matrix = _matrix(getattr(strip.form, side))
    factors = matrix if side == "inputs" else matrix.t()
    tile, product, i = ((places >= 0)[:, None] & (factors != 0)).nonzero().unbind(1)
    return tile, product, places[tile, i], factors[product, i]
