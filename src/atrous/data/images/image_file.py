"""Open image files safely: allowed formats, limits on size, detection of truncated files.

Every file that the package decodes is opened here, by Pillow, with its header checked before a pixel is decoded.

    size = decode_file(Path("street.jpg"), max_pixels=10**8, decode=lambda image: image.size)
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image, ImageFile, ImagePalette, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

T = TypeVar("T")
ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

# Left out: EPS, which runs Ghostscript; TGA, which has no signature.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are decoded."""

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dcm .dicom .gif .heic .heif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pgm .png .pnm .ppm .tif .tiff "
    ".webp".split()
)
"""Suffixes, in lower case, of what counts as an image in a folder."""

MASK_SUFFIXES = IMAGE_SUFFIXES | {".npy"}
"""Suffixes of what counts as a mask."""

SAID: set[str] = set()
"""The warnings about what was decided for a person's data, or left out of a file; each is said once a process."""

_MOST_PAGES = 10_000
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
                # Pillow's own decoder of TIFF confuses the planes of 16 bits, and of one band.
                self._set(TiffImagePlugin, "READ_LIBTIFF", True)
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


def say_once(text: str, about: str = "") -> None:
    """Warn, once a process; of the first file that it is about, where it holds for others, too."""
    if text not in SAID:
        SAID.add(text)
        warnings.warn(f"{about}: {text}" if about else text, stacklevel=3)


@contextlib.contextmanager
def errors_named(name: object) -> Iterator[None]:
    """Turn any error of a decoder, and our own ValueErrors, into a ValueError of one line that starts with `name`."""
    try:
        yield
    except FileNotFoundError:
        advice = ": download it first" if "://" in str(name) else ""
        raise FileNotFoundError(f"{name}: no such file; expected an image{advice}") from None
    # On hostile bytes, decoders raise whatever they run into: struct.error, zlib.error, SyntaxError, KeyError...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        ours = "expected" in reason
        raise ValueError(f"{name}: {reason}" + ("" if ours else "; expected a whole, sound image")) from None


def decode_file(source: ImageSource, max_pixels: int, decode: Callable[[Image.Image], T]) -> T:
    """Open a file with Pillow, check its header and return what `decode` makes of it.

    Args:
        source: a path; the content of a file; or a file object, which is read from its start.
        max_pixels: as for `read_image`, whose errors are raised.
        decode: takes the picture, whose pixels are not loaded yet.
    """
    return with_file(source, lambda file: decode(open_image(file, max_pixels)))


def with_file(source: ImageSource, use: Callable[[IO[bytes]], T]) -> T:
    """Open a file and return what `use` makes of it, with errors that name it; `source` as for `decode_file`."""
    if isinstance(source, (str, os.PathLike)):
        with errors_named(source), STRICT_PILLOW, open_file(Path(source)) as file:
            return use(file)
    if isinstance(source, (bytes, bytearray, memoryview)):
        with errors_named("bytes"), STRICT_PILLOW:
            return use(io.BytesIO(source))
    with errors_named(name_of(source, "file object")), STRICT_PILLOW:
        return use(_seekable(source))


def name_of(file: object, otherwise: str) -> str:
    """The path of a file object, for messages, if it has one."""
    name = getattr(file, "name", None)
    return str(name) if isinstance(name, (str, os.PathLike)) else otherwise


def _seekable(file: IO[bytes]) -> IO[bytes]:
    if isinstance(file, io.TextIOBase):
        raise ValueError("a file opened as text; expected one opened with mode 'rb'")
    return file if hasattr(file, "seekable") and file.seekable() else io.BytesIO(file.read())


