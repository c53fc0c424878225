"""The plain layout: `dataset.yaml`, `images/SPLIT/NAME.jpg|png`, `masks/SPLIT/NAME.png` of the same stem.

names: [background, leaf, stem]
palette: [[0, 0, 0], [0, 200, 0], [200, 100, 0]]   # for masks in colours, and for overlays; by default VOC's colours
ignore: 255                                        # this id neither trains nor counts; by default 255
map: {128: 1, 255: stem}                           # masks store 128 for leaf and 255 for stem

Other arrangements of images and masks are read as `arrangement.py` finds them, with the classes of dataset.yaml.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from atrous.data.datasets.arrangement import Place, places_of
from atrous.data.datasets.base import Layout, Listing, names_in, subfolders
from atrous.data.datasets.options import FILE, DatasetOptions, read_options
from atrous.data.datasets.pairing import MASK_SUFFIXES, stem
from atrous.data.datasets.pairs import Files, files_in, files_of, listing_by, splits_of
from atrous.messages import listed


def _recognise(root: Path) -> Path | None:
    return root if (root / FILE).exists() else None  # a pipe is one, too, and is refused by its reader


def _is_plain(root: Path) -> bool:
    """Whether the folders are images/SPLIT, or there are none of another arrangement."""
    return bool(subfolders(root / "images")) or not places_of(root)


def _splits(root: Path) -> list[str]:
    return subfolders(root / "images") if _is_plain(root) else splits_of(root)


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    if not (root / FILE).is_file():
        read_options(root / FILE)  # which says what it is
    if not _is_plain(root):
        return listing_by(root, files_of(root), split, options)
    if not options.names:
        read = {name: files_in(Place(root / "images" / name, root / "masks" / name)) for name in _splits(root)}
    else:
        read = {split: files_in(Place(root / "images" / split, root / "masks" / split))}
    listing = listing_by(root, read, split, options)
    read_as = "a plain folder with the classes of dataset.yaml" if options.names else listing.read_as
    return replace(listing, problems=tuple(_problems(read[split], split)), read_as=read_as)


def _problems(files: Files, split: str) -> list[str]:
    assert files.place.masks is not None
    advice = _other_files(files.place.masks, {*files.pairing.unmasked})
    return files.problems(f"masks/{split}, of the same stem", advice)


def _other_files(folder: Path, images: Collection[str]) -> str:
    """What a folder holds in place of the masks of these images, for a message."""
    if not folder.is_dir():
        return "there is no such folder"
    stems = {stem(name) for name in images}
    others = [name for name in names_in(folder) if stem(name) in stems or not name.lower().endswith((*MASK_SUFFIXES,))]
    return f"it has {listed(others)}: name each mask as its image, with .png" if others else ""


LAYOUT = Layout("dataset.yaml, images/SPLIT/ and masks/SPLIT/", "", _recognise, _splits, _read)
