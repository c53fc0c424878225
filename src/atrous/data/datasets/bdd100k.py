"""BDD100K's semantic segmentation: `images/10k/SPLIT` and `labels/sem_seg/masks/SPLIT`, Cityscapes' 19 train ids.

Also as it was first published: `seg/images/SPLIT/NAME.jpg` and `seg/labels/SPLIT/NAME_train_id.png`.
"""

from __future__ import annotations

from pathlib import Path

from atrous.data.datasets.arrangement import Place
from atrous.data.datasets.base import Layout, Listing, subfolders
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.pairs import files_in, listing_of, plain_mask
from atrous.data.labels import CITYSCAPES

_PUBLISHED = "BDD100K is published at https://doc.bdd100k.com/download.html (10K Images, Segmentation)"
_FOLDERS = (("images/10k", "labels/sem_seg/masks"), ("seg/images", "seg/labels"))


def _folders(root: Path) -> tuple[Path, Path] | None:
    places = ((root / images, root / masks) for images, masks in _FOLDERS)
    return next(((images, masks) for images, masks in places if images.is_dir() and masks.is_dir()), None)


def _recognise(root: Path) -> Path | None:
    homes = (root, root / "bdd100k", *([root.parent] if root.name == "seg" else []))
    return next((home for home in homes if _folders(home)), None)


def _splits(root: Path) -> list[str]:
    folders = _folders(root)
    return subfolders(folders[0]) if folders else []


def _read(root: Path, split: str, _: DatasetOptions) -> Listing:
    folders = _folders(root)
    assert folders is not None
    images, masks = folders[0] / split, folders[1] / split
    files = files_in(Place(images, masks if masks.is_dir() else None))
    return listing_of(files, plain_mask, CITYSCAPES, "BDD100K, with the 19 classes of Cityscapes")


LAYOUT = Layout("images/10k/SPLIT/ and labels/sem_seg/masks/SPLIT/", _PUBLISHED, _recognise, _splits, _read)
