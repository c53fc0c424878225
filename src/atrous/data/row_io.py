"""Read images larger than memory by rows, and write masks by rows.

The pixels are those of `atrous.data.image_io.read_image`, in every mode and orientation. The decoder is libvips
(``pip install 'atrous[large]'``).

    picture = open_strips("city.tif", max_pixels=10**9)
    write_mask_strips("city.png", (classify(strip) for strip in picture.strips(64)), picture.size, labels)
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, TiffImagePlugin

from atrous.atomic import written_whole
from atrous.data.image_file import decode_file, errors_named, open_file
from atrous.data.image_io import MAX_PIXELS, NOTE, Pixels, exif_transpose, mask_palette, to_rgb, upright_size
from atrous.data.labels import Labels

_LOADERS = {"JPEG": "jpegload", "MPO": "jpegload", "PNG": "pngload", "TIFF": "tiffload"}
_INTERPRETATIONS = ("b-w", "cmyk", "grey16", "multiband", "rgb", "rgb16", "srgb")


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


def open_strips(path: Path, *, max_pixels: int = MAX_PIXELS) -> Strips:
    """Open a file as strips that are decoded on demand.

    Memory holds a few rows of a PNG or TIFF, and the compressed bytes of a JPEG. A picture that its EXIF orientation
    rotates is first decoded into a temporary file by libvips; a progressive JPEG or an interlaced PNG, which stores
    parts of every row at its end, is decoded into memory.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `read_image`; also for a format that is not read by rows, and if libvips is not installed. Damage
            behind the header is raised while the strips are read.
    """
    _pyvips()
    kind, transposed, size = decode_file(path, max_pixels, _header)
    if kind not in _LOADERS:
        raise ValueError(f"{path}: {kind} is not read by rows; expected {', '.join(_LOADERS)} for a picture so large")
    stamp = _stamp(os.stat(path))

    def strips(rows: int) -> Iterator[Pixels]:
        with errors_named(path), open_file(path) as file:
            _check_unchanged(file, stamp)
            source = _source(file, kind)
            region = image = _load(source, kind, transposed)
            try:
                region = _pyvips().Region.new(image)
                for top in range(0, size[0], rows):
                    yield _fetch(region, image, top, min(rows, size[0] - top))
            finally:
                del region, image  # before the source that they read from
                _clear_cache()
            _check_unchanged(file, stamp)

    return Strips(size, strips)


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


def _header(image: Image.Image) -> tuple[str, bool, tuple[int, int]]:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image)
    return str(image.format), exif_transpose(image) is not None, upright_size(image)


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


def _load(source: Any, kind: str, transposed: bool) -> Any:
    load = getattr(_pyvips().Image, f"{_LOADERS[kind]}_source")
    image = load(source, access="random" if transposed else "sequential", fail_on="truncated")
    if image.interpretation not in _INTERPRETATIONS:
        raise ValueError(f"colours of the kind {image.interpretation}; expected RGB, gray or CMYK")
    return image.autorot() if transposed else image


def _fetch(region: Any, image: Any, top: int, rows: int) -> Pixels:
    dtype = {"uchar": np.uint8, "ushort": np.uint16, "short": np.int16, "uint": np.uint32, "int": np.int32,
             "float": np.float32}.get(image.format)  # fmt: skip
    if dtype is None or image.bands > 4:
        raise ValueError(f"{image.bands} channels of {image.format}; expected 1 to 4 of 8 or 16 bits")
    raw = np.frombuffer(region.fetch(0, top, image.width, rows), dtype)
    values = raw.reshape(rows, image.width, image.bands)
    if image.bands == 1:
        return to_rgb(Image.fromarray(values[:, :, 0]))
    if values.dtype == np.uint16:  # as Pillow decodes several channels of 16 bits
        values = (values >> 8).astype(np.uint8)
    mode = "CMYK" if image.interpretation == "cmyk" else ("LA", "RGB", "RGBA")[image.bands - 2]
    return to_rgb(Image.frombytes(mode, (image.width, rows), np.ascontiguousarray(values).tobytes()))


def write_mask_strips(
    path: Path, strips: Iterable[Pixels], size: tuple[int, int], labels: Labels, note: str = ""
) -> None:
    """Write ids, uint8 h,W strips from top to bottom, as the PNG that `write_mask` writes, in the memory of a strip.

    The write is atomic: an error from `strips` leaves no file.

    Raises:
        ValueError: if the strips do not add up to `size`, H,W.
    """
    height, width = size
    compressor, done = zlib.compressobj(6), 0
    with written_whole(path) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        _chunk(file, b"PLTE", mask_palette(labels))
        if note:
            _chunk(file, b"tEXt", NOTE.encode() + b"\0" + note.encode("latin-1"))
        for strip in strips:
            if strip.dtype != np.uint8 or strip.ndim != 2 or strip.shape[1] != width:
                raise ValueError(f"{path}: a strip of {strip.dtype}, {strip.shape}; expected uint8, {width} wide")
            for row in strip:
                data = compressor.compress(b"\0" + row.tobytes())  # 0: the row is not filtered
                if data:
                    _chunk(file, b"IDAT", data)
            done += len(strip)
        if done != height:
            raise ValueError(f"{path}: strips of {done} rows in all; expected {height}")
        _chunk(file, b"IDAT", compressor.flush())
        _chunk(file, b"IEND", b"")


def _chunk(file: IO[bytes], name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))
