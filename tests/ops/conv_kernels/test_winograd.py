"""Winograd: exact forms, every size and rate, and an error that stays near that of the convolution."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrous.ops import packed_conv, trusted
from atrous.ops.conv_kernels import winograd
from atrous.ops.conv_kernels.winograd import ONE, THREE, TILES, TWO, Form, Winograd, strips
from atrous.ops.packed_conv import PackedConv2d

works = pytest.mark.skipif(not winograd.works(), reason="oneDNN's operators cannot be had here")


@pytest.fixture(autouse=True)
def sound() -> None:
    """No test before has left the note that its image or weights were not finite."""
    packed_conv._current.plain = False


FACTOR = 8
"""Times the error of the convolution itself that is allowed: `winograd.TILES` says 5.5, bfloat16 has up to 6.5."""


@pytest.mark.parametrize("form", [*TILES, ONE, TWO, THREE])
def test_a_form_is_the_filter_in_exact_arithmetic(form: Form) -> None:
    inputs = len(form.inputs[0])
    for place, tap, output in itertools.product(range(inputs), range(3), range(form.length)):
        terms = (
            Fraction(form.outputs[output][p]) * Fraction(form.weights[p][tap]) * Fraction(form.inputs[p][place])
            for p in range(form.products)
        )
        assert sum(terms) == (place - form.before == output + tap - 1)
    assert form.products == {1: 1, 2: 3, 3: 5, 4: 6}[form.length]


@pytest.mark.parametrize("points", [(0, 1), (0, 1, -1, 2, -2, 3)])
def test_other_points_make_forms_too(points: tuple[int, ...]) -> None:
    test_form = winograd.toom_cook(points)
    for place, tap, output in itertools.product(range(len(points) + 1), range(3), range(len(points) - 1)):
        terms = zip(test_form.outputs[output], test_form.weights, test_form.inputs, strict=True)
        assert sum(a * g[tap] * b[place] for a, g, b in terms) == (place == output + tap)


@pytest.mark.parametrize(("length", "rate"), [(1, 1), (2, 1), (33, 1), (33, 2), (33, 6), (33, 12), (33, 18), (5, 40)])
def test_every_place_is_written_once_from_its_own_phase(length: int, rate: int) -> None:
    written = []
    for strip in strips(length, rate):
        for read, gives in zip(strip.inputs, strip.outputs, strict=True):
            phases = {place % rate for place in (*read, *gives) if place >= 0}
            assert len(phases) == 1
            written += [place for place in gives if place >= 0]
    assert sorted(written) == list(range(length))


def test_the_number_of_products() -> None:
    # 17 and 16 pixels a phase in 9 tiles of four; 12 phases of three; 9 phases of two and 15 of one.
    counts = {rate: sum(map(winograd._count, strips(33, rate))) for rate in (2, 12, 24, 33)}
    assert counts == {2: 9 * 6, 12: 12 * 5, 24: 9 * 3 + 15, 33: 33}
    assert winograd.share(33, 33, 33) == 1


def draw(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def errors(x: Tensor, weight: Tensor, bias: Tensor | None, rate: int) -> tuple[float, float]:
    """Of the form and of the convolution, root of the mean square."""
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=rate, dilation=rate)
    layer = Winograd(weight, bias, x.shape, rate)
    actual, usual = layer(x), F.conv2d(x, weight, bias, padding=rate, dilation=rate)
    assert actual.shape == exact.shape and actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(actual, layer(x)), "the same again"
    return tuple(float((y - exact).square().mean().sqrt()) for y in (actual, usual))  # type: ignore[return-value]


@works
@pytest.mark.parametrize("rate", [1, 2, 4, 6, 12, 18, 40])
@pytest.mark.parametrize("size", [(33, 33), (24, 17), (1, 1), (3, 40)])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_the_convolution(batch: int, size: tuple[int, int], rate: int) -> None:
    torch.manual_seed(rate)
    x, weight, bias = draw(batch, 64, *size), torch.randn(48, 64, 3, 3) / 24, torch.randn(48)
    actual, usual = errors(x, weight, bias, rate)
    # A single pixel has hardly any rounding; a unit in the last place of numbers near 1 is let pass.
    assert actual <= FACTOR * usual + 1e-7


@works
@pytest.mark.parametrize("tile", TILES)
def test_the_error_of_each_tile(monkeypatch: pytest.MonkeyPatch, tile: Form) -> None:
    monkeypatch.setattr(winograd, "TILES", (tile,))
    strips.cache_clear()
    torch.manual_seed(tile.length)
    try:
        actual, usual = errors(draw(1, 128, 21, 22).relu(), torch.randn(32, 128, 3, 3) / 34, None, 2)
    finally:
        monkeypatch.undo()
        strips.cache_clear()
    assert actual <= {3: 6, 4: FACTOR}[tile.length] * usual


@works
def test_blocks_of_tiles_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(2, 16, 21, 13), torch.randn(32, 16, 3, 3) / 12
    whole = Winograd(weight, None, x.shape, 2)
    monkeypatch.setattr(winograd, "BLOCK", whole.regions[0].products * 16 * 7)
    parts = Winograd(weight, None, x.shape, 2)
    assert len(parts.regions[0].sums) > 3
    torch.testing.assert_close(parts(x), whole(x), rtol=1e-5, atol=1e-5)


# In bfloat16 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor does not multiply bfloat16: its products, summed in float32 and rounded once."""
    if not winograd.works(torch.bfloat16):
        monkeypatch.setattr(winograd, "_laid_out", lambda weight, *_: weight)
        monkeypatch.setattr(
            winograd, "_multiplied", lambda x, w, groups: F.conv2d(x.float(), w.float(), groups=groups).bfloat16()
        )


