"""The plain layout: `dataset.yaml`, `images/SPLIT/NAME.jpg|png`, `masks/SPLIT/NAME.png` of the same stem."""

from __future__ import annotations

from pathlib import Path

from atrous.data.datasets.base import Layout, Listing, files_by_stem, first_few, pair, subfolders
from atrous.data.labels import load_labels


def _recognise(root: Path) -> Path | None:
    return root if (root / "dataset.yaml").is_file() else None


def _splits(root: Path) -> list[str]:
    return subfolders(root / "images")


def _read(root: Path, split: str) -> Listing:
    image_folder, mask_folder = root / "images" / split, root / "masks" / split
    images, duplicates = files_by_stem(image_folder)
    masks, mask_duplicates = files_by_stem(mask_folder)
    items, problems = pair(image_folder, images, images, masks, f"masks/{split}, of the same stem")
    orphans = [name for name in masks if name not in images]
    warnings = (f"{mask_folder}: {len(orphans)} masks have no image: {first_few(orphans)}",) if orphans else ()
    labels = load_labels(root / "dataset.yaml")
    problems = [*duplicates, *mask_duplicates, *problems]
    return Listing(str(image_folder), items, labels, problems=tuple(problems), warnings=warnings)


LAYOUT = Layout("dataset.yaml, images/SPLIT/ and masks/SPLIT/", "", _recognise, _splits, _read)
