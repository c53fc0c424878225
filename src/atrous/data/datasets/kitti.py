"""KITTI's semantic segmentation as distributed: `training/image_2` with `training/semantic`, ids of Cityscapes.

Its 200 images of `training` are the split `all`: none is there to validate on. `testing` has no masks. Exports in this
layout with a label_colors.txt, as of datumaro, have other classes and are read by `pairs.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from atrous.data.datasets.arrangement import Place
from atrous.data.datasets.base import WHOLE, Layout, Listing
from atrous.data.datasets.class_files import find_class_file
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.pairs import files_in, listing_of, plain_mask
from atrous.data.labels import CITYSCAPES, CITYSCAPES_TRAIN_IDS

_PUBLISHED = "KITTI's semantic segmentation is published at https://www.cvlibs.net/datasets/kitti/eval_semseg.php"


def _recognise(root: Path) -> Path | None:
    parts = (root / "training" / name for name in ("image_2", "semantic"))
    named = (root / "dataset.yaml").exists() or find_class_file((root,))
    return root if not named and all(part.is_dir() for part in parts) else None


def _splits(root: Path) -> list[str]:
    return [WHOLE, *(["test"] if (root / "testing" / "image_2").is_dir() else [])]


def _read(root: Path, split: str, _: DatasetOptions) -> Listing:
    folder = root / ("testing" if split == "test" else "training")
    place = Place(folder / "image_2", None if split == "test" else folder / "semantic")
    listing = listing_of(files_in(place), plain_mask, CITYSCAPES, "KITTI, with the 19 classes of Cityscapes")
    return replace(listing, remap=CITYSCAPES_TRAIN_IDS)


LAYOUT = Layout("training/image_2/ and training/semantic/", _PUBLISHED, _recognise, _splits, _read)
