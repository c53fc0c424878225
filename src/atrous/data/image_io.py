"""From a file or an array to pixels and back: decoding, limits, the one normalisation, overlays.

Training, evaluation, prediction and export all come through `read_image` and `Normalization` (that of the
ImageNet weights that section 4 of the paper starts from). An image is uint8 H,W,3 as an array and uint8 3,H,W as a
tensor, turned the way a person sees it. A mask is uint8 H,W of class ids as stored.

    pixels = read_image("street.jpg")
    images = IMAGENET(to_tensor(pixels))[None]
    overlay(pixels, mask, VOC).save("out.png")
"""

import contextlib
import functools
import os
import stat
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from atrous.atomic import written_whole
from atrous.data.labels import IGNORE_COLOUR, Colour, Labels, ids_of_colours, voc_palette

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
Colours = tuple[float, float, float]
Source = str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor

MAX_PIXELS = 178_956_970
"""Width times height above which a file is refused unread: the size at which Pillow itself calls it a bomb."""

NOTE = "atrous"
"""Key of the text in a mask's PNG that holds its note."""

# Left out: EPS, which runs Ghostscript; TGA, which has no signature; JPEG 2000, whose decoder passes truncated files.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_TEXT_BYTES = 4 << 20  # of a PNG, unpacked: a bomb can hide there, too
_LOSSY = ("AVIF", "JPEG", "MPO", "WEBP")
_TURNS: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Normalization:
    """The only normalisation: (image / 255 - mean) / std, channel by channel.

    Attributes:
        mean: of red, green, blue, in units of 0..1.
        std: likewise.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Tensor) -> Tensor:
        """Turn uint8 ...,3,H,W into float32 of the same shape, on the same device; ValueError for anything else."""
        if image.dtype != torch.uint8 or image.ndim < 3 or image.shape[-3] != 3:
            raise ValueError(f"normalising {image.dtype} of shape {tuple(image.shape)}; expected uint8 ...,3,H,W")
        scale, shift = _scale_and_shift(self.mean, self.std, image.device)
        return image.float().div_(scale).sub_(shift)

    @property
    def fill(self) -> Colour:
        """The mean pixel in 0..255: padding that normalises to about zero."""
        red, green, blue = (round(255 * part) for part in self.mean)
        return red, green, blue


@functools.cache
def _scale_and_shift(mean: Colours, std: Colours, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept: a tensor made from a list on a GPU waits for the GPU.
    with torch.inference_mode(False):
        scale = torch.tensor([255 * part for part in std], device=device).view(3, 1, 1)
        return scale, torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device).view(3, 1, 1)


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class _StrictPillow:
    """While any thread is inside, Pillow goes by our limits, refuses truncated files and does not warn.

    Pillow keeps those settings in globals that any package may have changed: the first thread in sets them, the last
    one out puts them back, and decoding itself runs in parallel.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._undo.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                self._undo.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
                self._undo.callback(setattr, PngImagePlugin, "MAX_TEXT_MEMORY", PngImagePlugin.MAX_TEXT_MEMORY)
                self._undo.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
                Image.MAX_IMAGE_PIXELS = None
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                PngImagePlugin.MAX_TEXT_MEMORY = _TEXT_BYTES
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo.close()


_STRICT = _StrictPillow()


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode anything that is a picture into uint8 H,W,3, RGB, upright by its EXIF orientation.

    Transparency is laid over white, as a page shows it; 16 bits are scaled to 8, not clipped; of several frames the
    first counts; CMYK, gray, palette and 1-bit pictures become RGB.

    Args:
        source: a path; a PIL image; an array H,W or H,W,1 or H,W,3 or H,W,4, uint8 or float in 0..1; a tensor 3,H,W or
            1,H,W of those types. The result may share the memory of a uint8 H,W,3 array.
        max_pixels: width times height above which a file is refused from its header, before decoding.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no image, truncated, larger than max_pixels, or of values out of range.
    """
    if isinstance(source, (str, os.PathLike)):
        return from_file(Path(source), max_pixels, _pixels)
    if isinstance(source, Image.Image):
        with _STRICT, blame("image"):
            _check_size(source, max_pixels)
            return _pixels(source)
    if isinstance(source, Tensor):
        if source.ndim != 3 or source.shape[0] not in (1, 3):
            raise ValueError(f"tensor of shape {tuple(source.shape)}; expected 3,H,W")
        return _from_array(source.detach().cpu().permute(1, 2, 0).numpy())
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise ValueError(f"image of type {type(source).__name__}; expected a path, a PIL image, an array or a tensor")


def read_size(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture as `read_image` would give it, from its header alone; errors as there."""
    return from_file(Path(path), max_pixels, upright_size)


