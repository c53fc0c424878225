"""Results as `supervision.Detections`: a mask, a box, a class and a confidence for each class in the mask.

detections = supervision.detections(predictor("photo.jpg", confidence=True))
sv.MaskAnnotator().annotate(scene=image, detections=detections)
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from atrous.data.palette import is_background
from atrous.prediction.segmentation import Segmentation, box_of


def detections(result: Segmentation, *, background: bool = False) -> Any:
    """`supervision.Detections`; ``data["class_name"]`` has the names.

    Args:
        result: of one photograph.
        background: include the class ``background``.

    Raises:
        ValueError: if supervision is not installed.
    """
    try:
        library = importlib.import_module("supervision")
    except ImportError:
        raise ValueError("detections need supervision; pip install supervision") from None
    names = {i: name for i, name in result.names.items() if background or not is_background(name)}
    if not names:
        return library.Detections.empty()
    masks = np.stack([result.mask == i for i in names])
    boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]
    sure = None if result.confidence is None else np.array([result.confidences[name] for name in names.values()])
    return library.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=sure,
        class_id=np.array(list(names)),
        data={"class_name": np.array(list(names.values()))},
    )
