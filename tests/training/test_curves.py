"""curves.png: a panel each for loss, mIoU and learning rate, whatever a log holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from atrous.training.curves import PANEL, WIDTH, draw_curves
from atrous.training.log_file import Log

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