def to_tensor(array: Pixels) -> Tensor:
    """Copy an image H,W,3 into a contiguous uint8 tensor 3,H,W, or a mask H,W into H,W."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"{array.dtype} array of shape {array.shape}; expected uint8 H,W,3 or H,W")
    planes = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, order="C", copy=True))


@contextlib.contextmanager
def blame(name: object) -> Iterator[None]:
    """Make any failure of a decoder, and our own ValueErrors, one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file; expected an image") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image of a known format; expected {', '.join(_FORMATS)}") from None
    # On hostile bytes the decoders raise whatever they stumble over: struct.error, zlib.error, SyntaxError, KeyError...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        ours = "expected" in reason
        raise ValueError(f"{name}: {reason}" + ("" if ours else "; expected a whole, sound image")) from None


def from_file(path: Path, max_pixels: int, decode: Callable[[Image.Image], T]) -> T:
    """What `decode` makes of a file that Pillow has opened, its header checked; errors as those of `read_image`."""
    with blame(path), _STRICT, open_file(path) as file:
        return decode(_opened(file, max_pixels))


def _opened(file: IO[bytes], max_pixels: int) -> Image.Image:
    Image.init()
    if b"ftyphe" in file.read(12):
        raise ValueError("HEIC is not read, for Pillow does not; expected JPEG, PNG or another of its formats")
    file.seek(0)
    image = Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])
    _check_size(image, max_pixels)
    check_whole(file, image.format)
    return image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels; expected at most {max_pixels} in all")


def _pixels(image: Image.Image) -> Pixels:
    image.load()
    return as_seen(_upright(image))


