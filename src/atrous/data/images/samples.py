"""Convert the samples of an image file to RGB: transparency, 16 bits, white as zero.

The same rules hold for files that are read whole (`image_io`) and by rows (`row_io`).

An `ImageRule` says which values become black and white, and which bands are read. Without a range, a file of 16 bits
may use fewer, and not say so: its values would be taken for near black. So the largest value decides: below 2**14 it is
rounded up to 8, 10, 12 or 14 bits, and the first such file is named in a warning. A TIFF's MaxSampleValue, a PNG's
significant bits (sBIT) and the maximum of a PPM count as values of the file. Of a data set, `value_range` decides once.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from atrous.data.images.image_file import name_of, open_image, rawmode_of, significant_bits, with_rawmode

_STRIP = 256

GUESSED_BITS: Counter[int] = Counter()
"""How many pictures of 16 bits this process has read by a guess, by the number of bits."""

_GUESSES = (8, 10, 12, 14)
_UPPER_ONLY = (
    "16 bits in planes, or of gray with alpha, of which 14 or fewer are used; expected values up to 65535, or the "
    "colours of a pixel beside each other"
)
_PLANAR, _MAX_SAMPLE_VALUE = 284, 281  # tags of a TIFF
_SAY = "a value range (--value-range LOW,HIGH) scales them"


@dataclass(frozen=True)
class ImageRule:
    """How samples become colours of 8 bits: the same in training, evaluation and prediction.

    Attributes:
        value_range: the values that become 0 and 255, what is beyond being clipped and what is not a number being 0;
            None: the whole range of the type, or the bits that a file of 16 uses. A range that ends above 255 leaves
            pictures of 8 bits as they are.
        bands: for red, green and blue, or one for gray, counted from 1; empty: the colours that the file says it has.

    Raises:
        ValueError: if the range is not two finite numbers, the first the smaller, or there are not 1 or 3 bands.
    """

    value_range: tuple[float, float] | None = None
    bands: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.value_range or (0, 1)
        if not -np.inf < low < high < np.inf:
            raise ValueError(f"value_range is {low:g},{high:g}; expected LOW,HIGH, two numbers, the low one first")
        if len(self.bands) not in (0, 1, 3) or min(self.bands, default=1) < 1:
            raise ValueError(f"bands is {self.bands}; expected one or three, counted from 1")

    @property
    def scales_bytes(self) -> bool:
        """Whether pictures of 8 bits are scaled, too."""
        return self.value_range is not None and self.value_range[1] <= 255 and self.value_range != (0, 255)


AS_IT_IS = ImageRule()
"""The whole range of each type, and the colours of the file."""


@dataclass(frozen=True)
class Samples:
    """What the samples of a file mean, from its header, as far as Pillow's mode does not say.

    Attributes:
        mode: Pillow's.
        name: of the file, for messages.
        wide: whether they have 16 bits (Pillow keeps the upper 8 if there are several bands).
        inverted: whether 0 is white in samples that Pillow does not invert: those of 16 bits, and floats.
        premultiplied: whether colours are multiplied by alpha.
        upper_only: whether Pillow gives nothing but the upper 8 of 16 bits: of planes, of gray with alpha.
        transparent: the one gray or colour of 16 bits that is transparent; or none.
        full: the largest value that the type holds.
        declared: the largest value that the file says it has; 0 if it does not say.
    """

    mode: str
    name: str = "image"
    wide: bool = False
    inverted: bool = False
    premultiplied: bool = False
    upper_only: bool = False
    transparent: tuple[int, ...] | None = None
    full: int = 65535
    declared: int = 0

    @property
    def colours(self) -> int:
        """The number of bands that are colours, not alpha."""
        return {"RGB": 3, "RGBA": 3, "CMYK": 4}.get(self.mode, 1)


def samples_of(image: Image.Image) -> Samples:
    """What the header of a picture says about its samples; call it before the pixels are loaded."""
    rawmode, tags, mode = rawmode_of(image), getattr(image, "tag_v2", {}), image.mode
    wide = mode.startswith("I") or ";16" in rawmode
    transparent = image.info.get("transparency") if wide else None
    signed = "16" in rawmode and rawmode.endswith("S")
    return Samples(
        mode="I" if mode.startswith("I") else "LA" if rawmode.startswith("LA;16") else mode,
        name=name_of(getattr(image, "fp", None), "image"),
        wide=wide,
        inverted=tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 and (mode == "F" or mode.startswith("I")),
        premultiplied=mode == "La" or "RGBa" in rawmode,
        upper_only=wide and (rawmode.startswith("LA;16") or (len(mode) > 2 and tags.get(_PLANAR) == 2)),
        transparent=(transparent,) if isinstance(transparent, int) else transparent,
        full=4095 if rawmode == "I;12" else 32767 if signed else 65535,
        declared=_declared(image, tags) if wide else 0,
    )


def _declared(image: Image.Image, tags: Any) -> int:
    if image.format == "PPM":  # Pillow scales by the maximum in its header
        return 65535
    if image.format == "PNG":
        return (1 << significant_bits(image)) - 1
    most = tags.get(_MAX_SAMPLE_VALUE, 0)
    return int(max(most) if isinstance(most, tuple) else most)


def needs_all_bits(image: Image.Image, samples: Samples, rule: ImageRule = AS_IT_IS) -> bool:
    """Whether the upper 8 of 16 bits, which Pillow has loaded, are not enough: they are few, or to be compared."""
    if rule.value_range or samples.premultiplied or samples.transparent is not None:
        return True
    extrema = np.array(image.getextrema())[: samples.colours]
    return _is_few(int(extrema.max()) << 8, samples)


def _is_few(largest: int, samples: Samples) -> bool:
    """Whether samples of 16 bits with this largest value may use fewer."""
    return max(largest, samples.declared) < 1 << _GUESSES[-1]


def all_bits(file: IO[bytes], rawmode: str, samples: Samples) -> npt.NDArray[np.uint16]:
    """All 16 bits of colours, uint16 H,W,C: the file is unpacked twice, the second time with its bytes swapped."""
    if samples.upper_only:
        raise ValueError(_UPPER_ONLY)
    kind, order = rawmode.replace("RGBa", "RGBA").split(";16")
    swapped = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}[order]
    upper, lower = (
        np.asarray(with_rawmode(open_image(file, sys.maxsize), f"{kind};16{way}")).astype(np.uint16)
        for way in (order, swapped)
    )
    return np.asarray(upper << 8 | lower, dtype=np.uint16)


def to_rgb(image: Image.Image, samples: Samples, rule: ImageRule = AS_IT_IS) -> npt.NDArray[np.uint8]:
    """Convert a loaded picture of 8 bits or of floats to RGB, uint8 H,W,3; transparency is composited over white."""
    if image.mode == "F":
        check_bands(rule.bands, 1)
        pixels = sample_values_to_rgb(np.asarray(image)[:, :, None], rule)
        return 255 - pixels if samples.inverted else pixels
    pixels = _rgb_of(_banded(image, rule.bands) if rule.bands else image)
    return scaled(np.arange(256), rule)[pixels] if rule.scales_bytes else pixels


def _banded(image: Image.Image, bands: tuple[int, ...]) -> Image.Image:
    """The bands of a picture as gray or RGB; a palette has those of its colours."""
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    check_bands(bands, len(image.getbands()))
    planes = [image.getchannel(band - 1) for band in bands]
    return planes[0] if len(planes) == 1 else Image.merge("RGB", planes)


def check_bands(bands: tuple[int, ...], there: int) -> None:
    """Raise ValueError for a band, counted from 1, that is not there."""
    if bands and max(bands) > there:
        plural = "s" * (there != 1)
        raise ValueError(f"{there} band{plural}; expected at least {max(bands)}, for the bands {bands} are asked for")


def scaled(values: npt.NDArray[Any], rule: ImageRule) -> npt.NDArray[np.uint8]:
    """Values by the range of a rule that has one, uint8 of the same shape."""
    assert rule.value_range
    low, high = rule.value_range
    exact: npt.NDArray[Any] = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.clip((exact - np.asarray(low, exact.dtype)) * 255 / (high - low), 0, 255)
    result: npt.NDArray[np.uint8] = np.rint(np.nan_to_num(steps)).astype(np.uint8)
    return result


def sample_values_to_rgb(
    values: npt.NDArray[Any], rule: ImageRule, tops: tuple[int, ...] = ()
) -> npt.NDArray[np.uint8]:
    """Convert samples of any type, H,W,1 or H,W,3, to RGB, uint8 H,W,3.

    Args:
        values: of the bands that are read.
        rule: its range, if it has one.
        tops: else the values for 255 of integers of more than 8 bits, by band.

    Raises:
        ValueError: without a range, for floats beyond 0 to 1.
    """
    if rule.value_range and (values.dtype != np.uint8 or rule.scales_bytes):
        values = scaled(values, rule)
    elif values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
            raise ValueError(f"floats from {values.min():.6g} to {values.max():.6g}; expected 0 to 1, or {_SAY}")
        values = np.rint(values.astype(np.float32) * 255.0).astype(np.uint8)
    elif values.dtype != np.uint8:
        values = np.rint(np.minimum(values * (255 / np.array(tops)), 255)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _rgb_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(straight.convert("RGBA"))
        image = page
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, _STRIP):  # each copy that Pillow makes of the whole takes 4 bytes a pixel
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        pixels[top : top + _STRIP] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return pixels


def wide_to_rgb(
    values: npt.NDArray[Any], samples: Samples, tops: tuple[int, ...], rule: ImageRule = AS_IT_IS
) -> npt.NDArray[np.uint8]:
    """Convert samples of 16 bits, H,W,C, to RGB, uint8 H,W,3; `tops` are the values for 255, by band."""
    if rule.value_range:
        alpha = np.rint(values[:, :, samples.colours :] * (255 / samples.full)).astype(np.uint8)
        scaled_ = np.concatenate([scaled(values[:, :, : samples.colours], rule), alpha], axis=2)
    elif values.shape[2] > 1 and tops[0] == 65535:  # as Pillow does
        scaled_ = (values >> 8).astype(np.uint8)
    else:
        scaled_ = np.rint(np.minimum(values * (255 / np.array(tops)), 255)).astype(np.uint8)
    if samples.inverted:
        scaled_ = 255 - scaled_
    mode = {"I": "L"}.get(samples.mode, samples.mode)
    raw = mode.replace("RGBA", "RGBa") if samples.premultiplied else mode
    image = Image.frombytes(mode, (values.shape[1], values.shape[0]), scaled_.tobytes(), "raw", raw)
    pixels = to_rgb(image, samples, ImageRule(bands=rule.bands))
    if samples.transparent is not None:
        pixels[(values == np.array(samples.transparent)).all(-1)] = 255
    return pixels


def tops_of(parts: Iterable[npt.NDArray[Any]], samples: Samples) -> tuple[int, ...]:
    """The values that stand for 255, by band, of a file whose samples of 16 bits are `parts`, h,W,C each.

    Reads no further than to the first value that needs more than 14 bits. Says so, once, where it guesses.

    Raises:
        ValueError: if values are negative or too large.
    """
    largest, replicated = np.zeros(1, dtype=np.int64), True
    for part in parts:
        if part.min() < 0 or part.max() > samples.full:
            raise ValueError(f"integers from {part.min()} to {part.max()}; expected 0 to {samples.full}, or {_SAY}")
        largest = np.maximum(largest, part.reshape(-1, part.shape[2]).max(axis=0))
        if largest[: samples.colours].max() >= 1 << _GUESSES[-1]:
            break
        replicated = replicated and not (part[:, :, : samples.colours] % 257).any()
    top = _top(int(largest[: samples.colours].max()), replicated, samples)
    return tuple(
        top if index < samples.colours or value <= top else samples.full for index, value in enumerate(largest)
    )


def _top(largest: int, replicated: bool, samples: Samples) -> int:
    if samples.upper_only and _is_few(largest, samples):
        raise ValueError(_UPPER_ONLY)
    if 0 < samples.declared < largest or largest == 0 or samples.full < 65535:
        return samples.full
    if replicated and not samples.declared:  # 8 bits that were multiplied by 257 fill all 16
        return samples.full
    bits = next((bits for bits in _GUESSES if max(largest, samples.declared) < 1 << bits), 16)
    if bits < 16 and not samples.declared:
        if not GUESSED_BITS[bits]:
            warnings.warn(
                f"{samples.name}: 16-bit file whose values stop at {largest}: read as {bits}-bit (as 16-bit it would "
                f"be almost black), and so are files like it; --value-range 0,65535 reads all as 16-bit",
                stacklevel=2,
            )
        GUESSED_BITS[bits] += 1
    return (1 << bits) - 1


def rgb_of_array(array: npt.NDArray[Any], rule: ImageRule = AS_IT_IS) -> npt.NDArray[np.uint8]:
    """Convert an array to RGB, uint8 H,W,3: see `image_io.read_image`; it may share the array's memory."""
    _check_shape(array, rule)
    planes = array if array.ndim == 3 else array[:, :, None]
    if rule.bands:
        check_bands(rule.bands, planes.shape[2])
        planes = planes[:, :, [band - 1 for band in rule.bands]]
    if array.dtype == np.uint16 and not rule.value_range:  # as a file of 16 bits
        samples = Samples({1: "I", 3: "RGB", 4: "RGBA"}[planes.shape[2]], "array", wide=True)
        return wide_to_rgb(planes, samples, tops_of([planes], samples))
    if array.dtype.kind not in "fiu" or (array.dtype.kind != "f" and array.dtype != np.uint8 and not rule.value_range):
        raise ValueError(f"array of {array.dtype}; expected uint8, or float in 0 to 1, or {_SAY}")
    if planes.shape[2] != 4:
        return sample_values_to_rgb(planes, rule)
    if array.dtype != np.uint8:
        alpha = sample_values_to_rgb(planes[:, :, 3:], AS_IT_IS if array.dtype.kind == "f" else rule)[:, :, :1]
    else:
        alpha = planes[:, :, 3:]
    colours, alpha = sample_values_to_rgb(planes[:, :, :3], rule), alpha.astype(np.uint16)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _check_shape(array: npt.NDArray[Any], rule: ImageRule) -> None:
    shape = array.shape
    if array.ndim in (2, 3) and 0 not in shape and (array.ndim == 2 or shape[2] in (1, 3, 4) or rule.bands):
        return
    advice = ""
    if array.ndim == 4:
        advice = ": a batch, of which one image is taken at a time"
    elif array.ndim == 3 and shape[0] in (1, 3, 4):
        advice = ": its channels come first, array.transpose(1, 2, 0) puts them last"
    raise ValueError(f"array of shape {shape}; expected H,W or H,W,3 or H,W,4, not empty{advice}")
