"""LabelMe's JSON: a file beside each image, or all in a folder a split; later shapes are drawn over earlier ones.

`__ignore__` is ignored, `_background_` is background, as is what no shape covers. The classes are those of `labels.txt`
in the data set's folder, or else all labels that occur, sorted; background comes first, listed or not. A file of
colours keeps its order, and must list background. Points are refused, for they have no area.
An image that is not there is taken from `imageData`, if the file has it. JSON of something else, which names no image,
is left out with a count.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from atrous.data.datasets.annotations import Shape, ShapesMask, expecting, head_of, missing, remembered
from atrous.data.datasets.archive import unpacked_by
from atrous.data.datasets.base import (
    WHOLE,
    Item,
    Layout,
    Listing,
    by_split,
    files_by_stem,
    files_with,
    split_or_whole,
    subfolders,
)
from atrous.data.datasets.class_files import background_index, find_class_file, read_classes, with_background
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch
from atrous.data.datasets.json_records import load_json
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import Region, check_points, fill_polygon, paste, png_region, size_of
from atrous.data.labels import Labels
from atrous.messages import counted, listed

_IGNORE = "__ignore__"
_SIZE = ("imageHeight", "imageWidth")
_LINE_WIDTH = 10
"""Pixels; LabelMe's own."""
_MOST_PEEKED = 20


@dataclass(frozen=True, slots=True)
class LabelMeMask(ShapesMask):
    """The shapes of one image."""

    def shapes(self) -> tuple[tuple[int, int], list[Shape]]:
        """See `ShapesMask`."""
        document = _load(self.path)
        with expecting(self.path):
            size = size_of(*map(document.get, _SIZE), fields=_SIZE)
        shapes = ((index, _label(self.path, index, shape), shape) for index, shape in enumerate(document["shapes"]))
        return size, [Shape(f"shape {index}", label, partial(_region, shape)) for index, label, shape in shapes]


def _load(path: Path) -> dict[str, Any]:
    document = load_json(path, "LabelMe's JSON")
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise ValueError(
            f"{path}: no list of shapes; expected LabelMe's JSON: if it is something else, move it elsewhere"
        )
    return document


def _label(path: Path, index: int, shape: Any) -> str:
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{path}: shape {index} has the label {label!r}; expected a name")
    return label.strip()


def _region(shape: dict[str, Any], height: int, width: int) -> Region:
    kind = shape.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if kind == "polygon" or (kind in ("rectangle", "rotation") and len(points) == 4):  # AnyLabeling's, all corners
        return fill_polygon(points, height, width)
    check_points(points, height, width)
    if kind not in ("rectangle", "circle", "line", "linestrip", "mask"):
        expected = "polygon, rectangle, circle, line, linestrip, mask, rotation of 4 points"
        raise ValueError(f"a {kind}; expected {expected}")
    most = 2 if kind in ("rectangle", "circle", "mask") else len(points)
    if not 2 <= len(points) <= most:
        raise ValueError(f"a {kind} of {counted(len(points), 'point')}; expected 2{'' if most == 2 else ' or more'}")
    (left, top), (right, bottom) = points[:2]
    if kind == "mask":
        inner = png_region(base64.b64decode(shape["mask"], validate=True), height, width)
        return paste(inner, round(left), round(top), height, width)
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    if kind == "rectangle":
        draw.rectangle((min(left, right), min(top, bottom), max(left, right), max(top, bottom)), fill=1)
    elif kind == "circle":
        radius = math.dist(points[0], points[1])
        draw.ellipse((left - radius, top - radius, left + radius, top + radius), fill=1)
    else:
        draw.line(points, fill=1, width=_LINE_WIDTH)
    return np.array(image)


def _folders(root: Path) -> dict[str, list[Path]]:
    """Folders with LabelMe's JSON by split; those in the data set's are one, if none is named as a split."""
    inside = {name: root / name for name in subfolders(root) if _peek(root / name)}
    if any(split_or_whole(name) != WHOLE for name in inside):
        return {split: [place] for split, place in by_split(root, inside).items()}
    places = [*([root] if _peek(root) else []), *inside.values()]
    return {WHOLE: places} if places else {}


def _peek(folder: Path) -> bool:
    heads = map(head_of, files_with(folder, ".json")[:_MOST_PEEKED])
    return any(b'"shapes"' in head and any(key in head for key in _KEYS) for head in heads)


_KEYS = (b'"shape_type"', b'"imagePath"', b'"points"')


