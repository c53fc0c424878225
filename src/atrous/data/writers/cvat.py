"""'CVAT for images 1.1': `SPLIT.xml` with a mask a class and image, or polygons; images in `images/`.

A mask is CVAT's run lengths: of the pixels of its box, row by row, beginning with what is not set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from atrous.atomic import written_whole
from atrous.data.images.image_io import Pixels
from atrous.data.labels import Labels
from atrous.data.palette import drawn_palette
from atrous.data.polygons import box_of, lengths_of
from atrous.data.writers.base import AREA, IGNORE, Shapes, Splits, Writer, name_of, outlines, present


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
    for value, region in present(mask, labels, ignored=True):
        left, top, width, height = box_of(region)
        rle = ", ".join(map(str, lengths_of(region[top : top + height, left : left + width].ravel())))
        values = {"label": name_of(value, labels), "source": "file", "occluded": "0", "rle": rle, "z_order": "0"}
        box = {"left": left, "top": top, "width": width, "height": height}
        yield ElementTree.Element("mask", values | {key: str(number) for key, number in box.items()})


def _polygons(mask: Pixels, labels: Labels, shapes: Shapes) -> Iterator[ElementTree.Element]:
    for order, outline in enumerate(outlines(mask, labels, shapes.tolerance, AREA, layered=True)):
        text = ";".join(f"{x:.2f},{y:.2f}" for x, y in outline.points.tolist())
        yield ElementTree.Element(
            "polygon", label=name_of(outline.value, labels), source="file", occluded="0", points=text,
            z_order=str(order),
        )  # fmt: skip


WRITER = Writer("images", _write, "either", True)
