"""Read and write images and masks.

Training, evaluation and prediction all read through `read_image`. An image is uint8 H,W,3 as an array and uint8 3,H,W
as a tensor, upright. A mask is uint8 H,W of class ids as stored.

    pixels = read_image("street.jpg")
    images = IMAGENET(to_tensor(pixels))[None]
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, PngImagePlugin
from torch import Tensor

from atrous.atomic import written_whole
from atrous.data.image_file import FORMATS, STRICT_PILLOW, check_size, decode_file, errors_named
from atrous.data.labels import IGNORE_COLOUR, Colour, Labels, ids_of_colours, voc_palette

Pixels = npt.NDArray[np.uint8]
Source = str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor

MAX_PIXELS = 178_956_970
"""Width times height above which a file is refused unread: where Pillow itself speaks of a decompression bomb."""

NOTE = "atrous"
"""Key of the text chunk in a mask's PNG that holds its note."""

_LOSSY = ("AVIF", "JPEG", "MPO", "WEBP")
_TRANSPOSE: dict[int, Image.Transpose] = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode any picture into uint8 H,W,3, RGB, upright by its EXIF orientation.

    Transparency is composited over white; 16 bits are scaled to 8, not clipped; the first of several frames is read;
    CMYK, gray, palette and 1-bit pictures become RGB.

    Args:
        source: a path; a PIL image; an array H,W or H,W,1 or H,W,3 or H,W,4, uint8 or float in 0..1; a tensor 3,H,W or
            1,H,W of those types. The result may share the memory of a uint8 H,W,3 array.
        max_pixels: width times height above which a picture is refused, a file before it is decoded.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no image, truncated, larger than max_pixels, or of values out of range.
    """
    if isinstance(source, (str, os.PathLike)):
        return decode_file(Path(source), max_pixels, _pixels)
    if isinstance(source, Image.Image):
        with STRICT_PILLOW, errors_named("image"):
            check_size(source, max_pixels)
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
    return decode_file(Path(path), max_pixels, upright_size)


def to_tensor(array: Pixels) -> Tensor:
    """Copy an image H,W,3 into a contiguous uint8 tensor 3,H,W, or a mask H,W into H,W."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"{array.dtype} array of shape {array.shape}; expected uint8 H,W,3 or H,W")
    planes = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, order="C", copy=True))


def _pixels(image: Image.Image) -> Pixels:
    image.load()
    transpose = exif_transpose(image)
    return to_rgb(image if transpose is None else image.transpose(transpose))


def to_rgb(image: Image.Image) -> Pixels:
    """Convert a decoded, upright picture of any mode to RGB, uint8 H,W,3: see `read_image`."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_array(_scaled_to_unit(np.asarray(image)))
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(straight.convert("RGBA"))
        image = page
    return np.array(image.convert("RGB"))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width after the EXIF orientation is applied, of a picture whose pixels may not be decoded yet."""
    width, height = image.size
    # Pillow transposes a TIFF while it decodes, and gives its size accordingly.
    swapped = image.format != "TIFF" and exif_transpose(image) in [
        _TRANSPOSE[orientation] for orientation in (5, 6, 7, 8)
    ]
    return (width, height) if swapped else (height, width)


def exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes a picture upright by its EXIF orientation; None if it is upright."""
    try:
        return _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # A broken EXIF block says nothing about the pixels: every viewer shows such a picture as it is stored.
    except Exception:
        return None


def _scaled_to_unit(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scale integers of 16 bits, or of 32 bits that hold 16, to 0..1; floats stay as they are."""
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
    """Read class ids, uint8 H,W, as stored: palette or gray of 1, 2, 4 or 8 bits, or 16 bits with ids up to 255.

    Args:
        path: a lossless file: PNG, TIFF, BMP, GIF or PPM.
        palette: if given, an RGB picture is read by its colours: entry i is class i, VOC's border colour is `ignore`.
        ignore: the id of the border colour.
        max_pixels: as for `read_image`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, for a lossy format, colours with no palette or not in it, an id above 255.
    """
    return decode_file(Path(path), max_pixels, lambda image: _ids(image, palette, ignore))


def _ids(image: Image.Image, palette: Sequence[Colour] | None, ignore: int) -> Pixels:
    if image.format in _LOSSY or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        raise ValueError(f"a mask in {image.format}, whose compression may change ids; expected a lossless PNG of ids")
    tile = str(getattr(image, "tile", ""))  # names the bits per pixel; gone once the pixels are loaded
    image.load()
    values = np.asarray(image)
    if image.mode == "L":
        # Pillow scales gray of 2 and 4 bits to 0..255; the ids are the values before that.
        return np.array(values // (85 if "'L;2" in tile else 17 if "'L;4" in tile else 1))
    if image.mode in ("1", "P"):
        return np.array(values, dtype=np.uint8)
    if image.mode.startswith("I"):
        return _as_bytes(values)
    if image.mode in ("RGB", "RGBA") and palette is not None:
        if image.mode == "RGBA" and values[:, :, 3].min() < 255:
            raise ValueError("a colour map with transparent pixels; expected opaque colours of the palette")
        return ids_of_colours(values[:, :, :3], palette, ignore)
    raise ValueError(f"a mask of mode {image.mode}; expected one channel of class ids, or a palette to read colours by")


def _as_bytes(values: npt.NDArray[Any]) -> Pixels:
    wrong = values[(values < 0) | (values > 255)]
    if wrong.size:
        raise ValueError(f"mask has id {wrong[0]} ({wrong.size} pixels out of range); expected ids in 0..255")
    return values.astype(np.uint8)


def write_mask(path: str | os.PathLike[str], mask: npt.NDArray[Any], labels: Labels, note: str = "") -> None:
    """Write ids as an 8-bit palette PNG, atomically; the ignored id has VOC's border colour.

    Args:
        path: the file.
        mask: integers H,W.
        labels: the classes and their colours.
        note: stored in the file, for `read_note`.

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
    """Palette of a mask's PNG, 256 times RGB: the classes' colours, VOC's for other ids, its border's for `ignore`."""
    colours = [*labels.palette, *voc_palette(256)[len(labels) :]]
    colours[labels.ignore] = IGNORE_COLOUR
    return bytes(part for colour in colours for part in colour)


def read_note(path: str | os.PathLike[str]) -> str:
    """The note in a mask that `write_mask` wrote, from its header alone, or "". Errors as `read_image`."""
    return decode_file(Path(path), sys.maxsize, lambda image: str(image.info.get(NOTE, "")))


def write_image(path: str | os.PathLike[str], array: Pixels | Image.Image) -> None:
    """Write uint8 H,W,3 (or H,W, or a PIL image) in the format that the suffix names, atomically.

    Raises:
        ValueError: if no format goes with the suffix.
    """
    path = Path(path)
    Image.init()
    kind = Image.EXTENSION.get(path.suffix.lower())
    if kind not in FORMATS or kind not in Image.SAVE:
        raise ValueError(f"{path}: no image format {path.suffix!r}; expected .png, .jpg, .webp, .bmp or .tif")
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    with written_whole(path) as file:
        image.save(file, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
