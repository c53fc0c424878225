"""Instances in COCO's format: with their own categories, or COCO as VOC (section 4.3, "Pretrained on COCO").

The categories are the classes, in the order of their ids, after background. Where regions overlap, the one of smaller
`area` is on top; among equals, the later in the file. Crowds are ignored pixels, 255; but where a tool has marked all
RLE as crowds, those are their class.

`coco:PATH` reads COCO itself, known by its 80 categories, as VOC's 21 classes. The paper: "we only select the images
that have annotation regions larger than 1000 pixels and contain the classes defined in PASCAL VOC 2012 ... the MS-COCO
classes not defined in PASCAL VOC 2012 are all treated as background". Here:

- An image is kept if it has an annotation of one of VOC's 20 classes, not a crowd, with an `area` above 1,000. The
  listing says how many are left out, and why.
- Other categories are background and cover nothing: a cup on a table is table, because COCO's polygon of the table
  continues under it.
- Crowds of VOC's classes are ignored; other crowds are background.

Layout: `annotations/instances_SPLIT2017.json` with `SPLIT2017/`, as distributed (2014 likewise: the newest year
counts), or `instances_SPLIT.json` with `images/SPLIT/`. The paper's trainval_minus_minival is train of 2017. Also
Roboflow's `SPLIT/_annotations.coco.json` with its images beside it, and other names, with `images/`, `data/` or beside.

    pip install 'atrous[coco]'
    dataset = open_dataset("coco:PATH", "train")

The JSON, 450 MB, is parsed one annotation at a time, and only the byte range of each is kept; a loader worker reads and
draws the annotations of one image when it needs that mask.
"""

from __future__ import annotations

import contextlib
import json
import re
import reprlib
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atrous.data.datasets.annotations import CHANGED, OUTLINE, Notes, bytes_of, expecting, head_of
from atrous.data.datasets.base import WHOLE, Item, Layout, Listing, by_split, files_with, subfolders
from atrous.data.datasets.class_files import with_background
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch, stem_of
from atrous.data.datasets.json_records import json_records
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import blank_mask, draw, pycocotools_mask, size_of
from atrous.data.images.image_io import Pixels
from atrous.data.labels import VOC, Labels, coco_to_voc
from atrous.messages import listed

MIN_AREA = 1000
"""An image is kept if a region has more than this many pixels."""

_PUBLISHED = "COCO is published at https://cocodataset.org/#download (train2017, val2017, annotations_trainval2017)"
_ROBOFLOW = "_annotations.coco.json"
_TOO_FEW = "annotations have polygons of fewer than three points, which have no area and are left out"
_SECTION = re.compile(rb'"(categories|annotations|images)"\s*:\s*\[')
_YEAR = re.compile(r"20\d\d$")


class _Region(NamedTuple):
    """An annotation: area in pixels, category, whether it is a crowd; "box", "polygon" or "rle"; its byte range."""

    area: float
    category: int
    crowd: bool
    form: str
    start: int
    end: int


@dataclass
class _Content:
    """What a JSON holds.

    Attributes:
        images: file name, height and width by id.
        regions: by id of the image.
        categories: names by id.
        groups: supercategories by id of the category.
        notes: what has no area.
    """

    images: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    regions: dict[int, list[_Region]] = field(default_factory=lambda: defaultdict(list))
    categories: dict[int, str] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True, slots=True)
