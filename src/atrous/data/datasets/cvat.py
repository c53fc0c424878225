"""CVAT for images: `annotations.xml`, or several such files, with polygons, masks, boxes and ellipses of each image.

Shapes are drawn in z-order, those of one level in the order of the file. Boxes and ellipses are filled, as CVAT's own
export of masks does; polylines, points, skeletons, cuboids and tags have no area and are left out with a count. The
classes are the labels of the file, in its order, after background. Images of a subset are a split, as are files such
as `train.xml`. An image that occurs twice, say in two tasks, has the shapes of the later.

CVAT for video has tracks over frames: export it as CVAT for images, which has the shapes of each frame.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from atrous.data.datasets.annotations import (
    CHANGED,
    Notes,
    Shape,
    ShapesMask,
    annotation_files,
    bytes_of,
    expecting,
    head_of,
    missing,
    remembered,
)
from atrous.data.datasets.base import (
    WHOLE,
    Item,
    Layout,
    Listing,
    split_name,
    split_of_file,
    split_or_whole,
    subfolders,
)
from atrous.data.datasets.class_files import with_background
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch, stem_of
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import Region, fill_oriented, fill_polygon, paste, runs, size_in, size_of
from atrous.data.datasets.xml_records import XmlRecord, parse_xml, xml_records
from atrous.data.labels import Labels
from atrous.messages import counted, did_you_mean, listed

IGNORE = "__ignore__"
"""The label, as in LabelMe, of what neither trains nor counts."""
_AREAS = ("polygon", "mask", "box", "ellipse")
_NO_AREA = ("polyline", "points", "skeleton", "cuboid", "tag")
_VIDEO = "tracks of CVAT for video; export it as CVAT for images, which has the shapes of each frame"
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
class CvatMask(ShapesMask):
    """The shapes of one image.

    Attributes:
        name: of the image, in the XML.
        start: first byte of its element.
        end: behind its last byte.
        encoding: of the file.
    """

    name: str
    start: int
    end: int
    encoding: str

    def __str__(self) -> str:
        return f"{self.path}, image {self.name}"

    def shapes(self) -> tuple[tuple[int, int], list[Shape]]:
        """See `ShapesMask`; shapes in z-order."""
        image = Element("")
        with contextlib.suppress(ValueError):
            image = parse_xml(bytes_of(self.path, self.start, self.end), self.encoding)
        if image.tag != "image" or image.get("name") != self.name:
            raise ValueError(f"{self}: {CHANGED}")
        with expecting(self):
            shapes = [(index, shape) for index, shape in enumerate(image) if shape.tag in _AREAS]
            shapes.sort(key=lambda pair: _level(pair[1]))
            return size_in(image.get("height"), image.get("width")), [
                Shape(f"shape {index}", _label(shape), partial(_region, shape), shape.tag) for index, shape in shapes
            ]


def _label(element: Element) -> str:
    return (element.get("label") or "").strip()


def _level(shape: Element) -> float:
    """The z-order, which some tools write as 5.0."""
    text = shape.get("z_order") or "0"
    with contextlib.suppress(ValueError):
        if math.isfinite(level := float(text)):
            return level
    raise ValueError(f"a {shape.tag} has the z_order {text[:20]!r}; expected a whole number")


def _region(shape: Element, height: int, width: int) -> Region:
    if shape.tag == "polygon":
        points = [_point(pair) for pair in shape.attrib["points"].split(";") if pair.strip()]
        return fill_polygon(points, height, width)
    if shape.tag == "mask":  # run lengths along the rows of a rectangle in the image
        left, top, columns, rows = (int(float(shape.attrib[key])) for key in ("left", "top", "width", "height"))
        rows, columns = size_of(rows, columns)
        counts = [int(count) for count in shape.attrib["rle"].split(",") if count.strip()]
        return paste(runs(counts, rows * columns).reshape(rows, columns), left, top, height, width)
    keys = ("xtl", "ytl", "xbr", "ybr") if shape.tag == "box" else ("cx", "cy", "rx", "ry")
    x, y, a, b = (float(shape.attrib[key]) for key in keys)
    if shape.tag == "box":
        x, y, a, b = (x + a) / 2, (y + b) / 2, (a - x) / 2, (b - y) / 2
    degrees = float(shape.get("rotation") or 0)
    return fill_oriented((x, y), (a, b), degrees, height, width, ellipse=shape.tag == "ellipse")


def _point(pair: str) -> tuple[float, float]:
    x, y = pair.split(",")
    return float(x), float(y)


def _files(root: Path) -> list[Path]:
    """The XML files in a folder, or in those in it; or one such file."""
    groups = [root, root / "annotations"], [root / name for name in subfolders(root)]
    return annotation_files(root, groups, ".xml", lambda path: re.search(rb"<annotations[\s>]", head_of(path)))


def _contents(root: Path) -> dict[Path, _Content]:
    return {path: _content(path) for path in _files(root)}


@remembered(16)
def _content(path: Path) -> _Content:
    content = _Content()
    with expecting(path, "CVAT for images"):
        for record, content.encoding in xml_records(path):
            _note(content, record)
        if not content.images:
            raise ValueError("no <image>")
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


def _by_split(root: Path) -> dict[str, list[tuple[Path, _Image]]]:
    """The images of each split, with their files."""
    images: dict[str, list[tuple[Path, _Image]]] = defaultdict(list)
    for path, content in _contents(root).items():
        otherwise = split_of_file(path, root)
        for image in content.images:
            named = image.subset and image.subset.lower() != "default"
            images[split_name(image.subset) if named else otherwise].append((path, image))
    return images


def _labels(root: Path, contents: dict[Path, _Content]) -> tuple[Labels, dict[str, int]]:
    """The classes of all files, in order, and class id by label."""
    for path, content in contents.items():
        if len({*content.labels}) < len(content.labels):
            with_background(path, content.labels)  # which names the label that is there twice
    names = dict.fromkeys(name for content in contents.values() for name in content.labels)
    used = sorted({label for content in contents.values() for label in content.used})
    labels, ids = with_background(root, [name for name in names or used if name != IGNORE])
    return labels, {**ids, IGNORE: labels.ignore}


def _read(root: Path, split: str, images: list[tuple[Path, _Image]], options: DatasetOptions) -> Listing:
    contents = _contents(root)
    labels, ids = _labels(root, contents)
    base = root.parent if root.is_file() else root
    places = {path: _place(base, path, options) for path in contents}
    items: dict[tuple[str, Path], Item] = {}
    absent, twice, pairs = [], 0, tuple(ids.items())
    for path, image in images:
        search, prefix = places[path]
        file = search.find(image.name, image.subset or split)
        if file is None:
            absent.append(image.name)
            continue
        twice += (prefix, file) in items
        mask = CvatMask(path, pairs, image.name, image.start, image.end, contents[path].encoding)
        items[prefix, file] = Item(prefix + stem_of(image.name), file, mask)
    problems = [line for path, content in contents.items() for line in _unknown(path, content, ids)]
    problems += missing(root, absent, len(absent) + len(items), _SAVE_IMAGES)
    left_out = {"annotated twice: the later in the file counts": twice} if twice else {}
    read_as = f"CVAT for images, with its {counted(len(labels), 'class')}; higher z-order over lower"
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


LAYOUT = Layout.of("annotations.xml of CVAT for images, with images/", _by_split, _read, recognise=_files)