def _read(root: Path, split: str, folders: list[Path], options: DatasetOptions) -> Listing:
    labels, ids, ground, source = _classes(root)
    items, absent, problems, warnings, count = [], [], [], [], 0
    for folder in folders:
        paths, foreign = _annotations(folder)
        images, duplicates = files_by_stem(folder)
        if foreign:
            what = "JSON files are not LabelMe's (no shapes, no image of their name), and are left out"
            warnings.append(f"{folder}: {len(foreign)} {what}: {listed(foreign)}")
        problems += duplicates
        count += len(paths)
        prefix = f"{folder.name}/" if len(folders) > 1 and folder != root else ""
        search, used = ImageSearch([folder, options.images, root / "images"]), set()
        named = {stem: images.get(stem) or search.find(_scanned(path)[1]) for stem, path in paths.items()}
        held = _embedded(folder, [paths[stem] for stem, at in named.items() if not at and _scanned(paths[stem])[2]])
        for stem, path in paths.items():
            if (image := named[stem] or held.get(stem)) is None:
                absent.append(path.name)
                continue
            used.add(image)
            items.append(Item(prefix + stem, image, LabelMeMask(path, tuple(ids.items()), ground=ground)))
        others = [f"{path.name} names {other.name}" for path, other in _others(paths, named)]
        if others:
            warnings.append(
                f"{folder}: {len(others)} JSON name another image than the one of their own name, which is taken: "
                f"{listed(others, 2)}; expected one image"
            )
        spare = sorted(stem for stem, image in images.items() if image not in used)
        if spare:
            warnings.append(f"{folder}: {len(spare)} images have no JSON, and are left out: {listed(spare)}")
    place = ", ".join(map(str, folders))
    problems += missing(place, absent, count, f"put them beside their JSON, {SAY_WHERE}")
    read_as = f"LabelMe's JSON, with the {counted(len(labels), 'class')} of {source}; later shapes over earlier"
    return Listing(place, tuple(items), labels, None, tuple(problems), tuple(warnings), read_as=read_as)


def _others(paths: Mapping[str, Path], named: Mapping[str, Path | None]) -> Iterator[tuple[Path, Path]]:
    """The files whose imagePath is an image beside them, but not the one that is taken; and that image."""
    for stem, path in paths.items():
        image, name = named[stem], _scanned(path)[1]
        if image and name and image.name != name and (path.parent / name).is_file():
            yield path, path.parent / name


def _classes(root: Path) -> tuple[Labels, dict[str, int], int, str]:
    """The classes, class id by label, the id of background, and where the classes are from."""
    class_file, ground = find_class_file((root,)), 0
    if class_file is None:
        source = "its shapes"
        places = (folder for folders in _folders(root).values() for folder in folders)
        paths = (path for place in places for path in _annotations(place)[0].values())
        labels, ids = with_background(
            root, sorted({label for path in paths for label in _scanned(path)[0]} - {_IGNORE})
        )
    else:
        source = class_file.name
        labels, by_colour = read_classes(class_file)
        if by_colour:  # whose order is kept
            ground, ids = _background_of(class_file, labels.names), {name: id_ for id_, name in enumerate(labels.names)}
        else:
            labels, ids = with_background(class_file, labels.names)
    empty = dict.fromkeys((labels.names[ground], "_background_"), ground)
    return labels, ids | empty | {_IGNORE: labels.ignore}, ground, source


def _background_of(class_file: Path, names: tuple[str, ...]) -> int:
    place = background_index(names)
    if place is None:
        raise ValueError(
            f"{class_file}: the classes {listed(names)}, none of them background; expected one for the pixels that no "
            "shape covers: add background, or name one of them so"
        )
    return place


def _annotations(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """LabelMe's files in a folder, by stem; and the names of other JSON, such as a tool's settings."""
    paths, images = files_by_stem(folder, (".json",))[0], files_by_stem(folder)[0]
    foreign = {stem for stem in paths.keys() - images.keys() if _is_foreign(paths[stem])}
    ours = {stem: path for stem, path in paths.items() if stem not in foreign}
    return ours, [path.name for stem, path in paths.items() if stem in foreign]


@remembered(1 << 17)
def _is_foreign(path: Path) -> bool:
    """Whether a file is sound JSON of something else, with neither shapes nor an image."""
    if b'"shapes"' in head_of(path):
        return False
    try:
        document = load_json(path, "LabelMe's JSON")
    except ValueError:
        return False  # which the reader says
    return not isinstance(document, dict) or not {"shapes", "imagePath", "imageData"} & document.keys()


@remembered(1 << 17)
def _scanned(path: Path) -> tuple[frozenset[str], str, bool]:
    """The labels of a file's shapes, its image's name, whether it holds the image."""
    document = _load(path)
    labels = frozenset(_label(path, index, shape) for index, shape in enumerate(document["shapes"]))
    return labels, PureWindowsPath(str(document.get("imagePath") or "")).name, bool(document.get("imageData"))


_FORMATS = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}


def _embedded(folder: Path, paths: Sequence[Path]) -> dict[str, Path]:
    """The images in some JSON files of a folder, by stem, in FOLDER-images beside it or in the cache folder.

    Raises:
        ValueError: naming the file, if its imageData is no image.
        OSError: if they cannot be written anywhere.
    """
    if not paths:
        return {}
    stamp = "/".join(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths)
    place = folder.absolute().with_name(f"{folder.absolute().name}-images")
    return files_by_stem(unpacked_by(place, stamp, partial(_fill, paths), folder))[0]


def _fill(paths: Sequence[Path], folder: Path) -> None:
    for path in paths:
        with expecting(f"{path}: imageData", "PNG or JPEG in base64"):
            data = base64.b64decode(_load(path)["imageData"])
            with Image.open(io.BytesIO(data), formats=[*_FORMATS]) as image:
                suffix = _FORMATS[str(image.format)]
        (folder / f"{path.stem}{suffix}").write_bytes(data)


LAYOUT = Layout.of("NAME.json with shapes beside NAME.jpg, in a folder or in one a split", _folders, _read)
