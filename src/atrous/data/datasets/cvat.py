"""CVAT for images: `annotations.xml`, or several such files, with polygons, masks, boxes and ellipses of each image.

Shapes are drawn in z-order, those of one level in the order of the file. Boxes and ellipses are filled, as CVAT's own
export of masks does; polylines, points, skeletons, cuboids and tags have no area and are left out with a count. The
classes are the labels of the file, in its order, after background. Images of a subset are a split, as are files such
as `train.xml`. An image that occurs twice, say in two tasks, has the shapes of the later.

CVAT for video has tracks over frames: export it as CVAT for images, which has the shapes of each frame.
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from atrous.data.datasets.base import (
    WHOLE,
    Item,
    Layout,
    Listing,
    annotation_files,
    is_clutter,
    split_name,
    split_of_file,
    split_or_whole,
    subfolders,
)
from atrous.data.datasets.class_files import with_background
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch, stem_of
from atrous.data.datasets.notes import Notes
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import Region, blank_mask, check_points, fill_oriented, fill_polygons, paste
from atrous.data.datasets.xml_records import XmlRecord, parse_xml, xml_records
from atrous.data.image_io import MAX_PIXELS, Pixels
from atrous.data.labels import Labels
from atrous.messages import counted, did_you_mean, listed

IGNORE = "__ignore__"
"""The label, as in LabelMe, of what neither trains nor counts."""
_PEEKED = 1 << 16
_AREAS = ("polygon", "mask", "box", "ellipse")
_NO_AREA = ("polyline", "points", "skeleton", "cuboid", "tag")
_VIDEO = "tracks of CVAT for video; expected CVAT for images, which has the shapes of each frame: export it as that"
_SAVE_IMAGES = f"export with 'Save images', put them into images/ beside the XML, {SAY_WHERE}"


class _Image(NamedTuple):
    """One `<image>`: its name and split in the file, and its first and last byte."""

    name: str
    subset: str
    start: int
    end: int


@dataclass
class _Content:
    """What one XML has: labels in order, subsets by task, images, `Notes`, labels of shapes that are not listed."""

    labels: list[str] = field(default_factory=list)
    subsets: dict[str, str] = field(default_factory=dict)
    images: list[_Image] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    shapes: Counter[str] = field(default_factory=Counter)
    used: dict[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class CvatMask:
    """The shapes of one image.

    Attributes:
        path: the XML.
        name: of the image, there.
        start: first byte of its element.
        end: behind its last byte.
        encoding: of the file.
        ids: label and class id, pairs, so that items can be hashed.
    """

    path: Path
    name: str
    start: int
    end: int
    encoding: str
    ids: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.path}, image {self.name}"

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError naming file, image and shape; FileNotFoundError, if the file is gone."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.end - self.start)
        try:
            image = parse_xml(data, self.encoding)
        except ValueError:
            image = Element("")
        if image.tag != "image" or image.get("name") != self.name:
            raise ValueError(f"{self}: the file has changed since it was listed; expected it as it was")
        try:
            height, width = _size(image)
            shapes = [shape for shape in image if shape.tag in _AREAS]
            shapes.sort(key=lambda shape: int(shape.get("z_order") or 0))
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from None
        ids = dict(self.ids)
        mask = blank_mask(height, width, ids.values())
        for shape in shapes:
            label = _label(shape)
            if label not in ids:
                raise ValueError(f"{self}: a {shape.tag} of {label!r}, no label of the file{did_you_mean(label, ids)}")
            try:
                region = _region(shape, height, width)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                reason = f"{error}" if isinstance(error, ValueError) else f"without {error}"
                raise ValueError(f"{self}: a {shape.tag} of {label}: {' '.join(reason.split())}") from None
            mask[region] = ids[label]
        return mask


def _size(image: Element) -> tuple[int, int]:
    height, width = int(image.get("height") or 0), int(image.get("width") or 0)
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise ValueError(f"width {image.get('width')!r}, height {image.get('height')!r}; expected the size in pixels")
    return height, width


def _label(element: Element) -> str:
    return (element.get("label") or "").strip()


def _region(shape: Element, height: int, width: int) -> Region:
    if shape.tag == "mask":
        return _mask(shape, height, width)
    if shape.tag == "polygon":
        points = [_point(pair) for pair in shape.attrib["points"].split(";") if pair.strip()]
        if len(points) < 3:
            raise ValueError(f"{counted(len(points), 'point')}; expected 3 or more: draw it anew, or delete it")
        check_points(points, height, width)
        return fill_polygons([points], height, width)
    degrees = float(shape.get("rotation") or 0)
    if shape.tag == "box":
        left, top, right, bottom = (float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        centre, half = ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
    else:
        x, y, a, b = (float(shape.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
        centre, half = (x, y), (a, b)
    return fill_oriented(centre, half, degrees, height, width, ellipse=shape.tag == "ellipse")


def _point(pair: str) -> tuple[float, float]:
    x, y = pair.split(",")
    return float(x), float(y)


def _mask(shape: Element, height: int, width: int) -> Region:
    """CVAT's run lengths: of background and object by turns, along the rows of a rectangle in the image."""
    left, top, columns, rows = (int(float(shape.attrib[key])) for key in ("left", "top", "width", "height"))
    counts = [int(count) for count in shape.attrib["rle"].split(",") if count.strip()]
    if not (columns > 0 and rows > 0 and rows * columns <= MAX_PIXELS):
        raise ValueError(f"width {columns}, height {rows}; expected its size in pixels")
    if min(counts, default=0) < 0 or sum(counts) != rows * columns:
        raise ValueError(f"run lengths of {sum(counts)} pixels; expected {columns} x {rows}, its width and height")
    inner = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(rows, columns)
    return paste(inner, left, top, height, width)


