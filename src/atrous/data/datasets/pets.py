"""Oxford-IIIT Pet: `images/`, `annotations/trimaps/`; in a trimap, 1 is the pet, 2 background, 3 the border, ignored.

The images of `annotations/trainval.txt` are the split `all`, those of `test.txt` are `test`; without lists, all is one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from atrous.data.datasets.arrangement import Place
from atrous.data.datasets.base import WHOLE, Layout, Listing
from atrous.data.datasets.class_files import read_lines
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.pairs import files_in, listing_of, plain_mask
from atrous.data.labels import Labels, voc_palette

PETS = Labels(("background", "pet"), voc_palette(2))
_PUBLISHED = "Oxford-IIIT Pet is published at https://www.robots.ox.ac.uk/~vgg/data/pets/"
_REMAP = (-1, 1, 0, 255, *[-1] * 251, 255)


def _recognise(root: Path) -> Path | None:
    return root if (root / "annotations" / "trimaps").is_dir() and (root / "images").is_dir() else None


def _splits(root: Path) -> list[str]:
    return [WHOLE, *(["test"] if _list(root, WHOLE) and _list(root, "test") else [])]


def _list(root: Path, split: str) -> Path | None:
    path = root / "annotations" / ("trainval.txt" if split == WHOLE else "test.txt")
    return path if path.is_file() else None


def _read(root: Path, split: str, _: DatasetOptions) -> Listing:
    path = _list(root, split)
    names = _names(path) if path else None
    files = files_in(Place(root / "images", root / "annotations" / "trimaps"), names)
    read_as = "Oxford-IIIT Pet: 1 is pet, 2 is background, 3, the border, is ignored"
    return replace(listing_of(files, plain_mask, PETS, read_as), remap=_REMAP)


def _names(path: Path) -> set[str]:
    """The first word of each line, NAME CLASS SPECIES BREED."""
    return {line.split()[0] for line in read_lines(path) if not line.startswith("#")}


LAYOUT = Layout(
    "images/NAME.jpg, annotations/trimaps/NAME.png and annotations/trainval.txt",
    _PUBLISHED,
    _recognise,
    _splits,
    _read,
)
