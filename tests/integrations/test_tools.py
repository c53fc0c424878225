"""The tools' own libraries take what is made for them: supervision, transformers, CVAT's SDK, FiftyOne."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from atrous import Predictor, Segmentation
from atrous.integrations import cvat, fiftyone, huggingface, supervision

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load("objects-mobilenetv2", device="cpu")


@pytest.fixture(scope="module")
def cow() -> Path:
    from atrous.prediction.demo import bundled

    return bundled("cow.jpg")


@pytest.fixture(scope="module")
def result(predictor: Predictor, cow: Path) -> Segmentation:
    return predictor(cow, confidence=True)


def test_supervision_draws_the_detections(result: Segmentation) -> None:
    sv = pytest.importorskip("supervision")
    actual = supervision.detections(result)
    assert isinstance(actual, sv.Detections) and list(actual.data["class_name"]) == ["cow"]
    assert actual.class_id.tolist() == [10] and actual.confidence[0] == pytest.approx(result.confidences["cow"])
    assert np.array_equal(actual.mask[0], result.mask == 10)
    assert np.array_equal(actual.xyxy, sv.mask_to_xyxy(actual.mask) + [[0, 0, 1, 1]])  # theirs ends with the last pixel
    scene = sv.MaskAnnotator(opacity=1.0).annotate(scene=result.image.copy(), detections=actual)
    changed = (scene != result.image).any(axis=2)
    assert (changed <= actual.mask[0]).all() and changed.sum() > 0.9 * actual.mask[0].sum()
    nothing = Segmentation(np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8), result.labels)
    assert len(supervision.detections(nothing)) == 0 and len(supervision.detections(result, background=True)) == 2


def test_hugging_face_s_pipeline_gives_the_same_form(predictor: Predictor, cow: Path, result: Segmentation) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 1], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 64})
    theirs = transformers.pipeline("image-segmentation", model=model, image_processor=processor)
    ours = huggingface.Pipeline(predictor)
    assert ours.task == theirs.task
    with Image.open(cow) as image:
        pictures = [image.convert("RGB"), image.convert("RGB")]
    for a, b in zip(theirs(pictures), ours(pictures), strict=True):
        assert {type(part) for part in (a, b)} == {list} and a[0].keys() == b[0].keys()
        for key in ("label", "mask"):
            assert isinstance(b[0][key], type(a[0][key]))
        assert a[0]["mask"].mode == b[0]["mask"].mode == "L" and a[0]["mask"].size == b[0]["mask"].size
    segments = ours(str(cow), subtask="semantic")
    assert [s["label"] for s in segments] == ["background", "cow"] and segments[1]["score"] == result.confidences["cow"]
    assert ours(cow, threshold=1.01) == []
    with pytest.raises(ValueError, match="subtask is 'panoptic'; expected 'semantic'"):
        ours(cow, subtask="panoptic")


def test_cvat_takes_the_masks(predictor: Predictor, cow: Path, result: Segmentation) -> None:
    sdk = pytest.importorskip("cvat_sdk.auto_annotation")
    masks = pytest.importorskip("cvat_sdk.masks")
    function = cvat.AutoAnnotation(predictor)
    assert isinstance(function.spec, sdk.DetectionFunctionSpec)
    assert [label.name for label in function.spec.labels] == list(predictor.labels.names[1:])
    with Image.open(cow) as image:
        [shape] = function.detect(SimpleNamespace(frame_name="cow.jpg", conf_threshold=None), image)
        assert function.detect(SimpleNamespace(frame_name="cow.jpg", conf_threshold=1.01), image) == []
        width, height = image.size
    assert shape.label_id == 10 and str(shape.type) == "mask"
    assert np.array_equal(masks.decode_mask(shape.points, image_width=width, image_height=height), result.mask == 10)


def test_fiftyone_takes_labels_and_model(predictor: Predictor, cow: Path, result: Segmentation) -> None:
    labels = pytest.importorskip("fiftyone.core.labels")
    models = pytest.importorskip("fiftyone.core.models")
    segmentation = fiftyone.segmentation(result)
    assert isinstance(segmentation, labels.Segmentation) and np.array_equal(segmentation.mask, result.mask)
    [actual] = fiftyone.detections(result).detections
    assert actual.label == "cow" and actual.confidence == pytest.approx(result.confidences["cow"])
    height, width = result.mask.shape
    back = actual.to_segmentation(frame_size=(width, height), target=10)
    assert np.array_equal(back.mask == 10, result.mask == 10)
    model = fiftyone.model(predictor)
    assert isinstance(model, models.Model) and model.media_type == "image"
    with model:
        assert np.array_equal(model.predict(result.image).mask, result.mask)
    assert fiftyone.mask_targets(predictor)[10] == "cow"
