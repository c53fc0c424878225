"""A predictor as an auto-annotation function of CVAT: masks for the frames of a task.

# function.py: cvat-cli task auto-annotate TASK --function-file function.py
function = AutoAnnotation(Predictor.load())
spec, detect = function.spec, function.detect
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from PIL import Image

from atrous.data.palette import is_background
from atrous.prediction.predictor import Predictor
from atrous.prediction.segmentation import box_of


class AutoAnnotation:
    """`spec` and `detect` of ``cvat_sdk.auto_annotation``.

    Args:
        predictor: that segments.
        background: annotate the class ``background``, too.

    Attributes:
        spec: the labels, of type mask; their ids are those of the classes.

    Raises:
        ValueError: if cvat-sdk is not installed.
    """

    def __init__(self, predictor: Predictor, *, background: bool = False) -> None:
        try:
            self._cvat = importlib.import_module("cvat_sdk.auto_annotation")
            self._encode = importlib.import_module("cvat_sdk.masks").encode_mask
        except ImportError:
            raise ValueError("annotating in CVAT needs its SDK; pip install cvat-sdk") from None
        self.predictor = predictor
        names = enumerate(predictor.labels.names)
        self._ids = [i for i, name in names if background or not is_background(name)]
        labels = [self._cvat.label_spec(predictor.labels.names[i], i, type="mask") for i in self._ids]
        self.spec = self._cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Mask shapes of one frame; classes of less than the confidence that CVAT asks for are left out."""
        threshold = getattr(context, "conf_threshold", None)
        result = self.predictor(image, confidence=threshold is not None)
        shapes = []
        for i in (i for i in result.names if i in self._ids):
            if threshold is not None and result.confidences[result.names[i]] < threshold:
                continue
            region = result.mask == i
            left, top, width, height = box_of(region)
            points = self._encode(np.ascontiguousarray(region), [left, top, left + width, top + height])
            shapes.append(self._cvat.mask(i, points))
        return shapes
