"""The normalisation against its formula."""

import pickle

import numpy as np
import pytest
import torch

from atrous.data.images.image_io import to_tensor
from atrous.ops.normalization import IMAGENET, Normalization
from pictures import picture

Array = np.ndarray


def test_normalization_is_the_formula_and_fill_is_its_zero() -> None:
    image = to_tensor(picture())
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(IMAGENET(image), (image / 255 - mean) / std, rtol=0, atol=2e-6)
    assert IMAGENET(image[None]).shape == (1, 3, 30, 40) and IMAGENET(image).dtype == torch.float32
    assert IMAGENET.fill == (124, 116, 104)
    assert IMAGENET(torch.tensor(IMAGENET.fill, dtype=torch.uint8).view(3, 1, 1)).abs().max() < 0.01
    assert pickle.loads(pickle.dumps(IMAGENET)) == IMAGENET
    with pytest.raises(ValueError, match="expected uint8"):
        IMAGENET(image.float())


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_at_the_first_call_does_not_matter(default: torch.dtype) -> None:
    normalization = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6 + default.itemsize / 100))  # not seen before
    image = torch.arange(3 * 16, dtype=torch.uint8).reshape(3, 4, 4)
    torch.set_default_dtype(default)
    try:
        early = normalization(image)
    finally:
        torch.set_default_dtype(torch.float32)
    mean, std = (
        torch.tensor(colours, dtype=torch.float64).view(3, 1, 1) for colours in (normalization.mean, normalization.std)
    )
    assert early.dtype == torch.float32
    torch.testing.assert_close(early.double(), (image.double() / 255 - mean) / std, rtol=1e-6, atol=1e-6)