class CocoMask:
    """The mask of one image, drawn when it is read.

    Attributes:
        path: the JSON file.
        image_id: in that file.
        height: of the image, pixels.
        width: likewise.
        regions: value, first and last byte of each annotation, int64 N,3, in the order of drawing; as bytes, which
            pickle fast: there are half a million annotations.
        border: whether polygons are filled with their border, see `regions.draw`.
    """

    path: Path
    image_id: int
    height: int
    width: int
    regions: bytes
    border: bool

    def __str__(self) -> str:
        return f"{self.path}, image {self.image_id}"

    def read(self) -> Pixels:
        """Class ids, 255 in crowds, uint8 H,W.

        Raises:
            FileNotFoundError: if the file is gone.
            ValueError: naming file and annotation, if the file has changed since it was listed, or cannot be drawn.
        """
        regions = np.frombuffer(self.regions, dtype=np.int64).reshape(-1, 3).tolist()
        mask = blank_mask(self.height, self.width, [value for value, _, _ in regions])
        for value, start, end in regions:
            mask[self._drawn(bytes_of(self.path, start, end))] = value
        return mask

    def _drawn(self, text: bytes) -> npt.NDArray[np.bool_]:
        try:
            annotation = json.loads(text)
            assert int(annotation["image_id"]) == self.image_id
        except Exception:
            raise ValueError(f"{self}: {CHANGED}") from None
        # pycocotools raises many kinds, Exception itself among them.
        expected = "polygons, or RLE of the image's size"
        with expecting(f"{self}: annotation {annotation.get('id')}", expected, Exception):
            if _form(annotation) == "box":
                raise ValueError(f"a box {annotation.get('bbox')} without a polygon; {OUTLINE}")
            return draw(annotation["segmentation"], self.height, self.width, border=self.border)


def _files(root: Path) -> dict[str, tuple[Path, str]]:
    """JSON file and name of the images' folder by split; the later of two years. A file that is given is all."""
    if root.is_file():
        return {WHOLE: (root, root.stem.removeprefix("instances_"))} if _is_ours(root) else {}
    paths = [path for folder in (root, root / "annotations") for path in files_with(folder, ".json")]
    named = [(path.stem.removeprefix("instances_"), path) for path in paths if path.name.startswith("instances_")]
    beside = {name: (root / name / _ROBOFLOW, name) for name in subfolders(root)}
    places = {_YEAR.sub("", full) or full: (path, full) for full, path in named}
    if places := places or {name: place for name, place in beside.items() if place[0].is_file()}:
        return by_split(root, places)
    others = [path for path in paths if _is_ours(path)]
    return by_split(root, {WHOLE if len(others) == 1 else path.stem: (path, path.stem) for path in others})


def _is_ours(path: Path) -> bool:
    """Whether a JSON file looks like COCO's instances."""
    if path.stem.startswith("panoptic") or path.suffix.lower() != ".json":
        return False
    head = head_of(path)
    return head.startswith(b"{") and bool(_SECTION.search(head)) and b'"segments_info"' not in head


def _read(root: Path, split: str, file: tuple[Path, str], options: DatasetOptions, as_voc: bool = False) -> Listing:
    path, name = file
    with expecting(path, "COCO's instances: images, categories, and annotations with area, iscrowd, segmentation"):
        content = _parse(path)
    if root.is_file():
        root = root.parent.parent if root.parent.name == "annotations" else root.parent
    folder = _image_folder(root, name, content)
    search = ImageSearch([options.images, folder, root / "images", root / "data"])
    if as_voc and _is_coco(content):
        pycocotools_mask()
        return _read_as_voc(path, split, search, content)
    return _read_own(path, split, search, content)


def _image_folder(root: Path, split: str, content: _Content) -> Path:
    """The folder that has the first image; if none has, the one that COCO's layout or ours asks for."""
    likely = (root / split, root / "images" / split, root / "images")
    usual = next((place for place in likely if place.is_dir()), root / split)
    names = [name for name, _, _ in content.images.values()][:1]
    places = (usual, root / "images", root / "data", root)
    return next((place for place in places if names and (place / names[0]).is_file()), usual)


def _is_coco(content: _Content) -> bool:
    """Whether the categories are COCO's own 80, which hold all of VOC's 20."""
    classes = {coco_to_voc(name) for name in content.categories.values()}
    return len(content.categories) == 80 and classes == set(range(len(VOC)))


