"""Convolution with fused activation and addition: the same numbers as separate operators, and when those run."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from atrous.ops import packed_conv, trusted
from atrous.ops.conv import AtrousConv2d, set_stride_and_dilation
from atrous.ops.conv_kernels import depthwise, dispatch
from atrous.ops.conv_kernels.space_to_batch import space_to_batch
from atrous.ops.packed_conv import PackedConv2d, PackedConv2dSame, begin_pass, fuses, holds

ACTIVATIONS = [nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh]
LAST = torch.channels_last

needs_onednn = pytest.mark.skipif(not fuses(torch.float32, nn.ReLU), reason="no fused convolutions on this machine")


@pytest.fixture(autouse=True)
def sound() -> None:
    """No test before has left the note that its image or weights were not finite."""
    packed_conv._current.plain = False


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype, memory_format=LAST)


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = 2e-2 if actual.dtype == torch.bfloat16 else 2e-5
    assert (actual.double() - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", packed_conv.DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("side", "stride", "rate", "groups", "bias"),
    [(1, 1, 1, 1, True), (3, 2, 1, 1, False), (3, 1, 2, 1, True), (5, 1, 2, 16, True), (3, 1, 1, 4, True)],
)
def test_it_is_the_convolution_the_addition_and_the_activation(
    dtype: torch.dtype, activation: type[nn.Module], side: int, stride: int, rate: int, groups: int, bias: bool
) -> None:
    torch.manual_seed(side)
    native = AtrousConv2d(16, 32, side, stride=stride, rate=rate, groups=groups, bias=bias).to(
        dtype, memory_format=LAST
    )
    layer = PackedConv2d(native, activation()).requires_grad_(False)
    for size in ((11, 8), (11, 8), (11, 8), (5, 9)):  # the usual weights, laid out, laid out, another size
        x = draw(2, 16, *size, dtype=dtype)
        plain = F.conv2d(
            x.double(), native.weight.double(), native.bias.double() if bias else None,
            stride, rate * (side // 2), rate, groups,
        )  # fmt: skip
        other = draw(*plain.shape, dtype=dtype)
        before = other.clone()
        with torch.inference_mode():
            alone, added, over = layer(x), layer(x, other), layer(x, other.clone(), keep=False)
        close(alone, activation()(plain))
        close(added, activation()(plain + before.double()))
        close(over, activation()(plain + before.double()))
        assert torch.equal(other, before), "what was to be kept is changed"


@needs_onednn
@pytest.mark.parametrize(
    "change",
    ["nothing", "size", "weights", "stride", "dtype", "autocast", "gradients", "library", "threads", "not finite"],
)
def test_what_was_decided_holds_for_the_same_again_alone(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PackedConv2d(AtrousConv2d(8, 8, 3, bias=True), nn.ReLU()).requires_grad_(False)
    x, dtype, threads = draw(1, 8, 9, 9), torch.float32, torch.get_num_threads()
    with torch.inference_mode():
        for _ in range(3):
            layer(x)
    assert layer._call is not None
    kept, gradients = layer._call, change == "gradients"
    if change == "size":
        x = draw(1, 8, 9, 12)
    elif change == "weights":
        with torch.no_grad():
            layer.weight.mul_(-1)
    elif change == "stride":
        set_stride_and_dilation(layer, 2, 1)
    elif change == "dtype":
        layer, x = layer.double(), x.double()
    elif change == "autocast":
        dtype = torch.bfloat16
    elif change == "library":
        monkeypatch.setenv("ATROUS_KERNELS", "library")
    elif change == "threads":
        torch.set_num_threads(threads % 2 + 1)
    elif change == "not finite":
        packed_conv._current.plain = True
    try:
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            again = layer._is_again(kept, x, (layer.padding, layer.stride, layer.dilation, layer.groups))
            actual = layer(x.requires_grad_(gradients))
    finally:
        torch.set_num_threads(threads)
    assert again == (change == "nothing")
    assert actual.requires_grad == gradients and (change != "autocast" or actual.dtype == dtype)
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), layer.stride, 1).relu()  # type: ignore[union-attr]
    close(actual.detach(), exact.detach())


@needs_onednn
def test_weights_are_laid_out_once_a_size_comes_again_and_anew_when_they_change() -> None:
    layer = PackedConv2d(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()).requires_grad_(False)
    x = draw(1, 8, 9, 9)
    with torch.inference_mode():
        layer(x)
        assert layer._layout[1] is None
        layer(x)
        laid_out = layer._layout[1]
        layer(x)
        assert laid_out is not None and layer._layout[1] is laid_out
    with torch.no_grad():
        layer.weight.mul_(-1)
    with torch.inference_mode():
        for _ in range(3):
            close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1).relu().double())
    set_stride_and_dilation(layer, 1, 2)
    with torch.inference_mode():
        for _ in range(3):
            close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=2, dilation=2).relu().double())


def test_copies_and_state_are_those_of_the_convolution() -> None:
    native = nn.Conv2d(8, 8, 3, padding=1)
    layer = PackedConv2d(native, nn.ReLU6()).requires_grad_(False)
    x = draw(1, 8, 9, 9)
    with torch.inference_mode():
        expected = [layer(x) for _ in range(3)][-1]
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            close(twin(x), expected.double())
    assert layer.state_dict().keys() == native.state_dict().keys()
    assert layer.weight is native.weight


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 9), (8, 10), (7, 12), (1, 1)])
def test_same_padding_is_timms(size: tuple[int, int], stride: int, rate: int) -> None:
    torch.manual_seed(0)
    native = Conv2dSame(8, 8, 3, stride=stride, dilation=rate, bias=False)
    layer = PackedConv2dSame(native, nn.ReLU()).requires_grad_(False)
    x = draw(2, 8, *size)
    with torch.inference_mode():
        expected = native(x).relu().double()
        for _ in range(3):
            close(layer(x), expected)


def usual(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise AssertionError("the fused operator was called")

    monkeypatch.setattr(packed_conv, "fused_convolution", fail)


def test_the_usual_way_where_gradients_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    usual(monkeypatch)
    layer = PackedConv2d(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()).requires_grad_(False)
    x = draw(1, 4, 6, 6).requires_grad_()
    expected = torch.autograd.grad(F.conv2d(x, layer.weight, layer.bias, padding=1).relu().sum(), x)[0]
    assert torch.allclose(torch.autograd.grad(layer(x).sum(), x)[0], expected, atol=1e-6)


def test_the_usual_way_under_export_autocast_and_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PackedConv2d(nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.ReLU()).requires_grad_(False)
    x, other = draw(1, 4, 9, 9), draw(1, 4, 9, 9)
    with torch.no_grad():
        expected = (F.conv2d(x, layer.weight, layer.bias, padding=2, dilation=2) + other).relu()
        usual(monkeypatch)
        program = torch.export.export(layer, (x, other))
        assert "mkldnn" not in str(program.graph)
        close(program.module()(x, other), expected.double())
        with torch.autocast("cpu", torch.bfloat16):
            close(layer(x, other).bfloat16(), expected.double())
        close(copy.deepcopy(layer).double()(x.double(), other.double()), expected.double())


@pytest.mark.parametrize("form", ["library", "window", "tap_gemm"])
def test_the_form_of_the_rule_is_taken(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(dispatch, "_rule", lambda *_: form)
    layer = PackedConv2d(AtrousConv2d(8, 8, 3, rate=3, bias=True), nn.ReLU()).requires_grad_(False)
    x, other = draw(1, 8, 9, 9), draw(1, 8, 9, 9)
    expected = (F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=3, dilation=3) + other).relu()
    with torch.inference_mode():
        close(layer(x, other), expected)


def missing(*_: object) -> Tensor:
    raise AttributeError("no such operator")


def lie(*arguments: Any) -> Tensor:
    return FUSED(*arguments) + 1


def nan(*arguments: Any) -> Tensor:
    return FUSED(*arguments) * torch.nan


FUSED = packed_conv.fused_convolution


@needs_onednn
@pytest.mark.parametrize(
    ("broken", "why"), [(missing, "fails with AttributeError"), (lie, "differs"), (nan, "differs")]
)
def test_an_operator_that_is_missing_or_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, broken: Any, why: str
) -> None:
    monkeypatch.setattr(trusted, "_RESULTS", {})
    monkeypatch.setattr(packed_conv, "fused_convolution", broken)
    layer = PackedConv2d(nn.Conv2d(4, 4, 1), nn.ReLU()).requires_grad_(False)
    x = draw(1, 4, 6, 6)
    with torch.inference_mode():
        with pytest.warns(RuntimeWarning, match=f"oneDNN's convolution with ReLU on cpu in float32 {why}"):
            close(layer(x), F.conv2d(x, layer.weight, layer.bias).relu().double())
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it warns once
            close(layer(x), F.conv2d(x, layer.weight, layer.bias).relu().double())


def test_a_shape_gives_the_same_bytes_whatever_came_before() -> None:
    for dtype in packed_conv.DTYPES:
        for channels, groups, side, rate in ((64, 1, 1, 1), (32, 1, 3, 2), (64, 64, 5, 1), (128, 1, 3, 1)):
            native = AtrousConv2d(channels, channels, side, rate=rate, groups=groups).to(dtype, memory_format=LAST)
            layer = PackedConv2d(native.requires_grad_(False), nn.ReLU())
            x, other = draw(1, channels, 21, 17, dtype=dtype), draw(1, channels, 9, 12, dtype=dtype)
            with torch.inference_mode():
                first, second, third = layer(x), layer(x), layer(x)
                layer(other), layer(other)
                assert all(torch.equal(first, again) for again in (second, third, layer(x), layer(x)))


# NaN and infinity ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def sound_pass() -> None:
    """The layers here have no network around them that begins their pass."""
    packed_conv._current.plain = False


def small_net(activation: type[nn.Module], *, packed: bool) -> nn.Sequential:
    """An image to classes, as in a mobile network; the layers beyond the first know nothing of the image."""
    torch.manual_seed(0)
    convs = [
        (nn.Conv2d(3, 16, 3, padding=1), activation()),
        (nn.Conv2d(16, 16, 3, padding=1, groups=16), activation()),
        (nn.Conv2d(16, 128, 1), activation()),
        (nn.Conv2d(128, 128, 3, padding=1), activation()),
        (nn.Conv2d(128, 5, 1), nn.Identity()),
    ]
    layers = [PackedConv2d(conv, act) if packed else nn.Sequential(conv, act) for conv, act in convs]
    net = nn.Sequential(*layers).requires_grad_(False).to(memory_format=LAST).eval()
    if packed:
        net.register_forward_pre_hook(begin_pass)
    return net


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("where", ["pixel", "filter", "bias", "layer"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_nan_and_infinity_travel_as_in_the_plain_network(activation: type[nn.Module], where: str, value: float) -> None:
    plain, packed, x = small_net(activation, packed=False), small_net(activation, packed=True), draw(1, 3, 19, 19)
    sound = x.clone()
    if where == "pixel":
        x[0, 1, 9, 9] = value
    for number in (2, 4) if where != "pixel" else ():
        conv, twin = plain[number][0], packed[number]
        for layer in (conv, twin):
            {"filter": layer.weight[1, 0, 0, :1], "bias": layer.bias[:1], "layer": layer.weight}[where].fill_(value)
    with torch.inference_mode():
        expected = plain(x)
        for _ in range(3):
            torch.testing.assert_close(packed(x), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
        if where == "pixel":
            torch.testing.assert_close(packed(sound), plain(sound), rtol=1e-4, atol=1e-4)


def test_what_it_can_hold() -> None:
    assert holds(nn.ReLU()) and holds(nn.Identity()) and not holds(nn.Softmax()) and not holds(nn.Sequential())


@needs_onednn
def test_a_far_reaching_depthwise_layer_goes_by_space_to_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    native = AtrousConv2d(16, 16, 5, rate=4, groups=16, bias=True).eval().requires_grad_(False).to(memory_format=LAST)
    conv, x = PackedConv2d(native, nn.ReLU6()), draw(1, 16, 21, 18)
    rates: list[int] = []

    def noted(x: Tensor, weight: Tensor, rate: int) -> Tensor:
        rates.append(rate)
        return space_to_batch(x, weight, rate)

    monkeypatch.setattr(depthwise, "space_to_batch", noted)
    monkeypatch.setattr(dispatch, "SMALL", 0)
    expected = nn.ReLU6()(F.conv2d(x, native.weight, native.bias, padding=8, dilation=4, groups=16))
    for capability in ("AVX2", "AVX512", "DEFAULT"):
        monkeypatch.setattr(depthwise, "CAPABILITY", capability)
        with torch.inference_mode():
            torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)
    assert rates.count(4) >= 2 and conv._layout[0] is not None
