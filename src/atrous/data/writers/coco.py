"""COCO's instances: `annotations/instances_SPLIT.json`, images in `images/SPLIT/`.

One RLE a class and image, to the pixel, or polygons. Ignored pixels are a crowd, as in COCO itself. Categories are the
classes but background, with ids from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atrous.atomic import write_text
from atrous.data.image_io import Pixels
from atrous.data.labels import Labels
from atrous.data.polygons import run_lengths
from atrous.data.writers.base import AREA, Outline, Shapes, Splits, Writer, objects, outlines, present


def _write(out: Path, labels: Labels, splits: Splits, shapes: Shapes) -> None:
    ids = {index: number for number, index in enumerate(objects(labels), start=1)}
    categories = [{"id": number, "name": labels.names[index], "supercategory": ""} for index, number in ids.items()]
    (out / "annotations").mkdir(exist_ok=True)
    for split, samples in splits.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, mask) in enumerate(samples, start=1):
            height, width = mask.shape
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for parts in _regions(mask, labels, ids, shapes):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **parts})
        document = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        write_text(out / "annotations" / f"instances_{split}.json", json.dumps(document, ensure_ascii=False))


def _regions(mask: Pixels, labels: Labels, ids: dict[int, int], shapes: Shapes) -> Iterator[dict[str, Any]]:
    # A crowd needs a category, and which does not matter.
    ids = ids | {labels.ignore: next(iter(ids.values()))} if ids else {}
    if shapes.polygons:
        for outline in outlines(mask, labels, shapes.tolerance, AREA, layered=False):
            if outline.value in ids:
                yield _polygon(outline, ids[outline.value], crowd=outline.value == labels.ignore)
        return
    for value, region in present(mask, labels):
        yield _region(ids[value], 0, int(region.sum()), _box(region), run_lengths(region))
    ignored = mask == labels.ignore
    if ids and ignored.any():
        yield _region(ids[labels.ignore], 1, int(ignored.sum()), _box(ignored), run_lengths(ignored, compressed=False))


def _polygon(outline: Outline, category: int, crowd: bool) -> dict[str, Any]:
    x, y = outline.points.T
    left, top, right, bottom = (int(value) for value in (x.min(), y.min(), x.max(), y.max()))
    # COCO wants three points or more.
    points = np.resize(outline.points, (max(3, len(outline.points)), 2)).ravel().round(2).tolist()
    return _region(category, int(crowd), outline.area, [left, top, right - left + 1, bottom - top + 1], [points])


def _region(category: int, crowd: int, area: float, box: list[int], segmentation: Any) -> dict[str, Any]:
    return {
        "category_id": category, "iscrowd": crowd, "area": area, "bbox": box, "segmentation": segmentation,
    }  # fmt: skip


def _box(region: npt.NDArray[np.bool_]) -> list[int]:
    """Left, top, width and height, pixels."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


WRITER = Writer("images/{split}", _write, "either", True)
