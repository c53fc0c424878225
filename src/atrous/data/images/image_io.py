"""Read and write images and masks.

Training, evaluation and prediction all read through `read_image`. An image is uint8 H,W,3 as an array and uint8 3,H,W
as a tensor, upright. A mask is uint8 H,W of class ids as stored.

    pixels = read_image("street.jpg")
    images = IMAGENET(to_tensor(pixels))[None]
"""

import functools
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageFile
from torch import Tensor

from atrous.atomic import written_whole
from atrous.data.images import multiband
from atrous.data.images.arrays import array_shape, is_array, read_array
from atrous.data.images.dicom import dicom_size, is_dicom, read_dicom
from atrous.data.images.image_file import (
    FORMATS,
    STRICT_PILLOW,
    ImageSource,
    check_size,
    decode_file,
    errors_named,
    open_file,
    open_image,
    rawmode_of,
    with_file,
)
from atrous.data.images.png import write_png
from atrous.data.images.samples import (
    AS_IT_IS,
    ImageRule,
    Samples,
    all_bits,
    needs_all_bits,
    rgb_of_array,
    samples_of,
    to_rgb,
    tops_of,
    wide_to_rgb,
)
from atrous.data.images.tiff_blocks import Tiff, parse
from atrous.data.images.tiff_blocks import check as check_blocks
from atrous.data.labels import IGNORE_COLOUR, Colour, Labels, ids_of_colours, voc_palette

Pixels = npt.NDArray[np.uint8]
Source = ImageSource | Image.Image | npt.NDArray[Any] | Tensor

MAX_PIXELS = 178_956_970
"""Width times height above which a file is refused unread: where Pillow itself speaks of a decompression bomb."""

NOTE = "atrous"
"""Key of the text chunk in a mask's PNG that holds its note."""

# Photographs hold few longer repetitions: looking for runs alone takes 0.4 of the time, for files that are 1% larger.
_SAVE: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {"compress_type": zlib.Z_RLE},
}

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


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS, rule: ImageRule = AS_IT_IS) -> Pixels:
    """Decode any picture into uint8 H,W,3, RGB, upright by its EXIF or XMP orientation.

    Transparency is composited over white; the first of several frames is read; CMYK, gray, palette and 1-bit pictures
    become RGB. 16 bits are scaled to 8, by the rule or else by the bits that the file uses (`samples.py`).

    Args:
        source: a path; the content of a file as bytes; a file object opened in binary mode; a PIL image; an array H,W
            or H,W,1 or H,W,3 or H,W,4, uint8 or float in 0..1; a tensor 3,H,W or 1,H,W or 4,H,W of those types. The
            result may share the memory of a uint8 H,W,3 array. By a rule, any numbers, and any number of bands.
        max_pixels: width times height above which a picture is refused, a file before it is decoded.
        rule: how samples become colours.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no image, truncated, larger than max_pixels, or of values out of range.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, max_pixels, rule)
    if isinstance(source, Tensor):
        return _from_tensor(source, rule)
    if isinstance(source, np.ndarray):
        return rgb_of_array(source, rule)
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(source, "read"):
        return with_file(source, lambda file: _decoded(file, max_pixels, rule))
    raise ValueError(
        f"image of type {type(source).__name__}; expected a path, bytes, file object, PIL image, array or tensor"
    )


def read_size(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture as `read_image` would give it, from its header alone; errors as there."""
    return with_file(source, lambda file: _size(file, max_pixels))


def _decoded(file: IO[bytes], max_pixels: int, rule: ImageRule) -> Pixels:
    if is_array(file):
        return rgb_of_array(read_array(file, max_pixels), rule)
    if is_dicom(file):
        return read_dicom(file, max_pixels, rule)
    picture = open_picture(file, max_pixels, rule)
    if isinstance(picture, Image.Image):
        return _pixels(picture, rule)
    return _upright(multiband.whole(picture, file, rule), picture.orientation)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    turned = _TRANSPOSE.get(orientation)
    return pixels if turned is None else np.array(Image.fromarray(pixels).transpose(turned))


