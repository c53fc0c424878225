"""LabelMe's JSON: a file beside each image, or all in a folder a split; later shapes are drawn over earlier ones.

`__ignore__` is ignored, `_background_` is background, as is what no shape covers. The classes are those of `labels.txt`
in the data set's folder, or else all labels that occur, sorted; background comes first, listed or not. A file of
colours keeps its order, and must list background. Points are refused, for they have no area.
An image that is not there is taken from `imageData`, if the file has it.
"""

from __future__ import annotations

import base64
import functools
import math
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

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
from atrous.data.datasets.embedded_images import embedded_images
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch
from atrous.data.datasets.json_records import load_json
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import Region, blank_mask, check_points, fill_polygons, paste, png_region, size_of
from atrous.data.image_io import Pixels
from atrous.data.labels import Labels
from atrous.messages import counted, did_you_mean, listed

_IGNORE = "__ignore__"
_LINE_WIDTH = 10
"""Pixels; LabelMe's own."""
_PEEKED = 1 << 16
_MOST_PEEKED = 20


@dataclass(frozen=True)
class LabelMeMask:
    """The shapes of one image.

    Attributes:
        path: the JSON file.
        ids: label and class id, pairs, so that items can be hashed.
        background: the class id of what no shape covers.
    """

    path: Path
    ids: tuple[tuple[str, int], ...]
    background: int

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Pixels:
        """Class ids, 255 for `__ignore__`, uint8 H,W; ValueError naming the file and the shape."""
        document, ids = _load(self.path), dict(self.ids)
        mask = blank_mask(*_size(self.path, document), ids.values())
        mask[:] = self.background
        for index, shape in enumerate(document["shapes"]):
            label = _label(self.path, index, shape)
            if label not in ids:
                raise ValueError(f"{self}: shape {index} is {label!r}, no class{did_you_mean(label, ids)}")
            try:
                region = _region(shape, *mask.shape)
            except (ValueError, KeyError, TypeError, IndexError, OverflowError, OSError) as error:
                reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
                raise ValueError(f"{self}: shape {index}, {label}: {' '.join(reason.split())}") from None
            mask[region] = ids[label]
        return mask


def _load(path: Path) -> dict[str, Any]:
    document = load_json(path, "LabelMe's JSON")
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise ValueError(f"{path}: no list of shapes; expected LabelMe's JSON")
    return document


def _size(path: Path, document: dict[str, Any]) -> tuple[int, int]:
    height, width = document.get("imageHeight"), document.get("imageWidth")
    if (fits := size_of(height, width)) is None:
        raise ValueError(f"{path}: imageHeight {height!r}, imageWidth {width!r}; expected the size in pixels")
    return fits


def _label(path: Path, index: int, shape: Any) -> str:
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{path}: shape {index} has the label {label!r}; expected a name")
    return label.strip()


def _region(shape: dict[str, Any], height: int, width: int) -> Region:
    kind = shape.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in shape["points"]]
    check_points(points, height, width)
    least = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "mask": 2}
    if kind not in least:
        raise ValueError(f"a {kind}; expected {', '.join(least)}")
    if len(points) < least[kind]:
        raise ValueError(f"a {kind} of {len(points)} points; expected {least[kind]} or more")
    if kind == "polygon":
        return fill_polygons([points], height, width)
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
    paths = [path for path in files_with(folder, ".json") if path.is_file()]
    return any(map(_is_ours, paths[:_MOST_PEEKED]))


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_PEEKED)
    return b'"shapes"' in head and (b'"shape_type"' in head or b'"imagePath"' in head or b'"points"' in head)


def _recognise(root: Path) -> Path | None:
    return root if _folders(root) else None


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    folders = _folders(root)[split]
    labels, ids, background, source = _classes(root)
    items, absent, problems, warnings, count = [], [], [], [], 0
    for folder in folders:
        paths, _ = files_by_stem(folder, (".json",))
        images, duplicates = files_by_stem(folder)
        problems += duplicates
        count += len(paths)
        prefix = f"{folder.name}/" if len(folders) > 1 and folder != root else ""
        search, used = ImageSearch([folder, options.images, root / "images"]), set()
        named = {stem: images.get(stem) or _image_of(path, search) for stem, path in paths.items()}
        held = embedded_images(folder, [paths[stem] for stem, at in named.items() if not at and _scan(paths[stem])[2]])
        for stem, path in paths.items():
            if (image := named[stem] or held.get(stem)) is None:
                absent.append(path.name)
                continue
            used.add(image)
            items.append(Item(prefix + stem, image, LabelMeMask(path, tuple(ids.items()), background)))
        spare = sorted(stem for stem, image in images.items() if image not in used)
        if spare:
            warnings.append(f"{folder}: {len(spare)} images have no JSON, and are left out: {listed(spare)}")
    place = ", ".join(map(str, folders))
    if absent:
        problems.append(
            f"{place}: {len(absent)} of {count} files have no image beside them: {listed(absent)}; put them there, "
            f"{SAY_WHERE}"
        )
    read_as = (
        f"LabelMe's JSON, with the {counted(len(labels), 'class', 'classes')} of {source}; later shapes over earlier"
    )
    return Listing(place, tuple(items), labels, None, tuple(problems), tuple(warnings), read_as=read_as)


def _classes(root: Path) -> tuple[Labels, dict[str, int], int, str]:
    """The classes, class id by label, the id of background, and where the classes are from."""
    class_file, background = find_class_file((root,)), 0
    if class_file is not None:
        labels, by_colour = read_classes(class_file)
        names, source = list(labels.names), class_file.name
        if by_colour:
            background, order = _background_of(class_file, names), list(range(len(names)))
        else:
            labels, order = with_background(class_file, names)
    else:
        names, source = _labels_of(root), "its shapes"
        labels, order = with_background(root, names)
    empty = dict.fromkeys((labels.names[background], "_background_"), background)
    return labels, dict(zip(names, order, strict=True)) | empty | {_IGNORE: labels.ignore}, background, source


def _background_of(class_file: Path, names: list[str]) -> int:
    """The place of background among classes with colours, whose order is kept."""
    place = background_index(names)
    if place is None:
        raise ValueError(
            f"{class_file}: the classes {listed(names)}, none of them background; expected one for the pixels that no "
            "shape covers: add background, or name one of them so"
        )
    return place


def _labels_of(root: Path) -> list[str]:
    """All labels in all splits, sorted."""
    names = set[str]()
    for folder in (folder for folders in _folders(root).values() for folder in folders):
        for path in files_by_stem(folder, (".json",))[0].values():
            names |= _scan(path)[0]
    return sorted(names - {_IGNORE})


def _image_of(path: Path, search: ImageSearch) -> Path | None:
    """The image that a file names, if it is there."""
    return search.find(PureWindowsPath(_scan(path)[1]).name)


def _scan(path: Path) -> tuple[frozenset[str], str, bool]:
    stat = path.stat()
    return _scanned(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1 << 17)
def _scanned(path: Path, _changed: int, _length: int) -> tuple[frozenset[str], str, bool]:
    """The labels of a file's shapes, its image's name, whether it holds the image; kept, for each split asks again."""
    document = _load(path)
    labels = (_label(path, index, shape) for index, shape in enumerate(document["shapes"]))
    return frozenset(labels), str(document.get("imagePath") or ""), bool(document.get("imageData"))


LAYOUT = Layout(
    "NAME.json with shapes beside NAME.jpg, in a folder or in one a split",
    "",
    _recognise,
    lambda root: list(_folders(root)),
    _read,
)
