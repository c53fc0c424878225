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

from atrous.data.image_io import Pixels
from atrous.data.labels import Labels
from atrous.data.palette import is_background
from atrous.data.polygons import Ring, polygons

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


class Outline(NamedTuple):
    """A closed line through the centres of border pixels, as tools draw it: with its border.

    Attributes:
        value: the id.
        points: x, y, int N,2; pixels.
        area: within the outer line, for the order of drawing: what is inside another is smaller.
    """

    value: int
    points: Ring
    area: float


def objects(labels: Labels) -> list[int]:
    """The ids of classes that are drawn: all but background."""
    return [index for index, name in enumerate(labels.names) if not is_background(name)]


def outlines(mask: Pixels, labels: Labels, tolerance: float, *, layered: bool) -> list[Outline]:
    """The regions of a mask as polygons, larger ones first.

    Args:
        mask: ids, uint8 H,W.
        labels: their classes; those named background are not drawn.
        tolerance: as of `Shapes`.
        layered: whether later polygons are drawn over earlier ones. Then holes are not cut out: what is in them is
            drawn over, background and ignored pixels, too. Else, holes are cut out along a line from the outside.
    """
    drawn = {*objects(labels)}
    found = []
    for value, shapes in polygons(mask, tolerance).items():
        for shape in shapes:
            height, width = mask.shape
            inside = shape.outer.min() > 0 and (shape.outer.max(axis=0) < (width, height)).all()
            if value not in drawn and not (layered and (inside or value == labels.ignore)):
                continue
            points = centred(shape.outer, mask == value)
            if not layered:
                for hole in shape.holes:
                    points = _bridged(points, centred(hole, mask == value))
            found.append(Outline(value, points, _area(shape.outer)))
    return sorted(found, key=lambda outline: -outline.area)


def centred(ring: Ring, region: npt.NDArray[np.bool_]) -> Ring:
    """A line along the edges of pixels, N,2, moved to the centres of the pixels of a region, bool H,W, beside it."""
    padded = np.pad(region, 1).astype(np.int64)
    x, y = ring[:, 0], ring[:, 1]
    left_top, right_top = padded[y, x], padded[y, x + 1]
    left_bottom, right_bottom = padded[y + 1, x], padded[y + 1, x + 1]
    to_right = right_top + right_bottom >= left_top + left_bottom
    to_bottom = left_bottom + right_bottom >= left_top + right_top
    moved: Ring = np.stack([x - 1 + to_right, y - 1 + to_bottom], axis=1)
    return moved


def _bridged(outer: Ring, hole: Ring) -> Ring:
    """One line around both: from the outer one to the hole, where they are nearest, around it and back."""
    distances = ((outer[:, None] - hole[None]) ** 2).sum(-1)
    there, here = divmod(int(distances.argmin()), len(hole))
    around = np.concatenate([hole[here:], hole[: here + 1]])
    return np.concatenate([outer[: there + 1], around, outer[there:]])


def _area(ring: Ring) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2


def present(mask: Pixels, labels: Labels) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """The ids of objects that occur in a mask, each with its region, bool H,W."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return ((index, mask == index) for index in objects(labels) if counts[index])
