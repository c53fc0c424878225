"""LabelMe's JSON: a file beside each image, or all in a folder a split; later shapes are drawn over earlier ones.

`__ignore__` is ignored, `_background_` is background, as is what no shape covers. The classes are those of `labels.txt`
in the data set's folder, or else all labels that occur, sorted; background comes first, listed or not. A file of
colours keeps its order, and must list background. Points are refused, for they have no area.
"""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from atrous.data.datasets.base import WHOLE, Item, Layout, Listing, by_split, files_by_stem, is_clutter, subfolders
from atrous.data.datasets.class_files import background_index, find_class_file, read_classes, with_background
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import Region, fill_polygons
from atrous.data.image_file import IMAGE_SUFFIXES
from atrous.data.image_io import MAX_PIXELS, Pixels
from atrous.messages import counted, did_you_mean, listed

_IGNORE = "__ignore__"
_LINE_WIDTH = 10
"""Pixels; LabelMe's own."""
_PEEKED = 1 << 16


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
        mask = np.full(_size(self.path, document), self.background, dtype=np.uint8)
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
    try:
        document = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; expected LabelMe's JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise ValueError(f"{path}: no list of shapes; expected LabelMe's JSON")
    return document


def _size(path: Path, document: dict[str, Any]) -> tuple[int, int]:
    height, width = document.get("imageHeight"), document.get("imageWidth")
    if not (isinstance(height, int) and isinstance(width, int) and 0 < height * width <= MAX_PIXELS and height > 0):
        raise ValueError(f"{path}: imageHeight {height!r}, imageWidth {width!r}; expected the size in pixels")
    return height, width


def _label(path: Path, index: int, shape: Any) -> str:
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{path}: shape {index} has the label {label!r}; expected a name")
    return label.strip()


def _region(shape: dict[str, Any], height: int, width: int) -> Region:
    kind = shape.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if not all(math.isfinite(part) and abs(part) <= 2 * max(height, width) + 1 for point in points for part in point):
        raise ValueError("points far outside the image; expected pixels")
    least = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "mask": 2}
    if kind not in least:
        raise ValueError(f"a {kind}; expected {', '.join(least)}")
    if len(points) < least[kind]:
        raise ValueError(f"a {kind} of {len(points)} points; expected {least[kind]} or more")
    if kind == "polygon":
        return fill_polygons([points], height, width)
    (left, top), (right, bottom) = points[:2]
    if kind == "mask":
        return _pasted(shape["mask"], round(left), round(top), height, width)
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


def _pasted(text: str, left: int, top: int, height: int, width: int) -> Region:
    """A mask in base64, its corner at left, top."""
    inner = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
    if inner.width > width or inner.height > height:
        raise ValueError(f"a mask of {inner.width}x{inner.height} in an image of {width}x{height}")
    image = Image.new("1", (width, height))
    image.paste(inner.convert("L").point(lambda value: 255 if value else 0).convert("1"), (left, top))
    return np.array(image)


def _folders(root: Path) -> dict[str, Path]:
    """Folders with LabelMe's JSON by split."""
    inside = by_split(root, {name: root / name for name in subfolders(root) if _peek(root / name)})
    return inside or ({WHOLE: root} if _peek(root) else {})


def _peek(folder: Path) -> bool:
    paths = sorted(path for path in folder.glob("*.json") if path.is_file() and not is_clutter(path.name))
    if not paths:
        return False
    with paths[0].open("rb") as file:
        head = file.read(_PEEKED)
    return b'"shapes"' in head and (b'"shape_type"' in head or b'"imagePath"' in head or b'"points"' in head)


def _recognise(root: Path) -> Path | None:
    return root if _folders(root) else None


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    folder = _folders(root)[split]
    paths, _ = files_by_stem(folder, (".json",))
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
    ids = dict(zip(names, order, strict=True)) | empty | {_IGNORE: labels.ignore}
    images, duplicates = files_by_stem(folder)
    items, absent = [], []
    for stem, path in paths.items():
        if (image := images.get(stem) or _image_of(path)) is None:
            absent.append(path.name)
        else:
            items.append(Item(stem, image, LabelMeMask(path, tuple(ids.items()), background)))
    problems = [f"{folder}: {len(absent)} of {len(paths)} files have no image beside them: {listed(absent)}"]
    spare = sorted(images.keys() - paths.keys())
    warnings = (f"{folder}: {len(spare)} images have no JSON, and are left out: {listed(spare)}",) if spare else ()
    read_as = f"LabelMe's JSON, with the {counted(len(labels), 'class', 'classes')} of {source}"
    problems = [*duplicates, *(problems if absent else [])]
    return Listing(str(folder), tuple(items), labels, None, tuple(problems), warnings, read_as=read_as)


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
    names = set()
    for folder in _folders(root).values():
        for path in files_by_stem(folder, (".json",))[0].values():
            names |= {_label(path, index, shape) for index, shape in enumerate(_load(path)["shapes"])}
    return sorted(names - {_IGNORE})


def _image_of(path: Path) -> Path | None:
    """The image that a file names, if it is there."""
    name = PureWindowsPath(str(_load(path).get("imagePath", ""))).name
    place = path.with_name(name) if name else path
    return place if place.suffix.lower() in IMAGE_SUFFIXES and place.is_file() else None


LAYOUT = Layout(
    "NAME.json with shapes beside NAME.jpg, in a folder or in one a split",
    "",
    _recognise,
    lambda root: list(_folders(root)),
    _read,
)
