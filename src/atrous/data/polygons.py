"""Turn masks into polygons with holes, and into COCO's run lengths.

A polygon runs along the edges between pixels, so that it is exact: the pixels whose centres lie inside are those of the
class. Pixels of a class that touch at a corner alone belong to two polygons. A ring passes no point twice, as the
standard of simple features, and so GeoJSON and Shapely, want it; two rings may have points in common.

    polygons(mask)[15]                 # of class 15, to the pixel
    polygons(mask, tolerance=2.0)[15]  # fewer points, none further than 2 pixels from the outline
    run_lengths(mask == 15)            # {"size": [H, W], "counts": "..."}, as pycocotools has it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atrous.data.simplify import Outline, simplified

Ring = npt.NDArray[np.int64]
"""Points x, y of a closed line, N,2, in pixels from the upper left corner of the image; the first is not repeated."""

Region = npt.NDArray[np.bool_]


class Polygon(NamedTuple):
    """An outline with holes.

    Attributes:
        outer: its points; clockwise as a person sees it.
        holes: likewise, counterclockwise.
    """

    outer: Ring
    holes: tuple[Ring, ...] = ()

    @property
    def area(self) -> float:
        """In pixels, without the holes."""
        return abs(signed_area(self.outer)) - sum(abs(signed_area(hole)) for hole in self.holes)


def polygons(mask: npt.NDArray[Any], tolerance: float = 0.0) -> dict[int, list[Polygon]]:
    """Polygons of the pixels of each value, the topmost first.

    With a tolerance, points are left out: none of those is further from the new outline than `tolerance`, and as many
    polygons have as many holes as before. No two lines touch but where they did, and values that share a border still
    share it. Where that needs more points, more are kept.

    Args:
        mask: integers or booleans H,W.
        tolerance: in pixels; 0 for the exact outline.

    Raises:
        ValueError: if the mask is not H,W of integers or booleans, or the tolerance is negative.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise ValueError(f"mask of {mask.dtype}, shape {mask.shape}; expected integers or booleans H,W")
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance is {tolerance}; expected 0 or more pixels")
    outlines = [outline for value in _values(mask) for outline in _outlines(mask, value)]
    if tolerance > 0:
        outlines = simplified(outlines, mask, tolerance)
    shapes: dict[int, list[Polygon]] = {}
    for outline in outlines:
        shapes.setdefault(outline.value, []).append(Polygon(outline.rings[0], tuple(outline.rings[1:])))
    return shapes


def _values(mask: npt.NDArray[Any]) -> list[int]:
    if mask.dtype.itemsize > 1:
        return [int(value) for value in np.unique(mask)]
    counts = np.zeros(256, dtype=np.int64)
    for row in mask.view(np.uint8):  # row by row, since counting takes eight bytes a pixel
        counts += np.bincount(row, minlength=256)
    here = np.flatnonzero(counts).astype(np.uint8)
    return sorted(int(value) for value in here.view(mask.dtype))


def _outlines(mask: npt.NDArray[Any], value: int) -> list[Outline]:
    """The outlines of one value, in the coordinates of the mask."""
    region = mask == value
    left, top, width, height = box_of(region)
    part = region[top : top + height, left : left + width]
    return [Outline(value, [ring + (left, top) for ring in rings]) for rings in trace(part)]


def box_of(region: Region) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is set, in pixels."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def trace(region: Region) -> list[list[Ring]]:
    """Follow the edges between the pixels of a region and others: for each polygon its outer ring, then its holes.

    A corner is a point where the edge turns. In a row, each second piece between neighbouring corners is edge, and so
    it is in a column: that gives every corner one neighbour across and one along, and following them in turn closes a
    ring. Where two pixels touch at a corner alone, it counts twice, once for each of them.
    """
    x, y, first, place, below = _corners(region)
    order = np.lexsort((first, y, x))
    along = np.empty_like(order)
    along[order[::2]], along[order[1::2]] = order[1::2], order[::2]
    points = np.zeros((int(place[-1]) + 1, 2), dtype=np.int64)
    points[place] = np.stack([x, y], axis=1)
    rings = [
        points[loop] for ring in _followed(along.tolist(), place.tolist(), below.tolist()) for loop in _loops(ring)
    ]
    areas = [signed_area(ring) for ring in rings]
    shapes = {number: [ring] for number, (ring, area) in enumerate(zip(rings, areas, strict=True)) if area > 0}
    for hole, owner in _owners(rings, areas).items():
        shapes[owner].append(rings[hole])
    return list(shapes.values())