def _read_as_voc(path: Path, split: str, search: ImageSearch, content: _Content) -> Listing:
    values = {number: coco_to_voc(name) for number, name in content.categories.items()}
    left_out = Counter[str]()
    regions = {}
    for number in content.images:
        of_voc = [region for region in content.regions.get(number, []) if values[region.category]]
        if reason := _unfit(of_voc):
            left_out[reason] += 1
        else:
            regions[number] = of_voc
    listing = _list_items(path, split, search, content, VOC, values, regions)
    return replace(listing, left_out=dict(left_out), read_as="COCO, its 80 categories read as VOC's 21 classes")


def _unfit(regions: list[_Region]) -> str:
    """Why the paper leaves out an image with these regions of VOC's classes, or ""."""
    areas = [region.area for region in regions if not region.crowd]
    if not areas:
        return "no region of VOC's classes"
    return "" if max(areas) > MIN_AREA else f"no region of more than {MIN_AREA} pixels"


def _read_own(path: Path, split: str, search: ImageSearch, content: _Content) -> Listing:
    """With the categories as classes, in the order of their ids, after background."""
    regions = [region for regions in content.regions.values() for region in regions]
    if regions and all(region.form == "box" for region in regions):
        raise ValueError(f"{path}: its annotations are boxes; expected polygons or RLE, of which masks can be made")
    labels, values = _own_labels(path, content)
    by_image = {number: content.regions.get(number, []) for number in content.images}
    marked = [region.crowd for region in regions if region.form == "rle"]
    warnings: tuple[str, ...] = ()
    if marked and all(marked) and not _is_coco(content):
        # CVAT, datumaro and supervision mark all that they write as RLE as a crowd, which only COCO's own crowds are.
        by_image = {n: [r._replace(crowd=r.crowd and r.form != "rle") for r in of] for n, of in by_image.items()}
        warnings = (f"{path}: all {len(marked)} RLE have iscrowd 1, as some tools write it: read as their class",)
    listing = _list_items(path, split, search, content, labels, values, by_image)
    read_as = f"COCO's format with {len(values)} categories of its own: {listed(labels.names)}; smaller over larger"
    return replace(listing, warnings=(*listing.warnings, *warnings), read_as=read_as)


def _own_labels(path: Path, content: _Content) -> tuple[Labels, dict[int, int]]:
    """The classes, and class id by category."""
    used = {region.category for regions in content.regions.values() for region in regions}
    # Roboflow lists the project as a category of none, which is the supercategory of the others.
    groups = {*content.groups.values()}
    projects = {n for n, name in content.categories.items() if content.groups[n] == "none" and name in groups} - used
    kept = {n: name for n, name in sorted(content.categories.items()) if n not in projects}
    labels, ids = with_background(path, list(kept.values()))
    return labels, {number: ids[name] for number, name in kept.items()}


def _list_items(
    path: Path,
    split: str,
    search: ImageSearch,
    content: _Content,
    labels: Labels,
    values: dict[int, int],
    regions: dict[int, list[_Region]],
) -> Listing:
    """A listing of the images in `regions`, masks drawn with `values` by category, smaller areas on top."""
    items, absent = [], []
    for number, ours in regions.items():
        name, height, width = content.images[number]
        if (image := search.find(name, split)) is None:
            absent.append(name)
            continue
        ordered = sorted(ours, key=lambda region: -region.area)
        flat = array("q")
        for region in ordered:
            flat.extend((labels.ignore if region.crowd else values[region.category], region.start, region.end))
        mask = CocoMask(path, number, height, width, flat.tobytes(), border=labels is not VOC)
        items.append(Item(stem_of(name), image, mask))
    advice = _PUBLISHED if _is_coco(content) else f"put them there, {SAY_WHERE}"
    absent_line = f"{search}: {len(absent)} images of {path.name} are not there: {listed(absent)}; {advice}"
    lost = [number for number in content.regions if number not in content.images]
    count = sum(len(content.regions[number]) for number in lost)
    warnings = [*content.notes.lines(path)]
    if lost:
        warnings.append(f"{path}: {count} annotations are of {len(lost)} images that it does not list")
    if len({item.image for item in items}) < len(items):
        twice = [path.name for path, number in Counter(item.image for item in items).items() if number > 1]
        warnings.append(
            f"{path}: {len(twice)} images are listed more than once, each with its own annotations: "
            f"{listed(twice)}; expected one entry an image: merge them in the tool"
        )
    problems = (absent_line,) if absent else ()
    return Listing(str(path), (*sorted(items, key=lambda item: item.name),), labels, None, problems, tuple(warnings))


