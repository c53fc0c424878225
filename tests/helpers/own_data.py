"""Small photographs and masks on disk, for the tests of layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE = (6, 8)
"""Height and width."""


def photo(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
    return path


def ids(classes: int, seed: int = 0, size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """Random ids, uint8 H,W, each class at least once where there is room."""
    values = np.random.default_rng(seed).integers(0, classes, size).astype(np.uint8)
    values.flat[: min(classes, values.size)] = np.arange(min(classes, values.size))
    return values


def stored(path: Path, values: npt.NDArray[Any]) -> Path:
    """An array as an image or as NumPy's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, mask=values)
    else:
        Image.fromarray(values).save(path)
    return path


def text(path: Path, content: str | dict[str, Any]) -> Path:
    """Text, or an object as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path
