"""Look at one image and its mask for `atrous data check`: what it holds, and how it looks.

The fingerprint of a picture is 256 bits: whether each of 16×16 areas is lighter than the one to its left. Pictures that
were resized, compressed again or taken a moment later differ in few of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from atrous.data.datasets.dataset import Item, SegmentationDataset
from atrous.data.datasets.mask_values import Drawn, UnknownIdError, histogram_of
from atrous.data.images.image_file import decode_file
from atrous.data.images.image_io import MAX_PIXELS, Pixels, orientation_of, read_image

Size = tuple[int, int]

_PLAIN_MODES = ("RGB", "L", "RGBA", "P", "1")
_FLAT = 3
"""The contrast, of 255, that JPEG alone makes."""
_DARK = 6
"""The mean, of 255, of a picture in which little can be seen."""
_LEAST_CONTRAST, _LEAST_SIDE = 4.0, 32
"""Standard deviation of 16×17 areas, and pixels, below which a fingerprint says nothing."""


@dataclass(frozen=True)
class Look:
    """How a picture looks.

    Attributes:
        mode: Pillow's, if it is none of the usual ones, else "".
        turned: whether EXIF turns it.
        flat: whether it is one colour.
        dark: whether it is almost black.
        fingerprint: 32 bytes, or none for a picture without contrast.
    """

    mode: str = ""
    turned: bool = False
    flat: bool = False
    dark: bool = False
    fingerprint: bytes = b""


@dataclass(frozen=True)
class Examined:
    """One image and its mask: digest, size and look of a readable image, histogram of a readable mask, or the problem.

    `unknown_ids` is the histogram of a mask with ids of no class, `drawn` the colours of a palette image.
    """

    item: Item
    digest: str = ""
    size: Size | None = None
    look: Look = Look()
    histogram: npt.NDArray[np.int64] | None = None
    problem: str = ""
    unknown_ids: npt.NDArray[np.int64] | None = None
    drawn: Drawn | None = None


def examine(dataset: SegmentationDataset, item: Item) -> Examined:
    """Read an image and its mask; what cannot be read is the result's `problem`."""
    digest, size, look = "", None, Look()
    try:
        image = read_image(item.image, rule=dataset.rule)  # first, for it does not wait on what is no file
        height, width = image.shape[:2]
        size, look = (width, height), _look(item, image)
        with item.image.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        ids, drawn = dataset.read_checked(item, (height, width))
        return Examined(item, digest, size, look, histogram_of(ids, dataset.labels), drawn=drawn)
    except UnknownIdError as error:
        return Examined(item, digest, size, look, problem=error.reason, unknown_ids=error.histogram)
    except (ValueError, OSError) as error:
        return Examined(item, digest, size, look, problem=" ".join(str(error).split()))


def _look(item: Item, image: Pixels) -> Look:
    mode, turned = _header(item)
    low, high = int(image.min()), int(image.max())
    areas = np.asarray(Image.fromarray(image).resize((17, 16), Image.Resampling.BOX).convert("L"), dtype=np.int16)
    flat = high - low <= _FLAT
    telling = min(image.shape[:2]) >= _LEAST_SIDE and areas.std() >= _LEAST_CONTRAST
    return Look(
        mode="" if mode in _PLAIN_MODES else mode,
        turned=turned,
        flat=flat,
        dark=not flat and float(areas.mean()) < _DARK,
        fingerprint=np.packbits(areas[:, 1:] > areas[:, :-1]).tobytes() if telling else b"",
    )


def _header(item: Item) -> tuple[str, bool]:
    """Pillow's mode, and whether EXIF turns the picture; nothing of a file that Pillow does not read."""
    try:
        return decode_file(item.image, MAX_PIXELS, lambda image: (image.mode, orientation_of(image) != 1))
    except (ValueError, OSError):
        return "", False


def alike(first: list[bytes], second: list[bytes], most: int = 12) -> list[tuple[int, int]]:
    """Pairs of indices of fingerprints that differ in at most so many of 256 bits: for each of the second, the nearest.

    Empty fingerprints are like none.
    """
    ours = [index for index, print_ in enumerate(first) if print_]
    theirs = [index for index, print_ in enumerate(second) if print_]
    if not ours or not theirs:
        return []
    known = np.frombuffer(b"".join(first[index] for index in ours), dtype=np.uint8).reshape(len(ours), 32)
    bits = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)
    pairs = []
    for index in theirs:
        differing = bits[known ^ np.frombuffer(second[index], dtype=np.uint8)].sum(axis=1, dtype=np.int64)
        nearest = int(differing.argmin())
        if differing[nearest] <= most:
            pairs.append((ours[nearest], index))
    return pairs
