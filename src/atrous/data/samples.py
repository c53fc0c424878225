"""Convert the samples of an image file to RGB: transparency, 16 bits, white as zero.

The same rules hold for files that are read whole (`image_io`) and by rows (`row_io`).

Files of 16 bits often use fewer, and do not say so: their values would be taken for near black. So the largest value
decides: below 2**14 it is rounded up to 8, 10, 12 or 14 bits, and the first such file is named in a warning. A TIFF's
MaxSampleValue, a PNG's significant bits (sBIT) and the maximum of a PPM count as values of the file. The environment
variable ATROUS_BITS, 8 to 16, overrules all of that.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from atrous.data.image_file import name_of, open_image, rawmode_of, significant_bits, with_rawmode

GUESSED_BITS: Counter[int] = Counter()
"""How many pictures of 16 bits this process has read by a guess, by the number of bits."""

_GUESSES = (8, 10, 12, 14)
_UPPER_ONLY = (
    "16 bits in planes, or of gray with alpha, of which 14 or fewer are used; expected values up to 65535, or the "
    "colours of a pixel beside each other"
)
_PLANAR, _MAX_SAMPLE_VALUE = 284, 281  # tags of a TIFF


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


def needs_all_bits(image: Image.Image, samples: Samples) -> bool:
    """Whether the upper 8 of 16 bits, which Pillow has loaded, are not enough: they are few, or to be compared."""
    if samples.premultiplied or samples.transparent is not None:
        return True
    extrema = np.array(image.getextrema())[: samples.colours]
    return _is_few(int(extrema.max()) << 8, samples)


def _is_few(largest: int, samples: Samples) -> bool:
    """Whether samples of 16 bits with this largest value may use fewer."""
    if "ATROUS_BITS" in os.environ:
        return os.environ["ATROUS_BITS"] != "16"
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


def to_rgb(image: Image.Image, samples: Samples) -> npt.NDArray[np.uint8]:
    """Convert a loaded picture of 8 bits or of floats to RGB, uint8 H,W,3; transparency is composited over white."""
    if image.mode == "F":
        values = np.asarray(image)
        return rgb_of_array(1 - values if samples.inverted else values)
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(straight.convert("RGBA"))
        image = page
    return np.array(image.convert("RGB"))


def wide_to_rgb(values: npt.NDArray[Any], samples: Samples, tops: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Convert samples of 16 bits, H,W,C, to RGB, uint8 H,W,3; `tops` are the values for 255, by band."""
    if values.shape[2] > 1 and tops[0] == 65535:  # as Pillow does
        scaled = (values >> 8).astype(np.uint8)
    else:
        scaled = np.rint(np.minimum(values * (255 / np.array(tops)), 255)).astype(np.uint8)
    if samples.inverted:
        scaled = 255 - scaled
    mode = {"I": "L"}.get(samples.mode, samples.mode)
    raw = mode.replace("RGBA", "RGBa") if samples.premultiplied else mode
    image = Image.frombytes(mode, (values.shape[1], values.shape[0]), scaled.tobytes(), "raw", raw)
    pixels = to_rgb(image, samples)
    if samples.transparent is not None:
        pixels[(values == np.array(samples.transparent)).all(-1)] = 255
    return pixels


def tops_of(parts: Iterable[npt.NDArray[Any]], samples: Samples) -> tuple[int, ...]:
    """The values that stand for 255, by band, of a file whose samples of 16 bits are `parts`, h,W,C each.

    Reads no further than to the first value that needs more than 14 bits. Says so, once, where it guesses.

    Raises:
        ValueError: if values are negative, too large, or beyond the bits that ATROUS_BITS gives.
    """
    largest, replicated = np.zeros(1, dtype=np.int64), True
    for part in parts:
        if part.min() < 0 or part.max() > samples.full:
            raise ValueError(f"integers from {part.min()} to {part.max()}; expected 8 or 16 bits, 0 to {samples.full}")
        largest = np.maximum(largest, part.reshape(-1, part.shape[2]).max(axis=0))
        if largest[: samples.colours].max() >= 1 << _GUESSES[-1] and "ATROUS_BITS" not in os.environ:
            break
        replicated = replicated and not (part[:, :, : samples.colours] % 257).any()
    top = _top(int(largest[: samples.colours].max()), replicated, samples)
    return tuple(
        top if index < samples.colours or value <= top else samples.full for index, value in enumerate(largest)
    )


def _top(largest: int, replicated: bool, samples: Samples) -> int:
    if samples.upper_only and _is_few(largest, samples):
        raise ValueError(_UPPER_ONLY)
    if "ATROUS_BITS" in os.environ:
        return _overruled(os.environ["ATROUS_BITS"], largest)
    if 0 < samples.declared < largest or largest == 0 or samples.full < 65535:
        return samples.full
    if replicated and not samples.declared:  # 8 bits that were multiplied by 257 fill all 16
        return samples.full
    bits = next((bits for bits in _GUESSES if max(largest, samples.declared) < 1 << bits), 16)
    if bits < 16 and not samples.declared:
        if not GUESSED_BITS[bits]:
            warnings.warn(
                f"{samples.name}: 16-bit file whose values stop at {largest}: read as {bits}-bit (as 16-bit it would "
                f"be almost black), and so are files like it; ATROUS_BITS=16 reads all as 16-bit",
                stacklevel=2,
            )
        GUESSED_BITS[bits] += 1
    return (1 << bits) - 1


def guesses_since(before: Counter[int]) -> list[str]:
    """A line for each number of bits that pictures were read by since GUESSED_BITS was `before`."""
    return [
        f"{count} image{'s' * (count != 1)} of 16 bits read as {bits} bits, for no value needs more; "
        f"ATROUS_BITS=16 reads all as 16 bits"
        for bits, count in sorted((GUESSED_BITS - before).items())
    ]


def _overruled(text: str, largest: int) -> int:
    if not text.isdecimal() or not 8 <= int(text) <= 16:
        raise ValueError(f"ATROUS_BITS is {text!r}; expected the bits that files of 16 bits use, 8 to 16")
    if largest >= 1 << int(text):
        raise ValueError(f"a value of {largest}; expected at most {(1 << int(text)) - 1}, for ATROUS_BITS is {text}")
    return (1 << int(text)) - 1


def rgb_of_array(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Convert an array to RGB, uint8 H,W,3: see `atrous.data.image_io.read_image`; it may share the array's memory."""
    _check_shape(array)
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also refuses NaN
            raise ValueError(f"floats from {array.min():.6g} to {array.max():.6g}; expected 0 to 1")
        array = np.rint(array.astype(np.float32) * 255.0).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"array of {array.dtype}; expected uint8, or float in 0 to 1: scale it to 0 to 255 yourself")
    planes = array if array.ndim == 3 else array[:, :, None]
    if planes.shape[2] == 4:
        alpha = planes[:, :, 3:].astype(np.uint16)
        planes = ((planes[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))


def _check_shape(array: npt.NDArray[Any]) -> None:
    shape = array.shape
    if array.ndim in (2, 3) and 0 not in shape and (array.ndim == 2 or shape[2] in (1, 3, 4)):
        return
    advice = ""
    if array.ndim == 4:
        advice = ": a batch, of which one image is taken at a time"
    elif array.ndim == 3 and shape[0] in (1, 3, 4):
        advice = ": its channels come first, array.transpose(1, 2, 0) puts them last"
    raise ValueError(f"array of shape {shape}; expected H,W or H,W,3 or H,W,4, not empty{advice}")
