"""The run's pictures: curves of whatever a log holds; a confusion matrix readable for two classes and for 150."""

from __future__ import annotations

import math

import numpy as np
import pytest

from atrous.training.log_file import Log
from atrous.training.pictures import PANEL, WIDTH, draw_confusion, draw_curves
from atrous.training.verdict import mistakes, shares_of

BLUE, GREEN = (37, 99, 190), (20, 140, 90)


def falling(steps: int) -> tuple[tuple[int, float], ...]:
    return tuple((10 * i, 2 / i) for i in range(1, steps + 1))


@pytest.mark.parametrize(
    "log",
    [
        Log(),
        Log(loss=((10, 1.0),), lr=((10, 0.0),)),
        Log(loss=((10, math.nan), (20, 1.0)), lr=((10, 0.1), (20, 0.1)), miou=((20, math.nan),)),
        Log(loss=((10, 0.0), (20, 0.0)), lr=((10, 1e-300), (20, 0.0)), miou=((10, 0.5), (20, 0.5))),
        Log(loss=falling(500), lr=falling(500), miou=falling(12)),
    ],
    ids=["nothing", "one row", "not a number", "constant", "long"],
)
def test_it_draws_any_log(log: Log) -> None:
    picture = draw_curves(log, 5000)
    assert picture.width == WIDTH and picture.height > PANEL * (3 if log.miou else 2)


def test_a_line_goes_down_where_the_loss_does() -> None:
    picture = np.asarray(draw_curves(Log(loss=falling(100), lr=falling(100)), 1000)).astype(int)
    blue = (np.abs(picture - BLUE).sum(axis=2) < 30) & (np.arange(len(picture)) > 45)[:, None]
    heights = [np.flatnonzero(blue[:, x]).mean() for x in (150, 300, 600)]
    assert heights == sorted(heights) and heights[0] < heights[2]


def test_half_of_the_run_is_half_of_the_width() -> None:
    picture = np.asarray(draw_curves(Log(loss=falling(50), lr=falling(50), miou=falling(50)), 1000)).astype(int)
    green = np.abs(picture - GREEN).sum(axis=2) < 30
    right = np.flatnonzero(green[PANEL + 45 :].any(axis=0)).max()
    assert right == pytest.approx(86 + (WIDTH - 86 - 28) / 2, abs=6)


def test_rows_are_shares_of_the_true_class() -> None:
    shares = shares_of(np.array([[3, 1], [0, 0]]))
    assert shares[0].tolist() == [0.75, 0.25] and np.isnan(shares[1]).all()


def test_mistakes_are_the_largest_of_each_class() -> None:
    counts = np.array([[90, 8, 2], [50, 40, 10], [0, 1, 99]])
    actual = mistakes(counts)
    assert [(one.true, one.taken_for, one.share) for one in actual] == [(1, 0, 0.5), (0, 1, 0.08)]
    assert mistakes(np.zeros((2, 2), dtype=np.int64)) == []


@pytest.mark.parametrize("classes", [1, 2, 11, 40, 150])
def test_every_cell_has_its_colour(classes: int) -> None:
    counts = np.diag(np.arange(1, classes + 1))
    names = [f"{i} a long name of a class, with accents: é" for i in range(classes)]
    picture = np.asarray(draw_confusion(counts, names))
    assert picture.shape[2] == 3 and picture.shape[0] >= 17 * classes
    dark = (picture == (16, 66, 140)).all(axis=2)
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert len(rows) >= 15 * classes and len(columns) >= 15 * classes  # the whole diagonal is on the picture
    assert dark[rows[0] + 1, columns[0] + 1] and dark[rows[-1] - 1, columns[-1] - 1]


def test_a_class_without_a_pixel_is_gray() -> None:
    picture = np.asarray(draw_confusion(np.array([[1, 0], [0, 0]]), ["a", "b"]))
    assert ((picture == (243, 244, 246)).all(axis=2)).sum() > 90 * 2 * 90


def test_of_very_many_classes_the_worst_are_shown() -> None:
    counts = np.diag(np.full(300, 10))
    counts[7, 8] = 90
    picture = draw_confusion(counts, [f"c{i}" for i in range(300)])
    assert max(picture.size) < 4000
