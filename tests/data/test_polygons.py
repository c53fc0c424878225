"""Polygons and run lengths come back to the pixel; simplified ones keep what lies in what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atrous.data.polygons import Polygon, polygons, run_lengths


def filled(shapes: list[Polygon], height: int, width: int) -> np.ndarray:
    """Pixels whose centres lie inside, by the number of edges to their left: an independent rasteriser, exact."""
    inside = np.zeros((height, width + 1), dtype=np.int64)
    for ring in (ring for shape in shapes for ring in (shape.outer, *shape.holes)):
        (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
        low, high = np.minimum(y0, y1), np.maximum(y0, y1)
        edge = np.repeat(np.arange(len(ring)), high - low)
        rows = low[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
        across = x0[edge] + (rows + 0.5 - y0[edge]) / (y1 - y0)[edge] * (x1 - x0)[edge]
        np.add.at(inside, (rows, np.ceil(across - 0.5).astype(int)), 1)
    return (inside.cumsum(axis=1)[:, :-1] % 2).astype(bool)


def blobs(seed: int, height: int, width: int, values: int = 4, cell: int = 6) -> np.ndarray:
    """Smooth regions with holes and islands in them."""
    rng = np.random.default_rng(seed)
    small = rng.normal(size=(values, height // cell + 2, width // cell + 2))
    rows, columns = np.linspace(0, small.shape[1] - 1.001, height), np.linspace(0, small.shape[2] - 1.001, width)
    r, c = rows.astype(int)[:, None], columns.astype(int)[None]
    a, b = rows[:, None] - r, columns[None] - c
    smooth = (
        small[:, r, c] * (1 - a) * (1 - b)
        + small[:, r + 1, c] * a * (1 - b)
        + small[:, r, c + 1] * (1 - a) * b
        + small[:, r + 1, c + 1] * a * b
    )
    return smooth.argmax(0).astype(np.uint8)


MASKS = {
    "one pixel": np.ones((1, 1), dtype=np.uint8),
    "a row": np.array([[1, 0, 1, 1, 0, 2]], dtype=np.uint8),
    "diagonal": np.array([[1, 0], [0, 1]], dtype=np.uint8),
    "checkers": (np.indices((6, 7)).sum(0) % 2).astype(np.uint8),
    "a ring in a ring": np.array(
        [[1] * 7, [1, 0, 0, 0, 0, 0, 1], [1, 0, 1, 1, 1, 0, 1], [1, 0, 1, 0, 1, 0, 1], [1, 0, 1, 1, 1, 0, 1],
         [1, 0, 0, 0, 0, 0, 1], [1] * 7], dtype=np.uint8,
    ),
    "noise": np.random.default_rng(0).integers(0, 3, (40, 53)).astype(np.uint8),
    "half noise": np.random.default_rng(1).integers(0, 2, (33, 20)).astype(bool),
    "ids": np.random.default_rng(2).integers(0, 2, (12, 9)) * 70000 - 3,
    "blobs": blobs(3, 90, 120),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_polygons_come_back_to_the_pixel(name: str) -> None:
    mask = MASKS[name]
    shapes = polygons(mask)
    assert sorted(shapes) == sorted(np.unique(mask).tolist())
    for value, parts in shapes.items():
        assert np.array_equal(filled(parts, *mask.shape), mask == value)
        assert sum(part.area for part in parts) == (mask == value).sum()
        for ring in (ring for part in parts for ring in (part.outer, *part.holes)):
            assert len(np.unique(ring, axis=0)) == len(ring)  # passes no point twice


@pytest.mark.parametrize("name", MASKS)
def test_polygons_and_holes_are_those_of_another_library(name: str) -> None:
    """Polygons are the 4-connected components, holes those of all around one, but the outermost."""
    measure = pytest.importorskip("skimage.measure")
    mask = MASKS[name]
    for value, parts in polygons(mask).items():
        components = measure.label(mask == value, connectivity=1)
        assert len(parts) == components.max()
        holes = 0
        for number in range(1, components.max() + 1):
            around = np.pad(components != number, 1, constant_values=True)
            holes += measure.label(around, connectivity=1).max() - 1
        assert sum(len(part.holes) for part in parts) == holes


def test_each_hole_belongs_to_its_polygon() -> None:
    mask = MASKS["a ring in a ring"]
    outer, inner = polygons(mask)[1]
    assert [len(outer.holes), len(inner.holes)] == [1, 1]
    assert outer.holes[0].min() == 1 and outer.holes[0].max() == 6
    assert inner.outer.min() == 2 and inner.holes[0].tolist() == [[3, 3], [3, 4], [4, 4], [4, 3]]
    assert inner.outer.tolist() == [[2, 2], [5, 2], [5, 5], [2, 5]]  # clockwise as it is seen, y downwards


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("name", MASKS)
def test_simplified_polygons_keep_what_lies_in_what(name: str, tolerance: float) -> None:
    mask = MASKS[name]
    exact, simple = polygons(mask), polygons(mask, tolerance)
    covered = np.zeros(mask.shape, dtype=int)
    for value, parts in exact.items():
        holes = sorted(len(part.holes) for part in parts)
        assert sorted(len(part.holes) for part in simple[value]) == holes
        for part, before in zip(simple[value], parts, strict=True):
            assert part.outer.min() >= 0 and (part.outer.max(axis=0) <= mask.shape[::-1]).all()
            assert len(part.outer) >= 3 and all(len(hole) >= 3 for hole in part.holes)
            assert abs(part.area - before.area) <= tolerance * _length(before) + 1e-9
        covered += filled(simple[value], *mask.shape)
    # Shared borders are still shared: every centre lies in one polygon, or on a line between two.
    assert (covered == 1).mean() > 0.999


def _length(shape: Polygon) -> float:
    return sum(float(np.abs(ring - np.roll(ring, 1, axis=0)).sum()) for ring in (shape.outer, *shape.holes))


@pytest.mark.parametrize("seed", range(8))
def test_no_line_crosses_another_or_leaves_the_outline(seed: int) -> None:
    mask = blobs(seed, 40, 48)
    exact, simple = polygons(mask), polygons(mask, 3.0)
    for value, parts in simple.items():
        for part, before in zip(parts, exact[value], strict=True):
            rings, outlines = [part.outer, *part.holes], [before.outer, *before.holes]
            points = [tuple(point) for ring in outlines for point in ring.tolist()]
            met = {point for point in points if points.count(point) > 1}  # where rings touched before
            lines = np.concatenate([np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings])
            assert not _crossings(lines, met)
            for hole in part.holes:
                assert filled([Polygon(hole)], *mask.shape).sum() == 0 or _inside(hole, part.outer)
            assert (
                max(_distance(point, rings) for ring in (before.outer, *before.holes) for point in ring) <= 3.0 + 1e-9
            )


def _crossings(segments: np.ndarray, met: set[Any]) -> list[tuple[int, int]]:
    """Pairs of segments that meet anywhere but at ends of both; brute force, in whole numbers."""

    def side(a: Any, b: Any, c: Any) -> int:
        return int(np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])))

    def on(a: Any, b: Any, c: Any) -> bool:
        return (
            side(a, b, c) == 0
            and min(a[0], b[0]) <= c[0] <= max(a[0], b[0])
            and min(a[1], b[1]) <= c[1] <= max(a[1], b[1])
        )

    lines = [tuple(map(tuple, line)) for line in segments.tolist()]
    wrong = []
    for i, (p, q) in enumerate(lines):
        for j, (r, s) in enumerate(lines[:i]):
            proper = side(p, q, r) * side(p, q, s) < 0 and side(r, s, p) * side(r, s, q) < 0
            touches = any(on(p, q, c) and c not in {p, q, *met} for c in (r, s)) or any(
                on(r, s, c) and c not in {r, s, *met} for c in (p, q)
            )
            if proper or touches or {p, q} == {r, s}:
                wrong.append((i, j))
    return wrong


def _inside(ring: np.ndarray, outer: np.ndarray) -> bool:
    middle = filled([Polygon(ring)], int(outer[:, 1].max()) + 1, int(outer[:, 0].max()) + 1)
    return bool((filled([Polygon(outer)], *middle.shape) >= middle).all())


def _distance(point: np.ndarray, rings: list[np.ndarray]) -> float:
    start, end = (np.concatenate([np.roll(r, -k, axis=0) for r in rings]).astype(float) for k in (0, 1))
    step = end - start
    share = np.clip(((point - start) * step).sum(1) / (step**2).sum(1), 0, 1)
    return float(np.hypot(*(point - start - share[:, None] * step).T).min())


def test_simplified_polygons_have_fewer_points() -> None:
    mask = blobs(3, 200, 240, cell=40)
    count = {t: sum(len(p.outer) for parts in polygons(mask, t).values() for p in parts) for t in (0.0, 1.0, 3.0)}
    assert count[3.0] < count[1.0] < count[0.0] / 3


@pytest.mark.parametrize("name", MASKS)
def test_run_lengths_are_those_of_pycocotools(name: str) -> None:
    coder = pytest.importorskip("pycocotools.mask")
    mask = MASKS[name]
    for value in np.unique(mask):
        region = mask == value
        expected = coder.encode(np.asfortranarray(region.astype(np.uint8)))
        ours = run_lengths(region)
        assert ours == {"size": expected["size"], "counts": expected["counts"].decode()}
        plain = run_lengths(region, compressed=False)
        assert coder.frPyObjects(plain, *region.shape)["counts"] == expected["counts"]
        assert np.array_equal(coder.decode(ours).astype(bool), region)


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask of float64, shape .*; expected integers or booleans H,W"):
        polygons(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="tolerance is -1; expected 0 or more pixels"):
        polygons(np.zeros((3, 3), dtype=int), -1)
