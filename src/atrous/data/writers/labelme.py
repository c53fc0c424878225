"""LabelMe's JSON: a file of polygons beside each image in `SPLIT/`, and the classes in `labels.txt`.

Later polygons are drawn over earlier ones. So holes are background drawn over an object, and ignored pixels are
`__ignore__`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atrous.atomic import write_text
from atrous.data.images.image_io import Pixels
from atrous.data.labels import Labels
from atrous.data.writers.base import IGNORE, INDEX, Outline, Shapes, Splits, Writer, name_of, outlines


def _write(out: Path, labels: Labels, splits: Splits, shapes: Shapes) -> None:
    write_text(out / "labels.txt", "".join(f"{name}\n" for name in (IGNORE, *labels.names)))
    for split, samples in splits.items():
        for name, mask in samples:
            path = out / split / f"{Path(name).stem}.json"
            write_text(path, json.dumps(_document(name, mask, labels, shapes.tolerance), ensure_ascii=False, indent=1))


def _document(name: str, mask: Pixels, labels: Labels, tolerance: float) -> dict[str, Any]:
    height, width = mask.shape
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [_shape(outline, labels) for outline in outlines(mask, labels, tolerance, INDEX, layered=True)],
        "imagePath": name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _shape(outline: Outline, labels: Labels) -> dict[str, Any]:
    return {
        "label": name_of(outline.value, labels),
        "points": outline.points.round(2).tolist(),
        "group_id": None,
        "description": "",
        "shape_type": "polygon",
        "flags": {},
    }


WRITER = Writer("{split}", _write, "polygons", True)
