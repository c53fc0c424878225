"""Atrous convolution against equation 1, and layers placed at any stride and rate."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from atrous.ops import conv
from atrous.ops.conv import AtrousConv2d, AtrousConv2dSame, AtrousPool2d, PatchConv2d, set_stride_and_dilation
from atrous.ops.conv_kernels import depthwise, dispatch
from atrous.ops.conv_kernels.space_to_batch import space_to_batch
from equation_1 import atrous_conv2d


def equation_1(x: Tensor, w: Tensor, rate: int) -> Tensor:
    """y[i] = sum_k x[i + r k] w[k] in loops over every pixel, zeros outside."""
    batch, channels, height, width = x.shape
    reach_y, reach_x = w.shape[2] // 2, w.shape[3] // 2
    y = torch.zeros(batch, w.shape[0], height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            for ki in range(-reach_y, reach_y + 1):
                for kj in range(-reach_x, reach_x + 1):
                    row, column = i + rate * ki, j + rate * kj
                    if 0 <= row < height and 0 <= column < width:
                        y[:, :, i, j] += x[:, :, row, column] @ w[:, :, ki + reach_y, kj + reach_x].T
    return y


@pytest.mark.parametrize("rate", [1, 2, 3, 7])  # 7 is larger than half the map: only the centre row of taps is left
@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_reference_is_equation_1(rate: int, size: tuple[int, int]) -> None:
    x, w = torch.randn(2, 3, *size, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(atrous_conv2d(x, w, rate), equation_1(x, w, rate))


@pytest.mark.parametrize(
    ("kind", "stride"), [(AtrousConv2d, 1), (AtrousConv2d, 2), (AtrousConv2dSame, 1)]
)  # at other strides the second begins elsewhere: test_same_padding_is_timms
@pytest.mark.parametrize("rate", [1, 2, 6, 18])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_layer_is_the_reference_forward_and_backward(
    kind: type[AtrousConv2d], kernel_size: int, rate: int, stride: int
) -> None:
    layer = kind(3, 5, kernel_size, stride=stride, rate=rate).double()
    x = torch.randn(2, 3, 13, 10, dtype=torch.float64, requires_grad=True)
    expected = atrous_conv2d(x, layer.weight, rate, stride)
    actual = layer(x)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, (x, layer.weight), upstream),
        torch.autograd.grad(expected, (x, layer.weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_inserting_holes_is_the_same_filter() -> None:
    # Section 3.1: convolving with filters upsampled by r - 1 zeros between their values.
    rate, w = 3, torch.randn(2, 2, 3, 3)
    holes = torch.zeros(2, 2, 7, 7)
    holes[..., ::rate, ::rate] = w
    x = torch.randn(1, 2, 12, 12)
    torch.testing.assert_close(
        atrous_conv2d(x, w, rate), nn.functional.conv2d(x, holes, padding=3), rtol=1e-4, atol=1e-4
    )


def test_place_changes_no_parameter_and_keeps_the_centre() -> None:
    layer = AtrousConv2d(2, 2, 3, stride=2)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    x = torch.randn(1, 2, 9, 11)
    strided = layer(x)
    set_stride_and_dilation(layer, 1, 1)
    torch.testing.assert_close(layer(x)[..., ::2, ::2], strided)
    set_stride_and_dilation(layer, 1, 4)
    assert layer.rate == 4 and layer(x).shape[-2:] == x.shape[-2:]
    assert before.keys() == layer.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size is 4, expected an odd number"):
        AtrousConv2d(1, 1, 4)


@pytest.mark.parametrize(
    "native", [nn.AvgPool2d(2, 2), nn.MaxPool2d(2, 2), nn.AvgPool2d(3, 2, 1, count_include_pad=False)]
)
def test_pool_without_its_stride_holds_the_strided_values(native: nn.AvgPool2d | nn.MaxPool2d) -> None:
    pool, x = AtrousPool2d(native), torch.randn(1, 2, 12, 16)
    assert torch.equal(pool(x), native(x))
    set_stride_and_dilation(pool, 1, 1)
    torch.testing.assert_close(pool(x)[..., ::2, ::2], native(x))
    # On a map made twice as dense, rate 2 sees what rate 1 saw.
    dense = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    set_stride_and_dilation(pool, 1, 2)
    sparse = AtrousPool2d(native)
    set_stride_and_dilation(sparse, 1, 1)
    torch.testing.assert_close(pool(dense)[..., ::2, ::2], sparse(x))


@pytest.mark.parametrize("side", [2, 4])
def test_patch_convolution_without_its_stride_holds_the_strided_values(side: int) -> None:
    native = nn.Conv2d(2, 3, side, side)
    layer, x = PatchConv2d(native), torch.randn(1, 2, 16, 24)
    assert torch.equal(layer(x), native(x)) and layer.weight is native.weight
    set_stride_and_dilation(layer, 1, 1)
    assert layer(x).shape[-2:] == x.shape[-2:]
    torch.testing.assert_close(layer(x)[..., ::side, ::side], native(x))


def test_odd_max_pool_is_placed_as_a_convolution_is() -> None:
    pool, x = nn.MaxPool2d(3, 2, 1), torch.randn(1, 2, 9, 9)
    strided = pool(x)
    set_stride_and_dilation(pool, 1, 1)
    torch.testing.assert_close(pool(x)[..., ::2, ::2], strided)


@pytest.mark.parametrize(
    ("side", "stride", "rate"), [(5, 1, 1), (3, 2, 1), (5, 2, 1), (5, 1, 2), (3, 1, 2), (3, 1, 6), (3, 2, 2), (3, 1, 1)]
)
@pytest.mark.parametrize("kind", [AtrousConv2d, AtrousConv2dSame])
@pytest.mark.parametrize("form", ["library", "", "depthwise"])
@pytest.mark.parametrize("bias", [False, True])
def test_depthwise_gradients_in_bfloat16_are_right(
    kind: type[AtrousConv2d],
    side: int,
    stride: int,
    rate: int,
    form: str,
    bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if form:
        monkeypatch.setattr(dispatch, "_rule", lambda *_: form)
    # Against float64, for the library's own are noise, or NaN, where the rate is more than 1.
    torch.manual_seed(side)
    layer = kind(64, 64, side, stride=stride, rate=rate, groups=64, bias=bias)
    x = torch.randn(2, 64, 33, 29).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(2, 64, -(-33 // stride), -(-29 // stride)).contiguous(memory_format=torch.channels_last)
    wanted = (x, *layer.parameters())
    exact = F.conv2d(
        x.double(), layer.weight.double(), layer.bias.double() if bias else None, stride, rate * (side // 2), rate, 64
    )
    truths = torch.autograd.grad(exact, wanted, gradient.double())
    for _ in range(3):  # what is not initialised differs from call to call
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16 and (y - exact).norm() < 0.01 * exact.norm()
        for ours, truth in zip(torch.autograd.grad(y, wanted, gradient.bfloat16()), truths, strict=True):
            assert ours.dtype == torch.float32 and (ours - truth).norm() < 0.01 * truth.norm()


@pytest.mark.parametrize(("side", "rate"), [(3, 2), (5, 2), (5, 4), (3, 8), (7, 3)])
@pytest.mark.parametrize("size", [(21, 33), (16, 16), (5, 40), (1, 1)])
@pytest.mark.parametrize("form", ["", "depthwise"])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512", "DEFAULT"])
def test_depthwise_gradients_in_float32_are_right_however_far_a_filter_reaches(
    side: int, rate: int, size: tuple[int, int], form: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than 4 pixels with AVX2, or 6 with AVX512, go by space to batch, on any processor that says so.
    monkeypatch.setattr(depthwise, "CAPABILITY", capability)
    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(dispatch, "_tried", lambda task, form, *_: form)
    if form:
        monkeypatch.setattr(dispatch, "_rule", lambda *_: form)
    rates: list[int] = []
    monkeypatch.setattr(
        depthwise, "space_to_batch", lambda *given: (rates.append(given[-1]), space_to_batch(*given))[1]
    )
    kind = AtrousConv2dSame if size == (16, 16) else AtrousConv2d
    layer = kind(128, 128, side, rate=rate, groups=128)
    x = torch.randn(3, 128, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    exact = F.conv2d(x.double(), layer.weight.double(), None, 1, rate * (side // 2), rate, 128)
    gradient = torch.randn(exact.shape).contiguous(memory_format=torch.channels_last)
    y = layer(x)
    gradients = torch.autograd.grad(y, (x, layer.weight), gradient)
    assert (y - exact).norm() < 1e-6 * exact.norm() and y.is_contiguous(memory_format=torch.channels_last)
    truths = torch.autograd.grad(exact, (x, layer.weight), gradient.double())
    for ours, truth in zip(gradients, truths, strict=True):
        assert (ours - truth).norm() < 1e-6 * truth.norm()
    far = rate * (side // 2) > {"AVX2": 4, "AVX512": 6, "DEFAULT": 99}[capability]
    assert rates == [rate, rate] * far  # forward, and the gradient of the input


def test_filters_that_are_no_squares_stay_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "CAPABILITY", "AVX2")
    x, square, flat = torch.randn(1, 16, 9, 9), torch.randn(16, 1, 5, 5), torch.randn(16, 1, 3, 5)
    assert depthwise.lacks_kernel(x, square, 4) and not depthwise.lacks_kernel(x, flat, 4)
    assert not depthwise.lacks_kernel(x, square, 2) and not depthwise.lacks_kernel(x.bfloat16(), square, 4)
    expected = F.conv2d(x, flat, None, 1, (4, 8), 4, 16)
    torch.testing.assert_close(depthwise.depthwise_forward(x, [], [flat], [4])[0], expected)


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize(("stride", "rate", "calls"), [(1, 2, 1), (1, 1, 0), (2, 2, 0)])
def test_at_stride_1_a_same_padding_one_has_the_forms(
    groups: int, stride: int, rate: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SMALL", 0)
    given: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        conv, "atrous_conv2d_fast", lambda x, w, r: (given.append(r), dispatch.atrous_conv2d_fast(x, w, r))[1]
    )
    layer, native = (
        kind(16, 16, 3, stride=stride, groups=groups, bias=True, **{name: rate})
        for kind, name in ((AtrousConv2dSame, "rate"), (Conv2dSame, "dilation"))
    )
    native.load_state_dict(layer.state_dict())
    x = torch.randn(2, 16, 12, 9).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(dispatch, "_rule", lambda *_: "window" if groups == 1 else "depthwise")
    torch.testing.assert_close(layer(x), native(x))
    assert given == [[rate]] * calls


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 9), (8, 10), (7, 12)])
def test_same_padding_is_timms(size: tuple[int, int], stride: int) -> None:
    native = Conv2dSame(8, 8, 3, stride=stride)
    layer = AtrousConv2dSame.over(copy.deepcopy(native))
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(layer(x), native(x))
    assert layer.state_dict().keys() == native.state_dict().keys()


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (5, 2, 2), (3, 1, 1), (4, 2, 1)])
def test_a_mean_counts_its_border_as_the_native_pooling_does(
    kernel: int, stride: int, padding: int, divisor: int | None, count_include_pad: bool, ceil_mode: bool
) -> None:
    native = nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    pool, x = AtrousPool2d(native), torch.rand(2, 3, 17, 21) + 1
    expected = native(x)
    set_stride_and_dilation(pool, 1, 1)
    rows, columns = expected.shape[-2:]
    dense = pool(x)[..., ::stride, ::stride][..., :rows, :columns]
    torch.testing.assert_close(dense, expected[..., : dense.shape[-2], : dense.shape[-1]])
    set_stride_and_dilation(pool, stride, 2)  # on every second value of a map
    sparse = AtrousPool2d(nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad, divisor))
    set_stride_and_dilation(sparse, 1, 1)
    set_stride_and_dilation(pool, 1, 2)
    torch.testing.assert_close(pool(x)[..., ::2, ::2], sparse(x[..., ::2, ::2].contiguous()))
