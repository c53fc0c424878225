"""Find the mask of each image by its name: the same stem, or that and `_mask`, `_L`, `-seg`, `mask_` and the like."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atrous.data.datasets.base import files_and_folders
from atrous.data.images.image_file import IMAGE_SUFFIXES

ARRAY_SUFFIXES = (".npy", ".npz")
MASK_SUFFIXES = IMAGE_SUFFIXES | {*ARRAY_SUFFIXES}

_DEPTH = 6
_MASK = (
    r"masks?|labels?|seg|segs|segm|segmentations?|semantic|gt|gts|ground_?truth|annotations?|annot|anno|ann|lab|targets?|"
    r"label_?ids?|label_?train_?ids?|train_?ids?|1st_manual|manual\d?|trimap|matte|colou?r_?mask|[lp]"
)
_IMAGE = r"images?|imgs?|im|rgb|sat|photos?|pictures?|input|original|raw|training|leftimg8bit"
_ENDS = {kind: re.compile(rf"[ _.-]+(?:{words})$") for kind, words in (("mask", _MASK), ("image", _IMAGE))}
_STARTS = {kind: re.compile(rf"^(?:{words})(?:[ _.-]+|(?=\d))") for kind, words in (("mask", _MASK), ("image", _IMAGE))}


@dataclass(frozen=True)
class Pairing:
    """What became of the files of two folders, by their names.

    Attributes:
        pairs: stem, image and mask, sorted.
        unmasked: images without a mask.
        orphans: masks without an image.
        ambiguous: a clause for each image of several masks and for images that share a stem.
    """

    pairs: list[tuple[str, str, str]] = field(default_factory=list)
    unmasked: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)


def files_below(folder: Path, deep: bool = True) -> list[str]:
    """Sorted paths of the files in a folder and, if `deep`, in its folders: relative, without clutter.

    Links to folders are followed, to a depth of some folders, for they may lead round in a circle.
    """
    names, waiting = [], [""]
    while waiting:
        below = waiting.pop()
        files, folders = files_and_folders(folder / below)
        names += [f"{below}{name}" for name in files]
        if deep and below.count("/") < _DEPTH:
            waiting += [f"{below}{name}/" for name in folders]
    return sorted(names)


def stem(name: str) -> str:
    """A relative path without its suffix."""
    place = name.rfind(".")
    return name[:place] if place > name.rfind("/") + 1 and place < len(name) - 1 else name


def is_mask_name(name: str) -> bool:
    """Whether a file's name says that it is a mask: `X_mask.png`, `mask_X.png`."""
    return _key(stem(name), "mask") != stem(name).casefold()


def are_beside(images: Iterable[str], masks: Sequence[str]) -> bool:
    """Whether one of some masks goes with an image."""
    keys = {_key(stem(name), "mask") for name in masks}
    return any(stem(name).casefold() in keys or _key(stem(name), "image") in keys for name in images)


def paired(images: Sequence[str], masks: Sequence[str]) -> Pairing:
    """Pair the names of images with those of masks: by stem, else by what is left of the stems without such words."""
    result = Pairing()
    by_stem: dict[str, str] = {}
    for name in images:
        if (other := by_stem.setdefault(stem(name), name)) != name:
            result.ambiguous.append(f"{other} and {name} have the same stem")
    exact = _grouped((stem(name), name) for name in masks)
    spare = _grouped(
        (key, name)
        for own, names in exact.items()
        if own not in by_stem
        for key in {own.casefold(), _key(own, "mask")}
        for name in names
    )
    used = {name for own, names in exact.items() if own in by_stem for name in names}
    for own, image in by_stem.items():
        alike = exact.get(own) or spare.get(own.casefold()) or spare.get(_key(own, "image")) or []
        _add(result, own, image, alike, used if own not in exact else set())
    result.orphans.extend(name for name in masks if name not in used)
    return result


def _add(result: Pairing, own: str, image: str, masks: list[str], used: set[str]) -> None:
    """Note what became of an image, of which `masks` may be the mask; `used` are those of other images."""
    if not masks:
        result.unmasked.append(image)
    elif len(masks) > 1:
        result.ambiguous.append(f"{' and '.join(masks[:3])} are masks of {image}")
    elif masks[0] in used:
        result.ambiguous.append(f"{masks[0]} is the mask of {image} and of another image")
    else:
        result.pairs.append((own, image, masks[0]))
    used.update(masks)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for key, name in pairs:
        groups[key].append(name)
    return groups


def suffixed(names: Iterable[str], suffixes: Iterable[str]) -> list[str]:
    """The names that end in one of the suffixes, in any case."""
    known = tuple(suffixes)
    return [name for name in names if name.lower().endswith(known)]


def _key(own: str, kind: str) -> str:
    """A stem in lower case, without the words that say what the file is."""
    place, slash, last = own.casefold().rpartition("/")
    if kind == "mask" and "." in last and last.endswith(tuple(IMAGE_SUFFIXES)):  # X.jpg.png
        last = last[: last.rindex(".")]
    short = _ENDS[kind].sub("", last)
    return place + slash + (_STARTS[kind].sub("", short) or short)
