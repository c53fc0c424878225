"""Space to batch: the split of a map into small maps, its inverse, and the convolution between them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atrous.ops.conv_kernels.space_to_batch import merge, space_to_batch, split

SIZES = [(1, 1), (7, 5), (16, 24), (33, 21)]


@pytest.mark.parametrize("rate", [1, 2, 5, 40])
@pytest.mark.parametrize("size", SIZES)
def test_a_small_map_is_every_rate_th_pixel(size: tuple[int, int], rate: int) -> None:
    x = torch.randn(2, 3, *size)
    small = split(x, rate)
    high, wide = small.shape[-2:]
    assert small.shape == (rate * rate * 2, 3, -(-size[0] // rate), -(-size[1] // rate))
    padded = F.pad(x, (0, wide * rate - size[1], 0, high * rate - size[0]))
    for row, column, image in ((0, 0, 0), (rate - 1, 0, 1), (rate // 2, rate - 1, 0)):
        one = small[(row * rate + column) * 2 + image]
        assert torch.equal(one, padded[image, :, row::rate, column::rate])
    assert torch.equal(merge(small, rate, *size), x)


@pytest.mark.parametrize("channels", [(24, 24, 24), (12, 20, 1)])
@pytest.mark.parametrize(("sides", "rate"), [((3, 3), 2), ((5, 5), 4), ((3, 3), 8), ((5, 3), 3)])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_convolution(
    size: tuple[int, int], sides: tuple[int, int], rate: int, channels: tuple[int, int, int]
) -> None:
    read, filters, groups = channels
    x = torch.randn(2, read, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(filters, read // groups, *sides, dtype=x.dtype)
    result = space_to_batch(x, weight, rate)
    padding = (rate * (sides[0] // 2), rate * (sides[1] // 2))
    expected = F.conv2d(x, weight, None, 1, padding, rate, groups)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert result.is_contiguous(memory_format=torch.channels_last)
