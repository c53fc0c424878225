"""YOLO's polygons: `data.yaml`, images in `images/SPLIT/`, a text file an image in `labels/SPLIT/`.

A line is `CLASS X Y X Y ...`, in shares of width and height; a polygon goes around its holes along a line from outside.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from atrous.atomic import write_text
from atrous.data.images.image_io import Pixels
from atrous.data.labels import Labels
from atrous.data.writers.base import NEAR_INDEX, Shapes, Splits, Writer, objects, outlines


def _write(out: Path, labels: Labels, splits: Splits, shapes: Shapes) -> None:
    numbers = {index: number for number, index in enumerate(objects(labels))}
    for split, samples in splits.items():
        folder = out / "labels" / split
        folder.mkdir(parents=True, exist_ok=True)
        for name, mask in samples:
            write_text(folder / f"{Path(name).stem}.txt", _lines(mask, labels, numbers, shapes.tolerance))
    names = {number: labels.names[index] for index, number in numbers.items()}
    document = {"path": ".", **{split: f"images/{split}" for split in splits}, "names": names}
    write_text(out / "data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _lines(mask: Pixels, labels: Labels, numbers: dict[int, int], tolerance: float) -> str:
    height, width = mask.shape
    lines = []
    for outline in outlines(mask, labels, tolerance, NEAR_INDEX, layered=False, ignored=False):
        shares = (f"{x / width:.6f} {y / height:.6f}" for x, y in outline.points.tolist())
        lines.append(f"{numbers[outline.value]} {' '.join(shares)}\n")
    return "".join(lines)


WRITER = Writer("images/{split}", _write, "polygons", False)
