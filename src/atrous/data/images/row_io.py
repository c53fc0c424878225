"""Read images larger than memory by rows; `atrous.data.images.image_io.write_mask_strips` writes masks so.

The pixels are those of `atrous.data.images.image_io.read_image`, in every mode and orientation. The decoder is libvips
(``pip install 'atrous[large]'``).

    picture = open_strips("city.tif", max_pixels=10**9)
    write_mask_strips("city.png", (classify(strip) for strip in picture.strips(64)), picture.size, labels)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from atrous.data.images import multiband
from atrous.data.images.arrays import is_array
from atrous.data.images.dicom import is_dicom
from atrous.data.images.image_file import decode_file, errors_named, open_file, rawmode_of, with_file
from atrous.data.images.image_io import (
    MAX_PIXELS,
    Pixels,
    open_picture,
    orientation_of,
    read_image,
    upright_size,
)
from atrous.data.images.samples import AS_IT_IS, ImageRule, Samples, samples_of, to_rgb, tops_of, wide_to_rgb
from atrous.data.images.tiff_blocks import Tiff

_LOADERS = {"JPEG": "jpegload", "MPO": "jpegload", "PNG": "pngload", "TIFF": "tiffload"}
_BANDS = {"LA": 2, "La": 2, "RGB": 3, "P": 3, "RGBA": 4, "CMYK": 4}
_EXPECTED = "JPEG, PNG or TIFF of gray, RGB, CMYK or a palette"


@dataclass(frozen=True)
class Strips:
    """A picture that can be read, any number of times, as strips of rows.

    Attributes:
        size: height and width, upright.
        strips: takes the number of rows per strip, yields strips uint8 h,W,3; the last may have fewer rows.
    """

    size: tuple[int, int]
    strips: Callable[[int], Iterator[Pixels]]


def strips_of(image: Pixels) -> Strips:
    """A picture in memory, uint8 H,W,3, as strips; they share its memory."""
    height, width = image.shape[:2]
    return Strips((height, width), lambda rows: (image[top : top + rows] for top in range(0, height, rows)))


def open_strips(path: Path, *, max_pixels: int = MAX_PIXELS, rule: ImageRule = AS_IT_IS) -> Strips:
    """Open a file as strips that are decoded on demand.

    Memory holds a few rows of a PNG or TIFF, and the compressed bytes of a JPEG. A picture that its orientation rotates
    is first decoded into a temporary file by libvips; a progressive JPEG or an interlaced PNG, which stores parts of
    every row at its end, is decoded into memory. So is what libvips does not read by rows, up to `MAX_PIXELS`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `read_image`; also for a larger picture that is not read by rows, and without libvips. Damage
            behind the header is raised while the strips are read.
    """
    picture = with_file(
        path, lambda file: None if is_array(file) or is_dicom(file) else open_picture(file, max_pixels, rule)
    )
    if isinstance(picture, Tiff) and picture.orientation == 1:
        return _strips_of_blocks(path, picture, rule)
    if not isinstance(picture, Image.Image):
        return strips_of(read_image(path, max_pixels=min(max_pixels, MAX_PIXELS), rule=rule))
    _pyvips()
    header = decode_file(path, max_pixels, _header)
    if not header.by_rows:
        if header.size[0] * header.size[1] <= MAX_PIXELS:
            return strips_of(read_image(path, max_pixels=max_pixels, rule=rule))
        raise ValueError(f"{path}: {header.described} is not read by rows; expected {_EXPECTED}, or fewer pixels")
    stamp = _stamp(os.stat(path))

    def bands(rows: int) -> Iterator[npt.NDArray[Any]]:
        with errors_named(path), open_file(path) as file:
            _check_unchanged(file, stamp)
            source = _source(file, header.format)
            region = image = _load(source, header)
            try:
                region = _pyvips().Region.new(image)
                for top in range(0, header.size[0], rows):
                    yield _fetch(region, image, top, min(rows, header.size[0] - top), header)
            finally:
                del region, image  # before the source that they read from
                _clear_cache()
            _check_unchanged(file, stamp)

    def strips(rows: int) -> Iterator[Pixels]:
        for values in bands(rows):
            with errors_named(path):
                needed = header.samples.wide and not rule.value_range
                yield _to_rgb(values, header.samples, tops() if needed else (), rule)

    @functools.cache
    def tops() -> tuple[int, ...]:
        return tops_of(bands(256), header.samples)

    return Strips(header.size, strips)


def _strips_of_blocks(path: Path, tiff: Tiff, rule: ImageRule) -> Strips:
    stamp = _stamp(os.stat(path))

    @functools.cache
    def tops() -> tuple[int, ...]:
        with open_file(path) as file:
            return multiband.tops_in(tiff, file, rule)

    def strips(rows: int) -> Iterator[Pixels]:
        with errors_named(path), open_file(path) as file:
            _check_unchanged(file, stamp)
            yield from multiband.strips_in(tiff, file, rule, rows, tops)
            _check_unchanged(file, stamp)

    return Strips((tiff.height, tiff.width), strips)


def is_installed() -> bool:
    """Whether large files can be read by rows here."""
    try:
        _pyvips()
    except ValueError:
        return False
    return True


def _pyvips() -> Any:
    # Each thread of libvips buffers rows, gigabytes on a large machine; one thread reads fast enough.
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    try:
        import pyvips
    # The binding without its library is an OSError.
    except (ImportError, OSError):
        raise ValueError("reading a picture by rows needs pyvips: pip install 'atrous[large]'") from None
    return pyvips


def _clear_cache() -> None:
    """Empty libvips' cache of operations, which keeps rows of pictures that were read: 60 MB at 20,000 wide."""
    pyvips = _pyvips()
    size = pyvips.cache_get_max()
    pyvips.cache_set_max(0)
    pyvips.cache_set_max(size)


