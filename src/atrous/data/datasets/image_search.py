"""Find the images that annotations name, where tools and people put them.

A name in an export is often not the file's: it has folders that were not downloaded, lacks its suffix, has the eight
hexadecimal digits that Label Studio puts before it, or has underscores for spaces.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from atrous.data.datasets.base import WHOLE, is_clutter, split_or_whole
from atrous.data.images.image_file import IMAGE_SUFFIXES

SAY_WHERE = "or give their folder: --images FOLDER"
"""For messages about images that are not there."""
_MOST_FILES = 1_000_000


class ImageSearch:
    """Images below some folders, by the names that annotations have for them."""

    def __init__(self, folders: Sequence[Path | str]) -> None:
        """Nothing is listed yet; those that are empty text or not there count for nothing."""
        given = [*dict.fromkeys(Path(folder) for folder in folders if folder)]
        self._place = given[0]
        self._folders = [folder for folder in given if folder.is_dir()]
        self._index: tuple[_Index, ...] | None = None

    def __str__(self) -> str:
        """The first folder, for messages."""
        return str(self._place)

    def find(self, name: str, within: str = "") -> Path | None:
        """The image of this name, or None: its path below a folder, else its name, its stem, its tidied stem.

        Args:
            name: of a file, with or without folders and suffix; parts that lead out of the folders are dropped.
            within: the folder that it should be in, if there are several of the name, such as that of the split; it is
                not taken from the folder of another split.
        """
        # Of a hundred thousand names: text, for paths are slow.
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("..", ".", "")]
        if not parts or "\0" in name:
            return None
        if os.path.splitext(parts[-1])[1].lower() in IMAGE_SUFFIXES:
            tail = "/".join(parts)
            for folder in self._folders:
                for place in (f"{folder}/{within}/{tail}", f"{folder}/{tail}") if within else (f"{folder}/{tail}",):
                    if os.path.isfile(place):
                        return Path(place)
        wanted = PurePosixPath(*parts)
        for files, key in zip(self._files(), _KEYS, strict=True):
            if places := files.get(key(wanted)):
                return _nearest(places, parts, within)
        return None

    def _files(self) -> tuple[_Index, ...]:
        if self._index is None:
            self._index = tuple(defaultdict(list) for _ in _KEYS)
            # A folder that comes earlier counts, where one is in the other.
            folders = {path: folder for folder in self._folders[::-1] for path in _below(folder)}
            for path, base in sorted(folders.items()):
                for files, key in zip(self._index, _KEYS, strict=True):
                    files[key(path)].append((path, path.relative_to(base).parts[:-1]))
        return self._index


_Index = dict[str, list[tuple[Path, tuple[str, ...]]]]
"""Images, and the folders that they are in below the one that was searched, by name."""


def stem_of(name: str) -> str:
    """A name without the suffix of an image; `frame_1.2` has none."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def tidied(name: str) -> str:
    """A name as uploads change it: spaces become underscores, commas and the like go; accents in one form."""
    plain = unicodedata.normalize("NFC", name).strip().replace(" ", "_")
    return re.sub(r"[^-\w.]", "", plain).lower()


_KEYS: tuple[Callable[[PurePosixPath | Path], str], ...] = (
    lambda path: path.name,
    lambda path: stem_of(path.name),
    lambda path: tidied(stem_of(path.name)),
)


def _below(folder: Path) -> list[Path]:
    """The images in a folder and those in it."""
    paths: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_clutter(name)]
        paths += [Path(place, name) for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if len(paths) > _MOST_FILES:
            break
    return [path for path in paths if not is_clutter(path.name)]


def _nearest(places: list[tuple[Path, tuple[str, ...]]], parts: list[str], within: str) -> Path | None:
    """Of images of a name the one whose folders agree with `parts` and `within`; None if two agree alike."""
    split, wanted = split_or_whole(within), {*parts[:-1], within}
    if split != WHOLE:
        places = [place for place in places if {split_or_whole(name) for name in place[1]} <= {WHOLE, split}]
    scores = [len(wanted & {*folders}) for _, folders in places]
    best = [path for (path, _), score in zip(places, scores, strict=True) if score == max(scores)]
    return best[0] if len(best) == 1 else None
