"""One way from pixels to what a model sees: evaluation, prediction, the ladder, the logger and figures agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from atrous.data.datasets.base import Item
from atrous.data.datasets.dataset import SegmentationDataset
from atrous.data.labels import Labels
from atrous.data.overlay import overlay
from atrous.evaluation.evaluate import evaluate
from atrous.evaluation.inference_settings import Setting, ladder
from atrous.models.deeplab import DeepLabV3
from atrous.prediction.predictor import Predictor
from atrous.reproduction.figures import found_by
from atrous.training.logger import predictions_picture

LABELS = Labels(("a", "b", "c"), ((200, 0, 0), (0, 200, 0), (0, 0, 200)))
LONGEST_SIDE = 65


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = DeepLabV3("resnet18", len(LABELS), aspp_rates=(1,), image_pooling=False)
    model.set_batch_norm_decay(0.5)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(2, 3, 65, 65))
        model.classifier.weight.normal_()
    model.longest_side = LONGEST_SIDE
    return Predictor(model, LABELS, device="cpu", dtype=torch.float32)


def noisy(height: int, width: int) -> np.ndarray:
    """Noise over soft shapes: with three of four pixels left out it is another picture."""
    rng = np.random.default_rng(1)
    shapes = np.asarray(Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height)))
    return (shapes.astype(int) + rng.integers(-90, 91, shapes.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(151, 260), (70, 100), (20, 30)], ids=["shrunk", "made smaller", "enlarged"])
def test_a_picture_has_one_mask_wherever_it_is_shown(predictor: Predictor, tmp_path, size: tuple[int, int]) -> None:
    image = noisy(*size)
    mask = predictor(image).mask
    assert len(np.unique(mask)) > 1  # or any preprocessing would do
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    dataset = SegmentationDataset([Item("image", tmp_path / "image.png", tmp_path / "mask.png")], LABELS)

    assert evaluate(predictor.model, dataset).scores.pixel_accuracy == 1
    assert ladder(predictor.model, dataset, [Setting(16)])[0].scores.pixel_accuracy == 1
    assert np.array_equal(found_by(predictor.model, dataset[0].image, 16), mask)
    picture = np.asarray(predictions_picture(predictor.model, dataset))
    assert np.array_equal(picture[:, -size[1] :], np.asarray(overlay(image, mask, LABELS, legend=False)))
