"""'CVAT for images 1.1': `SPLIT.xml` with a mask a class and image, or polygons; images in `images/`.

A mask is CVAT's run lengths: of the pixels of its box, row by row, beginning with what is not set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from atrous.atomic import written_whole
from atrous.data.image_io import Pixels
from atrous.data.labels import Labels
from atrous.data.palette import drawn_palette
from atrous.data.writers.base import AREA, IGNORE, Shapes, Splits, Writer, outlines, present


def _write(out: Path, labels: Labels, splits: Splits, shapes: Shapes) -> None:
    for split, samples in splits.items():
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
        ElementTree.SubElement(task, "name").text = split
        listed = ElementTree.SubElement(task, "labels")
        ignoring = False
        for number, (name, mask) in enumerate(samples):
            height, width = map(str, mask.shape)
            image = ElementTree.SubElement(root, "image", id=str(number), name=name, width=width, height=height)
            image.extend(_polygons(mask, labels, shapes) if shapes.polygons else _masks(mask, labels))
            ignoring = ignoring or bool((mask == labels.ignore).any())
        colours = [*zip(labels.names, drawn_palette(labels), strict=True), *([(IGNORE, (224, 224, 192))] * ignoring)]
        for name, (red, green, blue) in colours:
            label = ElementTree.SubElement(listed, "label")
            ElementTree.SubElement(label, "name").text = name
            ElementTree.SubElement(label, "color").text = f"#{red:02x}{green:02x}{blue:02x}"
            ElementTree.SubElement(label, "attributes")
        ElementTree.indent(root)
        with written_whole(out / f"{split}.xml") as file:
            ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)


def _masks(mask: Pixels, labels: Labels) -> Iterator[ElementTree.Element]:
    regions = [*present(mask, labels)]
    if (ignored := mask == labels.ignore).any():
        regions.append((labels.ignore, ignored))
    for value, region in regions:
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        part = region[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        height, width = part.shape
        box = {"left": left, "top": top, "width": width, "height": height}
        rle = ", ".join(map(str, _runs(part)))
        values = {"label": _name(value, labels), "source": "file", "occluded": "0", "rle": rle, "z_order": "0"}
        yield ElementTree.Element("mask", values | {key: str(number) for key, number in box.items()})


def _runs(region: npt.NDArray[np.bool_]) -> list[int]:
    flat = region.ravel()
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    return [0] * bool(flat[0]) + [int(count) for count in np.diff(edges)]


def _polygons(mask: Pixels, labels: Labels, shapes: Shapes) -> Iterator[ElementTree.Element]:
    for order, outline in enumerate(outlines(mask, labels, shapes.tolerance, AREA, layered=True)):
        points = outline.points.tolist()
        points = (points * 3)[: max(3, len(points))]  # CVAT wants three or more
        text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
        yield ElementTree.Element(
            "polygon", label=_name(outline.value, labels), source="file", occluded="0", points=text,
            z_order=str(order),
        )  # fmt: skip


def _name(value: int, labels: Labels) -> str:
    return IGNORE if value == labels.ignore else labels.names[value]


WRITER = Writer("images", _write, "either", True)
