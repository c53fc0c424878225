"""Draw a run's pictures: ``curves.png``, ``confusion.png`` and ``predictions.jpg``.

With Pillow, which is there anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from atrous.data.datasets.dataset import SegmentationDataset
from atrous.data.labels import Labels
from atrous.data.lettering import Font, lettering
from atrous.data.overlay import overlay
from atrous.data.palette import drawn_palette
from atrous.evaluation.evaluate import Example
from atrous.training.log_file import Log
from atrous.training.verdict import Counts, shares_of

_INK, _SOFT = (32, 36, 44), (110, 116, 128)

# Curves: loss, mIoU in validation and learning rate over the steps ----------------------------------------------------

Points = Sequence[tuple[int, float]]

WIDTH, PANEL = 760, 240
"""Pixels of the picture, and the height of each of its panels."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _FOOT = 86, 28, 42, 14, 46
_DRAWN_AT = 2
"""Drawn at so many times the size and reduced, so that lines are smooth."""
_GRID = (228, 231, 236)
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
    """A panel each for loss, mIoU and learning rate; without a validation there is no panel of mIoU."""
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


# Confusion: for each true class, the shares of its pixels that were predicted as each class ---------------------------

_NUMBERED = 32
"""Classes up to which each cell has its number."""
_MOST = 200
"""Classes that are shown."""
_LONGEST = 24
"""Letters of a name that are shown."""
_EMPTY = (243, 244, 246)
_DARK = np.array([16, 66, 140])


def draw_confusion(counts: Counts, names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix, each row in percent of the true class's pixels."""
    shares, note = shares_of(counts), "percent of the pixels of the true class; a gray row has no pixel"
    if len(names) > _MOST:
        worst = np.sort(np.argsort(shares.diagonal(), kind="stable")[:_MOST])  # what is not a number comes last
        note += f"; of {len(names)} classes the {_MOST} that are found worst"
        names, shares = [names[i] for i in worst], shares[np.ix_(worst, worst)]
    classes = len(names)
    cell = 96 if classes <= 4 else 64 if classes <= 12 else 44 if classes <= _NUMBERED else 17
    size = 20 if classes <= 4 else 17 if classes <= 12 else 15 if classes <= _NUMBERED else 13
    shown = [lettering(name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "...", size) for name in names]
    margin = round(max(font.getlength(name) for name, font in shown)) + 26
    left, top = margin + 24, margin + 30
    picture = Image.new("RGB", (max(left + cell * classes + 20, 560), top + cell * classes + 56), "white")
    draw = ImageDraw.Draw(picture)
    picture.paste(_cells(shares, cell), (left, top))
    for i, (name, font) in enumerate(shown):
        y = top + cell * i + cell / 2
        draw.text((left - 10, y), name, fill=_INK, font=font, anchor="rm")
        _paste_upright(picture, name, font, (left + cell * i + cell // 2, top - 8))
    if classes <= _NUMBERED:
        _write_numbers(draw, shares, (left, top), cell)
    small = ImageFont.load_default(size=15)
    draw.text((left, 8), "predicted as", fill=_SOFT, font=small)
    draw.text((12, top - 24), "true class", fill=_SOFT, font=small)
    draw.text((16, picture.height - 32), note, fill=_SOFT, font=small)
    return picture


def _cells(shares: npt.NDArray[np.float64], cell: int) -> Image.Image:
    strength = np.sqrt(np.nan_to_num(shares))[..., None]  # small shares are the mistakes that are looked for
    colours = 255 - (255 - _DARK) * strength
    colours[np.isnan(shares)] = _EMPTY
    large = np.kron(colours.round().astype(np.uint8), np.ones((cell, cell, 1), dtype=np.uint8))
    for axis_ends in (large[::cell], large[:, ::cell]):
        axis_ends[...] = 255
    return Image.fromarray(large)


def _paste_upright(picture: Image.Image, name: str, font: Font, foot: tuple[int, int]) -> None:
    """Write a name upwards, above `foot`."""
    _, top, right, bottom = (round(part) for part in font.getbbox(name))
    mask = Image.new("L", (right + 2, bottom + 2))
    ImageDraw.Draw(mask).text((0, 0), name, fill=255, font=font)
    mask = mask.rotate(90, expand=True)
    x, y = foot
    picture.paste(_INK, (x - (top + bottom) // 2, y - mask.height), mask)


def _write_numbers(
    draw: ImageDraw.ImageDraw, shares: npt.NDArray[np.float64], corner: tuple[int, int], cell: int
) -> None:
    font = ImageFont.load_default(size=max(12, cell // 4))
    left, top = corner
    for (row, column), share in np.ndenumerate(shares):
        if share != share or share < 0.0005:
            continue
        percent = 100 * share
        text = f"{percent:.0f}" if percent >= 1 else "<1"
        fill = "white" if share > 0.25 else _INK
        draw.text((left + cell * (column + 0.5), top + cell * (row + 0.5)), text, fill=fill, font=font, anchor="mm")


# Predictions: photograph, truth and prediction of the images that came out worst, with a legend -----------------------

SIDE = 320
"""Pixels of the longer side of a picture."""
_GAP, _LINE = 8, 24


def draw_examples(examples: Sequence[Example], dataset: SegmentationDataset) -> Image.Image:
    """A row for each example, in their order, and a legend of the classes that occur."""
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