def open_picture(file: IO[bytes], max_pixels: int, rule: ImageRule = AS_IT_IS) -> Image.Image | Tiff:
    """A file as Pillow opens it; or a TIFF, or bands of one, that Pillow does not open. Errors as `read_image`."""
    tiff = parse(file)
    # Pillow would read the first band of several alone, or the upper 8 of 16 bits in planes.
    wrong = tiff and not tiff.alpha and tiff.bands >= 3 and (not tiff.coloured or (tiff.planes and tiff.bits > 8))
    if tiff is not None and (rule.bands or wrong):
        return _checked(tiff, file, max_pixels)
    try:
        return open_image(file, max_pixels)
    except ValueError:
        if tiff is None or tiff.alpha:
            raise
        return _checked(tiff, file, max_pixels)


def _checked(tiff: Tiff, file: IO[bytes], max_pixels: int) -> Tiff:
    check_size(tiff.width, tiff.height, max_pixels)
    check_blocks(tiff, file)
    return tiff


def _size(file: IO[bytes], max_pixels: int) -> tuple[int, int]:
    if is_array(file):
        height, width, *_ = array_shape(file, max_pixels)
        return height, width
    if is_dicom(file):
        return dicom_size(file, max_pixels)
    picture = open_picture(file, max_pixels)
    return upright_size(picture) if isinstance(picture, Image.Image) else multiband.size_of(picture)


def stored_top(path: Path, *, rule: ImageRule = AS_IT_IS) -> int:
    """The value that stands for 255 in a file of integers of over 8 bits; 0 for another. Errors as `read_image`."""

    def top(file: IO[bytes]) -> int:
        if is_array(file) or is_dicom(file):
            return 0
        picture = open_picture(file, MAX_PIXELS, rule)
        if not isinstance(picture, Image.Image):
            return max(multiband.tops_in(picture, file, rule), default=0)
        samples = samples_of(picture)
        if not samples.wide:
            return 0
        values = _loaded(picture, samples, AS_IT_IS)
        return samples.full if values is None else tops_of([values], samples)[0]

    return with_file(path, top)


def to_tensor(array: Pixels) -> Tensor:
    """Copy an image H,W,3 into a contiguous uint8 tensor 3,H,W, or a mask H,W into H,W."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"{array.dtype} array of shape {array.shape}; expected uint8 H,W,3 or H,W")
    planes = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, order="C", copy=True))


def _from_tensor(tensor: Tensor, rule: ImageRule) -> Pixels:
    if tensor.ndim != 3 or (tensor.shape[0] not in (1, 3, 4) and not rule.bands):
        advice = ""
        if tensor.ndim == 4:
            advice = ": a batch, of which one image is taken at a time"
        elif tensor.ndim == 3 and tensor.shape[2] in (1, 3, 4):
            advice = ": its channels come last, tensor.permute(2, 0, 1) puts them first"
        raise ValueError(f"tensor of shape {tuple(tensor.shape)}; expected 3,H,W{advice}")
    planes = tensor.detach().cpu().permute(1, 2, 0)
    planes = planes.float() if planes.is_floating_point() else planes  # NumPy has no bfloat16
    return rgb_of_array(planes.numpy(), rule)


def _from_pil(image: Image.Image, max_pixels: int, rule: ImageRule) -> Pixels:
    """One with a file behind it goes through the same checks as a file."""
    file = getattr(image, "fp", None)
    with STRICT_PILLOW, errors_named(getattr(image, "filename", "") or "image"):
        check_size(*image.size, max_pixels)
        if isinstance(image, ImageFile.ImageFile) and image.format not in FORMATS:
            expected = f"{', '.join(FORMATS)}, or the pixels without their file: image.convert('RGB')"
            raise ValueError(f"a file of the format {image.format}; expected {expected}")
        if file is None or getattr(image, "_im", None) is not None or image.tell() > 0:
            return _pixels(image, rule)
        position = file.tell()
        try:
            return _decoded(file, max_pixels, rule)
        finally:
            file.seek(position)


def _pixels(image: Image.Image, rule: ImageRule) -> Pixels:
    # A TIFF is transposed while it is loaded.
    samples, orientation = samples_of(image), 1 if image.format == "TIFF" else orientation_of(image)
    values = _loaded(image, samples, rule)
    if values is None:
        return _upright(to_rgb(image, samples, rule), orientation)
    tops = () if rule.value_range else tops_of([values], samples)
    return _upright(wide_to_rgb(values, samples, tops, rule), orientation)


def _loaded(image: Image.Image, samples: Samples, rule: ImageRule) -> npt.NDArray[Any] | None:
    """Load the pixels; all bits of them, H,W,C, where the 8 that Pillow gives are not enough."""
    file, rawmode = getattr(image, "fp", None), rawmode_of(image)
    image.load()
    if samples.mode == "I":
        return np.asarray(image)[:, :, None]
    if samples.wide and file is not None and needs_all_bits(image, samples, rule):
        return all_bits(file, rawmode, samples)
    return None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width once the picture is upright; its pixels need not be loaded."""
    width, height = image.size
    swapped = orientation_of(image) >= 5
    if swapped and image.format == "TIFF":  # of which Pillow has swapped them, but for an orientation in XMP
        swapped = getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation, 1) < 5
    return (width, height) if swapped else (height, width)


