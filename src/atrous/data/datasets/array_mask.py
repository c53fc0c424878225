"""Masks as people store them: `.npy` and `.npz`, TIFF of 8 to 32 bits and floats, GIF, gray saved as RGB.

A mask of whole numbers is a mask, in whatever type. Lossy formats, fractions and several bands are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from atrous.data.datasets.annotations import expecting
from atrous.data.datasets.base import FileMask
from atrous.data.datasets.pairing import ARRAY_SUFFIXES
from atrous.data.images.image_file import decode_file
from atrous.data.images.image_io import MAX_PIXELS, read_mask
from atrous.messages import listed

Values = npt.NDArray[Any]

_LOSSY = ("AVIF", "JPEG", "MPO", "WEBP")
_KEYS = ("mask", "label", "labels", "segmentation", "seg", "gt", "arr_0")
_THRESHOLD = "Image.open(PATH).convert('L').point(lambda v: 255 * (v > 127)).save(NAME + '.png')"


@dataclass(frozen=True, slots=True)
class ArrayMask(FileMask):
    """Ids in a file that is no plain image of ids: an array, or a GIF.

    Attributes:
        largest: id that is allowed, up to 65,535.
    """

    largest: int = 255

    def read(self) -> npt.NDArray[Any]:
        """The ids as stored, uint8 or uint16 H,W; ValueError naming the file."""
        is_gif = self.path.suffix.lower() == ".gif"
        indices = decode_file(self.path, MAX_PIXELS, _of_ascending_grays) if is_gif else None
        values = read_values(self.path) if indices is None else indices
        if values.ndim == 3:
            raise ValueError(f"{self}: a mask in colours; expected ids, or `palette` in dataset.yaml and a PNG")
        if not 0 <= (low := values.min()) <= (high := values.max()) <= self.largest:
            raise ValueError(f"{self}: ids {low} to {high}; expected 0..{self.largest}")
        return values.astype(np.uint8 if self.largest < 256 else np.uint16)


def read_values(path: Path) -> Values:
    """What a mask stores: integers H,W; or uint8 H,W,3 where it has colours that are not gray.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it cannot be read as a mask.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _whole(path, _load(path))
    kind, mode = decode_file(path, MAX_PIXELS, lambda image: (image.format, image.mode))
    if kind in _LOSSY:
        raise ValueError(
            f"{path}: a mask in {kind}, whose compression changes values; expected PNG: take the originals, or, for "
            f"a mask of two values, {_THRESHOLD}"
        )
    # Tools choose a palette for each GIF: its colours mean the same in all, its indices do not.
    if kind != "GIF" and mode in ("1", "L", "P"):
        return read_mask(path)
    return _whole(path, decode_file(path, MAX_PIXELS, _decoded))


def _of_ascending_grays(image: Image.Image) -> Values | None:
    """The indices of a GIF whose palette becomes lighter from black on, which they number."""
    image.load()
    palette = image.getpalette("RGB") if image.mode == "P" else None
    if palette is None:
        return None
    indices = np.asarray(image)
    used = [palette[3 * index : 3 * index + 3] for index in range(int(indices.max()) + 1)]
    grays = [red for red, green, blue in used if red == green == blue]
    ascending = len(grays) == len(used) and grays[0] == 0 and grays == sorted({*grays})
    return indices if ascending else None


def _decoded(image: Image.Image) -> Values:
    image.load()
    if image.mode[0] in "IF":
        return np.asarray(image)
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
        raise ValueError("a mask with transparent pixels; expected opaque ones")
    if image.mode not in ("1", "L", "P", "LA", "RGB", "RGBA"):
        raise ValueError(f"a mask of mode {image.mode}; expected one band of whole numbers, or RGB")
    colours = np.asarray(image.convert("RGB"))
    gray = (colours[..., 0] == colours[..., 1]) & (colours[..., 1] == colours[..., 2])
    return colours[..., 0] if gray.all() else colours


def _load(path: Path) -> Values:
    # NumPy raises many kinds on files that are not its own, a SyntaxError of Python's parser among them.
    with expecting(path, "NumPy's array of whole numbers, H,W", Exception):
        # Mapped, a header that promises more than the file has is an error before memory is taken.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return np.array(loaded) if loaded.size <= MAX_PIXELS else loaded
        with loaded:
            return _of_several(loaded)


def _of_several(loaded: Any) -> Values:
    """The mask in a file of arrays."""
    key = next((key for key in (*_KEYS, *loaded.files[:1]) if key in loaded.files), "")
    if not key or (len(loaded.files) > 1 and key not in _KEYS):
        raise ValueError(f"arrays {listed(loaded.files)}; expected one, or one named {', '.join(_KEYS[:3])}")
    if max(info.file_size for info in loaded.zip.infolist()) > 16 * MAX_PIXELS:
        raise ValueError("an array of too many bytes")
    return np.asarray(loaded[key])


def _whole(path: Path, values: Values) -> Values:
    """Integers of a mask; ValueError for an array of other shape, or of numbers that are not whole."""
    if values.ndim == 3 and values.dtype == np.uint8 and values.shape[2] == 3:
        return values
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[:, :, 0]
    if values.ndim != 2 or values.size == 0 or values.size > MAX_PIXELS:
        what = ": one band a class; save its argmax" if values.ndim == 3 else ""
        raise ValueError(f"{path}: an array of shape {values.shape}; expected H,W{what}")
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        odd = values[~np.isfinite(values) | (values != np.floor(values))]
        if odd.size or np.abs(values).max() > 2**53:
            example = odd.flat[0] if odd.size else np.abs(values).max()
            raise ValueError(
                f"{path}: {odd.size} of {values.size} values are no whole numbers, such as {example}; expected ids; "
                "threshold probabilities, and store another id for NaN"
            )
        return values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{path}: an array of {values.dtype}; expected whole numbers")
    return values
