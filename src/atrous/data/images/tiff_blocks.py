"""Read TIFFs that Pillow does not open: any number of bands, integers and floats of 8 to 64 bits, in planes or not.

Strips and tiles are decoded one by one, so that a picture can be read by rows; whole pictures are read so, too.

    tiff = parse(file)
    values = tiff.rows(file, 0, tiff.height, bands=(4, 3, 2))   # H,W,3, as they are stored
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from atrous.data.images.image_file import tiff_pages

_EXTRA_SAMPLES = 338
_SAMPLE_FORMAT, _FILL_ORDER, _PREDICTOR, _MAX_SAMPLE_VALUE = 339, 266, 317, 281
_RAW, _DEFLATE = (1,), (8, 32946)
_BY_LIBTIFF = (5, 32773, 34925, 50000)
"""LZW, PackBits, LZMA, Zstandard."""
_MOST_BYTES, _MOST_BANDS = 1 << 30, 1024
_PACKED = (10, 12, 14)


@dataclass(frozen=True)
class Tiff:
    """Where the samples of a TIFF's first page are, and what they mean.

    Attributes:
        height: as it is stored.
        width: likewise.
        bands: number of samples of a pixel.
        bits: of a sample.
        dtype: of a sample in the file, with its byte order; of packed samples, of what they become.
        planes: whether each band has blocks of its own.
        block: rows and columns of a strip or tile.
        tiled: whether the blocks are tiles, whole at the edges, too.
        offsets: of the blocks in the file.
        lengths: of the blocks in bytes.
        compression: the tag's value.
        predictor: likewise.
        inverted: whether 0 is white.
        coloured: whether the first three bands are red, green and blue, and not of any meaning.
        alpha: whether the band after the colours is one of transparency.
        orientation: 1 to 8.
        declared: the largest value that the file says it has, or 0.
    """

    height: int
    width: int
    bands: int
    bits: int
    dtype: np.dtype[Any]
    planes: bool
    block: tuple[int, int]
    tiled: bool
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    compression: int
    predictor: int
    inverted: bool
    coloured: bool
    alpha: bool
    orientation: int
    declared: int

    def rows(self, file: IO[bytes], start: int, stop: int, bands: Sequence[int]) -> npt.NDArray[Any]:
        """Rows `start` to `stop` of some bands, counted from 1: h,W,C in the machine's byte order.

        Raises:
            ValueError: if a block is truncated or broken.
        """
        rows = self.block[0]
        result = np.empty((stop - start, self.width, len(bands)), dtype=self.dtype.newbyteorder("="))
        for line in range(start // rows, -(-stop // rows)):
            top = line * rows
            first, last = max(start, top), min(stop, top + rows)
            for place, values in self._line(file, line, (first - top, last - top), bands):
                across = slice(place, min(place + values.shape[1], self.width))
                result[first - start : last - start, across] = values[:, : across.stop - place]
        return result

    def _line(
        self, file: IO[bytes], line: int, rows: tuple[int, int], bands: Sequence[int]
    ) -> list[tuple[int, npt.NDArray[Any]]]:
        """The blocks side by side, cut to some of their rows, with their first columns."""
        across = -(-self.width // self.block[1])
        down = -(-self.height // self.block[0])
        parts = []
        for column in range(across):
            index = line * across + column
            if self.planes:
                planes = [self._block(file, (band - 1) * across * down + index, line, rows) for band in bands]
                values = np.concatenate(planes, axis=2)
            else:
                values = self._block(file, index, line, rows)[:, :, [band - 1 for band in bands]]
            parts.append((column * self.block[1], values))
        return parts

    def _block(self, file: IO[bytes], index: int, line: int, rows: tuple[int, int]) -> npt.NDArray[Any]:
        """Some rows of a strip or tile, h,w,C."""
        high = self.block[0] if self.tiled else min(self.block[0], self.height - line * self.block[0])
        count = self.block[1] * (1 if self.planes else self.bands)
        size = -(-count * self.bits // 8)
        start, stop = rows
        if self.compression in _RAW:  # the rows alone
            file.seek(self.offsets[index] + start * size)
            data = file.read(min((stop - start) * size, max(0, self.lengths[index] - start * size)))
            high, start, stop = stop - start, 0, stop - start
        else:
            file.seek(self.offsets[index])
            data = self._unpacked(file.read(self.lengths[index]), high, size)
        if len(data) < high * size:
            raise ValueError("truncated, for a strip or tile is short; expected a whole file")
        lines = np.frombuffer(data, np.uint8, high * size).reshape(high, size)
        return self._samples(lines[start:stop], count)

    def _unpacked(self, data: bytes, high: int, size: int) -> bytes:
        if self.compression in _DEFLATE:
            return zlib.decompressobj().decompress(data, high * size)
        with Image.open(io.BytesIO(_gray(data, high, size, self.compression)), formats=["TIFF"]) as image:
            return image.tobytes()

    def _samples(self, lines: npt.NDArray[np.uint8], count: int) -> npt.NDArray[Any]:
        """Rows of bytes as samples h,w,C, their predictor undone."""
        bands = 1 if self.planes else self.bands
        native = self.dtype.newbyteorder("=")
        if self.bits in _PACKED:
            bits = np.unpackbits(lines, axis=1)[:, : count * self.bits].reshape(len(lines), count, self.bits)
            weights = 1 << np.arange(self.bits - 1, -1, -1)
            return (bits @ weights).astype(native).reshape(len(lines), -1, bands)
        if self.predictor == 3:
            bytes_ = np.cumsum(lines.reshape(len(lines), -1, bands), axis=1, dtype=np.uint8)
            planes = bytes_.reshape(len(lines), self.dtype.itemsize, count).transpose(0, 2, 1)
            values = np.ascontiguousarray(planes).view(self.dtype.newbyteorder(">"))[:, :, 0]
            return values.astype(native).reshape(len(lines), -1, bands)
        values = np.ascontiguousarray(lines).view(self.dtype).astype(native).reshape(len(lines), -1, bands)
        if self.predictor == 2:
            whole = np.dtype(f"u{self.dtype.itemsize}")
            values = np.cumsum(values.view(whole), axis=1, dtype=whole).view(native)
        return values


def parse(file: IO[bytes]) -> Tiff | None:
    """The first page of a TIFF, from its header alone, see `check`; None for what is no TIFF of this kind."""
    file.seek(0)
    start = file.read(4)
    if start not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        return _of_tags(next(tiff_pages(file)), ">" if start[:2] == b"MM" else "<")
    # What a damaged directory holds is of any type.
    except (
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        SyntaxError,
        OverflowError,
        struct.error,
        OSError,
        StopIteration,
    ):
        return None


def _of_tags(tags: Any, order: str) -> Tiff | None:
    bits, formats = tags.get(258, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(formats[0])
    compression, predictor = tags.get(259, 1), tags.get(_PREDICTOR, 1)
    photometric, bands = tags.get(262, 1), tags.get(277, 1)
    packed = bits[0] in _PACKED and kind == "u" and predictor == 1
    whole = kind is not None and bits[0] in ((16, 32, 64) if kind == "f" else (8, 16, 32, 64))
    if (
        len({*bits}) > 1
        or len({*formats}) > 1
        or not (packed or whole)
        or photometric not in (0, 1, 2)
        or compression not in (*_RAW, *_DEFLATE, *_BY_LIBTIFF)
        or predictor not in ((1, 2, 3) if kind == "f" else (1, 2))
        or tags.get(_FILL_ORDER, 1) != 1
    ):
        return None
    height, width = int(tags[257]), int(tags[256])
    tiled = 324 in tags
    block = (int(tags[323]), int(tags[322])) if tiled else (min(int(tags.get(278, height)), height), width)
    offsets, lengths = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    most = tags.get(_MAX_SAMPLE_VALUE, 0)
    alpha = tuple(tags.get(_EXTRA_SAMPLES, (0,)))[:1] in ((1,), (2,))
    if min(height, width, bands, *block) < 1 or bands > _MOST_BANDS:
        return None
    return Tiff(
        height, width, int(bands), int(bits[0]), np.dtype(f"{order}{kind}{2 if packed else bits[0] // 8}"),
        tags.get(284, 1) == 2 and bands > 1, block, tiled, tuple(offsets), tuple(lengths), int(compression),
        int(predictor), photometric == 0, photometric == 2, alpha, int(tags.get(274, 1)),
        int(max(most) if isinstance(most, tuple) else most),
    )  # fmt: skip


def check(tiff: Tiff, file: IO[bytes]) -> None:
    """Raise ValueError where blocks are missing, lie behind the end of the file, or would fill the memory."""
    size = file.seek(0, io.SEEK_END)
    count = -(-tiff.height // tiff.block[0]) * -(-tiff.width // tiff.block[1]) * (tiff.bands if tiff.planes else 1)
    ends = [offset + length for offset, length in zip(tiff.offsets, tiff.lengths, strict=False)]
    if len(ends) < count or max(ends) > size:
        raise ValueError("truncated, for strips or tiles are missing; expected a whole file")
    large = tiff.block[0] * tiff.block[1] * tiff.bands * max(tiff.bits // 8, 1)
    if tiff.compression not in _RAW and large > _MOST_BYTES:
        raise ValueError(f"a strip or tile of {large} bytes; expected at most {_MOST_BYTES}: write it in tiles")


def _gray(data: bytes, height: int, width: int, compression: int) -> bytes:
    """A TIFF of 8-bit gray around a compressed block, for libtiff to decode its bytes."""
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4
