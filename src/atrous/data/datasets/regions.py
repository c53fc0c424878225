"""Rasterise the regions of annotations: polygons, and COCO's run lengths.

COCO's own polygons are drawn as COCO's API draws them, which leaves out half a pixel along two sides. Those that tools
derive from masks run through the centres of border pixels: Pillow, as in LabelMe's converter, fills their border, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Region = npt.NDArray[np.bool_]


def draw(segmentation: Any, height: int, width: int, *, border: bool = False) -> Region:
    """Rasterise a region in COCO's form, bool H,W.

    Args:
        segmentation: polygons, each a list x, y, x, y, ..., of which those of fewer than three points have no area; or
            RLE, `{"size": [height, width], "counts": list or string}`.
        height: of the image.
        width: likewise.
        border: fill polygons with their border, by Pillow; else as COCO's API does, by pycocotools.

    Raises:
        ValueError: if it is neither, does not fit the image, or there is no pycocotools; and what pycocotools raises.
    """
    if not isinstance(segmentation, list):
        return _unpacked(segmentation, height, width)
    polygons = _checked(segmentation, height, width)
    if border:
        return fill_polygons([np.reshape(polygon, (-1, 2)).tolist() for polygon in polygons], height, width)
    coder = pycocotools_mask()
    # Without any polygon, one without area: pycocotools draws it as nothing, and would fail on an empty list.
    encoded = coder.merge(coder.frPyObjects(polygons or [[0, 0, 0, 0, 0, 0]], height, width))
    return np.asarray(coder.decode(encoded), dtype=bool)


def fill_polygons(polygons: Sequence[Sequence[Sequence[float]]], height: int, width: int) -> Region:
    """Union of polygons with their borders, bool H,W; each is a list of points x, y in pixels."""
    image = Image.new("1", (width, height))
    for polygon in polygons:
        ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in polygon], fill=1)
    return np.array(image)


def pycocotools_mask() -> Any:
    """The module pycocotools.mask; ValueError if it is not installed."""
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError:
        raise ValueError("COCO's regions are drawn by pycocotools; pip install 'atrous[coco]'") from None


def _unpacked(segmentation: Any, height: int, width: int) -> Region:
    if segmentation["size"] != [height, width]:
        raise ValueError(f"RLE of size {segmentation['size']} in an image of {[height, width]}")
    counts = segmentation["counts"]
    counts = _run_lengths(counts) if isinstance(counts, str) else counts
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError("RLE that does not fill the image")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _run_lengths(text: str) -> list[int]:
    """Decode COCO's compressed counts: signed, five bits a character, from the third on less the count two before."""
    counts: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in text):
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _checked(polygons: list[Any], height: int, width: int) -> list[Any]:
    """The polygons that have an area; ValueError if one is not a list of numbers x, y, ... in or near the image."""
    if not polygons:
        raise ValueError("no polygon")
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        # Beyond this, COCO's rasteriser walks edges of any length, a step a pixel.
        inside = np.abs(points) <= 2 * max(height, width) + 1
        if points.ndim != 1 or len(points) % 2 or not inside.all():
            raise ValueError(f"a polygon of {points.size} numbers that are not x, y, ... about the image")
    return [polygon for polygon in polygons if len(polygon) >= 6]
