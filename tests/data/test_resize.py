"""The mean around each pixel, against PyTorch's pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atrous.data import resize


@pytest.mark.parametrize(
    ("size", "spans"), [((40, 31), (3, 5)), ((1, 90), (1, 7)), ((9, 2), (3, 3)), ((600, 11), (9, 1))]
)
def test_means_are_those_of_pooling_to_the_bit(size: tuple[int, int], spans: tuple[int, int]) -> None:
    plane = torch.randint(0, 256, size, dtype=torch.uint8)
    actual = torch.cat([resize._means(plane, top, list(spans)) for top in range(0, size[0], resize._STRIP)])
    expected = plane[None, None].float()
    for span in ((spans[0], 1), (1, spans[1])):
        expected = F.avg_pool2d(expected, span, 1, (span[0] // 2, span[1] // 2), count_include_pad=False)
    assert torch.equal(actual, expected[0, 0])
