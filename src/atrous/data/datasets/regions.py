"""Rasterise the regions of annotations: polygons, boxes, ellipses, small masks, and COCO's run lengths.

COCO's own polygons are drawn as COCO's API draws them, which leaves out half a pixel along two sides. Those that tools
derive from masks run through the centres of border pixels: Pillow, as in LabelMe's converter, fills their border, too.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from atrous.data.images.image_io import MAX_PIXELS, Pixels
from atrous.messages import counted

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
        pairs = [np.reshape(polygon, (-1, 2)).tolist() for polygon in polygons]
        for points in pairs:
            check_points(points, height, width)
        return fill_polygons(pairs, height, width)
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


def blank_mask(height: int, width: int, ids: Iterable[int]) -> Pixels:
    """A mask of zeros to draw these class ids in, H,W: uint8, or uint16 if one of them needs it."""
    wide = max(ids, default=0) > 255
    return cast(Pixels, np.zeros((height, width), dtype=np.uint16 if wide else np.uint8))


def size_of(height: object, width: object, *, fields: tuple[str, str] = ("height", "width")) -> tuple[int, int]:
    """Two values of a file as the size of an image in pixels; ValueError if they are no such numbers (True is none)."""
    if type(height) is int and type(width) is int and height > 0 and 0 < height * width <= MAX_PIXELS:
        return height, width
    shown = ", ".join(f"{name} {value!r:.20}" for name, value in zip(fields, (height, width), strict=True))
    raise ValueError(f"{shown}; expected the size in pixels")


def size_in(height: str | None, width: str | None, fields: tuple[str, str] = ("height", "width")) -> tuple[int, int]:
    """As `size_of`, of values that are text."""
    texts = (text.strip() if text else text for text in (height, width))
    rows, columns = (int(text) if text and text.isdecimal() and len(text) < 10 else text for text in texts)
    return size_of(rows, columns, fields=fields)


def runs(counts: Sequence[int], size: int) -> npt.NDArray[np.bool_]:
    """Run lengths, of what is not set and what is by turns, as bool N; ValueError unless they are N values."""
    if min(counts, default=0) < 0 or sum(counts) != size:
        raise ValueError(f"run lengths of {sum(counts)} pixels; expected {size}, its width times its height")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def fill_polygon(points: Sequence[tuple[float, float]], height: int, width: int) -> Region:
    """A polygon with its border, bool H,W; ValueError for fewer than three points, or as `check_points`."""
    if len(points) < 3:
        raise ValueError(
            f"a polygon of {counted(len(points), 'point')}; expected 3 or more: draw it anew, or delete it"
        )
    check_points(points, height, width)
    return fill_polygons([points], height, width)


def check_points(points: Sequence[Sequence[float]], height: int, width: int) -> None:
    """Raise ValueError for coordinates, x, y in pixels, that are no numbers, far from the image, or all outside it."""
    array = np.asarray(points, dtype=np.float64)
    if not (np.abs(array) <= 2 * max(height, width) + 1).all():
        raise ValueError("points far outside the image; expected pixels")
    if len(array) and ((array < 0).all(0).any() or (array > (width, height)).all(0).any()):
        raise ValueError(f"all of it is outside the image; expected pixels, 0..{width} and 0..{height}")


def fill_oriented(
    centre: tuple[float, float], half: tuple[float, float], degrees: float, height: int, width: int, *, ellipse: bool
) -> Region:
    """The pixels whose centres are in a rectangle or ellipse, bool H,W.

    Args:
        centre: x, y in pixels.
        half: half its width and height, or its radii.
        degrees: by which it is turned, clockwise.
        height: of the image.
        width: likewise.
        ellipse: not a rectangle.

    Raises:
        ValueError: if it has no area, or is outside the image.
    """
    (x, y), (a, b), angle = centre, half, math.radians(degrees)
    if not (a > 0 and b > 0):
        raise ValueError(f"a shape of {2 * a:g} by {2 * b:g} pixels; expected some width and height")
    reach = math.hypot(a, b)
    check_points([(x - reach, y - reach), (x + reach, y + reach)], height, width)
    region = np.zeros((height, width), dtype=bool)
    top, left = max(0, math.floor(y - reach)), max(0, math.floor(x - reach))
    rows = np.arange(top, min(height, math.ceil(y + reach)))[:, None] + 0.5 - y
    columns = np.arange(left, min(width, math.ceil(x + reach)))[None] + 0.5 - x
    along = np.abs(columns * math.cos(angle) + rows * math.sin(angle)) / a
    across = np.abs(rows * math.cos(angle) - columns * math.sin(angle)) / b
    inside = along**2 + across**2 <= 1 if ellipse else (along <= 1) & (across <= 1)
    region[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return region


def png_region(data: bytes, height: int, width: int) -> Region:
    """The pixels of a PNG that are neither zero nor transparent, bool h,w, at most H,W.

    Raises:
        ValueError: if it is no PNG, or larger than the image; OSError, if it is damaged.
    """
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    if image.width > width or image.height > height:
        raise ValueError(f"a mask of {image.width}x{image.height} in an image of {width}x{height}")
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA").getchannel("A")) > 0
    pixels = np.asarray(image)
    return np.asarray(pixels > 0 if pixels.ndim == 2 else (pixels > 0).any(2))


def paste(inner: Region, left: int, top: int, height: int, width: int) -> Region:
    """A small mask with its corner at left, top, bool H,W; what is outside the image is cut.

    Raises:
        ValueError: if all of it is outside.
    """
    rows, columns = inner.shape
    if not (-rows < top < height and -columns < left < width):
        raise ValueError(f"a mask at {left}, {top}, outside the image of {width}x{height}")
    region = np.zeros((height, width), dtype=bool)
    part = inner[max(0, -top) : height - top, max(0, -left) : width - left]
    region[max(0, top) :, max(0, left) :][: part.shape[0], : part.shape[1]] = part
    return region


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
    return runs(counts, height * width).reshape(width, height).T


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
