"""What all layouts share: `Item`, `Listing`, `Layout`, and pairing images with masks by stem.

Each layout has a file of its own here (`voc.py`, `cityscapes.py`, `coco.py`, ...); `layouts.py` lists them.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
import os
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import numpy.typing as npt

from atrous.data.datasets.options import DatasetOptions
from atrous.data.images.image_file import IMAGE_SUFFIXES
from atrous.data.images.samples import AS_IT_IS, ImageRule
from atrous.data.labels import Colour, Labels
from atrous.messages import listed

T = TypeVar("T")


class MaskSource(Protocol):
    """A mask that is not an image file of ids: `str()` names it in messages; it pickles, for loader workers."""

    def read(self) -> npt.NDArray[Any]:
        """The ids as stored, uint8 or uint16 H,W; ValueError or FileNotFoundError naming the file."""


@dataclass(frozen=True, slots=True)
class FileMask:
    """The start of a `MaskSource` that is in a file.

    Attributes:
        path: of the file.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)


class Item(NamedTuple):
    """One image and its mask; without a mask, every pixel is ignored."""

    name: str
    image: Path
    mask: Path | MaskSource | None


class Items(Sequence[Item]):
    """Items that are built when they are asked for: 100,000 take 10 MB, of which their paths would take 200.

    `Items([("a", "a.jpg", "a_L.png")], build)[0]` is `build("a", "a.jpg", "a_L.png")`.
    """

    def __init__(self, rows: Iterable[Sequence[str]], build: Callable[..., Item]) -> None:
        """Store the text of each row; `build`, which pickles, makes an item of it."""
        lines = ["\0".join(row).encode("utf-8", "surrogateescape") for row in rows]
        self._text, self._build = b"".join(lines), build
        self._ends = array("Q", itertools.accumulate(map(len, lines), initial=0))
        self._order: Sequence[int] = range(len(lines))

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> Item | Items:
        """One item, or some of them without building any."""
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        row = self._order[index]
        text = self._text[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")
        return self._build(*text.split("\0"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __mul__(self, times: int) -> Items:
        return self.take([*range(len(self))] * times)

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Iterable[int]) -> Items:
        """Those of some indices, in their order, which share this one's memory; an index may occur several times."""
        other = copy.copy(self)
        other._order = array("Q", (self._order[index] for index in indices))
        return other


def selected(items: Sequence[Item], indices: Iterable[int]) -> Sequence[Item]:
    """The items of some indices."""
    return items.take(indices) if isinstance(items, Items) else tuple(items[index] for index in indices)


@dataclass(frozen=True)
class Listing:
    """The files and classes of one split, before any pixel is read.

    Attributes:
        place: where the split is, for messages.
        items: the images that have a mask.
        labels: the classes.
        remap: class id by stored id, 256 or 65,536 entries, -1 for one that must not occur; None: they are class ids.
        problems: one line each; any of them makes the split unfit.
        warnings: one line each, for what looks like a mistake.
        unlabelled: why there are no masks, or "". A split without masks can be predicted, not trained on or scored.
        left_out: by reason, how many images the layout's rule leaves out.
        read_as: what the data was taken for, for `atrous data check`.
        colours: by stored id, for masks of colours; None: the classes' colours, if stored ids are class ids.
        ignored: more colours of masks, that are ignored.
        rule: how the samples of images become colours.
    """

    place: str
    items: Sequence[Item]
    labels: Labels
    remap: tuple[int, ...] | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unlabelled: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    read_as: str = ""
    colours: tuple[Colour, ...] | None = None
    ignored: tuple[Colour, ...] = ()
    rule: ImageRule = AS_IT_IS


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

    @classmethod
    def of(
        cls,
        expected: str,
        places: Callable[[Path], Mapping[str, T]],
        read: Callable[[Path, str, T, DatasetOptions], Listing],
        published: str = "",
        recognise: Callable[[Path], object] | None = None,
    ) -> Layout:
        """One whose `read` gets the place of its split; it is recognised by what is true, or where there are places.

        What `recognise` gives may be the folder itself, where that is not the root.
        """

        def home(root: Path) -> Path | None:
            answer = (recognise or places)(root)
            return answer if isinstance(answer, Path) else root if answer else None

        return cls(
            expected,
            published,
            home,
            lambda root: [*places(root)],
            lambda root, split, options: read(root, split, places(root)[split], options),
        )


_NOTES = re.compile(r"(?i)(readme|licen[cs]e|notes?|citation|changelog)\b.*|.*\.(md|pdf|html|rst)")
_CLUTTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "__macosx"})


def is_note(name: str) -> bool:
    """Whether a file of this name lies beside data for people to read."""
    return _NOTES.fullmatch(name) is not None


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


_SCANS: ContextVar[dict[str, tuple[list[str], list[str]]] | None] = ContextVar("scans", default=None)
"""Names of the files and of the folders in each folder, while `scanned_once`."""


@contextlib.contextmanager
def scanned_once() -> Iterator[None]:
    """Read the list of a folder's names once, while this lasts: every layout looks into the same large folders."""
    token = _SCANS.set({} if _SCANS.get() is None else _SCANS.get())
    try:
        yield
    finally:
        _SCANS.reset(token)


def files_and_folders(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the files and of the folders in a folder, without clutter; none if the folder is not there."""
    scans = _SCANS.get()
    key = str(folder)
    if scans is not None and key in scans:
        return scans[key]
    files: list[str] = []
    folders: list[str] = []
    if folder.is_dir():
        with os.scandir(folder) as entries:  # which tells a folder from a file without asking the disk for each
            for entry in entries:
                if not is_clutter(entry.name):
                    (folders if entry.is_dir() else files).append(entry.name)
    result = sorted(files), sorted(folders)
    if scans is not None:
        scans[key] = result
    return result


def stamp_of(path: Path) -> str:
    """What changes with a file; "" where it cannot be looked at."""
    try:
        status = path.stat()
        return f"{status.st_mtime_ns}/{status.st_size}"
    except OSError:
        return ""


def is_empty(path: Path) -> bool:
    """Whether a path is a file without a byte."""
    return path.is_file() and path.stat().st_size == 0


def names_in(folder: Path) -> list[str]:
    """Sorted names of what is in a folder, without clutter; none if the folder is not there."""
    files, folders = files_and_folders(folder)
    return sorted(files + folders) if folders else [*files]


def files_with(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder whose names end in a suffix, in either case, sorted, without clutter."""
    return [folder / name for name in files_and_folders(folder)[0] if name.lower().endswith(suffix)]


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
    return [*files_and_folders(folder)[1]]
