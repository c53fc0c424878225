"""Rasterise Label Studio's regions: brushes in its own run lengths, bitmasks, and shapes in percent of the image.

A brush is an RGBA image, packed in bits: the number of values (32 bits), the size of a word less one (5), four sizes of
lengths less one (4 each); then runs: a bit that says whether one value repeats, two bits that choose the size of the
length, the length less one, and the value, or as many values. What is not transparent belongs to the region.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from atrous.data.datasets.regions import Region, fill_oriented, fill_polygon, png_region

_HEADER = 32 + 5 + 4 * 4
_DATA_URL = "data:image/png;base64,"


def region_kind(value: dict[str, Any]) -> str:
    """What a region is: brush, bitmask, polygon, ellipse, rectangle; "" if it has no area that is known."""
    if "rle" in value:
        return "brush"
    if "imageDataURL" in value:
        return "bitmask"
    if "points" in value:
        return "polygon"
    if "radiusX" in value:
        return "ellipse"
    return "rectangle" if {"x", "y", "width", "height"} <= value.keys() and "keypointlabels" not in value else ""


def draw_region(value: dict[str, Any], height: int, width: int) -> Region:
    """The pixels of a region, bool H,W.

    Raises:
        ValueError, KeyError, TypeError, OverflowError, OSError: if it cannot be drawn.
    """
    kind = region_kind(value)
    if kind == "brush":
        return decode_brush(bytes(value["rle"]), height * width * 4).reshape(height, width, 4)[:, :, 3] > 0
    if kind == "bitmask":
        text = str(value["imageDataURL"])
        if not text.startswith(_DATA_URL):
            raise ValueError(f"{text[:30]!r}; expected {_DATA_URL}...")
        region = png_region(base64.b64decode(text.removeprefix(_DATA_URL), validate=True), height, width)
        if region.shape != (height, width):
            raise ValueError(f"a bitmask of {region.shape[1]}x{region.shape[0]}; expected {width}x{height}")
        return region
    if kind == "polygon":
        points = [(round(float(x) / 100 * width, 2), round(float(y) / 100 * height, 2)) for x, y in value["points"]]
        return fill_polygon(points, height, width)
    x, y = float(value["x"]) / 100 * width, float(value["y"]) / 100 * height
    degrees = float(value.get("rotation") or 0)
    if kind == "ellipse":
        half = float(value["radiusX"]) / 100 * width, float(value["radiusY"]) / 100 * height
        return fill_oriented((x, y), half, degrees, height, width, ellipse=True)
    # x, y is the corner about which the rectangle is turned.
    a, b, angle = float(value["width"]) / 200 * width, float(value["height"]) / 200 * height, math.radians(degrees)
    centre = (x + a * math.cos(angle) - b * math.sin(angle), y + a * math.sin(angle) + b * math.cos(angle))
    return fill_oriented(centre, (a, b), degrees, height, width, ellipse=False)


def decode_brush(data: bytes, expected: int) -> npt.NDArray[np.uint8]:
    """Unpack Label Studio's run lengths into uint8 N.

    Args:
        data: as packed.
        expected: N, of an RGBA image its height times width times 4.

    Raises:
        ValueError: if it is damaged, or of another N.
    """
    bits = len(data) * 8
    count, word = _bits(data, 0, 32), _bits(data, 32, 5) + 1
    sizes = [_bits(data, 37 + 4 * index, 4) + 1 for index in range(4)]
    if bits < _HEADER or count != expected or word != 8:
        raise ValueError(
            f"a brush of {count} values of {word} bits; expected {expected} of 8, RGBA of the image's size"
        )
    values = np.zeros(count, dtype=np.uint8)
    place, filled = _HEADER, 0
    while filled < count:
        repeats, size = _bits(data, place, 1), sizes[_bits(data, place + 1, 2)]
        length = _bits(data, place + 3, size) + 1
        place += 3 + size
        stored = 1 if repeats else length
        if place + 8 * stored > bits:
            raise ValueError(f"a brush that ends after {filled} of {count} values; expected all: export it anew")
        values[filled : filled + length] = _bytes(data, place, stored)[: count - filled]
        place += 8 * stored
        filled += length
    return values


def _bits(data: bytes, start: int, size: int) -> int:
    """The number in `size` bits from bit `start` on; beyond the end, zeros."""
    end = start + size
    part = int.from_bytes(data[start // 8 : (end + 7) // 8].ljust((end + 7) // 8 - start // 8, b"\0"), "big")
    return part >> (-end % 8) & ((1 << size) - 1)


def _bytes(data: bytes, start: int, count: int) -> npt.NDArray[np.uint8]:
    """`count` bytes from bit `start` on."""
    if count == 1:
        return np.array([_bits(data, start, 8)], dtype=np.uint8)
    part = np.frombuffer(data[start // 8 : (start + 8 * count + 7) // 8], dtype=np.uint8)
    return np.packbits(np.unpackbits(part)[start % 8 : start % 8 + 8 * count])
