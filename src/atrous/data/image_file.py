"""Open image files safely: allowed formats, limits on size, detection of truncated files.

Every file that the package decodes is opened here, by Pillow, with its header checked before a pixel is decoded.

    size = decode_file(Path("street.jpg"), max_pixels=10**8, decode=lambda image: image.size)
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

T = TypeVar("T")

# Left out: EPS, which runs Ghostscript; TGA, which has no signature; JPEG 2000, whose decoder accepts truncated files.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are decoded."""

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .jfif .jpe .jpeg .jpg .mpo .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
"""Suffixes, in lower case, of what counts as an image in a folder; a HEIC is listed so that it is refused by name."""

_TEXT_BYTES = 4 << 20  # limit on a PNG's text once unpacked: a decompression bomb can hide there, too


class _StrictPillow:
    """While any thread is inside, Pillow applies our limits, refuses truncated files and does not warn.

    Pillow keeps those settings in globals that any package may have changed: the first thread in sets them, the last
    one out restores them, and decoding itself runs in parallel.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._undo.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._set(Image, "MAX_IMAGE_PIXELS", None)
                self._set(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
                self._set(PngImagePlugin, "MAX_TEXT_MEMORY", _TEXT_BYTES)
            self._inside += 1

    def _set(self, module: object, name: str, value: object) -> None:
        self._undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo.close()


STRICT_PILLOW = _StrictPillow()


@contextlib.contextmanager
def errors_named(name: object) -> Iterator[None]:
    """Turn any error of a decoder, and our own ValueErrors, into a ValueError of one line that starts with `name`."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file; expected an image") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image of a known format; expected {', '.join(FORMATS)}") from None
    # On hostile bytes, decoders raise whatever they run into: struct.error, zlib.error, SyntaxError, KeyError...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        ours = "expected" in reason
        raise ValueError(f"{name}: {reason}" + ("" if ours else "; expected a whole, sound image")) from None


def decode_file(path: Path, max_pixels: int, decode: Callable[[Image.Image], T]) -> T:
    """Open a file with Pillow, check its header and return what `decode` makes of it; errors as `read_image`."""
    with errors_named(path), STRICT_PILLOW, open_file(path) as file:
        return decode(_opened(file, max_pixels))


def _opened(file: IO[bytes], max_pixels: int) -> Image.Image:
    Image.init()
    if b"ftyphe" in file.read(12):
        raise ValueError("HEIC is not supported; expected JPEG, PNG or another format that Pillow reads")
    file.seek(0)
    image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    check_size(image, max_pixels)
    check_complete(file, image.format)
    return image


def check_size(image: Image.Image, max_pixels: int) -> None:
    """Raise ValueError if a picture, of which the header may be all that was read, has more than `max_pixels`."""
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels; expected at most {max_pixels} in all")


def open_file(path: Path) -> IO[bytes]:
    """Open a file to read, without ever waiting.

    Raises:
        ValueError: for a folder, a pipe or a device.
        OSError: as ``open``.
    """
    # Without O_NONBLOCK, opening a pipe without a writer would block for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a file; expected an image file")
    return os.fdopen(descriptor, "rb")


def check_complete(file: IO[bytes], kind: str | None) -> None:
    """Raise ValueError for a PNG or GIF without its end mark; the position in the file is kept.

    Pillow accepts a PNG that lacks its last bytes and a GIF whose later frames are cut.

    Args:
        file: whose header is that of `kind`.
        kind: Pillow's name of the format; other formats are not checked.
    """
    has_end = {"PNG": _png_has_end, "GIF": _gif_has_end}.get(kind or "")
    if has_end is None:
        return
    position = file.tell()
    complete = has_end(file)
    file.seek(position)
    if not complete:
        raise ValueError("truncated, for its end mark is missing; expected a whole file")


def _png_has_end(file: IO[bytes]) -> bool:
    """Walk the chunks (length, name, data, checksum) to IEND."""
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", header)
        if name == b"IEND":
            return file.read(4) == b"\xaeB`\x82"
        file.seek(length + 4, os.SEEK_CUR)
    return False


def _gif_has_end(file: IO[bytes]) -> bool:
    """Walk the extensions and frames to the trailer."""
    file.seek(10)
    _skip_colour_table(file, file.read(1))
    file.seek(2, os.SEEK_CUR)
    while (block := file.read(1)) in (b"!", b","):
        if block == b",":
            _skip_colour_table(file, file.read(9)[8:])
        file.seek(1, os.SEEK_CUR)  # an extension's label, a frame's code size
        while length := file.read(1).strip(b"\0"):
            file.seek(length[0], os.SEEK_CUR)
    return block == b";"


def _skip_colour_table(file: IO[bytes], flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)
