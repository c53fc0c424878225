"""LabelMe 3.0's XML: `Annotations/FOLDER/X.xml` with `Images/FOLDER/X.jpg` and `Masks/FOLDER/`, or all in a folder.

Later objects are drawn over earlier ones; polygons are filled with their border, masks are what is not black. Objects
that were deleted are left out with a count. The classes are those of `labels.txt` in the data set's folder, or else
all names that occur, sorted; background comes first.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np

from atrous.data.datasets.base import WHOLE, Item, Layout, Listing, is_clutter, split_or_whole
from atrous.data.datasets.class_files import find_class_file, read_classes, with_background
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch, stem_of
from atrous.data.datasets.notes import Notes
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import Region, blank_mask, check_points, fill_polygons
from atrous.data.datasets.xml_records import parse_xml
from atrous.data.image_file import decode_file
from atrous.data.image_io import MAX_PIXELS, Pixels, read_size
from atrous.data.labels import Labels
from atrous.messages import counted, did_you_mean, listed

_PEEKED = 1 << 16
_MOST_PEEKED = 20
_MOST_BYTES = 1 << 26
_DELETED = "objects are marked as deleted, and are left out"
_BOXES = "objects are boxes, filled as rectangles"


@dataclass(frozen=True)
class LabelMeXmlMask:
    """The objects of one image.

    Attributes:
        path: the XML file.
        image: for its size, where the file has none.
        masks: the folder of the masks that the file names.
        ids: name and class id, pairs, so that items can be hashed.
    """

    path: Path
    image: Path
    masks: Path
    ids: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError or FileNotFoundError naming the file and the object."""
        root = _load(self.path)
        height, width = _size(self.path, root) or read_size(self.image)
        ids = dict(self.ids)
        mask = blank_mask(height, width, ids.values())
        for index, thing in enumerate(_objects(root)):
            name = _text(thing, "name")
            if name not in ids:
                raise ValueError(f"{self}: object {index} is {name!r}, no class{did_you_mean(name, ids)}")
            try:
                region = self._region(thing, height, width)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{self}: object {index}, {name}: {' '.join(str(error).split())}") from None
            mask[region] = ids[name]
        return mask

    def _region(self, thing: Element, height: int, width: int) -> Region:
        if (polygon := thing.find("polygon")) is not None:
            points = [(float(_text(point, "x")), float(_text(point, "y"))) for point in polygon.iter("pt")]
            if len(points) < 3:
                raise ValueError(f"a polygon of {counted(len(points), 'point')}; expected 3 or more")
            check_points(points, height, width)
            return fill_polygons([points], height, width)
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
    try:
        root = parse_xml(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected LabelMe's XML") from None
    if root.tag != "annotation":
        raise ValueError(f"{path}: <{root.tag[:40]}>; expected <annotation>, LabelMe's XML")
    return root


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _objects(root: Element) -> Iterator[Element]:
    return (thing for thing in root.iterfind("object") if not _is_deleted(thing))


def _is_deleted(thing: Element) -> bool:
    return _text(thing, "deleted") not in ("", "0")


def _size(path: Path, root: Element) -> tuple[int, int] | None:
    rows, columns = _text(root, "imagesize/nrows"), _text(root, "imagesize/ncols")
    if not rows and not columns:
        return None
    numbers = [int(text) if text.isdecimal() else 0 for text in (rows[:9], columns[:9])]
    if not 0 < math.prod(numbers) <= MAX_PIXELS:
        raise ValueError(f"{path}: nrows {rows[:9]!r}, ncols {columns[:9]!r}; expected the size in pixels")
    return numbers[0], numbers[1]


def _files(root: Path) -> list[Path]:
    """LabelMe's files: those in Annotations/ and its folders, or in the data set's folder and those in it."""
    annotations = root / "Annotations"
    base, deep = (annotations, "**/*.xml") if annotations.is_dir() else (root, "*.xml")
    paths = [path for path in sorted(base.glob(deep)) if path.is_file() and not is_clutter(path.name)]
    if not paths and base == root:
        paths = [path for path in sorted(root.glob("*/*.xml")) if path.is_file() and not is_clutter(path.name)]
    return paths


def _recognise(root: Path) -> Path | None:
    return root if any(map(_peek, _files(root)[:_MOST_PEEKED])) else None


def _peek(path: Path) -> bool:
    """Whether a file is LabelMe's: VOC's has the same elements, and bndbox."""
    with path.open("rb") as file:
        head = file.read(_PEEKED)
    return (
        bool(re.search(rb"<annotation[\s>]", head) and re.search(rb"<(segm|pt)[\s>]", head)) and b"<bndbox" not in head
    )


def _folder_of(root: Path, path: Path) -> str:
    """The folder of a file, below the data set's or Annotations/."""
    base = root / "Annotations" if (root / "Annotations") in path.parents else root
    return path.parent.relative_to(base).as_posix()


def _split_of(root: Path, path: Path) -> str:
    return split_or_whole(PurePosixPath(_folder_of(root, path)).name)


def _splits(root: Path) -> list[str]:
    return [*{_split_of(root, path) for path in _files(root)}]


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    labels, ids, documents = _classes(root)
    paths = [path for path in documents if _split_of(root, path) == split]
    search, notes = ImageSearch([options.images, root / "Images", root / "images", root]), Notes()
    items, absent = [], []
    for path in paths:
        folder = "" if _folder_of(root, path) == "." else _folder_of(root, path)
        filename, boxes, deleted = documents[path]
        if (image := search.find(filename or path.stem, folder) or search.find(path.stem, folder)) is None:
            absent.append(filename or path.name)
            continue
        for kind, number in ((_DELETED, deleted), (_BOXES, boxes)):
            for _ in range(number):
                notes.add(kind, path.name)
        prefix = f"{folder}/" if folder and split == WHOLE else ""
        masks = root / "Masks" / folder if (root / "Masks").is_dir() else path.parent / "Masks"
        items.append(Item(prefix + stem_of(path.stem), image, LabelMeXmlMask(path, image, masks, tuple(ids.items()))))
    advice = f"put them into Images/, {SAY_WHERE}"
    problem = f"{root}: {len(absent)} of {len(paths)} images are not there: {listed(absent)}; {advice}"
    read_as = f"LabelMe's XML, with {counted(len(labels), 'class', 'classes')}; later objects over earlier"
    problems, warnings = (problem,) if absent else (), tuple(notes.lines(root))
    return Listing(str(root), tuple(items), labels, None, problems, warnings, read_as=read_as)


def _classes(root: Path) -> tuple[Labels, dict[str, int], dict[Path, tuple[str, int, int]]]:
    """Classes, class id by name; by file the image's name, how many boxes and deleted objects."""
    names: set[str] = set()
    documents = {}
    for path in _files(root):
        stat = path.stat()
        used, filename, boxes, deleted = _scanned(path, stat.st_mtime_ns, stat.st_size)
        names |= used
        documents[path] = (filename, boxes, deleted)
    ordered = sorted(names)
    if class_file := find_class_file((root,)):
        ordered = list(read_classes(class_file)[0].names)
    labels, order = with_background(class_file or root, ordered)
    return labels, dict(zip(ordered, order, strict=True)), documents


@functools.lru_cache(maxsize=1 << 17)
def _scanned(path: Path, _changed: int, _length: int) -> tuple[frozenset[str], str, int, int]:
    """The names of a file's objects, its image's name, how many boxes and deleted objects; each split asks again."""
    root = _load(path)
    objects = list(_objects(root))
    for index, thing in enumerate(objects):
        if not _text(thing, "name"):
            raise ValueError(f"{path}: object {index} has no name; expected one")
    boxes = sum(_text(thing, "type") == "bounding_box" for thing in objects)
    deleted = sum(map(_is_deleted, root.iterfind("object")))
    return frozenset(_text(thing, "name") for thing in objects), _text(root, "filename"), boxes, deleted


LAYOUT = Layout(
    "Annotations/FOLDER/NAME.xml of LabelMe with Images/FOLDER/NAME.jpg",
    "",
    _recognise,
    _splits,
    _read,
)
