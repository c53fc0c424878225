"""One way from pixels to what a model sees: evaluation, prediction, the ladder, the logger and figures agree."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from atrous.data.datasets.base import Item
from atrous.data.datasets.dataset import SegmentationDataset
from atrous.data.labels import Labels
from atrous.evaluation.evaluate import Setting, evaluate, predict_classes, predict_probabilities
from atrous.evaluation.inference_settings import ladder, rungs
from atrous.models.deeplab import DeepLabV3
from atrous.ops.normalization import IMAGENET
from atrous.prediction.predictor import Predictor
from atrous.reproduction.figures import predicted

LABELS = Labels(("a", "b", "c"), ((200, 0, 0), (0, 200, 0), (0, 0, 200)))
LONGEST_SIDE = 65
BILINEAR = {"mode": "bilinear", "align_corners": True}


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
    assert np.array_equal(predicted(predictor.model, dataset[0].image, Setting(16)), mask)
    [shown] = evaluate(predictor.model, dataset, worst=1).worst  # what a run's predictions.jpg is drawn from
    assert np.array_equal(shown.mask.numpy(), mask)


def test_padding_is_the_mean_pixel_and_its_features_are_cut_off(predictor: Predictor) -> None:
    model = copy.deepcopy(predictor.model).double()
    model.longest_side = None
    image = torch.from_numpy(noisy(70, 100)).permute(2, 0, 1)[None]
    for scales, flip in (((1.0,), False), ((0.5, 1.5), True)):
        probabilities = predict_probabilities(model, image, scales=scales, flip=flip, pad_to=193)
        views = []
        for scale in scales:  # by hand: resize, flip, pad, run, cut, flip back, resize
            size = (round(69 * scale) + 1, round(99 * scale) + 1)
            # Colour by colour: of three at once, PyTorch rounds otherwise with one thread than with several.
            seen = F.interpolate(IMAGENET(image).transpose(0, 1), size, **BILINEAR).transpose(0, 1)
            least = round(192 * scale) + 1
            for flips in ([], [3]) if flip else ([],):
                padded = torch.zeros(1, 3, least, least, dtype=torch.float64)
                padded[..., : seen.shape[2], : seen.shape[3]] = seen.flip(flips)
                with torch.no_grad():
                    logits = model(padded)[..., : seen.shape[2], : seen.shape[3]].flip(flips)
                views.append(F.interpolate(logits, (70, 100), **BILINEAR).softmax(1))
        torch.testing.assert_close(probabilities, torch.stack(views).mean(0), rtol=0, atol=1e-9)
        unpadded = predict_probabilities(model, image, scales=scales, flip=flip)
        assert (probabilities - unpadded).abs().max() > 1e-3  # or padding would do nothing
    assert torch.equal(predict_classes(model, image, pad_to=70), predict_classes(model, image))  # large enough


def test_evaluation_says_what_it_padded_to(predictor: Predictor, tmp_path) -> None:
    Image.fromarray(noisy(70, 100)).save(tmp_path / "image.png")
    Image.fromarray(np.tile(np.arange(100, dtype=np.uint8) % 3, (70, 1))).save(tmp_path / "mask.png")
    dataset = SegmentationDataset([Item("image", tmp_path / "image.png", tmp_path / "mask.png")], LABELS)
    model = predictor.model
    padded, plain = evaluate(model, dataset, pad_to=193), evaluate(model, dataset)
    assert padded.as_dict()["pad_to"] == 193 and plain.as_dict()["pad_to"] is None and padded.scores != plain.scores
    # Rows of one output stride share passes only if they pad alike.
    rows = [Setting(16), Setting(16, pad_to=193), Setting(16, (0.5, 1.0), pad_to=193), Setting(16, (0.5, 1.0))]
    actual = ladder(model, dataset, rows)
    assert [row.scores.miou for row in actual] == pytest.approx(
        [evaluate(model, dataset, scales=row.scales, pad_to=row.pad_to).scores.miou for row in rows], abs=1e-3
    )
    assert len({row.scores.miou for row in actual}) == 4 and {row.slug for row in rows} == {
        "os16", "os16-pad193", "os16-scales0.5-1-pad193", "os16-scales0.5-1",
    }  # fmt: skip
    assert [row.pad_to for row in rungs(8, (0.5,), 513)] == [513] * 4
    with pytest.raises(ValueError, match="pad_to is 0, expected 1 to 65536 pixels"):
        evaluate(model, dataset, pad_to=0)
