"""ADE20K's scene parsing: `images/training`, `annotations/training`, `validation` likewise, `objectInfo150.txt`.

A mask's id 0 is ignored; id n is the n-th line of `objectInfo150.txt`. The full ADE20K, with thousands of classes in
`*_seg.png` or in masks of 16 bits, is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from atrous.data.datasets.arrangement import Place
from atrous.data.datasets.array_mask import read_values
from atrous.data.datasets.base import Layout, Listing, MaskSource, by_split, subfolders
from atrous.data.datasets.class_files import read_lines
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.pairs import files_in, listing_of
from atrous.data.image_io import Pixels
from atrous.data.labels import Labels, voc_palette
from atrous.messages import counted

_PUBLISHED = "ADE20K's scene parsing is published at http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)"
_FULL = (
    "the full ADE20K, whose thousands of classes do not fit masks of 255; expected its scene parsing of 150 classes, "
    "ADEChallengeData2016"
)
_INFO = "objectInfo150.txt"


@dataclass(frozen=True, slots=True)
class AdeMask:
    """A mask whose ids start at 1; 0 is ignored."""

    path: Path
    classes: int

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Pixels:
        """Class ids, uint8 H,W, 255 for 0; ValueError naming the file, for an id of no class or a mask in colours."""
        stored = read_values(self.path)
        if stored.ndim == 3:
            raise ValueError(f"{self}: a mask in colours: {_FULL}")
        if stored.max() > self.classes:
            count = int((stored > self.classes).sum())
            why = f": {_FULL}" if stored.max() > 255 else ""
            raise ValueError(f"{self}: id {stored.max()} ({count} pixels); expected 0..{self.classes}{why}")
        return np.where(stored == 0, 255, stored - 1).astype(np.uint8)


def _recognise(root: Path) -> Path | None:
    named = any((root / name).is_file() for name in (_INFO, "sceneCategories.txt"))
    if named and _folders(root):
        return root
    return root if _is_full(root) else None


def _is_full(root: Path) -> bool:
    indices = itertools.chain.from_iterable(root.glob(f"index_ade20k.{end}") for end in ("pkl", "mat"))
    return next(indices, None) is not None


def _folders(root: Path) -> dict[str, str]:
    images, masks = subfolders(root / "images"), subfolders(root / "annotations")
    return by_split(root, {name: name for name in images if name in masks})


def _splits(root: Path) -> list[str]:
    if not _folders(root):
        raise ValueError(f"{root}: {_FULL}")
    return list(_folders(root))


def _read(root: Path, split: str, _: DatasetOptions) -> Listing:
    name = _folders(root)[split]
    labels = _labels(root / _INFO)
    files = files_in(Place(root / "images" / name, root / "annotations" / name))
    read_as = f"ADE20K, with the {counted(len(labels), 'class')} of {_INFO}; 0 is ignored"
    return listing_of(files, partial(_mask, len(labels)), labels, read_as)


def _mask(classes: int, path: Path) -> MaskSource:
    return AdeMask(path, classes)


def _labels(path: Path) -> Labels:
    """The classes of a table with the columns Idx and Name; of names with synonyms, the first unless another has it."""
    lines = [line.split("\t") for line in read_lines(path)]
    heading, rows = [column.strip() for column in lines[0]] if lines else [], lines[1:]
    try:
        number, name = heading.index("Idx"), heading.index("Name")
        listed = {int(row[number]): row[name].strip() for row in rows}
        names = [listed[index] for index in range(1, len(rows) + 1)]
        return Labels(tuple(_shortened(names)), voc_palette(min(256, len(names))))
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: {error}; expected a table, tabs between Idx, ..., Name, of ids from 1 on") from None


def _shortened(names: Sequence[str]) -> list[str]:
    first = [name.replace(";", ",").split(",")[0].strip() for name in names]
    return [short if first.count(short) == 1 else name for short, name in zip(first, names, strict=True)]


LAYOUT = Layout(f"images/training/, annotations/training/ and {_INFO}", _PUBLISHED, _recognise, _splits, _read)
