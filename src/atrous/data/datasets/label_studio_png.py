"""Label Studio's export of brush masks: `task-N-annotation-M-by-USER-TAG-CLASS-K.png`, several files an image.

Each file has one region of one class, as the alpha of its brush. Where regions overlap, the smaller is on top. Which
image task N is, the files do not say: the project's JSON does.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atrous.data.datasets.annotations import expecting
from atrous.data.datasets.base import names_in, subfolders
from atrous.data.datasets.regions import Region, blank_mask
from atrous.data.images.image_file import decode_file
from atrous.data.images.image_io import MAX_PIXELS, Pixels

_NAME = re.compile(r"task-(\d+)-annotation-(\d+)-by-[^-]*-(.+)-\d+\.(?:png|npy)")


class BrushFile(NamedTuple):
    """A file of one region: its path, and what its name has behind the user, `TAG-CLASS`."""

    path: Path
    tail: str


BrushFiles = Mapping[int, Mapping[int, list[BrushFile]]]


def brush_files(root: Path) -> BrushFiles:
    """The files in a folder and those in it, by task and annotation."""
    files: dict[int, dict[int, list[BrushFile]]] = defaultdict(lambda: defaultdict(list))
    for folder in (root, *(root / name for name in subfolders(root))):
        for name in names_in(folder):
            if match := _NAME.fullmatch(name):
                files[int(match[1])][int(match[2])].append(BrushFile(folder / name, match[3]))
    return files


def class_of(file: BrushFile, known: Iterable[str]) -> str:
    """The class in a file's name: the longest of those known that it ends with, else what follows the first dash."""
    fitting = [name for name in known if file.tail.endswith("-" + re.sub(r"[/\\]", "-", name))]
    return max(fitting, key=len) if fitting else file.tail.partition("-")[2] or file.tail


@dataclass(frozen=True)
class BrushFilesMask:
    """The regions of one image.

    Attributes:
        files: path and class id, pairs.
    """

    files: tuple[tuple[Path, int], ...]

    def __str__(self) -> str:
        return str(self.files[0][0])

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError or FileNotFoundError naming the file."""
        return merged(self.files)[0]


def merged(files: Iterable[tuple[Path, int]]) -> tuple[Pixels, int]:
    """The class ids of regions, uint8 H,W, and how many pixels belong to several classes."""
    regions = [(_region(path), value, path) for path, value in files]
    shape = regions[0][0].shape
    for region, _, path in regions:
        if region.shape != shape:
            shown = f"{region.shape[1]}x{region.shape[0]}"
            raise ValueError(f"{path}: {shown} pixels; expected {shape[1]}x{shape[0]}, the size of {regions[0][2]}")
    mask = blank_mask(shape[0], shape[1], [value for _, value, _ in regions])
    shared = np.zeros(shape, dtype=bool)
    for region, value, _ in sorted(regions, key=lambda entry: -int(entry[0].sum())):
        shared |= region & (mask != 0) & (mask != value)
        mask[region] = value
    return mask, int(shared.sum())


def _region(path: Path) -> Region:
    if path.suffix == ".png":
        return decode_file(path, MAX_PIXELS, lambda image: np.asarray(image.convert("L")) > 0)
    with expecting(path, "an array H,W", Exception):
        array = np.load(path, allow_pickle=False)
    if array.ndim != 2 or array.dtype.kind not in "biu":
        raise ValueError(f"{path}: {array.dtype} of shape {array.shape}; expected whole numbers H,W")
    return np.asarray(array > 0)