def _corners(region: Region) -> tuple[Ring, Ring, Ring, Ring, Ring]:
    """Corners row by row: x, y, which comes first of two at one place, number of the place, whether set lower right."""
    padded = np.pad(region, 1)
    tl, tr, bl, br = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    odd = tl ^ tr ^ bl ^ br
    crossing = (tl == br) & (tr == bl) & (tl != tr)
    y, x = np.nonzero(odd | crossing)
    twice = crossing[y, x]
    place = np.repeat(np.arange(len(x)), 1 + twice)
    second = np.zeros_like(place)
    second[1:] = place[1:] == place[:-1]
    y, x = y[place], x[place]
    # Of two at one place, the left one goes up with the pixel at the upper left, down with that at the lower left.
    return x, y, np.where(tl[y, x], second, 1 - second), place, br[y, x].astype(np.int64)


def _followed(along: list[int], place: list[int], below: list[int]) -> Iterator[list[int]]:
    """The places of each ring in order, with the region to the right."""
    seen = bytearray(len(along))
    for start in range(len(along)):
        ring: list[int] = []
        corner = start
        while not seen[corner]:
            beside = corner ^ 1
            seen[corner] = seen[beside] = 1
            ring += (place[corner], place[beside])
            corner = along[beside]
        if ring:  # from the first corner to the right, which is clockwise
            yield ring if below[start] else [ring[0], *ring[:0:-1]]


def _loops(ring: list[int]) -> list[list[int]]:
    """A ring in parts that pass no place twice: where it touches itself, it has a hole."""
    if len(set(ring)) == len(ring):
        return [ring]
    path: list[int] = []
    at: dict[int, int] = {}
    loops = []
    for place in ring:
        if place in at:
            loop = path[at[place] :]
            del path[at[place] :]
            for passed in loop:
                del at[passed]
            loops.append(loop)
        at[place] = len(path)
        path.append(place)
    return [path, *loops]


def _owners(rings: list[Ring], areas: list[float]) -> dict[int, int]:
    """The outer ring of each hole, by number: that of the next edge to the left of its first corner, or of its hole."""
    firsts = {i: min((y, x) for x, y in rings[i].tolist()) for i, area in enumerate(areas) if area < 0}
    if not firsts:
        return {}
    start, end = np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    upright = np.flatnonzero(start[:, 0] == end[:, 0])
    ring_of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])[upright]
    top, bottom = (pick(start[upright, 1], end[upright, 1]) for pick in (np.minimum, np.maximum))
    edge = np.repeat(np.arange(len(top)), bottom - top)
    rows = top[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(bottom - top) - (bottom - top), bottom - top)
    width = int(start[:, 0].max()) + 1
    places = rows * width + start[upright, 0][edge]
    order = np.argsort(places, kind="stable")
    holes = sorted(firsts, key=firsts.__getitem__)
    wanted = [y * width + x for y, x in map(firsts.__getitem__, holes)]
    left = order[np.searchsorted(places[order], wanted) - 1]
    owners: dict[int, int] = {}
    for hole, ring in zip(holes, ring_of[edge[left]].tolist(), strict=True):
        owners[hole] = owners.get(ring, ring)
    return owners


def signed_area(ring: Ring) -> float:
    """In pixels; negative for a ring that goes counterclockwise, as a person sees it."""
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


# Run lengths ----------------------------------------------------------------------------------------------------------


def run_lengths(region: Region, *, compressed: bool = True) -> dict[str, Any]:
    """A region in COCO's form: ``{"size": [H, W], "counts": ...}``, down the columns, beginning with what is not set.

    Args:
        region: bool H,W.
        compressed: `counts` as a string, as pycocotools writes it; False for a list of numbers.
    """
    counts = lengths_of(region.T.ravel())
    if not compressed:
        return {"size": [*region.shape], "counts": counts}
    # A string: from the fourth on less the count two before, signed, five bits a character.
    differences = (count - (counts[i - 2] if i > 2 else 0) for i, count in enumerate(counts))
    text = "".join(chr(code + 48) for value in differences for code in _groups(value))
    return {"size": [*region.shape], "counts": text}


def lengths_of(flat: Region) -> list[int]:
    """The lengths of runs in bool N, by turns of what is not set and what is."""
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    return [0] * bool(flat[:1].any()) + [int(count) for count in np.diff(edges)]


def _groups(value: int) -> Iterable[int]:
    """Five bits each from the lowest, 32 added to all but the last, whose highest bit is the sign."""
    while True:
        bits, value = value & 31, value >> 5
        last = value == (-1 if bits & 16 else 0)
        yield bits if last else bits | 32
        if last:
            return
