"""Draw the classes' colours over an image, with a legend."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from atrous.data.image_io import Pixels
from atrous.data.labels import Labels

LEAST_SHARE = 0.001
"""Share of the pixels below which the legend omits a class."""


def overlay(
    image: Pixels,
    mask: npt.NDArray[Any],
    labels: Labels,
    alpha: float = 0.5,
    legend: bool = True,
    classes: Collection[int] | None = None,
) -> Image.Image:
    """Draw the classes' colours over an image, outlined, with a legend of the classes and their shares.

    Ignored pixels and a class named "background" keep the image's own colours. Small images get no legend.

    Args:
        image: uint8 H,W,3.
        mask: integers H,W: class ids or `labels.ignore`.
        labels: names and colours.
        alpha: opacity of the colours, 0 to 1.
        legend: whether to draw one.
        classes: ids of those that are drawn and in the legend; None for all, background in the legend alone.

    Raises:
        ValueError: if image and mask differ in size.
    """
    if image.shape != (*mask.shape, 3):
        raise ValueError(f"image of shape {image.shape} and mask of shape {mask.shape}; expected H,W,3 and H,W")
    ids = mask.astype(np.uint8)
    strength = np.zeros(256, dtype=np.float32)
    strength[: len(labels)] = [0.0 if name == "background" else alpha for name in labels.names]
    strength[labels.ignore] = 0.0
    if classes is not None:
        ids = np.where(np.isin(ids, list(classes)), ids, labels.ignore).astype(np.uint8)
        strength[list(classes)] = alpha
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(labels)] = labels.palette
    drawn, picture = Image.fromarray(ids), Image.fromarray(image)
    weights = drawn.point(np.rint(255 * strength).astype(np.uint8).tolist())
    drawn.putpalette(colours.tobytes())
    picture.paste(drawn.convert("RGB"), mask=weights)
    picture.paste((255, 255, 255), mask=Image.fromarray(_outline(ids)))
    if legend:
        _draw_legend(picture, ids, labels)
    return picture


def _outline(ids: Pixels) -> Pixels:
    """Opacity of white, 0..255, for each pixel: the border of each segment, thicker on larger images."""
    edge = np.zeros(ids.shape, dtype=bool)
    for step in range(1, max(1, round(min(ids.shape) / 700)) + 1):
        edge[:, :-step] |= ids[:, :-step] != ids[:, step:]
        edge[:-step] |= ids[:-step] != ids[step:]
    return edge.astype(np.uint8) * 150


@functools.lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _draw_legend(picture: Image.Image, ids: Pixels, labels: Labels) -> None:
    counts = np.array(Image.fromarray(ids).histogram())[: len(labels)]  # np.bincount takes eight bytes a pixel
    shown = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index] >= LEAST_SHARE * ids.size]
    size = max(10, round(min(picture.size) / 32))
    font = _font(size)
    row, pad = round(size * 1.35), round(size * 0.5)
    rows = min(len(shown), (round(picture.height * 0.8) - 2 * pad) // row)
    texts = [(labels.names[i], f"{100 * counts[i] / ids.size:.1f}%") for i in shown[:rows]]
    name_width = max((font.getlength(name) for name, _ in texts), default=0)
    share_width = max((font.getlength(share) for _, share in texts), default=0)
    width, height = round(2 * pad + size + name_width + share_width + 1.6 * size), 2 * pad + rows * row
    if rows < 1 or width > 0.42 * picture.width:
        return
    left, top = pad, picture.height - pad - height
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rounded_rectangle((left, top, left + width, top + height), radius=pad, fill=(0, 0, 0, 150))
    for index, (name, share) in enumerate(texts):
        y = top + pad + index * row
        x = left + pad
        draw.rectangle((x, y + 1, x + size, y + size), fill=labels.palette[shown[index]], outline=(255, 255, 255, 160))
        draw.text((x + 1.6 * size, y), name, fill="white", font=font)
        draw.text((left + width - pad, y), share, fill="white", font=font, anchor="ra")