def open_image(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Open a file from its start, and check its header and its end; the pixels are not loaded yet."""
    Image.init()
    file.seek(0)
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        heif = _open_heif(file)
        if heif is None:
            raise ValueError(describe(file)) from None
        image = heif
    check_size(*image.size, max_pixels)
    check_complete(file, image.format)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _warn_of_what_is_left_out(image, file)
        _prepare_tiff(image)
    if image.format in _ANIMATED:
        _warn_of_frames(image, file)
    if image.format == "PNG":
        _add_late_metadata(image, file)
    gray = {"L;2": 85, "L;4": 17}.get(rawmode_of(image), 1)
    if gray > 1 and isinstance(image.info.get("transparency"), int):  # which Pillow scales in the pixels alone
        image.info["transparency"] *= gray
    return image


_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands, in the first box of a file."""


def _open_heif(file: IO[bytes]) -> ImageFile.ImageFile | None:
    """A HEIC or HEIF by pillow-heif, which is an extra; None for another file."""
    file.seek(0)
    start = file.read(12)
    if start[4:8] != b"ftyp" or start[8:12] not in _HEIF:
        return None
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        raise ValueError(
            "HEIC needs pillow-heif: pip install 'atrous[heif]'; expected that, or another format, such as JPEG"
        ) from None
    _check_boxes(file, "HEIC")
    file.seek(0)
    image: ImageFile.ImageFile = HeifImageFile(file)
    return image


def _boxes(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the content and end of the boxes of a HEIF or JPEG 2000; an end of 0 is that of the file."""
    place = 0
    while len(header := (file.seek(place), file.read(16))[1]) >= 8:
        length, kind = struct.unpack(">I4s", header[:8])
        content = 8
        if length == 1 and len(header) == 16:
            (length,), content = struct.unpack(">Q", header[8:]), 16
        if length and length < content:
            raise ValueError("a box of no length; expected a whole, sound image")
        yield kind, place + content, place + length if length else 0
        if not length:
            return
        place += length


def _check_boxes(file: IO[bytes], kind: str) -> None:
    """Raise ValueError where a box, which says its length, ends behind the end of the file."""
    size = file.seek(0, os.SEEK_END)
    if max((end for _, _, end in _boxes(file)), default=0) > size:
        raise ValueError(f"a truncated {kind}; expected a whole file")


def _add_late_metadata(image: Image.Image, file: IO[bytes]) -> None:
    """Give a PNG its EXIF or XMP from behind the pixels, where Pillow sees it only after it has decoded them."""
    with _kept_position(file):
        for name, length in _png_chunks(file):
            if name == b"eXIf" and "exif" not in image.info:
                image.info["exif"] = b"Exif\0\0" + file.read(min(length, _TEXT_BYTES))
            elif name == b"iTXt" and "xmp" not in image.info and file.read(18) == b"XML:com.adobe.xmp\0":
                image.info["xmp"] = file.read(min(length, _TEXT_BYTES))


@contextlib.contextmanager
def _kept_position(file: IO[bytes]) -> Iterator[None]:
    position = file.tell()
    try:
        yield
    finally:
        file.seek(position)


def rawmode_of(image: Image.Image) -> str:
    """Pillow's name of how the samples lie in the file; empty once the pixels are loaded."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    return str(args[0] if isinstance(args, tuple) and args else args)


def with_rawmode(image: Image.Image, rawmode: str) -> Image.Image:
    """The picture, to be unpacked otherwise; its pixels are not loaded yet."""
    tile = image.tile[0]  # type: ignore[attr-defined]
    args = (rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode
    image.tile = [tile._replace(args=args)]  # type: ignore[attr-defined]
    return image


def _warn_of_what_is_left_out(image: TiffImagePlugin.TiffImageFile, file: IO[bytes]) -> None:
    """Say, once a file, that further pages or bands of a TIFF are not read."""
    pages, bands = _pages_of(file), int(image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    read = len(image.getbands())
    parts = [f"page 1 of {pages} is read"] if pages > 1 else []
    if read < bands:
        parts.append(f"band 1 of {bands} is read" if read == 1 else f"bands 1 to {read} of {bands} are read")
    if parts:
        say_once(f"{name_of(file, 'image')}: {', and '.join(parts)}; the others are left out")


_ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")


def _warn_of_frames(image: Image.Image, file: IO[bytes]) -> None:
    """Say, once a file, that further frames of an animation are not read."""
    frames = 1
    with contextlib.suppress(Exception):  # behind the first, which is read, it may be damaged
        frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        say_once(f"{name_of(file, 'image')}: frame 1 of {frames} is read; the others are left out")


def tiff_pages(file: IO[bytes]) -> Iterator[TiffImagePlugin.ImageFileDirectory_v2]:
    """The directories of a TIFF, one a page; what is raised on a damaged one is of any type."""
    file.seek(0)
    start = file.read(16)
    start = start if b"+" in start[2:4] else start[:8]  # of a BigTIFF, or of another
    place, seen = TiffImagePlugin.ImageFileDirectory_v2(start).next, {0}
    while place not in seen and len(seen) <= _MOST_PAGES:
        seen.add(place)
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(place)
        tags.load(file)
        place = tags.next
        yield tags


def _pages_of(file: IO[bytes]) -> int:
    """The number of pages, without smaller copies of a page and without masks of transparency."""
    pages = 1
    with _kept_position(file), contextlib.suppress(Exception):  # behind the first, which is read, it may be damaged
        for tags in itertools.islice(tiff_pages(file), 1, None):
            pages += TiffImagePlugin.IMAGEWIDTH in tags and not tags.get(_NEW_SUBFILE_TYPE, 0) & 5
    return pages


def _prepare_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Mend what Pillow gets wrong in TIFFs; raise ValueError for what it would read wrong."""
    rawmode, tags = rawmode_of(image), image.tag_v2
    if rawmode == "L" and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 2:
        raise ValueError(f"{_tiff_kind(tags)}; expected {_TIFF_KINDS}")
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    if planes and (
        image.mode in ("LA", "La")
        or "RGBa" in rawmode
        or (
            tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 6 and tags.get(TiffImagePlugin.SAMPLESPERPIXEL) != 3
        )
    ):
        raise ValueError(f"{_tiff_kind(tags)}; expected {_TIFF_KINDS}, with all bands of a pixel side by side")
    # libtiff gives samples in the order of the machine.
    native = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS", "I;16S": "I;16NS", "I;32S": "I;32NS"}
    if rawmode in native:
        with_rawmode(image, native[rawmode])
    colours = tags.get(TiffImagePlugin.COLORMAP)
    if image.mode in ("P", "PA") and colours and max(colours) < 256:  # of bytes, where the standard has 16 bits
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


_NEW_SUBFILE_TYPE = 254  # bit 0: a smaller copy of another page, bit 2: a mask
_TIFF_KINDS = "gray, RGB, palette or CMYK of 8 or 16 bits, or gray of floats"
_PHOTOMETRIC = {0: "white is zero", 1: "black is zero", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
_SAMPLE_FORMATS = {1: "", 2: "signed ", 3: "float ", 5: "complex ", 6: "complex "}


def _tiff_kind(tags: Any) -> str:
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
    kind = _SAMPLE_FORMATS.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "")
    bands = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    meaning = _PHOTOMETRIC.get(photometric, f"photometric interpretation {photometric}")
    planes = ", in planes" if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 else ""
    return f"a TIFF of {bands} band{'s' * (bands != 1)} of {kind}{bits[0]} bits ({meaning}{planes})"


# First bytes of files that people take for images, with what to do.
_OTHERS = {
    b"%!PS": "EPS", b"\xc5\xd0\xd3\xc6": "EPS", b"%PDF": "PDF", b"8BPS": "Photoshop",
    b"\0\0\1\0": "an icon", b"PK": "a zip archive",
    b"<svg": "SVG", b"<?xml": "XML", b"<!DOC": "a web page", b"<html": "a web page", b"\x89HDF": "HDF5",
    b"version https://git-lfs": "a pointer of Git LFS, whose file was not downloaded", b"\xff\x0a": "JPEG XL",
}  # fmt: skip
_SIGNATURES = {
    b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WEBP", b"II": "TIFF", b"MM": "TIFF",
}  # fmt: skip


def describe(file: IO[bytes]) -> str:
    """Why a file that Pillow does not open is refused: what it seems to be, and what was expected."""
    file.seek(0)
    start = file.read(64)
    other = next((name for prefix, name in _OTHERS.items() if start.lstrip().startswith(prefix)), None)
    if other or not start:
        return f"not an image, but {other or 'empty'}; expected {', '.join(FORMATS)}"
    kind = next((kind for prefix, kind in _SIGNATURES.items() if start.startswith(prefix)), None)
    if kind is None:
        return f"not an image of a known format; expected {', '.join(FORMATS)}"
    if kind == "JPEG" and (bits := _jpeg_bits(file)) not in (0, 8):
        return f"a JPEG of {bits} bits, which is not read; expected 8 bits, or PNG or TIFF of 16: convert it"
    if kind == "TIFF":
        with contextlib.suppress(Exception):  # what is left of a damaged one
            tags = next(tiff_pages(file))
            if TiffImagePlugin.IMAGEWIDTH in tags:
                return f"{_tiff_kind(tags)}; expected {_TIFF_KINDS}"
    return f"not an image, but the start of a damaged {kind}; expected a whole, sound image"


def _jpeg_bits(file: IO[bytes]) -> int:
    """Bits of a sample by the header of the frame; 0 if there is none."""
    place = 2
    while len(marker := (file.seek(place), file.read(5))[1]) == 5 and marker[0] == 0xFF:
        if marker[1] in (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB):
            return marker[4]
        place += 2 + int.from_bytes(marker[2:4], "big")
    return 0


def significant_bits(image: Image.Image) -> int:
    """The significant bits that a PNG states (its sBIT chunk), the most of all bands; 0 if it does not."""
    file = getattr(image, "fp", None)
    if file is None or image.format != "PNG":
        return 0
    with _kept_position(file):
        return max(next((file.read(length) for name, length in _png_chunks(file) if name == b"sBIT"), b""), default=0)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ValueError for more than `max_pixels`."""
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels; expected at most {max_pixels} in all")


def open_file(path: Path) -> IO[bytes]:
    """Open a file to read, without ever waiting.

    Raises:
        ValueError: for a folder, a pipe or a device.
        OSError: as ``open``.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe without a writer would block for ever.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a file; expected an image file")
    return descriptor


def check_complete(file: IO[bytes], kind: str | None) -> None:
    """Raise ValueError for a PNG, GIF or JPEG 2000 without its end mark; the position in the file is kept.

    Pillow accepts a PNG that lacks its last bytes, a GIF whose later frames are cut, and a JPEG 2000 cut anywhere.

    Args:
        file: whose header is that of `kind`.
        kind: Pillow's name of the format; other formats are not checked.
    """
    has_end = {"PNG": _png_has_end, "GIF": _gif_has_end, "JPEG2000": _codestream_has_end}.get(kind or "")
    with _kept_position(file):
        if has_end is not None and not has_end(file):
            raise ValueError("truncated, for its end mark is missing; expected a whole file")


def _png_has_end(file: IO[bytes]) -> bool:
    return any(name == b"IEND" and file.read(4) == b"\xaeB`\x82" for name, _ in _png_chunks(file))


def _png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Names and lengths of the chunks (length, name, data, checksum), the file being at their data, to IEND."""
    place = 8
    while len(header := (file.seek(place), file.read(8))[1]) == 8:
        length, name = struct.unpack(">I4s", header)
        yield name, length
        if name == b"IEND":
            return
        place += length + 12


def _codestream_has_end(file: IO[bytes]) -> bool:
    """Walk the tile parts of a JPEG 2000, whose decoder accepts truncated files, to the end mark."""
    file.seek(0)
    place = 0
    if file.read(4) != b"\xff\x4f\xff\x51":
        place = next((start for kind, start, _ in _boxes(file) if kind == b"jp2c"), -1)
        if place < 0:
            return False
    place += 2
    while len(marker := (file.seek(place), file.read(12))[1]) >= 2 and marker[:1] == b"\xff":
        if marker[:2] == b"\xff\xd9":
            return True
        if len(marker) < 12:
            return False
        (segment,), (part,) = struct.unpack(">H", marker[2:4]), struct.unpack(">I", marker[6:10])
        if marker[:2] == b"\xff\x90" and part == 0:  # the last tile part, to the end mark
            return (file.seek(-2, os.SEEK_END), file.read(2))[1] == b"\xff\xd9"
        place += part if marker[:2] == b"\xff\x90" else 2 + segment
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