def _parse(path: Path) -> _Content:
    content = _Content()
    for section, record, start, end in json_records(path):
        if section == "images":
            number, name = _number(record, "id", "an image"), str(record["file_name"])
            fields = f"image {number}: height", "width"
            size = size_of(int(record["height"]), int(record["width"]), fields=fields)
            other = content.images.setdefault(number, (name, *size))[0]
            if other != name:
                raise ValueError(f"image {number} is {other} and {name}, as in files merged without new ids")
        elif section == "categories":
            _note_category(content, record)
        elif section == "annotations":
            form = _form(record)
            polygons = record["segmentation"] if form == "polygon" else ()
            if isinstance(polygons, list) and any(len(part) < 6 for part in polygons):
                content.notes.add(_TOO_FEW, f"annotation {record.get('id')}")
            crowd, what = bool(record.get("iscrowd", 0)), f"annotation {record.get('id')}"
            region = _Region(_area(record), _number(record, "category_id", what), crowd, form, start, end)
            content.regions[_number(record, "image_id", what)].append(region)
    if not content.categories:
        raise ValueError("it has no categories")
    unknown = {r.category for regions in content.regions.values() for r in regions} - content.categories.keys()
    if unknown:
        raise ValueError(f"annotations of category {listed(sorted(map(str, unknown)))}, which it does not list")
    return content


def _number(record: dict[str, Any], key: str, of: str) -> int:
    """An id; ValueError naming the record, for one that is no whole number."""
    with contextlib.suppress(ValueError, TypeError):
        return int(record[key])
    raise ValueError(f"{of} has the {key} {record[key]!r:.60}; COCO's ids are whole numbers: number them")


def _note_category(content: _Content, record: dict[str, Any]) -> None:
    number, name = _number(record, "id", "a category"), record["name"]
    if not isinstance(name, str):
        raise ValueError(f"category {number} has the name {name!r}, which is no text")
    if (other := content.categories.setdefault(number, name)) != name:
        raise ValueError(f"category {number} is {other!r} and {name!r}, as in files merged without new ids")
    content.groups[number] = str(record.get("supercategory", ""))


def _form(record: dict[str, Any]) -> str:
    """What an annotation has, see `_Region`; ValueError for points that are not in lists, one a polygon."""
    segmentation = record.get("segmentation")
    if not segmentation:
        return "box"
    if isinstance(segmentation, dict):
        return "rle"
    if isinstance(segmentation, list) and not all(isinstance(part, list) for part in segmentation):
        shown = reprlib.repr(segmentation)
        raise ValueError(f"annotation {record.get('id')}: segmentation is {shown}; expected [[x, y, ...], ...]")
    return "polygon"


def _area(record: dict[str, Any]) -> float:
    """The area, pixels; of the box if the tool that wrote the file left it out, or wrote 0."""
    if not record.get("area") and len(record.get("bbox") or ()) == 4:
        return float(record["bbox"][2]) * float(record["bbox"][3])
    return float(record["area"])


_EXPECTED = "annotations/instances_train2017.json and train2017/, or instances_train.json and images/train/"

LAYOUT = Layout.of(_EXPECTED, _files, partial(_read, as_voc=True), _PUBLISHED)
"""`coco:PATH`: COCO's own categories as VOC's classes, others as they are."""

OWN_CATEGORIES = Layout.of(_EXPECTED, _files, _read)
"""Any categories as they are."""
