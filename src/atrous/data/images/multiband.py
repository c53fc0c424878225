"""TIFFs of `tiff_blocks` as RGB: three of their bands, or one, by the rule of `samples`.

Whole pictures and rows come from the same strips, so that both are the same picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from atrous.data.images.image_file import name_of, say_once
from atrous.data.images.samples import ImageRule, Samples, check_bands, sample_values_to_rgb, tops_of
from atrous.data.images.tiff_blocks import Tiff
from atrous.messages import counted

_ROWS = 256


def size_of(tiff: Tiff) -> tuple[int, int]:
    """Height and width of the picture upright."""
    return (tiff.width, tiff.height) if tiff.orientation >= 5 else (tiff.height, tiff.width)


def taken_bands(tiff: Tiff, rule: ImageRule, name: str) -> tuple[int, ...]:
    """The bands that are read, counted from 1; said, of the first such file, where others are left out untold.

    Raises:
        ValueError: if the rule asks for a band that is not there.
    """
    if rule.bands:
        check_bands(rule.bands, tiff.bands)
        return rule.bands
    bands = (1, 2, 3) if tiff.bands >= 3 else (1,)
    if tiff.bands > len(bands):
        taken = "bands 1, 2 and 3 are taken for red, green and blue" if len(bands) == 3 else "band 1 is read as gray"
        text = f"of {counted(tiff.bands, 'band')}, {taken}, and so of files like it"
        say_once(f"{text}; --bands takes others: --bands 4,3,2", about=name)
    return bands


def tops_in(tiff: Tiff, file: IO[bytes], rule: ImageRule) -> tuple[int, ...]:
    """The values that stand for 255 where no range is given, as `samples.tops_of`; () if none is needed."""
    if rule.value_range or tiff.dtype.kind == "f" or tiff.dtype == np.uint8:
        return ()
    name = name_of(file, "image")
    bands = taken_bands(tiff, rule, name)
    most = (1 << tiff.bits) - 1 if tiff.bits < 16 else 65535
    full = 127 if tiff.dtype.itemsize == 1 else 32767 if tiff.dtype.kind == "i" and tiff.bits == 16 else most
    mode = "I" if len(bands) == 1 else "RGB"
    samples = Samples(mode=mode, name=name, wide=True, full=full, declared=tiff.declared)
    return tops_of((values.astype(np.int64) for values in _values(tiff, file, bands, _ROWS)), samples)


def strips_in(
    tiff: Tiff, file: IO[bytes], rule: ImageRule, rows: int, tops: Callable[[], tuple[int, ...]]
) -> Iterator[npt.NDArray[np.uint8]]:
    """The picture as it is stored, in strips uint8 h,W,3 of some rows."""
    for values in _values(tiff, file, taken_bands(tiff, rule, name_of(file, "image")), rows):
        pixels = sample_values_to_rgb(values, rule, tops())
        yield 255 - pixels if tiff.inverted else pixels


def _values(tiff: Tiff, file: IO[bytes], bands: tuple[int, ...], rows: int) -> Iterator[npt.NDArray[Any]]:
    # Whole blocks at a time, for a strip may be the whole picture, compressed.
    least = rows if tiff.compression == 1 else max(rows, tiff.block[0] // rows * rows)
    for top in range(0, tiff.height, least):
        part = tiff.rows(file, top, min(top + least, tiff.height), bands)
        yield from (part[first : first + rows] for first in range(0, len(part), rows))


def whole(tiff: Tiff, file: IO[bytes], rule: ImageRule) -> npt.NDArray[np.uint8]:
    """The picture as it is stored, uint8 H,W,3."""
    tops = functools.cache(lambda: tops_in(tiff, file, rule))
    result = np.empty((tiff.height, tiff.width, 3), dtype=np.uint8)
    for index, strip in enumerate(strips_in(tiff, file, rule, _ROWS, tops)):
        result[index * _ROWS : index * _ROWS + len(strip)] = strip
    return result
