"""Roboflow's semantic masks: `train/`, `valid/`, `test/`, each with `_classes.csv`, `X.jpg` and `X_mask.png` of ids."""

from __future__ import annotations

import csv
from pathlib import Path

from atrous.data.datasets.annotations import head_of
from atrous.data.datasets.base import WHOLE, Layout, Listing, by_split, files_by_stem, pair, subfolders
from atrous.data.datasets.class_files import read_lines
from atrous.data.datasets.options import DatasetOptions
from atrous.data.labels import Labels, voc_palette
from atrous.messages import counted, listed

_CLASSES = "_classes.csv"
_END = "_mask"


def _folders(root: Path) -> dict[str, Path]:
    if (root / _CLASSES).is_file():
        return {WHOLE: root}
    return by_split(root, {name: root / name for name in subfolders(root) if (root / name / _CLASSES).is_file()})


def _is_ours(root: Path) -> bool:
    # Roboflow's classification exports have a file of the same name, whose first column is filename.
    first = next(iter(_folders(root).values()), None)
    return first is not None and b"pixel" in head_of(first / _CLASSES, 1000).partition(b"\n")[0].lower()


def _read(root: Path, split: str, folder: Path, _: DatasetOptions) -> Listing:
    labels, remap = _read_classes(folder / _CLASSES)
    files, duplicates = files_by_stem(folder)
    images = {stem: path for stem, path in files.items() if not stem.endswith(_END)}
    masks = {stem.removesuffix(_END): path for stem, path in files.items() if stem.endswith(_END)}
    items, problems = pair(folder, images, images, masks, f"{folder.name}, as NAME{_END}.png")
    orphans = sorted(files[f"{stem}{_END}"].name for stem in masks.keys() - images.keys())
    warnings = (f"{folder}: {len(orphans)} masks have no image: {listed(orphans)}",) if orphans else ()
    read_as = f"Roboflow's semantic masks, with the {counted(len(labels), 'class')} of {_CLASSES}"
    return Listing(str(folder), items, labels, remap, (*duplicates, *problems), warnings, read_as=read_as)


def _read_classes(path: Path) -> tuple[Labels, tuple[int, ...]]:
    """The classes in the order of their pixel values, and class id by pixel value, -1 for others but 255."""
    rows = list(csv.reader(read_lines(path), skipinitialspace=True))[1:]
    try:
        by_value = {int(value): name.strip() for value, name in rows}
    except ValueError:
        raise ValueError(f"{path}: {rows[:3]}; expected lines PIXEL VALUE, CLASS") from None
    if len(by_value) < len(rows) or not all(0 <= value <= 255 for value in by_value):
        raise ValueError(
            f"{path}: pixel values {sorted(by_value)[:9]} of {len(rows)} classes; expected one each, 0..255"
        )
    values = sorted(by_value)
    try:
        labels = Labels(tuple(by_value[value] for value in values), voc_palette(min(256, len(values))))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    remap = [-1] * 255 + [labels.ignore]
    for index, value in enumerate(values):
        remap[value] = index
    return labels, tuple(remap)


LAYOUT = Layout.of(
    "train/_classes.csv with train/NAME.jpg and train/NAME_mask.png, and valid/ likewise",
    _folders,
    _read,
    recognise=_is_ours,
)
