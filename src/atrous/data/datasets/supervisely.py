"""Supervisely: `meta.json` with the classes, and in each dataset `img/X.jpg` and `ann/X.jpg.json`.

Later objects are drawn over earlier ones. Bitmaps are PNGs, in zlib, in base64, with their corner in `origin`; through
the holes of polygons (`interior`), what is under them is seen; rectangles are filled. Lines, points, graphs and cuboids
have no area and are left out with a count. The classes are those of `meta.json`, in its order, after background.
Datasets named train, val or test are splits; else all are one.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from atrous.data.datasets.annotations import Notes, Shape, ShapesMask, expecting, missing
from atrous.data.datasets.base import (
    WHOLE,
    Item,
    Layout,
    Listing,
    files_by_stem,
    is_clutter,
    split_name,
    split_or_whole,
)
from atrous.data.datasets.class_files import with_background
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch, stem_of
from atrous.data.datasets.json_records import load_json
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import (
    Region,
    check_points,
    fill_oriented,
    fill_polygon,
    fill_polygons,
    paste,
    png_region,
    size_of,
)
from atrous.data.labels import Labels
from atrous.messages import counted, did_you_mean

_META = "meta.json"
_AREAS = ("bitmap", "polygon", "rectangle")
_MOST_BYTES = 1 << 28
_PNG_BYTES = 1 << 16
"""That a PNG may have beside its pixels."""


@dataclass(frozen=True, slots=True)
class SuperviselyMask(ShapesMask):
    """The objects of one image."""

    def shapes(self) -> tuple[tuple[int, int], list[Shape]]:
        """See `ShapesMask`."""
        document = _load(self.path)
        with expecting(f"{self}: size"):
            size = size_of(document["size"]["height"], document["size"]["width"])
        things = ((f"object {i}", *_of(self.path, i, thing), thing) for i, thing in enumerate(document["objects"]))
        return size, [
            Shape(what, title, partial(_region, kind, thing), kind)
            for what, title, kind, thing in things
            if kind in _AREAS
        ]


def _load(path: Path) -> dict[str, Any]:
    document = load_json(path, "Supervisely's JSON, with size and objects")
    if not isinstance(document, dict) or not isinstance(document.get("objects"), list):
        raise ValueError(f"{path}: no list of objects; expected Supervisely's JSON")
    return document


def _of(path: Path, index: int, thing: Any) -> tuple[str, str]:
    """The class and the kind of an object; the kind was not written by old versions."""
    title = thing.get("classTitle") if isinstance(thing, dict) else None
    if not isinstance(title, str) or not title.strip():
        raise ValueError(f"{path}: object {index} has the classTitle {str(title)[:80]!r}; expected a name")
    kind = thing.get("geometryType") or ("bitmap" if thing.get("bitmap") else "polygon")
    return title.strip(), str(kind)


def _region(kind: str, thing: dict[str, Any], height: int, width: int) -> Region:
    if kind == "bitmap":
        left, top = (int(part) for part in thing["bitmap"]["origin"])
        packed = base64.b64decode(thing["bitmap"]["data"], validate=True)
        inflate = zlib.decompressobj()
        most = 4 * height * width + _PNG_BYTES
        data = inflate.decompress(packed, most)
        if inflate.unconsumed_tail:
            raise ValueError(f"a bitmap of more than {most} bytes; expected a PNG that fits {width}x{height} pixels")
        return paste(png_region(data, height, width), left, top, height, width)
    outer = _points(thing["points"]["exterior"], height, width)
    if kind == "rectangle":
        (left, top), (right, bottom) = np.sort(outer[:2], axis=0)  # of the pixels at its corners
        centre, half = (
            ((left + right + 1) / 2, (top + bottom + 1) / 2),
            ((right - left + 1) / 2, (bottom - top + 1) / 2),
        )
        return fill_oriented(centre, half, 0, height, width, ellipse=False)
    region = fill_polygon(outer, height, width)
    for inner in thing["points"].get("interior") or []:
        hole = _points(inner, height, width)
        if len(hole) > 2:
            region &= ~fill_polygons([hole], height, width)
    return region


def _points(points: Any, height: int, width: int) -> list[tuple[float, float]]:
    pairs = [(float(x), float(y)) for x, y in points]
    check_points(pairs, height, width)
    return pairs


def _is_project(root: Path) -> bool:
    path = root / _META
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return False
    return b'"classes"' in path.read_bytes() and bool(_folders(root))


def _folders(root: Path) -> list[Path]:
    """The datasets, which may be in one another's `datasets/`."""
    places = (path.parent for path in sorted(root.glob("**/ann")) if path.is_dir())
    return [place for place in places if not any(map(is_clutter, place.relative_to(root).parts))]


