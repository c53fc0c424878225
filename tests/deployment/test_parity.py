"""The comparison of a file with its model: what passes, and what is said where it does not."""

from __future__ import annotations

import pytest
import torch

from atrous.deployment.network import Interface
from atrous.deployment.parity import PHOTOGRAPHS, Parity, ParityError, inputs_of, photographs, require
from atrous.models.deeplab import DeepLabV3


def test_the_photographs_have_odd_sizes_or_the_one_asked_for() -> None:
    assert [tuple(image.shape[1:]) for image in photographs(None)] == list(PHOTOGRAPHS.values())
    for size in ((40, 50), (900, 1000)):  # made smaller, and larger
        images = list(photographs(size))
        assert {tuple(image.shape[1:]) for image in images} == {size} and len(images) == 3
        assert all(image.dtype == torch.uint8 and image.float().std() > 20 for image in images)


def test_what_a_file_takes() -> None:
    model = DeepLabV3("timm/lcnet_050", 3)
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    assert torch.equal(inputs_of(images, model, Interface()), images.permute(0, 2, 3, 1))
    assert inputs_of(images, model, Interface(raw_input=True)).shape == (2, 3, 5, 7)


@pytest.mark.parametrize(
    ("parity", "said"),
    [
        (Parity(0.9985, 1e-5, ()), "99.85% of the pixels"),
        (Parity(1.0, 2e-3, ()), "logits differ by 2.0e-03 of the largest"),
        (Parity(1.0, float("nan"), ()), "logits differ by nan"),
        (Parity(float("nan"), None, ()), "nan% of the pixels"),
    ],
)
def test_what_is_refused(parity: Parity, said: str) -> None:
    with pytest.raises(ParityError) as error:
        require(parity, "mine.onnx", lambda: "the first layer that differs is conv1")
    assert said in str(error.value) and str(error.value).startswith("mine.onnx is not written")
    assert str(error.value).endswith("the first layer that differs is conv1") and error.value.status == 1


def test_what_passes() -> None:
    require(Parity(0.9995, 1e-4, ()), "mine.onnx", lambda: pytest.fail("looked for a layer"))
    require(Parity(1.0, None, ()), "mine.onnx", lambda: pytest.fail("looked for a layer"))
