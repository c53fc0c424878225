"""Draw ``confusion.png``: for each true class, the shares of its pixels that were predicted as each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from atrous.data.lettering import Font, lettering

Counts = npt.NDArray[np.int64]
"""K,K: pixels by true class (row) and predicted class (column)."""

_NUMBERED = 32
"""Classes up to which each cell has its number."""
_MOST = 200
"""Classes that are shown."""
_LONGEST = 24
"""Letters of a name that are shown."""
_INK, _SOFT, _EMPTY = (32, 36, 44), (110, 116, 128), (243, 244, 246)
_DARK = np.array([16, 66, 140])


class Mistake(NamedTuple):
    """`share` of the pixels of the class `true` were taken for `taken_for`."""

    true: int
    taken_for: int
    share: float


def shares_of(counts: Counts) -> npt.NDArray[np.float64]:
    """The rows as shares of the class's pixels, K,K; rows of classes without a pixel are not a number."""
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return shares


def mistakes(counts: Counts, most: int = 5, least: float = 0.02) -> list[Mistake]:
    """The largest shares of a class that were taken for another, at most one a class, the largest first."""
    shares = np.nan_to_num(shares_of(counts))
    np.fill_diagonal(shares, 0.0)
    worst = [Mistake(i, int(row.argmax()), float(row.max())) for i, row in enumerate(shares)]
    return sorted((one for one in worst if one.share >= least), key=lambda one: -one.share)[:most]


def draw_confusion(counts: Counts, names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix, each row in percent of the true class's pixels.

    Args:
        counts: of K classes.
        names: of the K classes.
    """
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