def _files(root: Path) -> list[Path]:
    """The XML files in a folder, or in those in it; or one such file."""
    if root.is_file():
        return [root] if root.suffix.lower() == ".xml" and _peek(root) else []
    groups = [root, root / "annotations"], [root / name for name in subfolders(root)]
    return annotation_files(groups, ".xml", _peek)


def _peek(path: Path) -> bool:
    if is_clutter(path.name) or not path.is_file():
        return False
    with path.open("rb") as file:
        return re.search(rb"<annotations[\s>]", file.read(_PEEKED)) is not None


def _contents(root: Path) -> dict[Path, _Content]:
    contents = {}
    for path in _files(root):
        stat = path.stat()
        contents[path] = _scanned(path, stat.st_mtime_ns, stat.st_size)
    return contents


@functools.lru_cache(maxsize=16)
def _scanned(path: Path, _changed: int, _length: int) -> _Content:
    """What a file has; kept, for each split asks again."""
    content = _Content()
    try:
        for record, content.encoding in xml_records(path):
            _note(content, record)
        if not content.images:
            raise ValueError("no <image>")
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}; expected CVAT for images") from None
    return content


def _note(content: _Content, record: XmlRecord) -> None:
    element = record.element
    if element.tag == "track":
        raise ValueError(_VIDEO)
    if element.tag == "meta":
        for entry in element.iterfind(".//labels/label"):
            # Parts of a skeleton have a parent; what marks points, lines or whole images has no area.
            if not _text(entry, "parent") and entry.findtext("type") not in _NO_AREA:
                content.labels.append(_text(entry, "name"))
        for task in element.iter("task"):
            content.subsets[_text(task, "id")] = _text(task, "subset")
    elif element.tag == "image":
        name = element.get("name") or ""
        number = element.get("task_id") or (next(iter(content.subsets)) if len(content.subsets) == 1 else "")
        subset = element.get("subset") or content.subsets.get(number, "")
        content.images.append(_Image(name, subset, record.start, record.end))
        for shape in element:
            content.shapes[shape.tag] += 1
            if shape.tag in _AREAS:
                content.used.setdefault(_label(shape), name)
            else:
                known = "have no area, and are left out" if shape.tag in _NO_AREA else "are unknown, and are left out"
                content.notes.add(f"<{shape.tag}> {known}", f"image {name}")


