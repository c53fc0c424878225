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
from pathlib import Path
from typing import Any

import numpy as np

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
from atrous.data.datasets.notes import Notes
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import (
    Region,
    blank_mask,
    check_points,
    fill_oriented,
    fill_polygons,
    paste,
    png_region,
    size_of,
)
from atrous.data.image_file import IMAGE_SUFFIXES
from atrous.data.image_io import Pixels
from atrous.data.labels import Labels
from atrous.messages import counted, did_you_mean, listed

_META = "meta.json"
_AREAS = ("bitmap", "polygon", "rectangle")
_MOST_BYTES = 1 << 28
_PNG_BYTES = 1 << 16
"""That a PNG may have beside its pixels."""


@dataclass(frozen=True)
class SuperviselyMask:
    """The objects of one image.

    Attributes:
        path: the JSON file.
        ids: title and class id, pairs, so that items can be hashed.
    """

    path: Path
    ids: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError naming the file and the object."""
        document, ids = _load(self.path), dict(self.ids)
        height, width = _size(self.path, document)
        mask = blank_mask(height, width, ids.values())
        for index, thing in enumerate(document["objects"]):
            title, kind = _of(self.path, index, thing)
            if title not in ids:
                raise ValueError(f"{self}: object {index} is {title!r}, no class of {_META}{did_you_mean(title, ids)}")
            if kind not in _AREAS:
                continue
            try:
                region = _region(kind, thing, height, width)
            # zlib, base64 and Pillow raise kinds of their own.
            except (ValueError, KeyError, TypeError, IndexError, OverflowError, OSError, zlib.error) as error:
                reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
                raise ValueError(f"{self}: object {index}, {title}, a {kind}: {' '.join(reason.split())}") from None
            mask[region] = ids[title]
        return mask


def _load(path: Path) -> dict[str, Any]:
    document = load_json(path, "Supervisely's JSON, with size and objects")
    if not isinstance(document, dict) or not isinstance(document.get("objects"), list):
        raise ValueError(f"{path}: no list of objects; expected Supervisely's JSON")
    return document


def _size(path: Path, document: dict[str, Any]) -> tuple[int, int]:
    size = document.get("size")
    sides: dict[str, Any] = size if isinstance(size, dict) else {}
    height, width = sides.get("height"), sides.get("width")
    if (fits := size_of(height, width)) is None:
        raise ValueError(f"{path}: size is {str(size)[:80]}; expected height and width in pixels")
    return fits


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
    if len(outer) < 3:
        raise ValueError(f"{counted(len(outer), 'point')}; expected 3 or more: draw it anew, or delete it")
    region = fill_polygons([outer], height, width)
    for inner in thing["points"].get("interior") or []:
        hole = _points(inner, height, width)
        if len(hole) > 2:
            region &= ~fill_polygons([hole], height, width)
    return region


def _points(points: Any, height: int, width: int) -> list[tuple[float, float]]:
    pairs = [(float(x), float(y)) for x, y in points]
    check_points(pairs, height, width)
    return pairs


def _recognise(root: Path) -> Path | None:
    path = root / _META
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    return root if b'"classes"' in path.read_bytes() and _folders(root) else None


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


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    labels, ids = _classes(root / _META)
    folders, notes = _places(root)[split], Notes()
    items, absent, spare = [], [], []
    problems: list[str] = []
    for folder in folders:
        search = ImageSearch([folder / "img", options.images])
        prefix = f"{_dataset(root, folder)}/" if len(folders) > 1 else ""
        paths, _ = files_by_stem(folder / "ann", (".json",))
        for name, path in paths.items():
            if (image := search.find(name)) is None:
                absent.append(prefix + name)
                continue
            _note(path, notes, ids, problems)
            items.append(Item(prefix + stem_of(name), image, SuperviselyMask(path, tuple(ids.items()))))
        known = {item.image.name for item in items}
        spare += [
            path.name for path in files_by_stem(folder / "img", IMAGE_SUFFIXES)[0].values() if path.name not in known
        ]
    if absent:
        count = len(absent) + len(items)
        advice = f"download the project with its images, put them into img/, {SAY_WHERE}"
        problems.append(f"{root}: {len(absent)} of {count} images are not there: {listed(absent)}; {advice}")
    classes = f"the {counted(len(ids), 'class', 'classes')} of {_META}"
    read_as = f"a Supervisely project, with {classes}; later objects over earlier"
    left_out = {"no annotation in ann/": len(spare)} if spare else {}
    warnings = tuple(notes.lines(root))
    return Listing(str(root), tuple(items), labels, None, tuple(problems), warnings, "", left_out, read_as)


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
    classes = meta.get("classes") if isinstance(meta, dict) else None
    titles = (
        [entry.get("title") if isinstance(entry, dict) else None for entry in classes]
        if isinstance(classes, list)
        else []
    )
    if not titles or not all(isinstance(title, str) for title in titles):
        raise ValueError(f"{path}: classes are {str(classes)[:80]}; expected a list with a title each")
    names = [str(title).strip() for title in titles]
    labels, ids = with_background(path, names)
    return labels, dict(zip(names, ids, strict=True))


LAYOUT = Layout(
    "meta.json, DATASET/img/NAME.jpg and DATASET/ann/NAME.jpg.json",
    "",
    _recognise,
    lambda root: list(_places(root)),
    _read,
)
