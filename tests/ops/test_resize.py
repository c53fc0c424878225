"""One align-corners convention, and the loss of section 4.1."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.data.resize import shrunk, viewing_factor
from atrous.ops.resize import (
    downsample_labels,
    feature_count,
    grid_size,
    pad_image,
    resize,
    upsample,
)


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        (513, 16, 513),
        (513, 8, 513),
        (769, 16, 769),
        (512, 16, 513),
        (500, 16, 513),
        (360, 16, 369),
        (1, 16, 1),
        (2, 32, 33),
    ],
)
def test_grid_size(size: int, stride: int, expected: int) -> None:
    assert grid_size(size, stride) == expected


def test_513_needs_no_padding_which_is_why_the_paper_crops_it() -> None:
    images = torch.randn(1, 3, 513, 513)
    assert pad_image(images, 16) is images


def test_padding_is_below_and_right_with_the_mean_pixel() -> None:
    padded = pad_image(torch.ones(1, 3, 20, 30), 16)
    assert padded.shape == (1, 3, 33, 33)
    assert padded[..., :20, :30].eq(1).all() and padded.sum() == 3 * 20 * 30


def by_hand(logits: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Pixel p lies between features p // s and p // s + 1."""
    array = logits.numpy().astype(np.float64)
    out = np.zeros((*array.shape[:2], *size))
    for y in range(size[0]):
        for x in range(size[1]):
            top, left, dy, dx = y // stride, x // stride, y % stride / stride, x % stride / stride
            below, right = min(top + 1, array.shape[2] - 1), min(left + 1, array.shape[3] - 1)
            upper = array[..., top, left] * (1 - dx) + array[..., top, right] * dx
            lower = array[..., below, left] * (1 - dx) + array[..., below, right] * dx
            out[..., y, x] = upper * (1 - dy) + lower * dy
    return torch.from_numpy(out)


@pytest.mark.parametrize(("size", "stride"), [((33, 33), 16), ((20, 31), 8), ((1, 1), 16), ((1, 40), 16), ((17, 5), 4)])
def test_feature_j_sits_on_pixel_stride_times_j(size: tuple[int, int], stride: int) -> None:
    features = tuple((grid_size(side, stride) - 1) // stride + 1 for side in size)
    logits = torch.randn(2, 3, *features)
    actual = upsample(logits, size, stride)
    torch.testing.assert_close(actual.double(), by_hand(logits, size, stride), rtol=1e-5, atol=1e-5)
    rows, columns = -(-size[0] // stride), -(-size[1] // stride)
    torch.testing.assert_close(actual[..., ::stride, ::stride], logits[..., :rows, :columns], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 48), (33, 50), (7, 90)])
def test_other_libraries_conventions_are_theirs(size: tuple[int, int]) -> None:
    images = torch.randn(1, 3, *size)
    assert pad_image(images, 8, "half_pixel") is images
    padded = pad_image(images, 8, "corners")
    assert all(side % 8 == 0 and side - 8 < own for side, own in zip(padded.shape[2:], size, strict=True))
    logits = torch.randn(1, 4, *(feature_count(side, 8, "corners") for side in size))
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    assert torch.equal(upsample(logits, size, 8, "half_pixel"), expected)
    expected = F.interpolate(logits, padded.shape[2:], mode="bilinear", align_corners=True)[..., : size[0], : size[1]]
    assert torch.equal(upsample(logits, size, 8, "corners"), expected)


def test_resize_keeps_the_corners() -> None:
    image = torch.randn(1, 3, 9, 7)
    larger = resize(image, (17, 13))
    torch.testing.assert_close(larger[..., ::2, ::2], image)
    assert resize(image, (9, 7)) is image


def test_downsampled_labels_are_those_under_the_features() -> None:
    labels = torch.arange(20 * 30).view(1, 20, 30) % 200
    small = downsample_labels(labels, 16)
    assert small.shape == (1, 3, 3)
    assert torch.equal(small[0, :2, :2], labels[0, ::16, ::16])
    assert small[0, 2].eq(255).all() and small[0, :, 2].eq(255).all()


@pytest.mark.parametrize(
    ("size", "longest", "factor"),
    [
        ((360, 480), 840, 839 / 479),
        ((480, 360), 840, 839 / 479),
        ((3000, 4001), 841, 0.21),
        ((300, 200), 840, 2.0),
        ((1, 1), 840, 2.0),
        ((1, 1), 1, 0.0),
        ((7, 9), None, 1.0),
    ],
)
def test_the_longer_side_is_brought_to_what_is_asked(size: tuple[int, int], longest: int | None, factor: float) -> None:
    assert viewing_factor(size, longest) == pytest.approx(factor)


def test_what_is_made_smaller_keeps_its_place_and_counts_every_pixel() -> None:
    ramp = torch.arange(0, 255, 2, dtype=torch.uint8).expand(3, 65, 128)
    for width in (43, 20, 9):
        expected = torch.linspace(0, 254, width)[2:-2].expand(3, 13, width - 4)
        assert (shrunk(ramp, (13, width))[..., 2:-2].float() - expected).abs().max() <= 0.5 + 1e-3, width
        # At the edge the mean is over the pixels that there are.
        assert shrunk(ramp, (13, width))[..., 0].max() <= 128 / width
    stripes = torch.arange(96).remainder(5).eq(0).mul(200).byte().expand(3, 49, 96)  # every fifth column is white
    assert (shrunk(stripes, (13, 20)).float() - 40)[..., 1:-1].abs().max() <= 1
    assert resize(stripes[None].float(), (13, 20)).min() == 200, "bilinear interpolation sees the white ones alone"
