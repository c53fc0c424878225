"""LabelMe 3.0's XML: `Annotations/FOLDER/X.xml` with `Images/FOLDER/X.jpg` and `Masks/FOLDER/`, or all in a folder.

Later objects are drawn over earlier ones; polygons are filled with their border, masks are what is not black. Objects
that were deleted are left out with a count. The classes are those of `labels.txt` in the data set's folder, or else
all names that occur, sorted; background comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from atrous.data.datasets.annotations import Notes, Shape, ShapesMask, expecting, head_of, missing, remembered
from atrous.data.datasets.base import WHOLE, Item, Layout, Listing, is_clutter, split_or_whole
from atrous.data.datasets.class_files import find_class_file, read_classes, with_background
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch, stem_of
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import Region, fill_polygon, size_in
from atrous.data.datasets.xml_records import parse_xml
from atrous.data.images.image_file import decode_file
from atrous.data.images.image_io import MAX_PIXELS, read_size
from atrous.messages import counted

_MOST_PEEKED = 20
_MOST_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class LabelMeXmlMask(ShapesMask):
    """The objects of one image.

    Attributes:
        image: for its size, where the file has none.
        masks: the folder of the masks that the file names.
    """

    image: Path
    masks: Path

    def shapes(self) -> tuple[tuple[int, int], list[Shape]]:
        """See `ShapesMask`."""
        root = _load(self.path)
        rows, columns = _text(root, "imagesize/nrows"), _text(root, "imagesize/ncols")
        with expecting(self.path):
            size = size_in(rows, columns, fields=("nrows", "ncols")) if rows or columns else read_size(self.image)
        objects = enumerate(_objects(root))
        return size, [Shape(f"object {i}", _text(thing, "name"), partial(self._region, thing)) for i, thing in objects]

    def _region(self, thing: Element, height: int, width: int) -> Region:
        if (polygon := thing.find("polygon")) is not None:
            points = [(float(_text(point, "x")), float(_text(point, "y"))) for point in polygon.iter("pt")]
            return fill_polygon(points, height, width)
        # The last part alone: a file must not lead out of the data set.
        name = PurePosixPath(_text(thing, "segm/mask").replace("\\", "/")).name
        if not name:
            raise ValueError("neither a polygon nor a mask; expected one of them")
        place = self.masks / name
        if not place.is_file():
            raise ValueError(f"its mask {place} is not there")
        region = decode_file(place, MAX_PIXELS, lambda image: np.asarray(image.convert("RGB")).any(2))
        if region.shape != (height, width):
            shown = f"{region.shape[1]}x{region.shape[0]}"
            raise ValueError(f"its mask {place} has {shown} pixels; expected {width}x{height}")
        return region


def _load(path: Path) -> Element:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; expected the annotations of one image")
    with expecting(path, "LabelMe's XML"):
        root = parse_xml(path.read_bytes())
    if root.tag != "annotation":
        raise ValueError(f"{path}: <{root.tag[:40]}>; expected <annotation>, LabelMe's XML")
    return root


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _objects(root: Element) -> Iterator[Element]:
    return (thing for thing in root.iterfind("object") if not _is_deleted(thing))


def _is_deleted(thing: Element) -> bool:
    return _text(thing, "deleted") not in ("", "0")


def _files(root: Path) -> list[Path]:
    """LabelMe's files: those in Annotations/ and its folders, or in the data set's folder and those in it."""
    annotations = root / "Annotations"
    base, deep = (annotations, "**/*.xml") if annotations.is_dir() else (root, "*.xml")
    paths = [path for path in sorted(base.glob(deep)) if path.is_file() and not is_clutter(path.name)]
    if not paths and base == root:
        paths = [path for path in sorted(root.glob("*/*.xml")) if path.is_file() and not is_clutter(path.name)]
    return paths


def _is_ours(path: Path) -> bool:
    """Whether a file is LabelMe's: VOC's has the same elements, and bndbox."""
    head = head_of(path)
    named = re.search(rb"<annotation[\s>]", head) and re.search(rb"<(segm|pt)[\s>]", head)
    return named is not None and b"<bndbox" not in head


def _folder_of(root: Path, path: Path) -> str:
    """The folder of a file, below the data set's or Annotations/."""
    base = root / "Annotations" if (root / "Annotations") in path.parents else root
    return path.parent.relative_to(base).as_posix()


def _by_split(root: Path) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    for path in _files(root):
        paths.setdefault(split_or_whole(PurePosixPath(_folder_of(root, path)).name), []).append(path)
    return paths


def _read(root: Path, split: str, paths: list[Path], options: DatasetOptions) -> Listing:
    class_file = find_class_file((root,))
    used = sorted({name for path in _files(root) for name in _scanned(path).names})
    labels, ids = with_background(class_file or root, read_classes(class_file)[0].names if class_file else used)
    search, notes = ImageSearch([options.images, root / "Images", root / "images", root]), Notes()
    items, absent = [], []
    for path in paths:
        folder = "" if _folder_of(root, path) == "." else _folder_of(root, path)
        _, filename, boxes, deleted = _scanned(path)
        if (image := search.find(filename or path.stem, folder) or search.find(path.stem, folder)) is None:
            absent.append(filename or path.name)
            continue
        notes.add("objects are marked as deleted, and are left out", path.name, deleted)
        notes.add("objects are boxes, filled as rectangles", path.name, boxes)
        prefix = f"{folder}/" if folder and split == WHOLE else ""
        masks = root / "Masks" / folder if (root / "Masks").is_dir() else path.parent / "Masks"
        items.append(Item(prefix + stem_of(path.stem), image, LabelMeXmlMask(path, tuple(ids.items()), image, masks)))
    problems = missing(root, absent, len(paths), f"put them into Images/, {SAY_WHERE}")
    read_as = f"LabelMe's XML, with {counted(len(labels), 'class')}; later objects over earlier"
    return Listing(str(root), tuple(items), labels, None, tuple(problems), notes.lines(root), read_as=read_as)


class _Scanned(NamedTuple):
    """The names of a file's objects, its image's name, how many boxes and deleted objects."""

    names: frozenset[str]
    filename: str
    boxes: int
    deleted: int


@remembered(1 << 17)
def _scanned(path: Path) -> _Scanned:
    root = _load(path)
    objects = list(_objects(root))
    names = [_text(thing, "name") for thing in objects]
    if "" in names:
        raise ValueError(f"{path}: object {names.index('')} has no name; expected one")
    boxes = sum(_text(thing, "type") == "bounding_box" for thing in objects)
    deleted = sum(map(_is_deleted, root.iterfind("object")))
    return _Scanned(frozenset(names), _text(root, "filename"), boxes, deleted)


LAYOUT = Layout.of(
    "Annotations/FOLDER/NAME.xml of LabelMe with Images/FOLDER/NAME.jpg",
    _by_split,
    _read,
    recognise=lambda root: any(map(_is_ours, _files(root)[:_MOST_PEEKED])),
)
