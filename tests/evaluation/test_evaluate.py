"""Evaluation against a plain loop: argmax, averages over scales and flips, one matrix over images of all sizes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, jaccard_score
from torch.nn.utils import prune

from atrous.data.datasets.dataset import SegmentationDataset, open_dataset
from atrous.evaluation.evaluate import (
    checked_longest_side,
    evaluate,
    in_eval_mode,
    predict_classes,
    predict_probabilities,
)
from atrous.evaluation.inference_settings import ladder, rungs
from atrous.evaluation.preprocessor import Preprocessor
from atrous.models.deeplab import DeepLabV3
from atrous.ops.normalization import IMAGENET


@pytest.fixture(scope="module")
def model(tiny_data) -> DeepLabV3:
    """Random weights, with statistics and a classifier that tell the classes apart on some pixels."""
    torch.manual_seed(0)
    model = DeepLabV3("resnet18", 4, aspp_rates=(1,), image_pooling=False)
    data = open_dataset(tiny_data, "train")
    model.set_batch_norm_decay(0.5)
    with torch.no_grad():
        for i in range(4):
            model(IMAGENET(data[i].image[None]))
        model.classifier.weight.normal_(std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def val(tiny_data) -> SegmentationDataset:
    return open_dataset(tiny_data, "val")


def scaled(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=True)


@torch.no_grad()
def by_hand(model: DeepLabV3, images: torch.Tensor, scales: tuple[float, ...], flip: bool) -> torch.Tensor:
    """Section 4.2 in a plain loop: `model(x)` is all that it uses."""
    height, width = images.shape[-2:]
    actual = []
    for scale in scales:
        x = scaled(images, round((height - 1) * scale) + 1, round((width - 1) * scale) + 1)
        actual.append(scaled(model(x), height, width).softmax(1))
        if flip:
            actual.append(scaled(model(x.flip(3)), height, width).softmax(1).flip(3))
    return torch.stack(actual).double().mean(0)


@pytest.mark.parametrize("upsampling", ["grid", "half_pixel", "corners"])
def test_scales_and_flip_are_the_mean_of_the_softmax(model, val, upsampling) -> None:
    model, images = copy.deepcopy(model), val[0].image[None]
    model.upsampling = upsampling
    for scales, flip in [((1.0,), False), ((1.0,), True), ((0.5, 0.75, 1.25), False), ((0.5, 1.0, 1.75), True)]:
        actual = predict_probabilities(model, images, scales=scales, flip=flip)
        classes = predict_classes(model, images, scales=scales, flip=flip)
        expected = by_hand(model, IMAGENET(images), scales, flip)
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(actual.sum(1), torch.ones_like(actual[:, 0]), rtol=0, atol=1e-5)
        top = expected.topk(2, 1).values
        clear = top[:, 0] - top[:, 1] > 1e-4
        assert clear.float().mean() > 0.9
        assert classes.dtype == torch.uint8
        assert torch.equal(classes[clear].long(), expected.argmax(1)[clear])


def test_padding_that_would_move_the_features_is_refused(model, val) -> None:
    model, images = copy.deepcopy(model), val[0].image[None]
    model.upsampling = "half_pixel"
    with pytest.raises(ValueError, match="pad_to is 500, and the model's upsampling is half_pixel"):
        predict_classes(model, images, pad_to=500)


def test_the_scales_make_a_difference(model, val) -> None:
    images = IMAGENET(val[0].image[None])
    plain, several, flipped = (
        by_hand(model, images, scales, flip) for scales, flip in [((1.0,), False), ((0.5, 1.5), False), ((1.0,), True)]
    )
    assert (plain - several).abs().max() > 0.01 and (plain - flipped).abs().max() > 0.01


def test_a_batch_is_its_images_one_by_one(model, val) -> None:
    images = torch.stack([val[0].image, val[0].image.flip(1)])
    together = predict_probabilities(model, images, scales=(0.75, 1.0), flip=True)
    single = predict_probabilities(model, images[1:], scales=(0.75, 1.0), flip=True)
    torch.testing.assert_close(together[1:], single, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scales", [(), (0.0,), (-1.0,), (1.0, float("nan")), (float("inf"),)])
def test_scales_that_are_none(model, val, scales) -> None:
    with pytest.raises(ValueError, match="scales are .*, expected numbers from 0.05 to 16"):
        evaluate(model, val, scales=scales)


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((0.75, 1.25), True)])
def test_the_scores_are_scikit_learns_over_all_images_of_all_sizes(model, val, scales, flip) -> None:
    sizes = {tuple(val[i].mask.shape) for i in range(len(val))}
    assert len(sizes) == len(val) == 4
    truth, prediction = [], []
    for i in range(len(val)):
        sample = val[i]
        ids = by_hand(model, IMAGENET(sample.image[None]), scales, flip).argmax(1)[0].numpy()
        valid = sample.mask.numpy() != 255
        truth.append(sample.mask.numpy()[valid])
        prediction.append(ids[valid])
    t, p = np.concatenate(truth), np.concatenate(prediction)
    actual = evaluate(model, val, scales=scales, flip=flip)
    matrix = confusion_matrix(t, p, labels=range(4))
    assert (matrix.sum(0) > 0).sum() > 1  # a model that says one thing only would test little
    assert actual.images == 4
    # A tie between two classes may fall either way by a rounding.
    assert actual.scores.pixel_accuracy == pytest.approx(np.mean(t == p), abs=5e-4)
    assert actual.scores.miou == pytest.approx(jaccard_score(t, p, average="macro"), abs=5e-4)
    assert (actual.scales, actual.flip) == (scales, flip)


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_left_as_it_was_found(model, val, mode) -> None:
    model.train(mode)
    model.output_stride = 16
    before = {key: value.clone() for key, value in model.state_dict().items()}
    actual = evaluate(model, val, output_stride=8)
    assert actual.output_stride == 8
    assert model.training is mode and model.output_stride == 16
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_not_changed_while_it_is_evaluated(model, val, mode) -> None:
    states = []
    model.train(mode)
    evaluate(model, val, output_stride=8, progress=lambda done: states.append((model.training, model.output_stride)))
    ladder(model, val, rungs(8), progress=lambda done: states.append((model.training, model.output_stride)))
    model.eval()
    assert set(states) == {(mode, 16)}


def test_a_model_in_eval_mode_is_itself_and_a_copy_shares_its_parameters(model) -> None:
    assert in_eval_mode(model) is in_eval_mode(model, 16) is model
    copy = in_eval_mode(model.train(), 8)
    assert model.training and model.output_stride == 16 and not copy.training and copy.output_stride == 8
    assert all(a is b for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    model.eval().backbone.layer4[0].train()  # one layer that trains is enough
    assert not any(layer.training for layer in in_eval_mode(model).modules())
    model.eval()
    with pytest.raises(ValueError, match="output"):
        in_eval_mode(model, 12)


def test_a_pruned_model_is_evaluated_at_another_output_stride(model, val) -> None:
    pruned = copy.deepcopy(model)
    prune.l1_unstructured(pruned.classifier, "weight", 0.5)
    with torch.no_grad():
        assert not torch.equal(pruned(IMAGENET(val[0].image[None])), model(IMAGENET(val[0].image[None])))
    expected = copy.deepcopy(model)
    expected.load_state_dict(model.state_dict() | {"classifier.weight": pruned.classifier.weight})
    assert evaluate(pruned, val, output_stride=8).scores == evaluate(expected, val, output_stride=8).scores


def test_the_output_stride_is_the_one_asked_for(model, val) -> None:
    at = {stride: evaluate(model, val, output_stride=stride) for stride in (8, 16)}
    model.output_stride = 8
    assert evaluate(model, val).scores == at[8].scores
    model.output_stride = 16
    assert evaluate(model, val).scores == at[16].scores != at[8].scores


def test_other_classes_are_refused_with_both_counts(val) -> None:
    with pytest.raises(ValueError, match="the data has 4 classes, the model 7"):
        evaluate(DeepLabV3("resnet18", 7), val)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("ground", "green", "red", "blue"), "the first difference is class 1, red in the data and green in the model"),
        (("ground", "red", "green"), "the first difference is class 3, blue in the data and none in the model"),
        (("ground", "red", "green", "blue", "car"), "class 4, none in the data and car in the model"),
    ],
)
def test_classes_are_compared_by_name_and_order(model, val, names, said) -> None:
    both = f"the data has the 4 classes ground, red, green, blue; the model has the {len(names)} classes {names[0]}"
    for run in (lambda: evaluate(model, val, names=names), lambda: ladder(model, val, rungs(16), names=names)):
        with pytest.raises(ValueError, match=f"{both}.*{said}"):
            run()
    assert evaluate(model, val, names=val.labels.names).scores == evaluate(model, val).scores


def test_progress_counts_every_image(model, val) -> None:
    done: list[int] = []
    evaluate(model, val, progress=done.append)
    assert done == [1, 2, 3, 4]


def test_json_has_what_the_command_line_promises(model, val) -> None:
    actual = evaluate(model, val).as_dict()
    assert {"miou", "iou", "pixel_accuracy", "images", "seconds", "output_stride", "left_out"} <= actual.keys()
    assert list(actual["iou"]) == ["ground", "red", "green", "blue"] and 0 <= actual["miou"] <= 1


def test_pictures_are_brought_to_the_models_longest_side(model, val) -> None:
    images = val[0].image[None]
    longest = max(images.shape[-2:])
    side = longest + longest // 2
    factor = (side - 1) / (longest - 1)
    try:
        for scales, flip in [((1.0,), False), ((0.5, 1.0), True)]:
            model.longest_side = None
            expected = predict_probabilities(model, images, scales=[factor * scale for scale in scales], flip=flip)
            model.longest_side = side
            actual = predict_probabilities(model, images, scales=scales, flip=flip)
            classes = predict_classes(model, images, scales=scales, flip=flip)
            as_they_are = predict_probabilities(model, images, scales=scales, flip=flip, fit=False)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
            assert (classes == actual.argmax(1)).all()
            assert (as_they_are - expected).abs().max() > 1e-3
        assert evaluate(model, val).as_dict()["longest_side"] == side
    finally:
        model.longest_side = None


def test_a_large_picture_is_made_smaller_with_all_its_pixels(model, val, monkeypatch) -> None:
    small = val[0].image
    height, width = small.shape[1:]
    # Each pixel becomes 5×5, and the corners' are cut so that the corners' centres stay in the corners.
    large = small.repeat_interleave(5, 1).repeat_interleave(5, 2)[:, 2:-2, 2:-2].contiguous()
    noise = (torch.arange(large.shape[2]) % 5 == 0) * torch.tensor([[[60]], [[-60]], [[60]]])
    noisy = (large.int() + noise - noise.float().mean(-1, keepdim=True).int()).clamp(0, 255).byte()
    monkeypatch.setattr(model, "longest_side", max(height, width))
    expected = predict_probabilities(model, small[None])
    for image, close in ((large, 0.02), (noisy, 0.15)):
        seen = Preprocessor(model)(image[None])[0]
        assert seen.shape == small.shape
        assert image is noisy or (seen - IMAGENET(small)).abs().max() <= 1.01 / 255 / min(IMAGENET.std)
        actual = predict_probabilities(model, image[None])
        assert (actual[..., 2::5, 2::5].mean() - 0.25).abs() < 1e-6 and actual.shape[-2:] == large.shape[1:]
        assert (actual[..., ::5, ::5] - expected).abs().mean() < close
    # With a view of more than half of it, a picture is not made smaller first.
    half, tripled = (Preprocessor(model).views(large[None], largest)(0.5) for largest in (0.5, 3.0))
    torch.testing.assert_close(tripled, scaled(IMAGENET(large[None]), *tripled.shape[-2:]))
    assert (half - tripled).abs().max() > 0.1


@pytest.mark.parametrize("pixels", [-1, 1 << 17])
def test_a_longest_side_that_is_none(pixels: int) -> None:
    with pytest.raises(ValueError, match=f"longest side is {pixels}, expected 1 to 65536 pixels, or 0"):
        checked_longest_side(pixels)
    assert checked_longest_side(0) is None and checked_longest_side(840) == 840
