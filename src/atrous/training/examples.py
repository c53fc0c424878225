"""Draw ``predictions.jpg``: photograph, truth and prediction of the images that came out worst, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from atrous.data.datasets.dataset import SegmentationDataset
from atrous.data.labels import Labels
from atrous.data.lettering import lettering
from atrous.data.overlay import overlay
from atrous.data.palette import drawn_palette
from atrous.evaluation.evaluate import Example

SIDE = 320
"""Pixels of the longer side of a picture."""
_GAP, _LINE = 8, 24
_INK, _SOFT = (32, 36, 44), (110, 116, 128)


def draw_examples(examples: Sequence[Example], dataset: SegmentationDataset) -> Image.Image:
    """A row for each example, in their order, and a legend of the classes that occur.

    Args:
        examples: one or more of an evaluation.
        dataset: that it was of.
    """
    rows, seen = [], set[int]()
    for example in examples:
        sample = dataset[example.index]
        truth, mask = sample.mask.numpy(), example.mask.numpy()
        seen |= {*np.unique(truth).tolist(), *np.unique(mask).tolist()}
        photo = _fitted(Image.fromarray(sample.image.permute(1, 2, 0).numpy()))
        drawn = [_drawn(photo, ids, dataset.labels) for ids in (truth, mask)]
        rows.append(_row([photo, *drawn], f"IoU {example.iou:.2f}   {sample.name}"))
    width = max(row.width for row in rows)
    top = _legend(sorted(seen - {dataset.labels.ignore}), dataset.labels, width)
    sheet = Image.new("RGB", (width, top.height + sum(row.height for row in rows)), "white")
    y = 0
    for part in (top, *rows):
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def _fitted(photo: Image.Image) -> Image.Image:
    scale = SIDE / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    return photo.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)


def _drawn(photo: Image.Image, ids: npt.NDArray[Any], labels: Labels) -> Image.Image:
    rows, columns = (
        ((np.arange(side) + 0.5) * whole / side).astype(int)
        for side, whole in ((photo.height, ids.shape[0]), (photo.width, ids.shape[1]))
    )
    return overlay(np.asarray(photo), ids[rows[:, None], columns], labels, alpha=0.6, legend=False, names=True)


def _row(pictures: Sequence[Image.Image], caption: str) -> Image.Image:
    row = Image.new("RGB", (3 * (SIDE + _GAP) + _GAP, max(picture.height for picture in pictures) + _LINE + 4), "white")
    text, font = lettering(caption, 13)
    ImageDraw.Draw(row).text((_GAP, 4), text, fill=_INK, font=font)
    for place, picture in enumerate(pictures):
        row.paste(picture, (_GAP + place * (SIDE + _GAP) + (SIDE - picture.width) // 2, _LINE))
    return row


def _legend(classes: Sequence[int], labels: Labels, width: int) -> Image.Image:
    """The colours of the classes, over the headings of the columns."""
    size, palette = 15, drawn_palette(labels)
    places, x, y = [], _GAP, 0
    for index in classes:
        name, font = lettering(labels.names[index], size)
        wide = round(font.getlength(name)) + 2 * size + _GAP
        if x + wide > width and x > _GAP:
            x, y = _GAP, y + _LINE
        places.append((palette[index], name, font, x, y))
        x += wide
    picture = Image.new("RGB", (width, y + 2 * _LINE + 12), "white")
    draw = ImageDraw.Draw(picture)
    for colour, name, font, x, y in places:
        draw.rectangle((x, y + 8, x + size, y + 8 + size), fill=colour, outline=_SOFT)
        draw.text((x + size + 6, y + 6), name, fill=_INK, font=font)
    for place, heading in enumerate(("photograph", "truth", "prediction")):
        text, font = lettering(heading, size)
        draw.text((_GAP + place * (SIDE + _GAP), picture.height - _LINE), text, fill=_SOFT, font=font)
    return picture
