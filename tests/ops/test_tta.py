"""The mean over scales and flips, tile by tile, against the plain form in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atrous.ops import tta as views_of
from atrous.ops.resize import Upsampling, feature_count, resize, upsample
from atrous.ops.tta import View, confidence_of, mean_argmax, mean_probabilities


def draw(
    size: tuple[int, int],
    classes: int,
    stride: int,
    scales: tuple[float, ...],
    batch: int = 1,
    flip: bool = True,
    upsampling: Upsampling = "grid",
) -> list[View]:
    views = []
    for scale in scales:
        height, width = (round((length - 1) * scale) + 1 for length in size)
        h, w = (feature_count(length, stride, upsampling) for length in (height, width))
        for flipped in (False, True) if flip else (False,):
            logits = 4 * torch.randn(batch, classes, h, w).contiguous(memory_format=torch.channels_last)
            views.append(View(logits, (height, width), flipped, upsampling))
    return views


def plain(views: list[View], size: tuple[int, int], stride: int) -> Tensor:
    actual = []
    for view in views:
        logits = upsample(view.logits.double(), view.size, stride, view.upsampling)
        probabilities = resize(logits, size).softmax(1)
        actual.append(probabilities.flip(-1) if view.flipped else probabilities)
    return torch.stack(actual).mean(0)


CASES = [
    ((37, 50), 5, 8, (0.5, 1.0, 1.75), 2),
    ((33, 33), 21, 16, (1.0,), 1),
    ((1, 9), 3, 16, (0.5, 2.0), 1),
    ((9, 1), 3, 4, (0.7,), 3),
    ((1, 1), 2, 32, (1.0,), 1),
    ((45, 700), 4, 8, (0.3, 1.0), 1),  # more columns than one product makes
]


@pytest.mark.parametrize("upsampling", ["grid", "half_pixel", "corners"])
@pytest.mark.parametrize(("size", "classes", "stride", "scales", "batch"), CASES)
def test_it_is_the_plain_mean(
    size: tuple[int, int], classes: int, stride: int, scales: tuple[float, ...], batch: int, upsampling: Upsampling
) -> None:
    torch.manual_seed(0)
    views = draw(size, classes, stride, scales, batch, upsampling=upsampling)
    before = [view.logits.clone() for view in views]
    expected = plain(views, size, stride)
    actual = mean_probabilities(views, size, stride)
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-6
    top = expected.topk(2, 1).values
    clear = top[:, 0] - top[:, 1] > 1e-5
    classes_found = mean_argmax(views, size, stride)
    assert classes_found.dtype == torch.uint8
    assert torch.equal(classes_found[clear].long(), expected.argmax(1)[clear])
    assert all(torch.equal(view.logits, kept) for view, kept in zip(views, before, strict=True))


def test_tiles_of_any_height_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    views = draw((41, 30), 6, 8, (0.5, 1.25))
    whole = mean_probabilities(views, (41, 30), 8)
    for tile in (1, 6 * 30 * 7):
        monkeypatch.setattr(views_of, "TILE", tile)
        torch.testing.assert_close(mean_probabilities(views, (41, 30), 8), whole, rtol=0, atol=2e-7)


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    logits = torch.tensor([[[[1e4, -1e4]], [[-1e4, 1e4]], [[-3e4, -3e4]]]])
    views = [View(logits, (1, 17))]
    actual = mean_probabilities(views, (1, 17), 16)
    torch.testing.assert_close(actual.double(), plain(views, (1, 17), 16), rtol=0, atol=1e-6)


def test_half_precision_is_computed_in_float32_and_double_stays() -> None:
    torch.manual_seed(0)
    views = draw((33, 33), 3, 16, (1.0,))
    halves = [view._replace(logits=view.logits.bfloat16()) for view in views]
    rounded = [view._replace(logits=view.logits.bfloat16().float()) for view in views]
    assert torch.equal(mean_probabilities(halves, (33, 33), 16), mean_probabilities(rounded, (33, 33), 16))
    doubles = [view._replace(logits=view.logits.double()) for view in views]
    actual = mean_probabilities(doubles, (33, 33), 16)
    assert actual.dtype == torch.float64 and (actual - plain(doubles, (33, 33), 16)).abs().max() < 1e-12


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_travel_as_in_the_plain_mean(value: float) -> None:
    torch.manual_seed(0)
    views = draw((65, 90), 5, 16, (0.5, 1.0))
    views[1].logits[0, 2, 1, 2] = value
    expected = plain(views, (65, 90), 16)
    mean = mean_probabilities(views, (65, 90), 16)
    torch.testing.assert_close(mean.double(), expected, rtol=0, atol=1e-6, equal_nan=True)
    assert 0 < int(mean.isnan().sum()) < mean.numel() or value == -torch.inf
    classes = mean_argmax(views, (65, 90), 16)
    assert torch.equal(classes.long(), mean.argmax(1))


def test_pytorchs_operators_where_kernels_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATROUS_KERNELS", "library")
    monkeypatch.setattr(views_of, "_tiles", None)  # it is not called
    views = draw((33, 41), 3, 8, (0.5, 1.0))
    assert (mean_probabilities(views, (33, 41), 8) - plain(views, (33, 41), 8)).abs().max() < 1e-6
    mean_argmax(views, (33, 41), 8)


def test_logits_that_require_a_gradient_have_classes() -> None:
    logits = torch.randn(1, 3, 3, 3)
    views, learned = [[View(each, (33, 33))] for each in (logits, logits.clone().requires_grad_())]
    assert torch.equal(mean_argmax(learned, (33, 33), 16), mean_argmax(views, (33, 33), 16))


def test_equal_classes_give_the_first() -> None:
    assert not mean_argmax([View(torch.zeros(1, 4, 2, 2), (9, 9))], (9, 9), 8).any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no view"):
        mean_probabilities([], (9, 9), 8)
    with pytest.raises(ValueError, match="logits of 9x9 pixels at output stride 8 must be 2x2, not 3x2"):
        mean_probabilities([View(torch.zeros(1, 4, 3, 2), (9, 9))], (9, 9), 8)
    with pytest.raises(ValueError, match="expected B,K,h,w each"):
        mean_argmax([View(torch.zeros(1, k, 2, 2), (9, 9)) for k in (3, 4)], (9, 9), 8)
    assert mean_argmax([View(torch.zeros(1, 257, 2, 2), (9, 9))], (9, 9), 8).dtype == torch.int32


def test_gradients_are_those_of_the_plain_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [
        View(logits, (33, 41), flipped=flipped)
        for logits, flipped in ((torch.randn(1, 3, 3, 4, requires_grad=True), flipped) for flipped in (False, True))
    ]
    leaves = [view.logits for view in views]
    weight = torch.randn(1, 3, 33, 41, dtype=torch.float64)
    actual = torch.autograd.grad((mean_probabilities(views, (33, 41), 16) * weight).sum(), leaves)
    expected = torch.autograd.grad((plain(views, (33, 41), 16) * weight).sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    classes = plain(views, (33, 41), 16).argmax(1)
    actual = torch.autograd.grad(confidence_of(views, (33, 41), 16, classes).sum(), leaves)
    expected = torch.autograd.grad(plain(views, (33, 41), 16).amax(1).sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # Classes have no gradient, and so need nothing of the size of the image for each.
    monkeypatch.setattr(views_of, "_plain_mean", None)
    with torch.no_grad():
        expected_classes = mean_argmax(views, (33, 41), 16)
    assert torch.equal(mean_argmax(views, (33, 41), 16), expected_classes)
