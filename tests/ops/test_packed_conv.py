"""Convolution with what follows it, in one call: the same numbers, and the usual way where that is needed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from atrous.ops import packed_conv
from atrous.ops.conv import AtrousConv2d
from atrous.ops.conv_kernels import onednn
from atrous.ops.conv_kernels.dispatch import default_form
from atrous.ops.conv_kernels.onednn import fuses, holds
from atrous.ops.conv_kernels.space_to_batch import by_phases
from atrous.ops.packed_conv import PackedConv2d, PackedConv2dSame

ACTIVATIONS = [nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh]
LAST = torch.channels_last


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype, memory_format=LAST)


def close(found: Tensor, expected: Tensor) -> None:
    tolerance = 2e-2 if found.dtype == torch.bfloat16 else 2e-5
    assert (found.double() - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


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


@pytest.mark.skipif(not fuses(torch.float32, nn.ReLU), reason="no fused convolutions on this machine")
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
    layer.place(1, 2)
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


@pytest.mark.parametrize("form", ["library", "window", "gemm", "phases", "model"])
def test_a_form_of_atrous_convolution_can_be_asked_for(form: str) -> None:
    layer = PackedConv2d(AtrousConv2d(8, 8, 3, rate=3, bias=True), nn.ReLU()).requires_grad_(False)
    x, other = draw(1, 8, 9, 9), draw(1, 8, 9, 9)
    expected = (F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=3, dilation=3) + other).relu()
    with torch.inference_mode(), default_form(form):
        close(layer(x, other), expected)


def test_operators_that_are_missing_or_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("no such operator")

    def wrong(*arguments: object) -> Tensor:
        return fused(*arguments) + 1

    fused = onednn.fused_convolution
    for broken in (missing, wrong):
        monkeypatch.setattr(onednn, "fused_convolution", broken)
        assert not fuses.__wrapped__(torch.float32, nn.ReLU)
    monkeypatch.setattr(packed_conv, "fuses", lambda *_: False)
    layer = PackedConv2d(nn.Conv2d(4, 4, 1), nn.ReLU()).requires_grad_(False)
    x = draw(1, 4, 6, 6)
    with torch.inference_mode():
        close(layer(x), F.conv2d(x, layer.weight, layer.bias).relu().double())


def test_what_it_can_hold() -> None:
    assert holds(nn.ReLU()) and holds(nn.Identity()) and not holds(nn.Softmax()) and not holds(nn.Sequential())


@pytest.mark.skipif(not packed_conv.fuses(torch.float32, nn.ReLU6), reason="oneDNN has no fused convolutions here")
def test_a_far_reaching_depthwise_layer_takes_the_phases_where_they_win(monkeypatch: pytest.MonkeyPatch) -> None:
    native = AtrousConv2d(16, 16, 5, rate=4, groups=16, bias=True).eval().requires_grad_(False)
    native = native.to(memory_format=torch.channels_last)
    conv, x = (
        packed_conv.PackedConv2d(native, nn.ReLU6()),
        torch.randn(1, 16, 21, 18).to(memory_format=torch.channels_last),
    )
    taken: list[int] = []

    def noted(*arguments: Any) -> torch.Tensor:
        taken.append(arguments[3])
        return by_phases(*arguments)

    monkeypatch.setattr(packed_conv, "by_phases", noted)
    for wins in (True, False):
        monkeypatch.setattr(packed_conv, "phases_win", lambda *_, wins=wins: wins)
        with torch.inference_mode():
            torch.testing.assert_close(conv(x), nn.ReLU6()(native(x)), rtol=1e-5, atol=1e-5)
    assert taken == [4]
    monkeypatch.setattr(packed_conv, "phases_win", lambda *_: True)
    with torch.inference_mode(), default_form("model"):
        conv(x)
    assert taken == [4]  # a form that the clock chooses has no place where results must repeat