@dataclass(frozen=True)
class _Header:
    format: str
    size: tuple[int, int]
    orientation: int
    samples: Samples
    by_rows: bool
    bands: int | None
    described: str


def _header(image: Image.Image) -> _Header:
    samples, rawmode = samples_of(image), rawmode_of(image)
    by_rows, bands = image.format in _LOADERS, None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image)
        by_rows, bands = _tiff_by_rows(image, rawmode), _BANDS.get(image.mode, 1)
    elif image.format == "PNG" and "transparency" in image.info:
        by_rows = not samples.wide and rawmode not in ("1", "L;2", "L;4")
    what = f"{image.format} with samples of {image.mode}"
    return _Header(str(image.format), upright_size(image), orientation_of(image), samples, by_rows, bands, what)


def _tiff_by_rows(image: TiffImagePlugin.TiffImageFile, rawmode: str) -> bool:
    """Whether libvips gives the bands that are in the file, or the colours of its palette."""
    tags = image.tag_v2
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2:
        return photometric in (2, 5) and TiffImagePlugin.TILEOFFSETS not in tags
    if photometric == 6:
        return image.info.get("compression") == "jpeg" and rawmode == "RGB"
    return photometric in (0, 1, 2, 3, 5) and rawmode not in ("I;12", "PA", "PX") and "RGBa;16" not in rawmode


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse a TIFF whose strips or tiles lie behind its end: libvips would return what is there."""
    tags = image.tag_v2
    offsets = tags.get(TiffImagePlugin.STRIPOFFSETS) or tags.get(TiffImagePlugin.TILEOFFSETS) or ()
    lengths = tags.get(TiffImagePlugin.STRIPBYTECOUNTS) or tags.get(TiffImagePlugin.TILEBYTECOUNTS) or ()
    assert image.fp is not None
    size = image.fp.seek(0, os.SEEK_END)
    if not offsets or len(offsets) != len(lengths) or any(a + b > size for a, b in zip(offsets, lengths, strict=True)):
        raise ValueError("truncated, for strips or tiles are missing; expected a whole file")


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_unchanged(file: IO[bytes], stamp: tuple[int, int, int]) -> None:
    # Not every decoder notices that its file has changed.
    if _stamp(os.fstat(file.fileno())) != stamp:
        raise ValueError("changed while it was read; expected one picture")


def _source(file: IO[bytes], kind: str) -> Any:
    # libvips maps a JPEG into memory, which kills the process if another one truncates the file meanwhile.
    if _LOADERS[kind] == "jpegload":
        return _pyvips().Source.new_from_memory(file.read())
    return _pyvips().Source.new_from_descriptor(file.fileno())


def _load(source: Any, header: _Header) -> Any:
    load, upright = getattr(_pyvips().Image, f"{_LOADERS[header.format]}_source"), header.orientation == 1
    image = load(source, access="sequential" if upright else "random", fail_on="truncated")
    if upright:
        return image
    image = image.copy()
    # libvips itself reads EXIF alone, not XMP.
    image.set_type(_pyvips().GValue.gint_type, "orientation", header.orientation)
    return image.autorot()


def _fetch(region: Any, image: Any, top: int, rows: int, header: _Header) -> npt.NDArray[Any]:
    """Rows of the bands that count, h,W,C, as they are in the file, but for colours that were multiplied by alpha."""
    dtype = {"uchar": np.uint8, "ushort": np.uint16, "short": np.int16, "uint": np.uint32, "int": np.int32,
             "float": np.float32}.get(image.format)  # fmt: skip
    if dtype is None:
        raise ValueError(f"{image.bands} bands of {image.format}; expected 8 or 16 bits")
    values = np.frombuffer(region.fetch(0, top, image.width, rows), dtype).reshape(rows, image.width, image.bands)
    if header.samples.inverted and header.samples.wide:  # which libvips has inverted
        values = header.samples.full - values
    return values[:, :, : header.bands]


def _to_rgb(values: npt.NDArray[Any], samples: Samples, tops: tuple[int, ...], rule: ImageRule) -> Pixels:
    if samples.wide:
        return wide_to_rgb(values, samples, tops, rule)
    if samples.mode == "F":
        return to_rgb(Image.fromarray(values[:, :, 0]), samples, rule)
    mode = samples.mode if samples.mode == "CMYK" else ("L", "LA", "RGB", "RGBA")[values.shape[2] - 1]
    return to_rgb(Image.frombytes(mode, values.shape[1::-1], values.tobytes()), samples, rule)
