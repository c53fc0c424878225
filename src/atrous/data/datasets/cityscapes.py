"""Cityscapes as distributed: `leftImg8bit/SPLIT/CITY`, `gtFine/SPLIT/CITY`, `gtCoarse/SPLIT/CITY` (appendix C).

| split | images | masks |
| --- | --- | --- |
| `train`, `val` | 2,975 and 500 | fine |
| `train_coarse`, `val_coarse` | the same | coarse, if `gtCoarse` is there |
| `train_extra` | 19,998 more | coarse, if `gtCoarse` is there |
| `test` | 1,525 | none: the benchmark's server keeps them |

The paper's train_fine is `train`; its trainval_coarse is `train+val+train_extra`. Masks are `*_labelIds.png`, read as
the 19 train ids. An id that Cityscapes does not define is an error.

    dataset = open_dataset("cityscapes:PATH", "train_extra")
"""

from __future__ import annotations

from pathlib import Path

from atrous.data.datasets.base import Layout, Listing, is_clutter, pair, subfolders
from atrous.data.datasets.class_files import find_class_file, read_classes
from atrous.data.datasets.options import DatasetOptions
from atrous.data.labels import CITYSCAPES, CITYSCAPES_TRAIN_IDS

_PUBLISHED = "Cityscapes is published at https://www.cityscapes-dataset.com/downloads/ (leftImg8bit, gtFine, gtCoarse)"
_COARSE = "_coarse"
_ONLY_COARSE = "train_extra"


def _recognise(root: Path) -> Path | None:
    return root if (root / "leftImg8bit").is_dir() else None


def _splits(root: Path) -> list[str]:
    fine = subfolders(root / "leftImg8bit")
    coarse = [name for name in subfolders(root / "gtCoarse") if name in fine and name != _ONLY_COARSE]
    return [*fine, *(f"{name}{_COARSE}" for name in coarse)]


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    class_file = find_class_file((root,))
    if class_file and not {*CITYSCAPES.names} <= {*read_classes(class_file)[0].names}:
        raise ValueError(f"{class_file}: other classes than Cityscapes' 19, which alone are read from this layout")
    folder = split.removesuffix(_COARSE)
    kind = "gtFine" if folder == split != _ONLY_COARSE else "gtCoarse"
    place, end, mask_end = root / "leftImg8bit" / folder, "_leftImg8bit.png", f"_{kind}_labelIds.png"
    images = _by_name(place, end)
    if split == "test":  # gtFine/test holds masks, in which every pixel is void
        items, _ = pair(place, images, images, None, "")
        why = "Cityscapes keeps the masks of its test split for its server"
        return Listing(str(place), items, CITYSCAPES, unlabelled=why)
    masks = _by_name(root / kind / folder, mask_end)
    items, problems = pair(place, images, images, masks, f"{kind}/{folder}", _PUBLISHED)
    read_as = "Cityscapes, with its 19 classes"
    return Listing(str(place), items, CITYSCAPES, CITYSCAPES_TRAIN_IDS, tuple(problems), read_as=read_as)


def _by_name(folder: Path, end: str) -> dict[str, Path]:
    """The files of all cities whose names have an end, by what is before it, sorted."""
    files = sorted(path for path in folder.glob(f"*/*{end}") if not is_clutter(path.name))
    return {path.name.removesuffix(end): path for path in files}


LAYOUT = Layout(
    "leftImg8bit/SPLIT/CITY/ and gtFine/SPLIT/CITY/ or gtCoarse/SPLIT/CITY/", _PUBLISHED, _recognise, _splits, _read
)
