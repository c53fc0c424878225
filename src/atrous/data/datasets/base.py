"""What all layouts share: `Item`, `Listing`, `Layout`, and pairing images with masks by stem.

Each layout has a file of its own here (`folder.py`, `voc.py`, `cityscapes.py`, `coco.py`); `layouts.py` lists them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from atrous.data.datasets.options import DatasetOptions
from atrous.data.image_file import IMAGE_SUFFIXES
from atrous.data.image_io import Pixels
from atrous.data.labels import Labels
from atrous.messages import listed

T = TypeVar("T")


class MaskSource(Protocol):
    """A mask that is not an image file of ids: `str()` names it in messages; it pickles, for loader workers."""

    def read(self) -> Pixels:
        """The ids as stored, uint8 H,W; ValueError or FileNotFoundError naming the file."""


class Item(NamedTuple):
    """One image and its mask; without a mask, every pixel is ignored."""

    name: str
    image: Path
    mask: Path | MaskSource | None


@dataclass(frozen=True)
class Listing:
    """The files and classes of one split, before any pixel is read.

    Attributes:
        place: where the split is, for messages.
        items: the images that have a mask.
        labels: the classes.
        remap: class id by stored id, 256 entries, -1 for an id that must not occur; None: stored ids are class ids.
        problems: one line each; any of them makes the split unfit.
        warnings: one line each, for what looks like a mistake.
        unlabelled: why there are no masks, or "". A split without masks can be predicted, not trained on or scored.
        left_out: by reason, how many images the layout's rule leaves out.
        read_as: what the data was taken for, for `atrous data check`.
    """

    place: str
    items: tuple[Item, ...]
    labels: Labels
    remap: tuple[int, ...] | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unlabelled: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    read_as: str = ""


@dataclass(frozen=True)
class Layout:
    """One way to arrange a data set on disk.

    Attributes:
        expected: the files that it has, for messages.
        published: where such data can be downloaded, a sentence for messages, or "".
        recognise: the data set's folder, given the one that the user names; None if it is of another layout.
        splits: names of the splits that are there.
        read: the classes and samples of one split, by the options that are the layout's own, such as `images`; names
            and classes are folded afterwards.
    """

    expected: str
    published: str
    recognise: Callable[[Path], Path | None]
    splits: Callable[[Path], list[str]]
    read: Callable[[Path, str, DatasetOptions], Listing]


_CLUTTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "__macosx"})


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is what a tool left behind, not data: `._x.jpg`, `Thumbs.db`, `@eaDir`."""
    return name.startswith(".") or name.lower() in _CLUTTER


def files_by_stem(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> tuple[dict[str, Path], list[str]]:
    """The files of a folder by stem, sorted; and a problem, at most one line, if some of them share a stem."""
    files: dict[str, Path] = {}
    duplicates = []
    for path in (folder / name for name in names_in(folder)):
        if path.suffix.lower() in suffixes and (other := files.setdefault(path.stem, path)) != path:
            duplicates.append(f"{other.name} and {path.name}")
    if not duplicates:
        return files, []
    return files, [f"{folder}: {listed(duplicates)} have the same stem; expected one file a name"]


def names_in(folder: Path) -> list[str]:
    """Sorted names of what is in a folder, without clutter; none if the folder is not there."""
    return sorted(name for name in os.listdir(folder) if not is_clutter(name)) if folder.is_dir() else []


def pair(
    place: Path,
    names: Iterable[str],
    images: Mapping[str, Path],
    masks: Mapping[str, Path | MaskSource] | None,
    where: str,
    published: str = "",
) -> tuple[tuple[Item, ...], list[str]]:
    """Items of the names that have an image and a mask, and a line each for those that lack one.

    With `masks` None, no item has a mask and none is missed.
    """
    names, end = list(names), f"; {published}" if published else ""
    no_image = [name for name in names if name not in images]
    no_mask = [name for name in names if name in images and masks is not None and name not in masks]
    problems = []
    if no_image:
        problems.append(f"{place}: {len(no_image)} of {len(names)} names have no image: {listed(no_image)}{end}")
    if no_mask:
        problems.append(
            f"{place}: {len(no_mask)} of {len(names)} images have no mask in {where}: {listed(no_mask)}{end}"
        )
    lacking = {*no_image, *no_mask}
    complete = (name for name in names if name not in lacking)
    return tuple(Item(name, images[name], None if masks is None else masks[name]) for name in complete), problems


WHOLE = "all"
"""The split of a data set that has none."""
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "default": WHOLE,
}


def split_name(name: str) -> str:
    """What a folder or file of a split is called here: valid is val, for one."""
    return _SPLIT_NAMES.get(name.lower(), name)


def split_or_whole(name: str) -> str:
    """The split that the name of a file, task or folder says, such as train for Train; `WHOLE` if it says none."""
    return _SPLIT_NAMES.get(name.lower(), WHOLE)


def split_of_file(path: Path, root: Path) -> str:
    """The split that a file of annotations says by its name, or by that of its folder, if it is in one of `root`."""
    split = split_or_whole(path.stem)
    return split_or_whole(path.parent.name) if split == WHOLE and path.parent.parent == root else split


def by_split(root: Path, places: Mapping[str, T]) -> dict[str, T]:
    """The places of the splits, by the names of their folders or files, by split.

    Raises:
        ValueError: naming both, if two are of the same split, such as valid and val.
    """
    names: dict[str, str] = {}
    for name in places:
        if (other := names.setdefault(split_name(name), name)) != name:
            first, second = sorted((other, name))
            raise ValueError(
                f"{root}: {first} and {second} are both the split {split_name(name)}; expected one of them: merge "
                "them, or rename one or move it elsewhere"
            )
    return {split_name(name): place for name, place in places.items()}


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without clutter; none if it is not there."""
    return [name for name in names_in(folder) if (folder / name).is_dir()]