@pytest.mark.parametrize("form", [TILES[0], ONE, TWO, THREE])
def test_the_factors_of_sums_are_exact_in_bfloat16(form: Form) -> None:
    for matrix in (form.inputs, form.outputs):
        numbers = winograd._matrix(matrix)
        factors = torch.kron(numbers, numbers)
        assert torch.equal(factors.bfloat16().double(), factors)


@pytest.mark.parametrize("rate", [1, 2, 6, 12, 18, 40])
@pytest.mark.parametrize("size", [(33, 33), (24, 17), (1, 1)])
def test_in_bfloat16_it_is_the_convolution(products: None, size: tuple[int, int], rate: int) -> None:
    torch.manual_seed(rate)
    x, weight, bias = draw(2, 64, *size).bfloat16(), (torch.randn(48, 64, 3, 3) / 24).bfloat16(), torch.randn(48)
    exact = F.conv2d(x.double(), weight.double(), bias.bfloat16().double(), padding=rate, dilation=rate)
    layer = Winograd(weight, bias.bfloat16(), x.shape, rate)
    actual = layer(x)
    assert actual.dtype == torch.bfloat16 and actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(actual, layer(x)), "the same again"
    error, rounding = (float((y.double() - exact).square().mean().sqrt()) for y in (actual, exact.bfloat16()))
    assert error <= FACTOR * rounding


@pytest.mark.parametrize(("amx", "pairs"), [(True, True), (False, False)])
def test_in_bfloat16_it_needs_avx512_bf16_without_amx(monkeypatch: pytest.MonkeyPatch, amx: bool, pairs: bool) -> None:
    monkeypatch.setattr(winograd, "has_amx", lambda: amx)
    monkeypatch.setattr(winograd, "has_avx512_bf16", lambda: pairs)
    assert not winograd.works(torch.bfloat16)


@pytest.mark.skipif(not winograd.works(torch.bfloat16), reason="this processor does not multiply bfloat16, or has AMX")
def test_a_layer_in_bfloat16() -> None:
    torch.manual_seed(0)
    conv, x = layer(2, 256).bfloat16(), draw(1, 256, 33, 33).bfloat16()
    conv.activation = nn.Identity()
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=2, dilation=2)
    with torch.inference_mode():
        conv(x)
        assert kind(conv) is Winograd
        assert float((conv(x).double() - exact).abs().max() / exact.abs().max()) < trusted.TOLERANCE[torch.bfloat16]
        x[0, 3, 10, 10] = torch.nan
        assert torch.equal(
            conv(x).isfinite(), F.conv2d(x.float(), conv.weight.float(), padding=2, dilation=2).isfinite()
        )


# In the layer -------------------------------------------------------------------------------------------------------


def layer(rate: int, channels: int = 128, **options: int) -> PackedConv2d:
    native = nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, **options)
    return PackedConv2d(native, nn.ReLU()).requires_grad_(False)


def kind(conv: PackedConv2d) -> type:
    return type(conv._layout[1])


