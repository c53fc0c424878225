"""The normalisation against its formula."""

import pickle

import numpy as np
import pytest
import torch

from atrous.data.image_io import to_tensor
from atrous.ops.normalization import IMAGENET
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
