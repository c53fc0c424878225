"""Results as Label Studio's predictions: brush strokes or polygons, for import as pre-annotated tasks.

tasks = [label_studio.task(predictor(path), f"/data/local-files/?d={path}") for path in paths]
Path("tasks.json").write_text(json.dumps(tasks))  # Import, in a project with <BrushLabels name="label" toName="image">
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from atrous.data.palette import is_background
from atrous.data.polygons import Ring
from atrous.prediction.segmentation import Segmentation

_BITS = (3, 4, 8, 16)
"""Widths, in bits, of the run lengths in a brush's code."""


def task(result: Segmentation, image: str, key: str = "image", **options: Any) -> dict[str, Any]:
    """A task with its prediction.

    Args:
        result: of the image.
        image: its address, as Label Studio is to load it.
        key: of the image in the task's data, as in ``value="$image"``.
        options: of `prediction`.
    """
    return {"data": {key: image}, "predictions": [prediction(result, **options)]}


def prediction(
    result: Segmentation,
    *,
    from_name: str = "label",
    to_name: str = "image",
    kind: Literal["brush", "polygon"] = "brush",
    tolerance: float = 1.0,
    background: bool = False,
    model_version: str = "atrous",
) -> dict[str, Any]:
    """A prediction of a task: ``{"model_version", "score", "result"}``; labels are the names of the classes.

    Args:
        result: of the task's image.
        from_name: name of the tag BrushLabels or PolygonLabels.
        to_name: name of the tag Image.
        kind: ``"brush"``, exact; or ``"polygon"``: Label Studio's polygons have no holes, so that those are filled.
        tolerance: of polygons, in pixels.
        background: include the class ``background``.
        model_version: that Label Studio shows.

    Raises:
        ValueError: for another kind.
    """
    if kind not in ("brush", "polygon"):
        raise ValueError(f"kind is {kind!r}; expected 'brush' or 'polygon'")
    height, width = result.mask.shape
    shapes = result.polygons(tolerance) if kind == "polygon" else {}
    regions: list[dict[str, Any]] = []
    for i, name in result.names.items():
        if is_background(name) and not background:
            continue
        values: list[dict[str, Any]] = [{"format": "rle", "rle": brush(result.mask == i)}]
        if kind == "polygon":
            values = [{"points": _percent(shape.outer, width, height), "closed": True} for shape in shapes[name]]
        for value in values:
            regions.append(
                {
                    "id": f"{i}-{len(regions)}",
                    "from_name": from_name,
                    "to_name": to_name,
                    "type": f"{kind}labels",
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "value": {**value, f"{kind}labels": [name]},
                    **({} if result.confidence is None else {"score": result.confidences[name]}),
                }
            )
    score = None if result.confidence is None else float(result.confidence.mean(dtype=np.float64))
    return {"model_version": model_version, **({} if score is None else {"score": score}), "result": regions}


def _percent(ring: Ring, width: int, height: int) -> list[list[float]]:
    return [[100 * x / width, 100 * y / height] for x, y in ring.tolist()]


def brush(region: npt.NDArray[np.bool_]) -> list[int]:
    """A region, bool H,W, in the code of Label Studio's brushes: bytes of the run lengths of 4·H·W values 0 or 255.

    32 bits have the number of values, 5 the bits of a value less 1, four times 4 the widths of lengths less 1. A run is
    a 1, two bits for which width, its length less 1, the value.
    """
    flat = region.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths = 4 * np.diff(ends, prepend=0)
    code = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{bits - 1:04b}" for bits in _BITS)]
    for length, start in zip(lengths.tolist(), (ends - lengths // 4).tolist(), strict=True):
        code += _runs(length, 255 if flat[start] else 0)
    text = "".join(code)
    packed = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2)
    return list(packed.to_bytes(-(-len(text) // 8), "big"))


def _runs(length: int, value: int) -> list[str]:
    most = 1 << _BITS[-1]
    parts = [most] * (length // most) + [length % most] * (length % most > 0)
    which = [next(i for i, bits in enumerate(_BITS) if part <= 1 << bits) for part in parts]
    return [f"1{i:02b}{part - 1:0{_BITS[i]}b}{value:08b}" for part, i in zip(parts, which, strict=True)]
