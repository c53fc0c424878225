"""Hugging Face's form of image segmentation: an image in, ``[{"label", "score", "mask"}]`` out.

`huggingface_hub.InferenceClient(model="http://127.0.0.1:8000/models/NAME").image_segmentation(image)` speaks to it.
"""

from __future__ import annotations

import base64
from typing import Any

from starlette.datastructures import Headers

from atrous.prediction.segmentation import Segmentation
from atrous.serving.answers import png
from atrous.serving.errors import Problem
from atrous.serving.inputs import base64_image, check_raw, json_object, media_type


def image_and_threshold(body: bytes, headers: Headers) -> tuple[bytes, str, float]:
    """The image, its field, and the least score of a segment.

    The body is raw bytes or ``{"inputs": base64, "parameters": {...}}``.

    Raises:
        Problem: 400 for no JSON, 415 for another type, 422 for a wrong field.
    """
    if (kind := media_type(headers)) != "application/json":
        check_raw(kind, "image/*, application/octet-stream or application/json")
        return body, "body", 0.0
    fields = json_object(body)
    if "inputs" not in fields:
        expected = 'the image as base64: {"inputs": "..."}'
        raise Problem(422, "there is no image", field="inputs", found=sorted(fields)[:4], expected=expected)
    return base64_image(fields["inputs"], "inputs"), "inputs", _threshold(fields.get("parameters") or {})


def _threshold(parameters: object) -> float:
    expected = "an object with `threshold` from 0 to 1, or `subtask`: semantic"
    if not isinstance(parameters, dict):
        raise Problem(422, "parameters is no object", field="parameters", found=parameters, expected=expected)
    known = {"threshold", "subtask"}
    # The thresholds between instances have no meaning where every pixel has one class.
    ignored = {"mask_threshold", "overlap_mask_area_threshold"}
    for key in parameters.keys() - known - ignored:
        raise Problem(422, "an unknown parameter", field=f"parameters.{key}"[:80], found=key, expected=expected)
    subtask, threshold = parameters.get("subtask"), parameters.get("threshold")
    if subtask not in (None, "semantic"):
        raise Problem(422, "there is no such subtask", field="parameters.subtask", found=subtask, expected="semantic")
    if threshold is None:
        return 0.0
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        expected = "a number from 0 to 1"
        raise Problem(422, "threshold is not valid", field="parameters.threshold", found=threshold, expected=expected)
    return float(threshold)


def segments(result: Segmentation, threshold: float) -> list[dict[str, Any]]:
    """The answer: a mask for each class, base64 of a gray PNG, 255 where the class is."""
    return [
        {**segment, "mask": base64.b64encode(png(segment["mask"])).decode()}
        for segment in result.segments()
        if segment["score"] is None or segment["score"] >= threshold
    ]
