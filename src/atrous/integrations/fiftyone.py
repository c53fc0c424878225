"""A predictor as a model of FiftyOne, and results as its labels.

dataset.apply_model(model(Predictor.load()), label_field="prediction")
dataset.default_mask_targets = mask_targets(predictor)
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from atrous.data.palette import is_background
from atrous.prediction.predictor import Predictor
from atrous.prediction.segmentation import Segmentation, box_of


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError("labels of FiftyOne need it; pip install fiftyone") from None


def segmentation(result: Segmentation) -> Any:
    """`fiftyone.Segmentation`, whose mask has the ids; see `mask_targets` for their names."""
    return _library("fiftyone.core.labels").Segmentation(mask=result.mask)


def detections(result: Segmentation, *, background: bool = False) -> Any:
    """`fiftyone.Detections`: for each class its box, its mask within the box, and its confidence if there is one."""
    labels, (height, width), detections = _library("fiftyone.core.labels"), result.mask.shape, []
    for i, name in result.names.items():
        if is_background(name) and not background:
            continue
        region = result.mask == i
        left, top, wide, high = box_of(region)
        detections.append(
            labels.Detection(
                label=name,
                bounding_box=[left / width, top / height, wide / width, high / height],
                mask=np.ascontiguousarray(region[top : top + high, left : left + wide]),
                confidence=None if result.confidence is None else result.confidences[name],
            )
        )
    return labels.Detections(detections=detections)


def mask_targets(predictor: Predictor) -> dict[int, str]:
    """Names of the ids in masks, for `dataset.default_mask_targets`."""
    return dict(enumerate(predictor.labels.names))


def model(predictor: Predictor) -> Any:
    """A `fiftyone.Model` for ``dataset.apply_model``: images in, `segmentation` out."""
    base: Any = _library("fiftyone.core.models").Model

    class Segmenter(base):  # type: ignore[misc]
        """A predictor as FiftyOne calls it."""

        media_type = "image"
        ragged_batches = True
        transforms = None
        preprocess = False

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def predict(self, arg: Any) -> Any:
            """Labels of one image, uint8 H,W,3."""
            return segmentation(predictor(arg))

    return Segmenter()
