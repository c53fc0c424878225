"""Draw the classes' colours over an image, with a legend, or each class's name in its regions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from atrous.data.images.image_io import Pixels
from atrous.data.labels import Labels
from atrous.data.lettering import lettering
from atrous.data.palette import drawn_palette, is_background

LEAST_SHARE = 0.001
"""Share of the pixels below which the legend omits a class."""

_STRIP = 256


def overlay(
    image: Pixels,
    mask: npt.NDArray[Any],
    labels: Labels,
    alpha: float = 0.5,
    legend: bool = True,
    classes: Collection[int] | None = None,
    names: bool = False,
) -> Image.Image:
    """Draw the classes' colours over an image, outlined, with a legend of the classes and their shares.

    Ignored pixels and a class named "background" keep the image's own colours. Small images get no legend.

    Args:
        image: uint8 H,W,3.
        mask: integers H,W: class ids or `labels.ignore`.
        labels: names and colours; of these, colours that cannot be told apart are replaced, see `drawn_palette`.
        alpha: opacity of the colours, 0 to 1.
        legend: whether to draw one.
        classes: ids of those that are drawn and in the legend; None for all, background in the legend alone.
        names: whether to write each class's name where its region is widest.

    Raises:
        ValueError: if image and mask differ in size.
    """
    if image.shape != (*mask.shape, 3):
        raise ValueError(f"image of shape {image.shape} and mask of shape {mask.shape}; expected H,W,3 and H,W")
    ids: npt.NDArray[np.uint8 | np.uint16] = mask.astype(np.uint8 if labels.largest_id < 256 else np.uint16, copy=False)
    strength = np.zeros(labels.largest_id + 1, dtype=np.float32)
    strength[: len(labels)] = [0.0 if is_background(name) else alpha for name in labels.names]
    strength[labels.ignore] = 0.0
    if classes is not None:
        ids = np.where(np.isin(ids, list(classes)), ids, labels.ignore).astype(ids.dtype)
        strength[list(classes)] = alpha
    colours = np.zeros((labels.largest_id + 1, 3), dtype=np.uint8)
    colours[: len(labels)] = drawn_palette(labels)
    weights, picture = np.rint(255 * strength).astype(np.uint8), Image.fromarray(image)
    thickness = max(1, round(min(ids.shape) / 700))
    for top in range(0, len(ids), _STRIP):  # the colours of all pixels would take more memory than the photograph
        part = ids[top : top + _STRIP + thickness]
        edge = Image.fromarray(_outline(part, thickness)[:_STRIP])
        part = part[:_STRIP]
        if part.dtype == np.uint8:  # in PIL, without the eight bytes a pixel that NumPy takes for indices
            plane = Image.fromarray(part)
            opacity = plane.point(weights.tobytes().ljust(256, b"\0"))
            plane.putpalette(colours.tobytes())
            picture.paste(plane.convert("RGB"), (0, top), opacity)
        else:
            picture.paste(Image.fromarray(colours[part]), (0, top), Image.fromarray(weights[part]))
        picture.paste((255, 255, 255), (0, top, ids.shape[1], top + len(part)), edge)
    if names:
        _write_names(picture, ids, labels)
    if legend:
        _draw_legend(picture, ids, labels)
    return picture


def _write_names(picture: Image.Image, ids: npt.NDArray[Any], labels: Labels) -> None:
    """Write each class but background where its region is widest, if it is wider than a few pixels."""
    size = max(9, round(min(picture.size) / 18))
    draw = ImageDraw.Draw(picture)
    for index, name in enumerate(labels.names):
        if is_background(name) or (ids == index).sum() < size * size / 4:
            continue
        row, column = _innermost(ids == index)
        text, font = lettering(name, size)
        half = font.getlength(text) / 2
        x = min(max(column, half + 1), max(half + 1, picture.width - half - 1))
        y = min(max(row, size * 0.6), picture.height - size * 0.6)
        draw.text(
            (x, y), text, fill="white", font=font, anchor="mm", stroke_width=max(1, size // 9), stroke_fill="black"
        )


def _innermost(region: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of a pixel of a region that is about as far from its border as any is."""
    inner = np.pad(region, 1)
    while True:
        smaller = inner.copy()
        smaller[1:] &= inner[:-1]
        smaller[:-1] &= inner[1:]
        smaller[:, 1:] &= inner[:, :-1]
        smaller[:, :-1] &= inner[:, 1:]
        if not smaller.any():
            break
        inner = smaller
    rows, columns = np.nonzero(inner)
    middle = len(rows) // 2
    return int(rows[middle]) - 1, int(columns[middle]) - 1


def _outline(ids: npt.NDArray[Any], thickness: int) -> Pixels:
    """Opacity of white, 0..255, for each pixel: that of the border of each segment."""
    edge = np.zeros(ids.shape, dtype=bool)
    for step in range(1, thickness + 1):
        edge[:, :-step] |= ids[:, :-step] != ids[:, step:]
        edge[:-step] |= ids[:-step] != ids[step:]
    return edge.astype(np.uint8) * 150


def _draw_legend(picture: Image.Image, ids: npt.NDArray[Any], labels: Labels) -> None:
    if ids.dtype == np.uint8:
        counts = np.array(Image.fromarray(ids).histogram())[: len(labels)]  # np.bincount takes eight bytes a pixel
    else:
        counts = np.bincount(ids.ravel(), minlength=len(labels))[: len(labels)]
    shown = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index] >= LEAST_SHARE * ids.size]
    size = max(10, round(min(picture.size) / 32))
    _, font = lettering("".join(labels.names[index] for index in shown), size)
    row, pad = round(size * 1.35), round(size * 0.5)
    rows = min(len(shown), (round(picture.height * 0.8) - 2 * pad) // row)
    texts = [(lettering(labels.names[i], size)[0], f"{100 * counts[i] / ids.size:.1f}%") for i in shown[:rows]]
    name_width = max((font.getlength(name) for name, _ in texts), default=0)
    share_width = max((font.getlength(share) for _, share in texts), default=0)
    width, height = round(2 * pad + size + name_width + share_width + 1.6 * size), 2 * pad + rows * row
    if rows < 1 or width > 0.42 * picture.width:
        return
    left, top = pad, picture.height - pad - height
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rounded_rectangle((left, top, left + width, top + height), radius=pad, fill=(0, 0, 0, 150))
    palette = drawn_palette(labels)
    for index, (name, share) in enumerate(texts):
        y = top + pad + index * row
        x = left + pad
        draw.rectangle((x, y + 1, x + size, y + size), fill=palette[shown[index]], outline=(255, 255, 255, 160))
        draw.text((x + 1.6 * size, y), name, fill="white", font=font)
        draw.text((left + width - pad, y), share, fill="white", font=font, anchor="ra")
