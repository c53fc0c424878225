"""Read NumPy's files (.npy), images and masks, with their header checked before the rest is read."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import numpy.typing as npt

from atrous.data.images.image_file import check_size

_MAGIC = b"\x93NUMPY"
_MOST_BANDS = 256


def is_array(file: IO[bytes]) -> bool:
    """Whether a file is one of NumPy."""
    file.seek(0)
    return file.read(len(_MAGIC)) == _MAGIC


def array_shape(file: IO[bytes], max_pixels: int) -> tuple[int, ...]:
    """The shape in the header.

    Raises:
        ValueError: if it is no array of numbers H,W or H,W,C, or has more than `max_pixels`.
    """
    return _header(file, max_pixels)[0]


def read_array(file: IO[bytes], max_pixels: int) -> npt.NDArray[Any]:
    """The array; errors as `array_shape`, and ValueError for a truncated file."""
    shape, dtype, fortran = _header(file, max_pixels)
    size = int(np.prod(shape)) * dtype.itemsize
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"truncated, with {len(data)} of {size} bytes; expected a whole file")
    values = np.frombuffer(data, dtype)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _header(file: IO[bytes], max_pixels: int) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if (
        dtype.kind not in "biuf"
        or len(shape) not in (2, 3)
        or 0 in shape
        or (len(shape) == 3 and shape[2] > _MOST_BANDS)
    ):
        raise ValueError(f"an array of {dtype}, shape {shape}; expected numbers, H,W or H,W,C")
    check_size(shape[1], shape[0], max_pixels)
    return shape, dtype, fortran
