"""Leave out points of the outlines of a mask, without changing what lies in what.

Borders are cut into arcs at the points where three values meet. Two polygons share an arc, which is simplified once
(Douglas and Peucker 1973). Arcs that cross or touch afterwards, or have passed over a hole, get half the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.int64]

EXACT = 0.4
"""Tolerance in pixels below which all points are kept."""

_PAIRS = 1 << 21  # that are compared at a time


class Outline(NamedTuple):
    """A polygon of the pixels of `value`: its outer ring, then its holes, N,2 each."""

    value: int
    rings: list[Points]


@dataclass
class _Arc:
    points: Points
    closed: bool
    tolerance: float
    kept: Points

    def simplify(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.kept = self.points[_kept(self.points, tolerance, self.closed)] if tolerance >= EXACT else self.points

    @property
    def is_exact(self) -> bool:
        return len(self.kept) == len(self.points)


_Part = tuple[int, bool]
"""Number of an arc, and whether it is passed backwards."""


def simplified(outlines: list[Outline], mask: npt.NDArray[Any], tolerance: float) -> list[Outline]:
    """The outlines of all values of a mask with fewer points; see `atrous.data.polygons.polygons`."""
    arcs: list[_Arc] = []
    numbers: dict[bytes, int] = {}
    nodes = _nodes(mask)
    cut = [[_cut(ring, nodes, arcs, numbers) for ring in outline.rings] for outline in outlines]
    for arc in arcs:
        arc.simplify(tolerance)
    while wrong := {i for i in _conflicts(arcs, cut) if not arcs[i].is_exact}:
        for i in wrong:
            arcs[i].simplify(arcs[i].tolerance / 2)
    return [
        Outline(outline.value, [_joined(parts, arcs) for parts in rings])
        for outline, rings in zip(outlines, cut, strict=True)
    ]


def _nodes(mask: npt.NDArray[Any]) -> tuple[Points, Points]:
    """Points where three or more values meet, or two crosswise, and the corners of the mask.

    As sorted numbers: row by row, column by column.
    """
    padded = np.pad(mask.astype(np.int64), 1, constant_values=-(1 << 40))
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    kinds = 1 + (b != a) + ((c != a) & (c != b)) + ((d != a) & (d != b) & (d != c))
    nodes = (kinds > 2) | ((a == d) & (b == c) & (a != b))
    nodes[:: mask.shape[0], :: mask.shape[1]] = True
    y, x = np.nonzero(nodes)
    return _number(x, y), np.sort(_number(y, x))


def _number(minor: Any, major: Any) -> Any:
    return (major << 32) + minor


def _cut(ring: Points, nodes: tuple[Points, Points], arcs: list[_Arc], numbers: dict[bytes, int]) -> list[_Part]:
    """The arcs of a ring; new ones are added to `arcs`, `numbers` finds them by their points."""
    ring = _with_nodes(ring, nodes)
    at = np.searchsorted(nodes[0], numbers_of := _number(ring[:, 0], ring[:, 1]))
    is_node = np.zeros(len(ring), dtype=bool)
    if len(nodes[0]):
        is_node = nodes[0][np.minimum(at, len(nodes[0]) - 1)] == numbers_of
    ends = np.flatnonzero(is_node)
    if not len(ends):
        start = int(np.argmin(numbers_of))
        return [_entered(np.concatenate([np.roll(ring, -start, axis=0), ring[start : start + 1]]), arcs, numbers)]
    ring = np.roll(ring, -int(ends[0]), axis=0)
    ends = np.append(ends - ends[0], len(ring))
    ring = np.concatenate([ring, ring[:1]])
    return [_entered(ring[a : b + 1], arcs, numbers) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def _with_nodes(ring: Points, nodes: tuple[Points, Points]) -> Points:
    """The ring with the nodes on its straight edges as points, too."""
    following = np.roll(ring, -1, axis=0)
    places: list[int] = []
    points: list[tuple[int, int]] = []
    for axis in (0, 1):  # edges along x, along y
        minor, major, end = ring[:, axis], ring[:, 1 - axis], following[:, axis]
        low, high = _number(np.minimum(minor, end) + 1, major), _number(np.maximum(minor, end), major)
        first, last = np.searchsorted(nodes[axis], low), np.searchsorted(nodes[axis], high)
        for i in np.flatnonzero((last > first) & (major == following[:, 1 - axis])).tolist():
            on = [int(code) & 0xFFFFFFFF for code in nodes[axis][first[i] : last[i]]]
            on = on if minor[i] < end[i] else on[::-1]
            places += [i + 1] * len(on)
            points += [(value, int(major[i])) if axis == 0 else (int(major[i]), value) for value in on]
    return np.insert(ring, places, points, axis=0) if places else ring


def _entered(points: Points, arcs: list[_Arc], numbers: dict[bytes, int]) -> _Part:
    """The number of an arc, which is the same in both directions."""
    # An arc that ends where it begins is told apart by its second point.
    backwards = (*points[-1], *points[-2]) < (*points[0], *points[1])
    points = np.ascontiguousarray(points[::-1] if backwards else points)
    number = numbers.setdefault(points.tobytes(), len(arcs))
    if number == len(arcs):
        arcs.append(_Arc(points, bool((points[0] == points[-1]).all()), 0.0, points))
    return number, backwards


def _joined(parts: Iterable[_Part], arcs: list[_Arc]) -> Points:
    ring = np.concatenate([(arcs[i].kept[::-1] if back else arcs[i].kept)[:-1] for i, back in parts])
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]  # nodes on a straight edge are no corners
    return np.asarray(ring[turns])


def _kept(points: Points, tolerance: float, closed: bool) -> Points:
    """Indices of the points that are kept, in order; of a closed arc at least three that are not in line."""
    last = len(points) - 1
    anchors = [0, last]
    if closed:
        offsets = points - points[0]
        far = int(np.argmax((offsets**2).sum(1)))
        beside = int(np.argmax(np.abs(offsets[:, 0] * offsets[far, 1] - offsets[:, 1] * offsets[far, 0])))
        anchors = sorted({0, far, beside, last})
    keep, spans = set(anchors), list(zip(anchors[:-1], anchors[1:], strict=True))
    while spans:
        a, b = spans.pop()
        if b - a < 2:
            continue
        distances = _distances(points[a + 1 : b], points[a], points[b])
        worst = int(np.argmax(distances))
        if distances[worst] > tolerance:
            middle = a + 1 + worst
            keep.add(middle)
            spans += [(a, middle), (middle, b)]
    return np.array(sorted(keep), dtype=np.int64)


def _distances(points: Points, start: Points, end: Points) -> npt.NDArray[np.float64]:
    """Of points from the line between two, which may be the same."""
    step, offsets = (end - start).astype(np.float64), (points - start).astype(np.float64)
    share = np.clip(offsets @ step / max(float(step @ step), 1e-9), 0, 1)
    return np.asarray(np.hypot(*(offsets - share[:, None] * step).T))


# What has gone wrong --------------------------------------------------------------------------------------------------


def _conflicts(arcs: list[_Arc], cut: list[list[list[_Part]]]) -> set[int]:
    """Arcs that touch where they did not; if there are none, those of holes that have left their polygon, and of it."""
    starts = np.concatenate([arc.kept[:-1] for arc in arcs])
    ends = np.concatenate([arc.kept[1:] for arc in arcs])
    owner = np.repeat(np.arange(len(arcs)), [len(arc.kept) - 1 for arc in arcs])
    wrong: set[int] = set()
    for i, j in _near(starts, ends):
        touching = _touch(starts[i], ends[i], starts[j], ends[j])
        wrong |= {*owner[i[touching]].tolist(), *owner[j[touching]].tolist()}
    return wrong or {i for rings in cut if len(rings) > 1 for i in _lost_holes(rings, arcs)}


def _near(starts: Points, ends: Points) -> Iterator[tuple[Points, Points]]:
    """Pairs of segments whose boxes overlap."""
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    order = np.argsort(low[:, 0], kind="stable")
    low, high = low[order], high[order]
    counts = np.searchsorted(low[:, 0], high[:, 0], side="right") - np.arange(len(order)) - 1
    totals = np.cumsum(counts)
    first = 0
    while first < len(order):
        before = int(totals[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(totals, before + _PAIRS)))
        i = np.repeat(np.arange(first, stop), counts[first:stop])
        j = (
            i
            + 1
            + np.arange(len(i))
            - np.repeat(np.cumsum(counts[first:stop]) - counts[first:stop], counts[first:stop])
        )
        over = (low[i, 1] <= high[j, 1]) & (low[j, 1] <= high[i, 1])
        yield order[i[over]], order[j[over]]
        first = stop


def _touch(p: Points, q: Points, r: Points, s: Points) -> npt.NDArray[np.bool_]:
    """Whether segments pq and rs, whose boxes overlap, have a point in common that is not an end of both."""
    crossed = (_side(p, q, r) * _side(p, q, s) <= 0) & (_side(r, s, p) * _side(r, s, q) <= 0)
    same = [(a == b).all(1) for a, b in ((p, r), (p, s), (q, r), (q, s))]
    shared = np.sum(same, axis=0)
    # From an end that both share, they have more in common if they go the same way.
    tip, other_p, other_r = (
        np.where(same[0][:, None], first, np.where(same[1][:, None], second, np.where(same[2][:, None], third, fourth)))
        for first, second, third, fourth in ((p, p, q, q), (q, q, p, p), (s, r, s, r))
    )
    u, v = other_p - tip, other_r - tip
    folded = (u[:, 0] * v[:, 1] == u[:, 1] * v[:, 0]) & ((u * v).sum(1) > 0)
    return np.asarray(np.where(shared == 0, crossed, (shared > 1) | folded))


def _side(p: Points, q: Points, r: Points) -> Points:
    """1, 0, -1: on which side of the line pq the point r lies."""
    u, v = q - p, r - p
    return np.asarray(np.sign(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]))


def _lost_holes(rings: list[list[_Part]], arcs: list[_Arc]) -> Iterator[int]:
    """Arcs of a polygon where a hole no longer lies in the outer ring, or lies in another hole."""
    shapes = [_joined(parts, arcs) for parts in rings]
    # Lines do not cross, so that one point says all; it must not be a node, where rings may meet.
    probes = np.array([_probe(shape) for shape in shapes[1:]])
    for number, shape in enumerate(shapes):
        inside = _contains(shape, probes)
        wrong = ~inside if number == 0 else inside & (np.arange(1, len(shapes)) != number)
        for hole in np.flatnonzero(wrong).tolist():
            yield from (i for i, _ in (*rings[number], *rings[hole + 1]))


def _probe(ring: Points) -> npt.NDArray[np.float64]:
    """A point just inside the ring, beside the middle of its first edge."""
    x, y = ring[:, 0], ring[:, 1]
    area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum()
    step = (ring[1] - ring[0]).astype(np.float64)
    normal = np.array([-step[1], step[0]]) * (1 if area > 0 else -1)
    return np.asarray((ring[0] + ring[1]) / 2 + normal / np.hypot(*step) * 1e-6)


def _contains(ring: Points, points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether points lie inside a ring, by the number of its edges to their left."""
    start, end = ring, np.roll(ring, -1, axis=0)
    inside = np.zeros(len(points), dtype=bool)
    for i, (x, y) in enumerate(points.tolist()):
        spans = (start[:, 1] > y) != (end[:, 1] > y)
        a, b = start[spans], end[spans]
        crossings = a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
        inside[i] = int((crossings < x).sum()) % 2
    return inside
