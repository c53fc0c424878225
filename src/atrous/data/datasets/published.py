"""Published data sets of images with masks of ids, as they are distributed: a table of layouts, `LAYOUTS`.

| name | images and masks | what the ids are |
| --- | --- | --- |
| `kitti` | `training/image_2`, `training/semantic`; `testing` has no masks | Cityscapes' ids |
| `bdd100k` | `images/10k/SPLIT`, `labels/sem_seg/masks/SPLIT`, or `seg/images`, `seg/labels` | Cityscapes' train ids |
| `loveda` | `Train/Urban/images_png`, `Train/Urban/masks_png`; `Rural` and `Val` likewise | 1 to 7; 0 is ignored |
| `pets` | `images/`, `annotations/trimaps/`; its lists are the splits `all` and `test` | pet, background, border |
| `ade20k` | `images/training`, `annotations/training`; `validation` likewise | lines of objectInfo150.txt |
| `vistas` | `training/images`, `training/labels` or `training/v2.0/labels` | places in config.json |

In Vistas, the newer of two versions of labels is read, and classes with `evaluate` false are ignored. The full ADE20K,
with thousands of classes in `*_seg.png` or in masks of 16 bits, is refused. Exports in KITTI's layout with a
label_colors.txt, as of datumaro, have other classes and are read by `pairs.py`.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atrous.data.datasets.annotations import expecting, head_of
from atrous.data.datasets.arrangement import Place
from atrous.data.datasets.array_mask import read_values
from atrous.data.datasets.base import WHOLE, FileMask, Layout, Listing, MaskSource, by_split, split_name, subfolders
from atrous.data.datasets.class_files import find_class_file, read_lines
from atrous.data.datasets.options import FILE, DatasetOptions
from atrous.data.datasets.pairs import files_in, listing_of, plain_mask
from atrous.data.images.image_io import Pixels
from atrous.data.labels import CITYSCAPES, CITYSCAPES_TRAIN_IDS, Colour, Labels, voc_palette
from atrous.messages import counted, listed


class _Classes(NamedTuple):
    """What the masks of a data set hold.

    Attributes:
        labels: the classes.
        read_as: for `Listing`.
        remap: likewise.
        mask: what makes a mask of its path; it pickles.
    """

    labels: Labels
    read_as: str
    remap: tuple[int, ...] | None = None
    mask: Callable[[Path], Path | MaskSource] = plain_mask


Places = Mapping[str, Mapping[str, Place]]
"""By split, the folders by what comes before the names of their items, such as Urban/, or ""."""


def _layout(
    expected: str,
    published: str,
    places: Callable[[Path], Places],
    classes: _Classes | Callable[[Path], _Classes],
    recognise: Callable[[Path], object] | None = None,
    names: Callable[[Path, str], set[str] | None] = lambda root, split: None,
) -> Layout:
    """A layout of folders by split, of classes that are known or in a file; `names` reads lists of stems."""

    def read(root: Path, split: str, folders: Mapping[str, Place], _: DatasetOptions) -> Listing:
        labels, read_as, remap, mask = classes(root) if callable(classes) else classes
        parts = {
            area: listing_of(files_in(place, names(root, split)), mask, labels, read_as)
            for area, place in folders.items()
        }
        first = next(iter(parts.values()))
        if "" in parts:
            return replace(first, remap=remap)
        return replace(
            first,
            place=first.place if len(parts) == 1 else str(Path(first.place).parents[1]),
            items=tuple(i._replace(name=f"{area}/{i.name}") for area, part in parts.items() for i in part.items),
            problems=tuple(line for part in parts.values() for line in part.problems),
            warnings=tuple(line for part in parts.values() for line in part.warnings),
            remap=remap,
        )

    return Layout.of(expected, places, read, published, recognise)


def _place(images: Path, masks: Path) -> dict[str, Place]:
    return {"": Place(images, masks if masks.is_dir() else None)}


def _kitti(root: Path) -> Places:
    train, test = root / "training", root / "testing"
    named = (root / FILE).exists() or find_class_file((root,))
    if named or not all((train / name).is_dir() for name in ("image_2", "semantic")):
        return {}
    places = {WHOLE: _place(train / "image_2", train / "semantic")}
    return places | ({"test": {"": Place(test / "image_2", None)}} if (test / "image_2").is_dir() else {})


def _bdd100k(root: Path) -> Places:
    for images, masks in _of_bdd100k(root):
        return {split: _place(images / split, masks / split) for split in subfolders(images)}
    return {}


def _of_bdd100k(home: Path) -> Iterator[tuple[Path, Path]]:
    for images, masks in (("images/10k", "labels/sem_seg/masks"), ("seg/images", "seg/labels")):
        if (home / images).is_dir() and (home / masks).is_dir():
            yield home / images, home / masks


def _home_of_bdd100k(root: Path) -> Path | None:
    homes = (root, root / "bdd100k", *([root.parent] if root.name == "seg" else []))
    return next((home for home in homes for _ in _of_bdd100k(home)), None)


def _loveda(root: Path) -> Places:
    """The splits come in archives of their own."""
    if areas := _areas(root):
        return {split_name(root.name.lower()): areas}
    return by_split(root, {name.lower(): areas for name in subfolders(root) if (areas := _areas(root / name))})


def _areas(folder: Path) -> dict[str, Place]:
    places = [folder / name for name in subfolders(folder) if name.lower() in ("rural", "urban")]
    there = (place for place in places if (place / "images_png").is_dir())
    return {place.name: _place(place / "images_png", place / "masks_png")[""] for place in there}


def _pets(root: Path) -> Places:
    images, masks = root / "images", root / "annotations" / "trimaps"
    if not (images.is_dir() and masks.is_dir()):
        return {}
    both = all(path.is_file() for path in _lists_of_pets(root).values())
    return {split: _place(images, masks) for split in ((WHOLE, "test") if both else (WHOLE,))}


def _lists_of_pets(root: Path) -> dict[str, Path]:
    return {WHOLE: root / "annotations" / "trainval.txt", "test": root / "annotations" / "test.txt"}


def _names_of_pets(root: Path, split: str) -> set[str] | None:
    """The first word of each line, NAME CLASS SPECIES BREED."""
    path = _lists_of_pets(root)[split]
    return {line.split()[0] for line in read_lines(path) if not line.startswith("#")} if path.is_file() else None


# ADE20K ---------------------------------------------------------------------------------------------------------------

_FULL = (
    "the full ADE20K, whose thousands of classes do not fit masks of 255; expected its scene parsing of 150 classes, "
    "ADEChallengeData2016"
)
_INFO = "objectInfo150.txt"


@dataclass(frozen=True, slots=True)
class AdeMask(FileMask):
    """A mask whose ids start at 1; 0 is ignored."""

    classes: int

    def read(self) -> Pixels:
        """Class ids, uint8 H,W, 255 for 0; ValueError naming the file, for an id of no class or a mask in colours."""
        stored = read_values(self.path)
        if stored.ndim == 3:
            raise ValueError(f"{self}: a mask in colours: {_FULL}")
        if stored.max() > self.classes:
            count = int((stored > self.classes).sum())
            why = f": {_FULL}" if stored.max() > 255 else ""
            raise ValueError(f"{self}: id {stored.max()} ({count} pixels); expected 0..{self.classes}{why}")
        return np.where(stored == 0, 255, stored - 1).astype(np.uint8)


def _ade20k(root: Path) -> Places:
    images, masks = root / "images", root / "annotations"
    names = {*subfolders(masks)}
    places = by_split(root, {n: _place(images / n, masks / n) for n in subfolders(images) if n in names})
    if not places and _is_full_ade20k(root):
        raise ValueError(f"{root}: {_FULL}")
    return places


def _is_full_ade20k(root: Path) -> bool:
    return any((root / f"index_ade20k.{end}").exists() for end in ("pkl", "mat"))


def _is_ade20k(root: Path) -> bool:
    named = any((root / name).is_file() for name in (_INFO, "sceneCategories.txt"))
    return _is_full_ade20k(root) or (named and bool(_ade20k(root)))


def _classes_of_ade20k(root: Path) -> _Classes:
    """Those of a table with the columns Idx and Name; of names with synonyms, the first unless another has it."""
    path = root / _INFO
    with expecting(path, "a table, tabs between Idx, ..., Name, of ids from 1 on"):
        heading, *rows = ([cell.strip() for cell in line.split("\t")] for line in read_lines(path))
        number, name = heading.index("Idx"), heading.index("Name")
        by_id = {int(row[number]): row[name] for row in rows}
        names = [by_id[index] for index in range(1, len(rows) + 1)]
        first = [name.replace(";", ",").split(",")[0].strip() for name in names]
        shortened = [short if first.count(short) == 1 else name for short, name in zip(first, names, strict=True)]
        labels = Labels(tuple(shortened), voc_palette(min(256, len(names))))
    read_as = f"ADE20K, with the {counted(len(labels), 'class')} of {_INFO}; 0 is ignored"
    return _Classes(labels, read_as, mask=partial(_ade_mask, len(labels)))


def _ade_mask(classes: int, path: Path) -> MaskSource:
    return AdeMask(path, classes)


# Mapillary Vistas -----------------------------------------------------------------------------------------------------


def _version(root: Path) -> tuple[str, Path] | None:
    """Where the labels of a version are in the folder of a split, and the file that names its classes."""
    for folder, name in (("v2.0", "config_v2.0.json"), ("v1.2", "config_v1.2.json"), ("", "config.json")):
        configs = [path for path in (root / name, root / folder / name) if path.is_file()]
        if configs and any((root / split / folder / "labels").is_dir() for split in subfolders(root)):
            return folder, configs[0]
    return None


def _vistas(root: Path) -> Places:
    if (version := _version(root)) is None:
        return {}
    head = head_of(version[1], 1 << 22)
    if b'"labels"' not in head or b'"readable"' not in head:
        return {}
    splits = {name: root / name for name in subfolders(root) if (root / name / "images").is_dir()}
    return by_split(root, {name: _place(at / "images", at / version[0] / "labels") for name, at in splits.items()})


def _classes_of_vistas(root: Path) -> _Classes:
    version = _version(root)
    assert version is not None
    labels, remap, ignored = classes_of_config(version[1])
    read_as = f"Mapillary Vistas, with the {counted(len(labels), 'class')} of {version[1].name}"
    return _Classes(labels, read_as + (f"; ignored: {listed(ignored, 5)}" if ignored else ""), remap)


def classes_of_config(path: Path) -> tuple[Labels, tuple[int, ...], list[str]]:
    """The classes, class id by stored id, and the names of those that are ignored."""
    with expecting(path, "`labels`, a list of objects with readable, color, evaluate"):
        records = json.loads(path.read_text("utf-8-sig"))["labels"]
        if not isinstance(records, list) or not 0 < len(records) <= 256:
            raise ValueError(f"labels is {reprlib.repr(records)}")
        readable = [str(record["readable"]).strip() for record in records]
        names, colours, ignored, remap = list[str](), list[Colour](), list[str](), [-1] * 255 + [255]
        for index, record in enumerate(records):
            name = readable[index] if readable.count(readable[index]) == 1 else str(record["name"])
            if not record.get("evaluate", True):
                remap[index] = 255
                ignored.append(name)
                continue
            remap[index] = len(names)
            red, green, blue = (int(part) for part in record["color"])
            names.append(name)
            colours.append((red, green, blue))
        return Labels(tuple(names), tuple(colours)), tuple(remap), ignored


# The table ------------------------------------------------------------------------------------------------------------

_LOVEDA = Labels(
    ("background", "building", "road", "water", "barren", "forest", "agriculture"),
    ((255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128)),
)

LAYOUTS = {
    "kitti": _layout(
        "training/image_2/ and training/semantic/",
        "KITTI's semantic segmentation is published at https://www.cvlibs.net/datasets/kitti/eval_semseg.php",
        _kitti,
        _Classes(CITYSCAPES, "KITTI, with the 19 classes of Cityscapes", CITYSCAPES_TRAIN_IDS),
    ),
    "bdd100k": _layout(
        "images/10k/SPLIT/ and labels/sem_seg/masks/SPLIT/",
        "BDD100K is published at https://doc.bdd100k.com/download.html (10K Images, Segmentation)",
        _bdd100k,
        _Classes(CITYSCAPES, "BDD100K, with the 19 classes of Cityscapes"),
        _home_of_bdd100k,
    ),
    "loveda": _layout(
        "Train/Urban/images_png/ and Train/Urban/masks_png/",
        "LoveDA is published at https://zenodo.org/records/5706578",
        _loveda,
        _Classes(_LOVEDA, "LoveDA, with its 7 classes; 0, no data, is ignored", (255, *range(7), *[-1] * 247, 255)),
    ),
    "pets": _layout(
        "images/NAME.jpg, annotations/trimaps/NAME.png and annotations/trainval.txt",
        "Oxford-IIIT Pet is published at https://www.robots.ox.ac.uk/~vgg/data/pets/",
        _pets,
        _Classes(
            Labels(("background", "pet"), voc_palette(2)),
            "Oxford-IIIT Pet: 1 is pet, 2 is background, 3, the border, is ignored",
            (-1, 1, 0, 255, *[-1] * 251, 255),
        ),
        names=_names_of_pets,
    ),
    "ade20k": _layout(
        f"images/training/, annotations/training/ and {_INFO}",
        "ADE20K's scene parsing is published at http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)",
        _ade20k,
        _classes_of_ade20k,
        _is_ade20k,
    ),
    "vistas": _layout(
        "training/images/, training/labels/ and config.json with the list labels",
        "Mapillary Vistas is published at https://www.mapillary.com/dataset/vistas",
        _vistas,
        _classes_of_vistas,
    ),
}
