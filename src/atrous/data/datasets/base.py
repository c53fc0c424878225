"""What every layout of a data set on disk shares: an item, a listing of a split, and how names and files are paired.

`folder.py`, `voc.py`, `cityscapes.py` and `coco.py` each hold one layout, `datasets.py` opens any of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from atrous.data.image_file import IMAGE_SUFFIXES
from atrous.data.image_io import Pixels
from atrous.data.labels import Labels


class MaskSource(Protocol):
    """A mask that is no picture on disk: `str()` names it in messages, and it pickles, for workers to read from."""

    def read(self) -> Pixels:
        """The ids as stored, uint8 H,W; ValueError or FileNotFoundError naming the file."""


class Item(NamedTuple):
    """One image and its mask: a file, what else one can be read from, or none, and then every pixel is ignored."""

    name: str
    image: Path
    mask: Path | MaskSource | None


@dataclass(frozen=True)
class Listing:
    """What a split holds, before any pixel is read.

    Attributes:
        place: where it lies, for messages.
        items: the pairs that are there.
        labels: the classes.
        remap: 256 ids by stored id, -1 where no such id exists; or none.
        problems: one line for each thing that makes the split unfit.
        warnings: one line for each thing that looks like a mistake.
        unlabelled: why there are no masks, if there are none: such a split can be predicted, not trained on or scored.
        left_out: by reason, how many images the layout's rule leaves out.
    """

    place: str
    items: tuple[Item, ...]
    labels: Labels
    remap: tuple[int, ...] | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unlabelled: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A way in which data sets lie on disk.

    Attributes:
        expected: what is to be there, for messages.
        published: where such data can be had, a sentence for messages; or nothing.
        find: the folder that it lies in, from the one that a user names; None if it is not of this layout.
        splits: the splits that are there.
        list: one of them.
    """

    expected: str
    published: str
    find: Callable[[Path], Path | None]
    splits: Callable[[Path], list[str]]
    list: Callable[[Path, str], Listing]


def by_stem(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> tuple[dict[str, Path], list[str]]:
    """The pictures of a folder by stem, sorted, and a line for each stem that two of them share."""
    found: dict[str, Path] = {}
    doubles = []
    names = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
    for path in (folder / name for name in names if not name.startswith(".")):
        if path.suffix.lower() not in suffixes:
            continue
        other = found.setdefault(path.stem, path)
        if other != path:
            doubles.append(f"{folder}: {other.name} and {path.name} have the same stem; expected one file a name")
    return found, doubles


def named(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def paired(
    place: Path,
    names: Iterable[str],
    images: Mapping[str, Path],
    masks: Mapping[str, Path | MaskSource] | None,
    where: str,
    published: str = "",
) -> tuple[tuple[Item, ...], list[str]]:
    """The pairs that are whole, and a line each for the names that lack an image or, unless masks are None, a mask."""
    names, end = list(names), f"; {published}" if published else ""
    no_image = [name for name in names if name not in images]
    no_mask = [name for name in names if name in images and masks is not None and name not in masks]
    problems = []
    if no_image:
        problems.append(f"{place}: {len(no_image)} of {len(names)} names have no image: {named(no_image)}{end}")
    if no_mask:
        problems.append(
            f"{place}: {len(no_mask)} of {len(names)} images have no mask in {where}: {named(no_mask)}{end}"
        )
    lacking = {*no_image, *no_mask}
    whole = (name for name in names if name not in lacking)
    return tuple(Item(name, images[name], None if masks is None else masks[name]) for name in whole), problems


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder; none if it is not there."""
    return [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []
