"""The plain layout: `dataset.yaml`, `images/SPLIT/NAME.jpg|png`, `masks/SPLIT/NAME.png` of the same stem.

names: [background, leaf, stem]
palette: [[0, 0, 0], [0, 200, 0], [200, 100, 0]]   # for masks in colours, and for overlays; by default VOC's colours
ignore: 255                                        # this id neither trains nor counts; by default 255
map: {128: 1, 255: stem}                           # masks store 128 for leaf and 255 for stem
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from atrous.data.datasets.base import Layout, Listing, files_by_stem, names_in, pair, subfolders
from atrous.data.datasets.folding import own_labels
from atrous.data.datasets.options import FILE, DatasetOptions
from atrous.data.image_file import IMAGE_SUFFIXES
from atrous.messages import listed


def _recognise(root: Path) -> Path | None:
    return root if (root / FILE).is_file() else None


def _splits(root: Path) -> list[str]:
    return subfolders(root / "images")


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    image_folder, mask_folder = root / "images" / split, root / "masks" / split
    images, duplicates = files_by_stem(image_folder)
    masks, mask_duplicates = files_by_stem(mask_folder)
    where = f"masks/{split}, of the same stem"
    items, missing = pair(image_folder, images, images, masks, where, _other_files(mask_folder, images))
    orphans = [name for name in masks if name not in images]
    warnings = (f"{mask_folder}: {len(orphans)} masks have no image: {listed(orphans)}",) if orphans else ()
    try:
        labels, remap = own_labels(options)
    except ValueError as error:
        raise ValueError(f"{root / FILE}: {error}") from None
    problems = (*duplicates, *mask_duplicates, *missing)
    read_as = "a plain folder with the classes of dataset.yaml"
    return Listing(str(image_folder), items, labels, remap, problems, warnings, read_as=read_as)


def _other_files(folder: Path, images: Mapping[str, Path]) -> str:
    """What a folder holds in place of the masks of these images, for a message."""
    if not folder.is_dir():
        return "there is no such folder"
    files = [Path(name) for name in names_in(folder)]
    if arrays := [path.name for path in files if path.suffix == ".npy"]:
        advice = "arrays are not read; write each as PNG: Image.fromarray(np.load(PATH).astype(np.uint8)).save(...)"
        return f"it has {listed(arrays)}: {advice}"
    others = [path.name for path in files if path.stem not in images or path.suffix.lower() not in IMAGE_SUFFIXES]
    return f"it has {listed(others)}: name each mask as its image, with .png" if others else ""


LAYOUT = Layout("dataset.yaml, images/SPLIT/ and masks/SPLIT/", "", _recognise, _splits, _read)
