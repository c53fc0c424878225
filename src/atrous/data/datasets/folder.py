"""A plain folder: `dataset.yaml`, `images/SPLIT/NAME.jpg|png`, `masks/SPLIT/NAME.png` of the same stem."""

from __future__ import annotations

from pathlib import Path

from atrous.data.datasets.base import Layout, Listing, by_stem, named, paired, subfolders
from atrous.data.labels import load_labels


def _find(root: Path) -> Path | None:
    return root if (root / "dataset.yaml").is_file() else None


def _splits(root: Path) -> list[str]:
    return subfolders(root / "images")


def _list(root: Path, split: str) -> Listing:
    place = root / "images" / split
    images, doubles = by_stem(place)
    masks, mask_doubles = by_stem(root / "masks" / split)
    items, problems = paired(place, images, images, masks, f"masks/{split}, of the same stem")
    orphans = [name for name in masks if name not in images]
    warnings = (f"{root / 'masks' / split}: {len(orphans)} masks have no image: {named(orphans)}",) if orphans else ()
    labels = load_labels(root / "dataset.yaml")
    return Listing(str(place), items, labels, None, (*doubles, *mask_doubles, *problems), warnings)


FOLDER = Layout("dataset.yaml, images/SPLIT/ and masks/SPLIT/", "", _find, _splits, _list)
