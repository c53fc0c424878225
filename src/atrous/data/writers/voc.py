"""CVAT's 'Segmentation mask 1.1', VOC's layout with a labelmap: `SegmentationClass/*.png`, `ImageSets/Segmentation/`.

Images are in `JPEGImages/`. Masks have the colours of `labelmap.txt`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from atrous.atomic import write_text
from atrous.data.images.image_io import write_mask
from atrous.data.labels import IGNORE_COLOUR, Labels
from atrous.data.palette import drawn_palette, is_background
from atrous.data.writers.base import Shapes, Splits, Writer


def _write(out: Path, labels: Labels, splits: Splits, shapes: Shapes) -> None:
    labels = replace(labels, palette=_colours(labels))
    masks, sets = out / "SegmentationClass", out / "ImageSets" / "Segmentation"
    for folder in (masks, sets):
        folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(labels.names, labels.palette, strict=True)]
    if not any(map(is_background, labels.names)):
        rows.insert(0, "background:0,0,0::")  # CVAT wants one
    write_text(out / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *rows, ""]))
    for split, samples in splits.items():
        names = []
        for name, mask in samples:
            names.append(Path(name).stem)
            write_mask(masks / f"{names[-1]}.png", mask, labels)
        write_text(sets / f"{split}.txt", "".join(f"{name}\n" for name in names))


def _colours(labels: Labels) -> tuple[tuple[int, int, int], ...]:
    """Colours that say which class it is: each once, black for background alone."""
    palette = labels.palette
    black = [name for name, colour in zip(labels.names, palette, strict=True) if colour == (0, 0, 0)]
    usable = len({*palette, IGNORE_COLOUR}) == len(palette) + 1 and all(map(is_background, black))
    return palette if usable else drawn_palette(labels)


WRITER = Writer("JPEGImages", _write, "masks", True)