def orientation_of(image: Image.Image) -> int:
    """The orientation that EXIF or else XMP states, 1 to 8; 1 is upright."""
    try:
        # Not that of the class, for a PNG's loads the pixels.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    # A broken EXIF block says nothing about the pixels: every viewer shows such a picture as it is stored.
    except Exception:
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def read_mask(
    source: ImageSource,
    *,
    palette: Sequence[Colour] | None = None,
    ignore: int = 255,
    ignored: Sequence[Colour] = (),
    largest: int = 255,
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[Any]:
    """Read class ids, H,W, as stored: palette or gray of 1, 2, 4, 8 or 16 bits, or an array of whole numbers (.npy).

    They are uint8, or uint16 if the file has more than 8 bits and `largest` is more than 255.

    Args:
        source: a lossless file, PNG, TIFF, BMP, GIF, PPM or NPY: a path, its content or a file object.
        palette: if given, an RGB picture is read by its colours: entry i is class i, VOC's border colour is `ignore`.
        ignore: the id of the border colour, and of the `ignored` colours.
        ignored: colours to ignore.
        largest: id that is allowed, 255 or 65535.
        max_pixels: as for `read_image`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, for a lossy format, colours with no palette or not in it, an id above `largest`.
    """
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() == ".npy":
        return _ids_of_array(Path(source), largest, max_pixels)
    return decode_file(source, max_pixels, lambda image: _ids(image, palette, ignore, ignored, largest))


def _ids_of_array(path: Path, largest: int, max_pixels: int) -> npt.NDArray[Any]:
    with errors_named(path), open_file(path) as file:
        values = np.squeeze(read_array(file, max_pixels))
        if values.ndim != 2 or values.dtype.kind not in "biu":
            raise ValueError(f"an array of {values.dtype}, shape {values.shape}; expected whole numbers, H,W")
        return _as_ids(values, largest)


def _ids(
    image: Image.Image, palette: Sequence[Colour] | None, ignore: int, ignored: Sequence[Colour], largest: int
) -> npt.NDArray[Any]:
    if image.format in _LOSSY or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        raise ValueError(f"a mask in {image.format}, whose compression may change ids; expected a lossless PNG of ids")
    tile = str(getattr(image, "tile", ""))  # names the bits per pixel; gone once the pixels are loaded
    # Of a TIFF in which white is zero, Pillow inverts gray of up to 8 bits; the ids are the values before that.
    inverted = image.format == "TIFF" and rawmode_of(image).startswith(("1;I", "L;I", "L;2I", "L;4I"))
    image.load()
    values = np.asarray(image)
    if image.mode == "L":
        # Pillow scales gray of 2 and 4 bits to 0..255, likewise.
        values = 255 - values if inverted else values
        return np.array(values // (85 if "'L;2" in tile else 17 if "'L;4" in tile else 1))
    if image.mode in ("1", "P"):
        return np.array(values != inverted if image.mode == "1" else values, dtype=np.uint8)
    if image.mode.startswith("I"):
        return _as_ids(values, largest)
    if image.mode in ("RGB", "RGBA") and palette is not None:
        if image.mode == "RGBA" and values[:, :, 3].min() < 255:
            raise ValueError("a colour map with transparent pixels; expected opaque colours of the palette")
        return ids_of_colours(values[:, :, :3], palette, ignore, ignored)
    raise ValueError(f"a mask of mode {image.mode}; expected one channel of class ids, or a palette to read colours by")


def _as_ids(values: npt.NDArray[Any], largest: int) -> npt.NDArray[Any]:
    wrong = values[(values < 0) | (values > largest)]
    if wrong.size:
        raise ValueError(f"mask has id {wrong[0]} ({wrong.size} pixels out of range); expected ids in 0..{largest}")
    return values.astype(np.uint8 if largest < 256 else np.uint16)


def write_mask(path: str | os.PathLike[str], mask: npt.NDArray[Any], labels: Labels, note: str = "") -> None:
    """Write ids as an 8-bit palette PNG, atomically; the ignored id has VOC's border colour.

    Of more than 255 classes, it is a gray PNG of 16 bits, which has no palette.

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
    ids = mask.astype(np.uint8 if labels.largest_id < 256 else np.uint16, copy=False)
    step = max(1, _PNG_BYTES // mask.shape[1])
    strips = (ids[top : top + step] for top in range(0, len(ids), step))
    write_mask_strips(path, strips, mask.shape, labels, note)


def write_mask_strips(
    path: str | os.PathLike[str],
    strips: Iterable[npt.NDArray[Any]],
    size: tuple[int, int],
    labels: Labels,
    note: str = "",
) -> None:
    """Write ids, h,W strips from top to bottom, as the PNG that `write_mask` writes, in the memory of a strip.

    The write is atomic: an error from `strips` leaves no file.

    Raises:
        ValueError: if strips are not uint8 (integers for more than 255 classes), or do not add up to `size`, H,W.
    """
    text, name = ({NOTE: note} if note else None), str(path)
    with written_whole(Path(path)) as file:
        if labels.largest_id < 256:
            write_png(file, size, strips, "palette", palette=mask_palette(labels), text=text, name=name)
        else:
            write_png(file, size, strips, "gray", bits=16, text=text, name=name)


def mask_image(mask: npt.NDArray[Any], labels: Labels) -> Image.Image:
    """Ids H,W as a palette image of 8 bits, or as a gray one of 16 for more than 255 classes; see `write_mask`."""
    image = Image.fromarray(mask.astype(np.uint8 if labels.largest_id < 256 else np.uint16))
    if labels.largest_id < 256:
        image.putpalette(mask_palette(labels))
    return image


@functools.lru_cache(maxsize=64)
def mask_palette(labels: Labels) -> bytes:
    """Palette of a mask's PNG, 256 times RGB: the classes' colours, VOC's for other ids, its border's for `ignore`."""
    colours = [*labels.palette, *voc_palette(256)[len(labels) :]]
    colours[labels.ignore] = IGNORE_COLOUR
    return bytes(part for colour in colours for part in colour)


def read_note(path: str | os.PathLike[str]) -> str:
    """The note in a mask that `write_mask` wrote, from its header alone, or "". Errors as `read_image`."""
    return decode_file(path, sys.maxsize, lambda image: str(image.info.get(NOTE, "")))


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
        if kind == "PNG":
            save_png(image, file)
        else:
            image.save(file, kind, **_SAVE.get(str(kind), {}))


def save_png(image: Image.Image, file: IO[bytes]) -> None:
    """Write an image as a PNG: by `write_png` if it is RGB, RGBA or has a palette, else by Pillow."""
    mode = _PNG_MODES.get(image.mode)
    if mode is None or not all(image.size) or _PNG_INFO & image.info.keys():
        image.save(file, "PNG", **_SAVE["PNG"])
        return
    tops = range(0, image.height, step := max(1, _PNG_BYTES // (4 * image.width)))
    boxes = ((0, top, image.width, min(top + step, image.height)) for top in tops)
    palette = bytes(image.getpalette() or ())
    write_png(file, image.size[::-1], (np.asarray(image.crop(box)) for box in boxes), mode, palette=palette)


_PNG_MODES: dict[str, Literal["RGB", "RGBA", "palette"]] = {"RGB": "RGB", "RGBA": "RGBA", "P": "palette"}

_PNG_BYTES = 1 << 20
"""Of the pixels that are held besides the image."""

_PNG_INFO = {"icc_profile", "transparency"}
"""What Pillow writes besides."""
