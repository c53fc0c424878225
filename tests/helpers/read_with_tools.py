"""Read a data set with the tools' own libraries, and write its masks as PNG of ids; run by their own Python.

    python read_with_tools.py FORMAT FOLDER OUT NAME,NAME,...

It imports nothing of this package: datumaro and supervision want other versions of what it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def with_datumaro(kind: str, folder: Path, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Masks and polygons, later ones over earlier, as datumaro's items have them."""
    import datumaro as dm
    from pycocotools import mask as coder

    dataset = dm.Dataset.import_from(str(folder), kind)
    classes = dataset.categories()[dm.AnnotationType.label]
    for item in dataset:
        height, width = item.media.size
        ids = np.zeros((height, width), dtype=np.uint8)
        shapes = [one for one in item.annotations if one.type in (dm.AnnotationType.mask, dm.AnnotationType.polygon)]
        for one in sorted(shapes, key=lambda one: one.z_order):
            if one.type == dm.AnnotationType.mask:
                region = np.asarray(one.image, dtype=bool)
            else:
                encoded = coder.frPyObjects([list(one.points)], height, width)
                region = np.asarray(coder.decode(coder.merge(encoded)), dtype=bool)
            name = classes[one.label].name
            ids[region] = names.index(name) if name in names else 255
        yield Path(item.id).name, ids


def with_supervision(kind: str, folder: Path, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Masks as supervision's detections have them."""
    import supervision as sv

    for images in sorted((folder / "images").iterdir()):
        if kind == "coco":
            path = folder / "annotations" / f"instances_{images.name}.json"
            dataset = sv.DetectionDataset.from_coco(str(images), str(path), force_masks=True)
        else:
            labels = folder / "labels" / images.name
            dataset = sv.DetectionDataset.from_yolo(str(images), str(labels), str(folder / "data.yaml"), True)
        for path, image, actual in dataset:
            ids = np.zeros(image.shape[:2], dtype=np.uint8)
            for region, number in sorted(
                zip(actual.mask, actual.class_id, strict=True), key=lambda pair: -pair[0].sum()
            ):
                ids[region] = names.index(dataset.classes[number])
            yield Path(path).stem, ids


def main() -> None:
    """Write OUT/NAME.png for each image."""
    kind, folder, out, names = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4].split(",")
    tool, _, form = kind.partition(":")
    out.mkdir(parents=True, exist_ok=True)
    for name, ids in {"datumaro": with_datumaro, "supervision": with_supervision}[tool](form, folder, names):
        Image.fromarray(ids).save(out / f"{name}.png")


if __name__ == "__main__":
    main()
