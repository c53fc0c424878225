"""What the readers of labelling tools share: finding files, naming errors, remembering what a file has, drawing shapes.

A reader parses the file of its tool into the shapes of each image; a `ShapesMask` draws them when the mask is read.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from atrous.data.datasets.base import FileMask, files_with, is_clutter, is_empty
from atrous.data.datasets.regions import Region, blank_mask
from atrous.data.images.image_io import Pixels
from atrous.messages import did_you_mean, listed

T = TypeVar("T")

HEAD = 1 << 16
"""Bytes by which a file is recognised."""
_ODD = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, OSError, EOFError, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What parsers raise on a file that is not as they expect it; zlib, base64 and Pillow have kinds of their own."""


@contextlib.contextmanager
def expecting(
    place: object, expected: str = "", kinds: tuple[type[Exception], ...] | type[Exception] = _ODD
) -> Iterator[None]:
    """Turn what a parser raises, of some kinds, into a ValueError of one line: where, why, and what was expected."""
    try:
        yield
    except FileNotFoundError:
        raise
    except kinds as error:
        if str(error).startswith(str(place)):
            raise
        kind = "without" if isinstance(error, KeyError) else type(error).__name__
        reason = str(error) if isinstance(error, ValueError) else f"{kind} {error}"
        raise ValueError(f"{place}: {' '.join(reason.split())}{expected and f'; expected {expected}'}") from None


def remembered(most: int) -> Callable[[Callable[[Path], T]], Callable[[Path], T]]:
    """Keep what is read of the last files until they change, for each split asks again."""

    def decorated(read: Callable[[Path], T]) -> Callable[[Path], T]:
        @functools.lru_cache(maxsize=most)
        def kept(path: Path, changed: int, length: int) -> T:
            return read(path)

        def current(path: Path) -> T:
            status = path.stat()
            return kept(path, status.st_mtime_ns, status.st_size)

        return current

    return decorated


def head_of(path: Path, length: int = HEAD) -> bytes:
    """The first bytes of a file behind blanks and a byte order mark; none of clutter, or of what is no file."""
    if is_clutter(path.name) or not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(length).lstrip(b"\xef\xbb\xbf \t\r\n")


def annotation_files(
    root: Path, groups: Iterable[Sequence[Path]], suffix: str, is_one: Callable[[Path], object]
) -> list[Path]:
    """A tool's files in the first group of folders that has one, and the empty ones, which their reader refuses.

    If the root is a file, itself, or none.
    """
    if root.is_file():
        return [root] if root.suffix.lower() == suffix and is_one(root) else []
    for folders in groups:
        paths = [path for folder in folders for path in files_with(folder, suffix)]
        if any(map(is_one, paths)):
            return [path for path in paths if is_one(path) or is_empty(path)]
    return []


def missing(place: object, absent: Sequence[str], count: int, advice: str) -> list[str]:
    """A problem, if some of `count` images that annotations name are not there."""
    named = listed([*dict.fromkeys(absent)])
    return [f"{place}: {len(absent)} of {count} images are not there: {named}; {advice}"] if absent else []


class Notes:
    """What a reader leaves out or guesses, with examples: kinds of remark, each with the places where it holds."""

    def __init__(self) -> None:
        """Nothing is noted yet."""
        self._places: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, place: str, times: int = 1) -> None:
        """Note more cases: `kind` follows a number, such as "polylines have no area, and are left out"."""
        self._places[kind] += [place] * times

    def update(self, other: Notes) -> None:
        """Take over the remarks of another."""
        for kind, places in other._places.items():
            self._places[kind] += places

    def lines(self, where: object) -> tuple[str, ...]:
        """A line a kind: where, how many, of what, and two places."""
        kinds = ((kind, places) for kind, places in self._places.items() if places)
        return tuple(f"{where}: {len(places)} {kind}: {listed([*dict.fromkeys(places)], 2)}" for kind, places in kinds)


class Shape(NamedTuple):
    """One shape of an annotation.

    Attributes:
        what: for messages, such as "object 3".
        label: its class, as the file names it.
        draw: the region, bool H,W, given height and width; it may raise what parsers do.
        kind: for messages, such as "polygon", or "".
    """

    what: str
    label: str
    draw: Callable[[int, int], Region]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class ShapesMask(FileMask):
    """The shapes of one image, later over earlier, drawn when the mask is read.

    Attributes:
        ids: label and class id, pairs, so that items can be hashed.
        ground: the class id of what no shape covers.
    """

    ids: tuple[tuple[str, int], ...]
    ground: int = field(default=0, kw_only=True)

    def shapes(self) -> tuple[tuple[int, int], Iterable[Shape]]:
        """Height and width of the image, and its shapes in the order of drawing; errors as `read`."""
        raise NotImplementedError

    def read(self) -> Pixels:
        """Class ids, uint8 or uint16 H,W; ValueError naming file and shape; FileNotFoundError, if the file is gone."""
        (height, width), shapes = self.shapes()
        ids = dict(self.ids)
        mask = blank_mask(height, width, ids.values())
        mask[:] = self.ground
        for what, label, draw, kind in shapes:
            if label not in ids:
                raise ValueError(f"{self}: {what} is {label!r}, no class{did_you_mean(label, ids)}")
            with expecting(f"{self}: {what}, {label}{kind and f', a {kind}'}"):
                mask[draw(height, width)] = ids[label]
        return mask


OUTLINE = "outline the object with a polygon in your tool, or delete it there, and export again"
"""What mends a box among polygons."""
CHANGED = "the file has changed since it was listed; expected it as it was"


def bytes_of(path: Path, start: int, end: int) -> bytes:
    """A part of a file, such as the annotations of one image; OSError, if the file is gone."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)