def as_seen(upright: Image.Image) -> Pixels:
    """RGB, uint8 H,W,3, of a picture of any mode that stands upright: see `read_image`."""
    if upright.mode == "F" or upright.mode.startswith("I"):
        return _from_array(_scaled_to_unit(np.asarray(upright)))
    if upright.has_transparency_data:
        straight = upright.convert("LA") if upright.mode == "La" else upright
        page = Image.new("RGBA", upright.size, "white")
        page.alpha_composite(straight.convert("RGBA"))
        upright = page
    return np.array(upright.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width once turned by EXIF, of a picture whose pixels may not have been decoded."""
    width, height = image.size
    straight = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
    # Pillow gives a TIFF's size as it will be once turned, for it turns it while it decodes.
    return (height, width) if image.format == "TIFF" or turn_of(image) in straight else (width, height)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What brings a picture upright by its EXIF orientation; None if it stands."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # A broken EXIF block says nothing about the pixels: every viewer shows such a picture, unturned.
    except Exception:
        return None


def _scaled_to_unit(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Gray of 16 bits, or of 32 bits that hold 16, to 0..1; floats as they are."""
    if values.dtype.kind == "f":
        return values
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integers from {values.min()} to {values.max()}; expected 8 or 16 bits, 0 to 65535")
    return values.astype(np.float64) / 65535


def _from_array(array: npt.NDArray[Any]) -> Pixels:
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"array of shape {array.shape}; expected H,W or H,W,3 or H,W,4, not empty")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also refuses NaN
            raise ValueError(f"floats from {array.min():.6g} to {array.max():.6g}; expected 0 to 1")
        array = np.rint(array * 255.0).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"array of {array.dtype}; expected uint8, or float in 0 to 1")
    planes = array if array.ndim == 3 else array[:, :, None]
    if planes.shape[2] == 4:
        alpha = planes[:, :, 3:].astype(np.uint16)
        planes = ((planes[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))


def read_mask(
    path: str | os.PathLike[str],
    *,
    palette: Sequence[Colour] | None = None,
    ignore: int = 255,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Read class ids, uint8 H,W, as stored: palette or gray of 1, 2, 4 or 8 bits, or 16 bits that fit 8.

    Args:
        path: a lossless file: PNG, TIFF, BMP, GIF or PPM.
        palette: if given, an RGB picture is a colour map: entry i is class i, VOC's border colour is `ignore`.
        ignore: the id for the border colour.
        max_pixels: as for `read_image`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, for a lossy format, colours with no palette or not in it, an id above 255.
    """
    return from_file(Path(path), max_pixels, lambda image: _ids(image, palette, ignore))


def _ids(image: Image.Image, palette: Sequence[Colour] | None, ignore: int) -> Pixels:
    if image.format in _LOSSY or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        raise ValueError(f"a mask in {image.format}, whose compression may change ids; expected a lossless PNG of ids")
    raw = str(getattr(image, "tile", ""))  # says how the bits are packed, and is gone once the pixels are loaded
    image.load()
    values = np.asarray(image)
    if image.mode == "L":
        # Pillow stretches gray of 2 and 4 bits to 0..255; the ids are what was there before.
        return np.array(values // (85 if "'L;2" in raw else 17 if "'L;4" in raw else 1))
    if image.mode in ("1", "P"):
        return np.array(values, dtype=np.uint8)
    if image.mode.startswith("I"):
        return _narrowed(values)
    if image.mode in ("RGB", "RGBA") and palette is not None:
        if image.mode == "RGBA" and values[:, :, 3].min() < 255:
            raise ValueError("a colour map with transparent pixels; expected opaque colours of the palette")
        return ids_of_colours(values[:, :, :3], palette, ignore)
    raise ValueError(f"a mask of mode {image.mode}; expected one channel of class ids, or a palette to read colours by")


def _narrowed(values: npt.NDArray[Any]) -> Pixels:
    wrong = values[(values < 0) | (values > 255)]
    if wrong.size:
        raise ValueError(f"mask has id {wrong[0]} ({wrong.size} pixels out of range); expected ids in 0..255")
    return values.astype(np.uint8)


def write_mask(path: str | os.PathLike[str], mask: npt.NDArray[Any], labels: Labels, note: str = "") -> None:
    """Write ids H,W as an 8-bit palette PNG, all at once or not at all; the ignored id is drawn in VOC's border colour.

    Args:
        path: the file.
        mask: integers H,W.
        labels: the classes and their colours.
        note: kept in the file, for `read_note`.

    Raises:
        ValueError: if the mask is not H,W of integers, or has an id that is neither a class nor `labels.ignore`.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.size == 0:
        raise ValueError(f"{path}: mask of {mask.dtype}, shape {mask.shape}; expected integers H,W")
    wrong = mask[((mask < 0) | (mask >= len(labels))) & (mask != labels.ignore)]
    if wrong.size:
        raise ValueError(f"{path}: id {wrong[0]} in a mask to write; expected 0..{len(labels) - 1} or {labels.ignore}")
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(mask_palette(labels))
    text = PngImagePlugin.PngInfo()
    if note:
        text.add_text(NOTE, note)
    with written_whole(Path(path)) as file:
        image.save(file, "PNG", pnginfo=text)


def mask_palette(labels: Labels) -> bytes:
    """Red, green, blue of all 256 ids of a mask: the classes' colours, VOC's for the others, the border's to ignore."""
    colours = [*labels.palette, *voc_palette(256)[len(labels) :]]
    colours[labels.ignore] = IGNORE_COLOUR
    return bytes(part for colour in colours for part in colour)


def read_note(path: str | os.PathLike[str]) -> str:
    """The note in a mask that `write_mask` wrote, from its header alone; empty without one. Errors as `read_image`."""
    return from_file(Path(path), sys.maxsize, lambda image: str(image.info.get(NOTE, "")))


def write_image(path: str | os.PathLike[str], array: Pixels | Image.Image) -> None:
    """Write uint8 H,W,3 (or H,W, or a PIL image) in the format of the suffix, all at once or not at all.

    Raises:
        ValueError: if no format goes with the suffix.
    """
    path = Path(path)
    Image.init()
    kind = Image.EXTENSION.get(path.suffix.lower())
    if kind not in _FORMATS or kind not in Image.SAVE:
        raise ValueError(f"{path}: no image format {path.suffix!r}; expected .png, .jpg, .webp, .bmp or .tif")
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    with written_whole(path) as file:
        image.save(file, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))


def open_file(path: Path) -> IO[bytes]:
    """Open a file to read.

    Raises:
        ValueError: for a folder, a pipe or a device, on none of which this waits.
        OSError: as ``open``.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to would never come back.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError("not a file; expected an image file")
    return os.fdopen(number, "rb")


def check_whole(file: IO[bytes], kind: str | None) -> None:
    """Refuse a PNG or GIF without its end mark; the place in the file stays as it was.

    Args:
        file: whose header has been seen to be that of `kind`.
        kind: Pillow's name of the format; of others than PNG and GIF nothing is asked.

    Raises:
        ValueError: if the end mark is missing.
    """
    ends = {"PNG": _png_ends, "GIF": _gif_ends}.get(kind or "")
    if ends is None:
        return
    place = file.tell()
    whole = ends(file)
    file.seek(place)
    if not whole:
        raise ValueError("truncated, for its end mark is missing; expected a whole file")


def _png_ends(file: IO[bytes]) -> bool:
    """Walk the chunks (length, name, data, checksum) to IEND."""
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", header)
        if name == b"IEND":
            return file.read(4) == b"\xaeB`\x82"
        file.seek(length + 4, os.SEEK_CUR)
    return False


def _gif_ends(file: IO[bytes]) -> bool:
    """Walk the extensions and frames to the trailer."""
    file.seek(10)
    _skip_colours(file, file.read(1))
    file.seek(2, os.SEEK_CUR)
    while (kind := file.read(1)) in (b"!", b","):
        if kind == b",":
            _skip_colours(file, file.read(9)[8:])
        file.seek(1, os.SEEK_CUR)  # an extension's label, a frame's code size
        while length := file.read(1).strip(b"\0"):
            file.seek(length[0], os.SEEK_CUR)
    return kind == b";"


def _skip_colours(file: IO[bytes], flags: bytes) -> None:
    """Past the colour table, if the flags say that there is one."""
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)