def _text(element: Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _by_split(root: Path, contents: dict[Path, _Content]) -> dict[str, list[tuple[Path, _Image]]]:
    """The images of each split, with their files."""
    images: dict[str, list[tuple[Path, _Image]]] = defaultdict(list)
    for path, content in contents.items():
        otherwise = split_of_file(path, root)
        for image in content.images:
            named = image.subset and image.subset.lower() != "default"
            images[split_name(image.subset) if named else otherwise].append((path, image))
    return images


def _labels(root: Path, contents: dict[Path, _Content]) -> tuple[Labels, dict[str, int]]:
    """The classes of all files, in order, and class id by label."""
    names: list[str] = []
    for path, content in contents.items():
        if len({*content.labels}) < len(content.labels):
            with_background(path, content.labels)  # which names the label that is there twice
        names += [name for name in content.labels if name not in names]
    if not names:
        names = sorted({label for content in contents.values() for label in content.used})
    names = [name for name in names if name != IGNORE]
    labels, ids = with_background(root, names)
    return labels, {**dict(zip(names, ids, strict=True)), IGNORE: labels.ignore}


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    contents = _contents(root)
    labels, ids = _labels(root, contents)
    base = root.parent if root.is_file() else root
    places = {path: _place(base, path, options) for path in contents}
    items: dict[str, Item] = {}
    absent, twice, pairs = [], 0, tuple(ids.items())
    for path, image in _by_split(root, contents)[split]:
        search, prefix = places[path]
        found = search.find(image.name, image.subset or split)
        if found is None:
            absent.append(image.name)
            continue
        name = prefix + stem_of(image.name)
        twice += name in items
        mask = CvatMask(path, image.name, image.start, image.end, contents[path].encoding, pairs)
        items[name] = Item(name, found, mask)
    problems = [line for path, content in contents.items() for line in _unknown(path, content, ids)]
    count = len(absent) + len(items)
    if absent:
        problems.append(f"{root}: {len(absent)} of {count} images are not there: {listed(absent)}; {_SAVE_IMAGES}")
    left_out = {"annotated twice: the later in the file counts": twice} if twice else {}
    read_as = f"CVAT for images, with its {counted(len(labels), 'class', 'classes')}; higher z-order over lower"
    warnings = _warnings(root, contents)
    return Listing(str(root), (*items.values(),), labels, None, (*problems,), warnings, "", left_out, read_as)


def _place(base: Path, path: Path, options: DatasetOptions) -> tuple[ImageSearch, str]:
    """Where the images of a file are searched, and what comes before their names: its folder, if it is a task's."""
    folder = path.parent.relative_to(base).as_posix()
    of_task = folder not in (".", "annotations") and split_or_whole(folder) == WHOLE
    search = ImageSearch([options.images, path.parent / "images", path.parent, base / "images", base])
    return search, f"{folder}/" if of_task else ""


def _unknown(path: Path, content: _Content, ids: dict[str, int]) -> list[str]:
    """A problem, if shapes have labels that the files do not list."""
    unknown = sorted(content.used.keys() - ids.keys())
    if not unknown:
        return []
    example = f"image {content.used[unknown[0]]}{did_you_mean(unknown[0], ids)}"
    return [f"{path}: shapes of {listed(unknown)}, no label of the file, such as in {example}"]


def _warnings(root: Path, contents: dict[Path, _Content]) -> tuple[str, ...]:
    lines = [line for path, content in contents.items() for line in content.notes.lines(path)]
    shapes = sum((content.shapes for content in contents.values()), Counter[str]())
    if shapes["box"]:
        only = not any(shapes[kind] for kind in _AREAS if kind != "box")
        advice = "; no other shape has an area: where objects are no rectangles, draw polygons or masks" if only else ""
        lines.append(f"{root}: {counted(shapes['box'], 'box is', 'boxes are')} filled as rectangles{advice}")
    return (*lines,)


LAYOUT = Layout(
    "annotations.xml of CVAT for images, with images/",
    "",
    lambda root: root if _files(root) else None,
    lambda root: list(_by_split(root, _contents(root))),
    _read,
)
