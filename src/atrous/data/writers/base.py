"""What the writers of other tools' formats share: their form, and polygons as these tools draw them.

A writer gets images that are already in their folder, and their masks one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from atrous.data.images.image_io import Pixels
from atrous.data.labels import Labels
from atrous.data.palette import is_background
from atrous.data.polygons import Ring, polygons, signed_area

IGNORE = "__ignore__"
"""LabelMe's name for pixels that do not count."""

Splits = Mapping[str, Iterable[tuple[str, Pixels]]]
"""File name of an image and its ids, uint8 H,W, by split; each can be gone through once."""


class Shapes(NamedTuple):
    """How regions are written, where a format leaves the choice.

    Attributes:
        polygons: polygons rather than masks.
        tolerance: how far, in pixels, a polygon may be from the outline.
    """

    polygons: bool = False
    tolerance: float = 1.0


@dataclass(frozen=True)
class Writer:
    """A format.

    Attributes:
        images: the folder of a split's images, with `{split}` in it where each has its own.
        write: the annotations of all splits, into a folder.
        regions: what it takes: ``masks``, ``polygons`` or ``either``.
        ignores: whether ignored pixels come back as such; else they become background.
    """

    images: str
    write: Callable[[Path, Labels, Splits, Shapes], None]
    regions: str
    ignores: bool


Points = npt.NDArray[np.float64]
"""x, y, N,2."""


class Outline(NamedTuple):
    """A closed line around the pixels of a region.

    Attributes:
        value: the id.
        points: x, y, float N,2; pixels, see `within`.
        area: within the outer line, for the order of drawing: what is inside another is smaller.
    """

    value: int
    points: Points
    area: float


def objects(labels: Labels) -> list[int]:
    """The ids of classes that are drawn: all but background."""
    return [index for index, name in enumerate(labels.names) if not is_background(name)]


def outlines(
    mask: Pixels,
    labels: Labels,
    tolerance: float,
    ends: tuple[float, float],
    *,
    layered: bool,
    ignored: bool = True,
) -> list[Outline]:
    """The regions of a mask as polygons, larger ones first.

    Args:
        mask: ids, uint8 H,W.
        labels: their classes; those named background are not drawn.
        tolerance: as of `Shapes`.
        ends: `AREA`, `INDEX` or `NEAR_INDEX`.
        layered: whether later polygons are drawn over earlier ones. Then holes are not cut out: what is in them is
            drawn over, background, too. Else, holes are cut out along a line from the outside.
        ignored: whether ignored pixels have polygons.
    """
    drawn = {*objects(labels), *([labels.ignore] if ignored else [])}
    result = []
    for value, shapes in polygons(mask, tolerance).items():
        for shape in shapes:
            height, width = mask.shape
            inside = shape.outer.min() > 0 and (shape.outer.max(axis=0) < (width, height)).all()
            if value not in drawn and not (layered and inside and value != labels.ignore):
                continue
            points = within(shape.outer, mask == value, ends)
            if not layered:
                for hole in shape.holes:
                    points = _bridged(points, within(hole, mask == value, ends))
            points = np.resize(points, (max(3, len(points)), 2))  # as many as the tools want
            result.append(Outline(value, points, abs(signed_area(shape.outer))))
    return sorted(result, key=lambda outline: -outline.area)


AREA = (0.0, 0.99)
"""For tools that count the area of pixels, as COCO's API and CVAT: the line runs along the edges."""
INDEX = (0.0, 0.0)
"""For tools that count the pixels on the line, as OpenCV and Pillow: it runs through the first and the last of them."""
NEAR_INDEX = (0.1, 0.1)
"""Likewise, where coordinates are rounded shares of the size: some tools cut off what is behind the point."""


def within(ring: Ring, region: npt.NDArray[np.bool_], ends: tuple[float, float]) -> Points:
    """A line along the edges of pixels, moved into the pixels of a region, bool H,W, that are beside it.

    Args:
        ring: from `polygons`.
        region: of which it is an outline.
        ends: where in the first and in the last pixel of a row or column it runs, 0 to 1.
    """
    padded = np.pad(region, 1).astype(np.int64)
    x, y = ring[:, 0], ring[:, 1]
    left_top, right_top = padded[y, x], padded[y, x + 1]
    left_bottom, right_bottom = padded[y + 1, x], padded[y + 1, x + 1]
    lasts = right_top + right_bottom < left_top + left_bottom, left_bottom + right_bottom < left_top + right_top
    moved: Points = ring.astype(np.float64) + np.where(np.stack(lasts, axis=1), ends[1] - 1, ends[0])
    return moved


def _bridged(outer: Points, hole: Points) -> Points:
    """One line around both: from the outer one to the hole, where they are nearest, around it and back."""
    distances = ((outer[:, None] - hole[None]) ** 2).sum(-1)
    there, here = divmod(int(distances.argmin()), len(hole))
    around = np.concatenate([hole[here:], hole[: here + 1]])
    return np.concatenate([outer[: there + 1], around, outer[there:]])


def present(mask: Pixels, labels: Labels, ignored: bool = False) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """The ids of objects that occur in a mask, and of ignored pixels if asked for, each with its region, bool H,W."""
    there = {*np.unique(mask).tolist()}
    return ((index, mask == index) for index in (*objects(labels), *[labels.ignore] * ignored) if index in there)


def name_of(value: int, labels: Labels) -> str:
    """The name of a class, or LabelMe's for ignored pixels."""
    return IGNORE if value == labels.ignore else labels.names[value]
