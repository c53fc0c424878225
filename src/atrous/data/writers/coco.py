"""COCO's instances: `annotations/instances_SPLIT.json`, images in `images/SPLIT/`.

One RLE a class and image, to the pixel, or polygons. Ignored pixels are a crowd, as in COCO itself. Categories are the
classes but background, with ids from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atrous.atomic import write_text
from atrous.data.images.image_io import Pixels
from atrous.data.labels import Labels
from atrous.data.polygons import box_of, run_lengths
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
    for value, region in present(mask, labels, ignored=bool(ids)):
        crowd = value == labels.ignore
        counts = run_lengths(region, compressed=not crowd)
        yield _region(ids[value], int(crowd), int(region.sum()), [*box_of(region)], counts)


def _polygon(outline: Outline, category: int, crowd: bool) -> dict[str, Any]:
    x, y = outline.points.T
    left, top, right, bottom = (int(value) for value in (x.min(), y.min(), x.max(), y.max()))
    points = outline.points.ravel().round(2).tolist()
    return _region(category, int(crowd), outline.area, [left, top, right - left + 1, bottom - top + 1], [points])


def _region(category: int, crowd: int, area: float, box: list[int], segmentation: Any) -> dict[str, Any]:
    return {
        "category_id": category, "iscrowd": crowd, "area": area, "bbox": box, "segmentation": segmentation,
    }  # fmt: skip


WRITER = Writer("images/{split}", _write, "either", True)
