"""Tell one photograph from many, in whatever form a predictor is called with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from atrous.data.images.image_file import ImageSource
from atrous.data.images.image_io import Source, read_size


def many(source: Any) -> Any:
    """The photographs in a list, a tuple, a batch N,H,W,C or N,C,H,W, or an iterator; None for one photograph."""
    if isinstance(source, (list, tuple)):
        return source
    if isinstance(source, (np.ndarray, Tensor)):
        return list(source) if source.ndim == 4 else None
    return source if isinstance(source, Iterator) and not hasattr(source, "read") else None


def from_bgr(source: Source) -> Source:
    """An array H,W,3 or H,W,4 or a tensor 3,H,W or 4,H,W of blue, green, red (OpenCV's order) as red, green, blue.

    Raises:
        ValueError: for a file or a PIL image, which say their order themselves, and for another number of channels.
    """
    if not isinstance(source, (np.ndarray, Tensor)):
        raise ValueError(f"bgr=True with a {type(source).__name__}; expected an array or a tensor, as of OpenCV")
    axis = 2 if isinstance(source, np.ndarray) else 0
    if source.ndim != 3 or source.shape[axis] not in (3, 4):
        raise ValueError(f"bgr=True with the shape {tuple(source.shape)}; expected 3 or 4 channels")
    order = [2, 1, 0, 3][: source.shape[axis]]
    return source[:, :, order] if isinstance(source, np.ndarray) else source[order]


def name_of(source: Source) -> str:
    """The name of the file that a photograph comes from, without its folder; empty if it comes from none."""
    if isinstance(source, (bytes, bytearray, memoryview, np.ndarray, Tensor)):
        return ""
    name: Any = source
    if not isinstance(source, (str, os.PathLike)):
        name = getattr(source, "filename", getattr(source, "name", ""))
    return os.path.basename(os.fspath(name)) if isinstance(name, (str, os.PathLike)) else ""


def size_of(source: Source | ImageSource, max_pixels: int) -> tuple[int, int]:
    """Height and width of a photograph, from its header if it is a file; errors as `read_size`."""
    if isinstance(source, Image.Image):
        return source.height, source.width
    if isinstance(source, Tensor):
        return int(source.shape[-2]), int(source.shape[-1])
    if isinstance(source, np.ndarray):
        return (int(source.shape[0]), int(source.shape[1])) if source.ndim > 1 else (1, 1)
    return read_size(source, max_pixels=max_pixels)