@works
@pytest.mark.parametrize("rate", [1, 2])
def test_the_layer_adds_and_rectifies(monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    monkeypatch.setattr(winograd, "gains", lambda *_: True)
    conv, x, other = layer(rate, 16), draw(2, 16, 9, 14), draw(2, 16, 9, 14)
    kept = other.clone()
    plain = F.conv2d(x, conv.weight, conv.bias, padding=rate, dilation=rate)
    with torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(conv(x), plain.relu(), rtol=1e-4, atol=1e-5)
            assert kind(conv) is Winograd
        torch.testing.assert_close(conv(x, other), (plain + other).relu(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(conv(x, other, keep=False), (plain + kept).relu(), rtol=1e-4, atol=1e-5)
    assert torch.equal(other, kept)


# Channels in and out, size, rate, batch; whether it was faster than the direct form (docs/decisions/011-kernels.md).
RULE = [
    ((128, 128, 65, 1, 1), True),
    ((512, 512, 33, 2, 1), True),
    ((2048, 256, 33, 12, 1), True),
    ((2048, 256, 65, 24, 1), True),
    ((256, 256, 9, 1, 1), True),
    ((512, 512, 9, 2, 1), False),
    ((512, 512, 5, 1, 1), False),
    ((512, 512, 17, 1, 1), True),
    ((320, 256, 30, 12, 1), False),
    ((64, 64, 129, 1, 1), False),
]

RULE_IN_BFLOAT16 = [
    ((512, 512, 33, 2, 1), True),
    ((2048, 256, 33, 6, 1), True),
    ((2048, 256, 33, 12, 1), True),
    ((2048, 256, 33, 18, 1), True),
    ((2048, 256, 65, 36, 1), True),
    ((128, 128, 65, 1, 1), False),
]


@pytest.mark.parametrize(
    ("dtype", "shape", "gains"),
    [(torch.float32, *case) for case in RULE] + [(torch.bfloat16, *case) for case in RULE_IN_BFLOAT16],
)
def test_the_rule_is_what_was_measured(dtype: torch.dtype, shape: tuple[int, ...], gains: bool) -> None:
    channels, filters, side, rate, batch = shape
    x, weight = (torch.empty(size, dtype=dtype) for size in ((batch, channels, side, side), (filters, channels, 3, 3)))
    assert winograd.gains(x, weight, rate) == gains


@works
@pytest.mark.parametrize("way", ["variable", "narrow in bfloat16", "strided", "grouped", "narrow", "wild weights"])
def test_where_it_is_not_taken(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    conv = {"strided": layer(1, stride=2), "grouped": layer(1, groups=2), "narrow": layer(1, 64)}.get(way, layer(1))
    x = draw(1, conv.in_channels, 17, 17)
    if way == "variable":
        monkeypatch.setenv("ATROUS_KERNELS", "library")
    elif way == "narrow in bfloat16":
        conv, x = conv.bfloat16(), x.bfloat16()
    elif way == "wild weights":
        conv.weight[3, 5, 1, 1] = 1e6
    with torch.inference_mode():
        conv(x), conv(x)
    assert kind(conv) is not Winograd
    if way == "variable":
        assert conv._layout == (None, None)


@works
def test_digits_beside_a_spike_are_lost_as_documented() -> None:
    torch.manual_seed(0)
    for seed in range(4):
        x, weight = draw(1, 320, 23, 23), torch.randn(256, 320, 3, 3) / 54
        x[0, seed, 11, 9 + seed] = 1e5
        exact = F.conv2d(x.double(), weight.double(), padding=6, dilation=6)
        error = (Winograd(weight, None, x.shape, 6)(x) - exact).abs().amax((0, 2, 3))
        assert (error <= 1e-5 * 1e5 * weight[:, seed].abs().sum((1, 2))).all()


@works
@pytest.mark.parametrize("value", [1e3, -1e6, torch.nan, torch.inf])
def test_a_layer_whose_map_has_a_spike_takes_the_direct_form(value: float) -> None:
    torch.manual_seed(0)
    conv, x = layer(2), draw(1, 128, 21, 21)
    conv.activation = nn.Identity()
    with torch.inference_mode():
        conv(x)
        assert kind(conv) is Winograd
        x[0, 3, 10, 10] = value
        near = F.conv2d(x.abs(), conv.weight.abs(), conv.bias.abs(), padding=2, dilation=2).double()
        exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=2, dilation=2)
        error = ((conv(x) - exact).abs() / near)[exact.isfinite()]
        assert error.max() < 5e-6  # of the local sum, wherever the spike is
        assert torch.equal(conv(x).isfinite(), exact.isfinite())


@works
@pytest.mark.parametrize("broken", ["missing", "lie", "nan"])
def test_operators_that_are_missing_or_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def call(self: Winograd, x: Tensor) -> Tensor:
        if broken == "missing":
            raise AttributeError("no such operator")
        return x.new_full((len(x), 32, *x.shape[2:]), torch.nan if broken == "nan" else 0)

    monkeypatch.setattr(trusted, "_RESULTS", {})
    monkeypatch.setattr(Winograd, "__call__", call)
    with pytest.warns(RuntimeWarning, match="Winograd convolution on cpu in float32"):
        assert not winograd.works()
    conv, x = layer(1), draw(1, 128, 17, 17)
    with torch.inference_mode():
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1).relu(), rtol=1e-4, atol=1e-5)
    assert kind(conv) is not Winograd
