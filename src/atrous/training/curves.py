"""Draw ``curves.png`` of a run: loss, mIoU in validation and learning rate over the steps.

With Pillow, which is there anyway: drawn at twice the size and reduced, so that lines are smooth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from atrous.training.log_file import Log

Points = Sequence[tuple[int, float]]

WIDTH, PANEL = 760, 240
"""Pixels of the picture, and the height of each of its panels."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _FOOT = 86, 28, 42, 14, 46
_DRAWN_AT = 2
_INK, _SOFT, _GRID = (32, 36, 44), (110, 116, 128), (228, 231, 236)
_LOSS, _MIOU, _RATE = (37, 99, 190), (20, 140, 90), (200, 110, 20)


@dataclass(frozen=True)
class _Panel:
    title: str
    points: Points
    colour: tuple[int, int, int]
    from_zero: bool = False
    dots: bool = False
    bold: Points = ()
    form: str = "g"


def draw_curves(log: Log, iterations: int) -> Image.Image:
    """A panel each for loss, mIoU and learning rate; without a validation there is no panel of mIoU.

    Args:
        log: of the run so far.
        iterations: steps of the whole run, the end of the horizontal axis.
    """
    smooth = _smoothed(log.loss)
    loss = f"loss, now {smooth[-1][1]:.3g}" if smooth else "loss"
    panels = [_Panel(loss, log.loss, _LOSS, bold=smooth if len(log.loss) >= 12 else ())]
    if log.miou:
        best = log.best
        title = "mIoU in validation" + (f", best {best[1]:.4f} at step {best[0]}" if best else "")
        panels.append(_Panel(title, log.miou, _MIOU, dots=True))
    panels.append(_Panel("learning rate", log.lr, _RATE, from_zero=True, form=".0e"))
    size = (WIDTH * _DRAWN_AT, (PANEL * len(panels) + _FOOT - _BOTTOM) * _DRAWN_AT)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for number, panel in enumerate(panels):
        _draw_panel(draw, panel, PANEL * number, iterations, last=number == len(panels) - 1)
    return picture.reduce(_DRAWN_AT)


def _draw_panel(draw: ImageDraw.ImageDraw, panel: _Panel, top: int, iterations: int, *, last: bool) -> None:
    high, low = top + _TOP, top + PANEL - _BOTTOM
    values = [value for _, value in panel.points if math.isfinite(value)]
    ticks = _ticks(0.0 if panel.from_zero else min(values, default=0.0), max(values, default=1.0))
    bottom, span = ticks[0], ticks[-1] - ticks[0]

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * step / iterations
        return x * _DRAWN_AT, (low - (low - high) * (value - bottom) / span) * _DRAWN_AT

    _text(draw, (_LEFT, top + 10), panel.title, 17, panel.colour)
    for tick in ticks:
        draw.line([place(0, tick), place(iterations, tick)], fill=_GRID, width=_DRAWN_AT)
        y = place(0, tick)[1] / _DRAWN_AT
        _text(draw, (_LEFT - 10, y), format(tick, panel.form) if tick else "0", 13, _SOFT, anchor="rm")
    for tick in _steps(iterations):
        draw.line([place(tick, ticks[0]), place(tick, ticks[-1])], fill=_GRID, width=_DRAWN_AT)
        if last:
            _text(draw, (place(tick, 0)[0] / _DRAWN_AT, low + 8), f"{tick}", 13, _SOFT, anchor="ma")
    if last:
        _text(draw, (WIDTH - _RIGHT, low + 24), "step", 13, _SOFT, anchor="ra")
    for points, bold in ((panel.points, not panel.bold), (panel.bold, True)):
        line = [place(step, value) for step, value in points if math.isfinite(value)]
        colour = panel.colour if bold else _paler(panel.colour)
        if len(line) > 1:
            draw.line(line, fill=colour, width=round((2.4 if bold else 1.2) * _DRAWN_AT), joint="curve")
        if panel.dots or len(line) == 1:
            for x, y in line:
                r = 3.5 * _DRAWN_AT
                draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    colour: tuple[int, int, int] = _INK,
    anchor: str = "la",
) -> None:
    x, y = place
    font = ImageFont.load_default(size=size * _DRAWN_AT)
    draw.text((x * _DRAWN_AT, y * _DRAWN_AT), text, fill=colour, font=font, anchor=anchor)


def _smoothed(points: Points, reach: int = 4) -> list[tuple[int, float]]:
    """The mean of the rows about each, which a noisy loss is read by."""
    smooth = []
    for i, (step, _) in enumerate(points):
        recent = [value for _, value in points[max(0, i - reach) : i + reach + 1] if math.isfinite(value)]
        smooth.append((step, sum(recent) / len(recent) if recent else math.nan))
    return smooth


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, equally far apart, of which the first is at most `low` and the last at least `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0) * 0.1
    step = _round_up((high - low) / count)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= value * (1 - 1e-9))


def _steps(iterations: int) -> list[int]:
    step = max(1, round(_round_up(iterations / 8)))
    return list(range(0, iterations + 1, step))


def _paler(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (round(255 - (255 - part) * 0.35) for part in colour)
    return red, green, blue