def _dataset(root: Path, folder: Path) -> str:
    return "/".join(part for part in folder.relative_to(root).parts if part != "datasets")


def _places(root: Path) -> dict[str, list[Path]]:
    """Datasets by split: by their names if one is named as a split, else all of them."""
    folders = _folders(root)
    names = [_dataset(root, folder) for folder in folders]
    named = any(split_or_whole(name) != WHOLE for name in names)
    places: dict[str, list[Path]] = {}
    for name, folder in zip(names, folders, strict=True):
        places.setdefault(split_name(name) if named else WHOLE, []).append(folder)
    return places


def _read(root: Path, split: str, folders: list[Path], options: DatasetOptions) -> Listing:
    labels, ids = _classes(root / _META)
    notes, spare = Notes(), 0
    items, absent, problems = list[Item](), list[str](), list[str]()
    for folder in folders:
        search = ImageSearch([folder / "img", options.images])
        prefix = f"{_dataset(root, folder)}/" if len(folders) > 1 else ""
        for name, path in files_by_stem(folder / "ann", (".json",))[0].items():
            if (image := search.find(name)) is None:
                absent.append(prefix + name)
                continue
            _note(path, notes, ids, problems)
            items.append(Item(prefix + stem_of(name), image, SuperviselyMask(path, tuple(ids.items()))))
        known = {item.image.name for item in items}
        spare += sum(path.name not in known for path in files_by_stem(folder / "img")[0].values())
    advice = f"download the project with its images, put them into img/, {SAY_WHERE}"
    problems += missing(root, absent, len(absent) + len(items), advice)
    read_as = f"a Supervisely project, with the {counted(len(ids), 'class')} of {_META}; later objects over earlier"
    left_out = {"no annotation in ann/": spare} if spare else {}
    return Listing(
        str(root), tuple(items), labels, None, tuple(problems), notes.lines(root), left_out=left_out, read_as=read_as
    )


def _note(path: Path, notes: Notes, ids: dict[str, int], problems: list[str]) -> None:
    """Note the objects that have no area, and rectangles; a file that cannot be read is a problem."""
    try:
        kinds = [_of(path, index, thing) for index, thing in enumerate(_load(path)["objects"])]
    except ValueError as error:
        problems.append(str(error))
        return
    for title, kind in kinds:
        if title not in ids:
            problems.append(f"{path}: an object is {title!r}, no class of {_META}{did_you_mean(title, ids)}")
        if kind == "rectangle":
            notes.add("objects are rectangles, and are filled", path.name)
        elif kind not in _AREAS:
            notes.add(f"objects of the kind {kind!r} have no area that is read, and are left out", path.name)


def _classes(path: Path) -> tuple[Labels, dict[str, int]]:
    meta = load_json(path, "Supervisely's meta.json, with classes")
    with expecting(f"{path}: classes", "a list with a title each"):
        titles = [entry["title"].strip() for entry in meta["classes"]]
        if not titles:
            raise ValueError("empty")
    return with_background(path, titles)


LAYOUT = Layout.of(
    "meta.json, DATASET/img/NAME.jpg and DATASET/ann/NAME.jpg.json", _places, _read, recognise=_is_project
)
