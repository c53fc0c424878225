"""Classes block by block, against interpolation of every logit in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atrous.ops import class_blocks
from atrous.ops.class_blocks import Enlargement, Weights, interpolation, largest_class
from atrous.ops.resize import Upsampling, feature_count, resize, upsample

SIZES = [
    ((65, 90), (65, 90), 16, "grid"),
    ((64, 41), (64, 41), 8, "grid"),
    ((1, 37), (1, 37), 4, "grid"),
    ((200, 131), (100, 66), 16, "grid"),
    ((40, 53), (81, 107), 16, "grid"),
    ((70, 97), (35, 49), 32, "grid"),
    ((70, 97), (51, 62), 8, "half_pixel"),
    ((70, 97), (70, 97), 16, "corners"),
    ((300, 20), (300, 20), 256, "grid"),
]


def draw(size: tuple[int, int], stride: int, upsampling: Upsampling, smooth: bool, classes: int = 7) -> Tensor:
    torch.manual_seed(size[1])
    count = [feature_count(side, stride, upsampling) for side in size]
    if not smooth:
        return torch.randn(2, classes, *count)
    return resize(4 * torch.randn(2, classes, 2, 3), (count[0], count[1]))  # large areas of one class


def enlargement(
    logits: Tensor, seen: tuple[int, int], size: tuple[int, int], stride: int, how: Upsampling
) -> Enlargement:
    rows, columns = (
        interpolation(*each, stride, how) for each in zip(size, seen, tuple(logits.shape[-2:]), strict=True)
    )
    return Enlargement(logits, rows, columns)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("size", "seen", "stride", "how"), SIZES)
def test_it_is_the_largest_of_the_interpolated_logits(
    size: tuple[int, int], seen: tuple[int, int], stride: int, how: Upsampling, smooth: bool
) -> None:
    logits = draw(seen, stride, how, smooth)
    exact = resize(upsample(logits.double(), seen, stride, how), size)
    actual = largest_class([enlargement(logits, seen, size, stride, how)])
    assert actual.dtype == torch.uint8 and actual.is_contiguous() and actual.shape == (2, *size)
    assert (exact.amax(1) - exact.gather(1, actual[:, None].long())[:, 0]).max() < 1e-5


@pytest.mark.parametrize("smooth", [True, False])
def test_it_is_the_largest_mean_of_probabilities_of_views(smooth: bool) -> None:
    size, views, total = (90, 131), [], torch.zeros(())
    for seen, stride in (((90, 131), 16), ((45, 66), 16), ((113, 164), 8)):
        logits = draw(seen, stride, "grid", smooth)
        total = total + resize(upsample(logits.double(), seen, stride), size).softmax(1).flip(-1)
        view = enlargement(logits, seen, size, stride, "grid")
        views.append(view._replace(columns=Weights(*(part.flip(0) for part in view.columns))))
    actual = largest_class(views)
    assert (total.amax(1) - total.gather(1, actual[:, None].long())[:, 0]).max() < 1e-5


def test_nothing_is_interpolated_where_the_features_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 5, 4, 6)
    logits[:, 3] += 100
    monkeypatch.setattr(class_blocks._Blocked, "values", None)  # it is not called
    actual = largest_class([enlargement(logits, (49, 81), (49, 81), 16, "grid")])
    assert actual.shape == (1, 49, 81) and bool((actual == 3).all())


@pytest.mark.parametrize("tile", [1, 3_000])
def test_blocks_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    view = enlargement(draw((90, 131), 16, "grid", False), (90, 131), (90, 131), 16, "grid")
    whole = largest_class([view])
    monkeypatch.setattr(class_blocks, "TILE", tile)
    assert torch.equal(largest_class([view]), whole)


@pytest.mark.parametrize("count", [1, 2])
def test_no_image_one_class_and_one_pixel(count: int) -> None:
    none = enlargement(torch.randn(0, 3, 3, 3), (33, 33), (33, 33), 16, "grid")
    assert largest_class([none] * count).shape == (0, 33, 33)
    one = enlargement(torch.randn(2, 1, 3, 3), (33, 33), (33, 33), 16, "grid")
    assert not largest_class([one] * count).any()
    pixel = torch.randn(2, 5, 1, 1)
    view = enlargement(pixel, (1, 1), (1, 1), 16, "grid")
    assert torch.equal(largest_class([view] * count).long(), pixel.argmax(1))


def test_an_image_has_the_same_classes_alone_as_in_a_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, 9, 14)
    seen = (129, 200)
    whole = largest_class([enlargement(logits, seen, seen, 16, "grid")])
    for i in range(len(logits)):
        assert torch.equal(largest_class([enlargement(logits[i : i + 1], seen, seen, 16, "grid")])[0], whole[i])


def test_equal_logits_give_the_smaller_class_and_many_classes_a_wider_dtype() -> None:
    logits = draw((65, 90), 16, "grid", False, 3)[:, [0, 1, 2, 2, 1, 0]]
    actual = largest_class([enlargement(logits, (65, 90), (65, 90), 16, "grid")])
    assert actual.max() <= 2
    many = torch.zeros(1, 300, 3, 3)
    many[:, 299] = 1
    actual = largest_class([enlargement(many, (33, 33), (33, 33), 16, "grid")])
    assert actual.dtype == torch.int32 and bool((actual == 299).all())


def test_dense_weights_are_pytorchs_interpolation() -> None:
    weights = interpolation(41, 41, 6, 8).dense(6)
    expected = upsample(torch.eye(6, dtype=torch.float64)[None, :, None].expand(1, 6, 2, 6), (9, 41), 8)[0, :, 0].t()
    torch.testing.assert_close(weights, expected)
