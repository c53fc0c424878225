"""The fast forms of atrous convolution: each against equation 1 in float64, the operator, and the choice."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops import trusted
from atrous.ops.conv_kernels import depthwise, dispatch, tap_gemm
from atrous.ops.conv_kernels.dispatch import atrous_conv2d_fast
from equation_1 import atrous_conv2d

FORMS = ["library", "window", "tap_gemm"]

needs_x86 = pytest.mark.skipif(not tap_gemm.has_onednn(), reason="an x86 processor with oneDNN takes other forms")


def sample(
    size: tuple[int, ...],
    count: int = 1,
    side: int = 3,
    filters: int = 4,
    dtype: torch.dtype = torch.float64,
    channels_last: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Leaves that ask for gradients: a map and weights."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(size, dtype=dtype).to(memory_format=order)
    weights = [torch.randn(filters + n, size[1], side, side, dtype=dtype).to(memory_format=order) for n in range(count)]
    return x.requires_grad_(), [weight.requires_grad_() for weight in weights]


def reference(x: Tensor, weights: list[Tensor], rates: list[int], upstream: list[Tensor]) -> list[list[Tensor]]:
    """Equation 1 in float64: outputs, and gradients of the map and the weights."""
    x, weights = x.detach().double().requires_grad_(), [w.detach().double().requires_grad_() for w in weights]
    outputs = [atrous_conv2d(x, w, rate) for w, rate in zip(weights, rates, strict=True)]
    return [outputs, list(torch.autograd.grad(outputs, [x, *weights], [u.double() for u in upstream]))]


def relative(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach()
    return float((actual - expected).norm() / expected.norm())


# Odd and even sizes, one row, one pixel, batch 1 and more, rates at the edge of the map and beyond it.
SHAPES = [
    ((1, 3, 7, 7), [2]),
    ((2, 3, 9, 6), [1, 3, 5]),
    ((3, 2, 1, 5), [4, 2]),
    ((1, 1, 1, 1), [1]),
    ((2, 5, 8, 13), [7, 8, 40]),
]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize(("size", "rates"), SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_equation_1(
    form: str, size: tuple[int, ...], rates: list[int], side: int, channels_last: bool
) -> None:
    x, weights = sample(size, len(rates), side, channels_last=channels_last)
    actual = atrous_conv2d_fast(x, weights, rates, form)
    upstream = [torch.randn_like(y) for y in actual]
    outputs, gradients = reference(x, weights, rates, upstream)
    torch.testing.assert_close(actual, outputs)
    torch.testing.assert_close(list(torch.autograd.grad(actual, [x, *weights], upstream)), gradients)
    assert all(y.is_contiguous(memory_format=tap_gemm.order(x)) for y in actual)


@pytest.mark.parametrize("form", FORMS)
def test_maps_of_one_image_are_joined_channels_last(form: str) -> None:
    """A batch of 1 may have any stride, and PyTorch takes such maps for contiguous when it joins them."""
    x, weights = sample((1, 3, 7, 9), 2)
    joined = torch.cat(atrous_conv2d_fast(x.detach(), [w.detach() for w in weights], [2, 6], form), 1)
    assert joined.is_contiguous(memory_format=torch.channels_last) and not joined.is_contiguous()


@pytest.mark.parametrize("form", ["window", "tap_gemm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_against_float64_is_that_of_the_library(dtype: torch.dtype, form: str) -> None:
    x, weights = sample((2, 96, 17, 15), 2, filters=40, dtype=dtype)
    rates = [6, 12]
    library = atrous_conv2d_fast(x, weights, rates, "library")
    actual = atrous_conv2d_fast(x, weights, rates, form)
    upstream = [torch.randn_like(y) for y in actual]
    expected = sum(reference(x, weights, rates, upstream), [])
    theirs = [*library, *torch.autograd.grad(library, [x, *weights], upstream)]
    ours = [*actual, *torch.autograd.grad(actual, [x, *weights], upstream)]
    for mine, other, true in zip(ours, theirs, expected, strict=True):
        assert mine.dtype == dtype
        assert relative(mine, true) < 2 * relative(other, true) + torch.finfo(dtype).eps


@pytest.mark.parametrize("form", ["library", "depthwise"])
@pytest.mark.parametrize(("size", "rates"), [((1, 4, 7, 9), [2]), ((2, 3, 6, 5), [1, 3, 9]), ((3, 2, 1, 1), [2])])
@pytest.mark.parametrize("side", [3, 5])
def test_channels_kept_apart(side: int, size: tuple[int, ...], rates: list[int], form: str) -> None:
    x, _ = sample(size)
    weights = [torch.randn(size[1], 1, side, side, dtype=torch.float64, requires_grad=True) for _ in rates]
    actual = atrous_conv2d_fast(x, weights, rates, form)
    upstream = [torch.randn_like(y) for y in actual]
    full = [torch.diag_embed(w[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1) for w in weights]  # C,C,h,w, mostly zeros
    outputs = [atrous_conv2d(x, w, rate) for w, rate in zip(full, rates, strict=True)]
    torch.testing.assert_close(actual, outputs)
    ours, theirs = (torch.autograd.grad(ys, [x, *weights], upstream) for ys in (actual, outputs))
    torch.testing.assert_close(ours, theirs)

    def run(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(atrous_conv2d_fast(x, weights, rates, form))

    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *weights), fast_mode=True)


@pytest.mark.parametrize("form", ["window", "tap_gemm"])
def test_first_and_second_derivatives(form: str) -> None:
    x, weights = sample((2, 2, 4, 5), 2, filters=2)

    def run(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(atrous_conv2d_fast(x, weights, [1, 3], form))

    assert torch.autograd.gradcheck(run, (x, *weights))
    assert torch.autograd.gradgradcheck(run, (x, *weights), fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
def test_only_what_is_asked_for_is_differentiated(form: str) -> None:
    x, (first, second) = sample((1, 3, 6, 6), 2)
    outputs = atrous_conv2d_fast(x.detach(), [first, second.detach()], [2, 3], form)
    outputs[0].sum().backward()  # The second output takes no part.
    assert x.grad is None and second.grad is None and first.grad is not None
    expected = torch.autograd.grad(atrous_conv2d(x.detach(), first, 2).sum(), first)[0]
    torch.testing.assert_close(first.grad, expected)
    frozen = atrous_conv2d_fast(x, [first.detach(), second.detach()], [2, 3], form)
    torch.testing.assert_close(
        torch.autograd.grad(frozen[1].sum(), x), torch.autograd.grad(atrous_conv2d(x, second, 3).sum(), x)
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own.
@pytest.mark.parametrize("form", ["window", "tap_gemm"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_operator_keeps_the_rules(form: str, channels_last: bool) -> None:
    x, weights = sample((2, 3, 5, 6), 2, channels_last=channels_last)
    torch.library.opcheck(dispatch._convs, (x, weights, [2, 3], form))
    gradients = [torch.randn(2, 4, 5, 6).double(), torch.randn(2, 5, 5, 6).double()]
    torch.library.opcheck(dispatch._convs_backward, (gradients, x, weights, [2, 3], form, True, True))


@pytest.mark.parametrize("form", ["window", None])
def test_compile_goes_through(form: str | None) -> None:
    x, weights = sample((1, 3, 9, 9), 2, dtype=torch.float32)

    def run(x: Tensor, weights: list[Tensor]) -> Tensor:
        return torch.cat(atrous_conv2d_fast(x.relu(), weights, [2, 4], form), 1).square().mean()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(run(x, weights), [x, *weights])
    torch.testing.assert_close(torch.autograd.grad(compiled(x, weights), [x, *weights]), expected)


class Pyramid(torch.nn.Module):
    def __init__(self, form: str | None) -> None:
        super().__init__()
        self.weight, self.form = torch.nn.Parameter(torch.randn(4, 3, 3, 3)), form

    def forward(self, x: Tensor) -> Tensor:
        return atrous_conv2d_fast(x, [self.weight], [3], self.form)[0]


@pytest.mark.parametrize(("form", "operator"), [("window", "atrous.convs"), (None, "aten.conv2d")])
def test_export_goes_through(form: str | None, operator: str) -> None:
    model, x = Pyramid(form), torch.randn(2, 3, 8, 9)
    sides = {2: torch.export.Dim("height", min=5, max=64), 3: torch.export.Dim("width", min=5, max=64)}
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=16), **sides},))
    assert any(operator in str(node.target) for node in exported.graph.nodes)
    other = torch.randn(3, 3, 11, 6)
    torch.testing.assert_close(exported.module()(other), model(other))


@pytest.mark.parametrize("form", FORMS)
def test_autocast_casts_as_the_library_does(form: str) -> None:
    x, weights = sample((1, 8, 9, 9), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        (actual,) = atrous_conv2d_fast(x, weights, [3], form)
        expected = F.conv2d(x, weights[0], padding=3, dilation=3)
    assert actual.dtype == torch.bfloat16
    assert relative(actual, expected.double()) < 1e-2
    actual.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32 and weights[0].grad is not None


def test_blocks_of_rows_and_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = sample((3, 2, 9, 7), 2)
    expected = atrous_conv2d_fast(x, weights, [2, 5], "tap_gemm")
    upstream = [torch.randn_like(y) for y in expected]
    gradients = torch.autograd.grad(expected, [x, *weights], upstream)
    for block in (1, 2000, 12_000):
        monkeypatch.setattr(tap_gemm, "BLOCK", block)
        actual = atrous_conv2d_fast(x, weights, [2, 5], "tap_gemm")
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad(actual, [x, *weights], upstream), gradients)


# Figure 4: what is left of a 3×3 filter on 65×65, and only its centre at the size of the map.
@pytest.mark.parametrize(("rate", "share"), [(1, 0.98), (12, 0.769), (36, 0.398), (64, 0.118), (65, 1 / 9)])
def test_valid_share_is_figure_4(rate: int, share: float) -> None:
    assert tap_gemm.valid_share(65, 65, 3, rate) == pytest.approx(share, abs=1e-3)
    ones = torch.nn.functional.conv2d(torch.ones(1, 1, 65, 65), torch.ones(1, 1, 3, 3), padding=rate, dilation=rate)
    assert tap_gemm.valid_share(65, 65, 3, rate) == pytest.approx(float(ones.mean()) / 9)


@pytest.mark.parametrize(
    ("length", "side", "rate"), [(9, 3, 2), (9, 3, 5), (9, 3, 9), (10, 5, 3), (1, 3, 1), (4, 7, 1)]
)
def test_bands_cover_the_map_once_with_the_taps_that_read_it(length: int, side: int, rate: int) -> None:
    covered = []
    for stretch, seen in tap_gemm.bands(length, side, rate):
        covered += range(stretch.start, stretch.stop)
        for place in range(stretch.start, stretch.stop):
            shifts = [rate * (tap - side // 2) for tap in range(side)]
            assert [t for t, s in enumerate(shifts) if 0 <= place - s < length] == list(range(seen.start, seen.stop))
    assert covered == list(range(length))


# The rule -----------------------------------------------------------------------------------------------------------

PASSES = ("forward", "input", "weight")


def rule(x: Tensor, weights: list[Tensor], rates: list[int]) -> list[str]:
    return [dispatch._rule(task, x, weights, rates) for task in PASSES]


def dense(dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    return torch.zeros(1, 256, 33, 33, dtype=dtype), [torch.zeros(64, 256, 3, 3, dtype=dtype)]


@needs_x86
def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = sample((1, 3, 9, 9))
    assert rule(x, weights, [3]) == ["library"] * 3  # little work
    for amx, dtype, rate, forms in (
        (False, torch.float32, 12, ["library", "library", "window"]),
        (False, torch.bfloat16, 12, ["library", "library", "window"]),
        (True, torch.float32, 12, ["library", "library", "window"]),
        (True, torch.bfloat16, 6, ["tap_gemm", "window", "window"]),
        (True, torch.bfloat16, 24, ["window"] * 3),  # most taps are outside of the map
        (True, torch.bfloat16, 2, ["library"] * 3),
    ):
        monkeypatch.setattr(dispatch, "has_amx", lambda amx=amx: amx)
        assert rule(*dense(dtype), [rate]) == forms
    x, apart = torch.zeros(1, 512, 33, 33), [torch.zeros(512, 1, 5, 5)]
    for capability, dtype, near, far in (
        ("AVX512", torch.float32, 3, 4),
        ("AVX512", torch.bfloat16, 3, 4),
        ("AVX2", torch.float32, 2, 3),
    ):
        monkeypatch.setattr(depthwise, "CAPABILITY", capability)
        x, apart = x.to(dtype), [apart[0].to(dtype)]
        assert rule(x, apart, [near]) == ["library", "depthwise", "depthwise"]
        assert rule(x, apart, [far]) == ["depthwise"] * 3


@pytest.mark.parametrize("missing", ["capability", "mkldnn", "flag", "device", "variable"])
def test_the_library_without_onednn_on_other_processors_and_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    (x, weights), apart = dense(), [torch.zeros(256, 1, 5, 5)]
    if missing == "capability":
        monkeypatch.setattr(tap_gemm, "CAPABILITY", "DEFAULT")
    elif missing == "mkldnn":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif missing == "variable":
        monkeypatch.setenv("ATROUS_KERNELS", "library")
    elif missing == "device":
        x, weights, apart = x.to("meta"), [weights[0].to("meta")], [apart[0].to("meta")]
    elif missing == "flag":
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert rule(x, weights, [12]) == rule(x, apart, [4]) == ["library"] * 3
    if missing != "device":
        y = atrous_conv2d_fast(x, [weight.requires_grad_() for weight in weights], [12])[0]
        assert "Convolution" in str(y.grad_fn)
        ones = torch.ones(64, 64)
        torch.testing.assert_close(tap_gemm._product(ones, ones), 64 * ones)


@needs_x86
def test_a_form_that_fails_its_trial_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> list[Tensor]:
        return [gradient * 1.01 for gradient in tap_gemm.window_weight(x, gradients, weights, rates)]

    monkeypatch.setattr(trusted, "_RESULTS", {})
    monkeypatch.setitem(dispatch.FORMS["window"], "weight", lie)
    x, weights = torch.randn(1, 256, 33, 33), [torch.randn(64, 256, 3, 3, requires_grad=True)]
    with pytest.warns(
        RuntimeWarning, match=r"the window form of atrous convolution \(weight\) on cpu in float32 differs"
    ):
        atrous_conv2d_fast(x, weights, [12])[0].sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns once
        atrous_conv2d_fast(x, weights, [12])[0].sum().backward()
    exact = torch.autograd.grad(F.conv2d(x, weights[0], padding=12, dilation=12).sum(), weights[0])[0]
    torch.testing.assert_close(weights[0].grad, 2 * exact, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 9, 9)}, "x must be B,C,H,W"),
        ({"x": torch.ones(1, 2, 9, 9)}, "a weight must be K,2,h,w"),
        ({"x": torch.ones(1, 3, 9, 9).double()}, "a weight is torch.float32"),
        ({"weights": [torch.ones(4, 3, 2, 3)]}, "with odd h and w"),
        ({"rates": [0]}, "expected one rate of at least 1"),
        ({"rates": [1, 2]}, "expected one rate of at least 1 for each of 1 weights"),
        ({"form": "fast"}, "form is 'fast', expected one of library, window"),
        ({"form": "depthwise"}, "needs filters of one channel"),
        ({"weights": [torch.ones(3, 1, 3, 3)], "form": "tap_gemm"}, "needs filters of all channels"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.ones(1, 3, 9, 9), "weights": [torch.ones(4, 3, 3, 3)], "rates": [1], **change}
    with pytest.raises(ValueError, match=message):
        atrous_conv2d_fast(**arguments)  # type: ignore[arg-type]


def test_an_empty_batch_and_no_branch() -> None:
    assert atrous_conv2d_fast(torch.ones(0, 3, 9, 9), [torch.ones(4, 3, 3, 3)], [2])[0].shape == (0, 4, 9, 9)
    assert atrous_conv2d_fast(torch.ones(1, 3, 9, 9), [], []) == []
