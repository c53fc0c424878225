"""Label Studio's JSON or JSON-MIN, with the images of `images/`: brushes, polygons, boxes, ellipses, bitmasks.

Regions are drawn in the order of the file, later over earlier; boxes are filled. Of several annotations of an image the
one marked as ground truth counts, else the newest; cancelled ones, predictions and drafts never do. What is left out
is counted. The classes are those of the labelling configuration, if it is beside (`label_config.xml`), in its order;
else all labels of the annotations that count, sorted. Background comes first.

Exports have no images unless they were asked for, and name them by address: `/data/upload/1/0a1b2c3d-cat.jpg` is found
as `0a1b2c3d-cat.jpg` or `cat.jpg`, `/data/local-files/?d=photos/cat.jpg` as `photos/cat.jpg` or `cat.jpg`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from atrous.data.datasets.annotations import (
    CHANGED,
    HEAD,
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
from atrous.data.datasets.base import WHOLE, Item, Layout, Listing, split_of_file, subfolders
from atrous.data.datasets.class_files import with_background
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch, stem_of
from atrous.data.datasets.json_records import json_elements
from atrous.data.datasets.label_studio_png import BrushFiles, BrushFilesMask, brush_files, class_of, merged
from atrous.data.datasets.label_studio_regions import draw_region
from atrous.data.datasets.label_studio_tasks import addresses_of, annotations_of, number_of, people_of, regions_of
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import size_of
from atrous.data.datasets.xml_records import parse_xml
from atrous.data.images.image_io import read_size
from atrous.data.labels import Labels
from atrous.messages import counted, did_you_mean, listed

_OF_TASKS = re.compile(rb'"(annotations|completions|predictions|file_upload|annotation_id)"\s*:')
_CONTROLS = ("BrushLabels", "BitmaskLabels", "PolygonLabels", "RectangleLabels", "EllipseLabels", "Labels")
_SIZE = ("original_height", "original_width")
_NO_IMAGES = f"exports have none unless asked for: put them into images/, {SAY_WHERE}"
_NO_JSON = (
    "Label Studio's brush masks name a task by its number, and only the project's JSON says which image that is: "
    "export it as JSON, too, and put it beside them, with the images in images/"
)


class _Entry(NamedTuple):
    """One annotation that is not cancelled.

    Attributes:
        task: its number, -1 without one.
        number: of the annotation, likewise.
        images: names that the image may have.
        rank: greater for the one that counts.
        place: of the annotation among those of its task that are not cancelled.
        labels: of its regions.
        notes: what is left out of it.
        people: what its annotator is called: a number, an e-mail address.
        start: first byte of the task.
        end: behind its last byte.
    """

    task: int
    number: int
    images: tuple[str, ...]
    rank: tuple[bool, str, int]
    place: int
    labels: tuple[str, ...]
    notes: Notes
    people: tuple[str, ...]
    start: int
    end: int


@dataclass
class _Content:
    """What one JSON has: annotations, names of the images that have none, and remarks."""

    entries: list[_Entry] = field(default_factory=list)
    bare: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True, slots=True)
class LabelStudioMask(ShapesMask):
    """The regions of one annotation.

    Attributes:
        image: for its size, where there is no region.
        start: first byte of the task.
        end: behind its last byte.
        index: of the annotation in the task.
        task: its number, for messages.
    """

    image: Path
    start: int
    end: int
    index: int
    task: int

    def __str__(self) -> str:
        return f"{self.path}, task {self.task}" if self.task >= 0 else f"{self.path}, {self.image.name}"

    def shapes(self) -> tuple[tuple[int, int], list[Shape]]:
        """See `ShapesMask`."""
        data = bytes_of(self.path, self.start, self.end)
        try:
            regions = list(regions_of(annotations_of(json.loads(data))[self.index]))
        except (ValueError, IndexError, RecursionError, AttributeError, TypeError):
            raise ValueError(f"{self}: {CHANGED}") from None
        sizes = [tuple(map(value.get, _SIZE)) for _, value in regions]
        with expecting(self):
            if any(size != sizes[0] for size in sizes):
                raise ValueError("regions in images of several sizes; expected one image")
            size = size_of(*sizes[0], fields=_SIZE) if sizes else read_size(self.image)
        drawn = enumerate(regions)
        return size, [Shape(f"region {i}", label, partial(draw_region, value)) for i, (label, value) in drawn]


def _files(root: Path) -> list[Path]:
    """The JSON files in a folder, or in those in it; or one such file."""
    return annotation_files(root, ([root], [root / name for name in subfolders(root)]), ".json", _is_ours)


def _is_ours(path: Path) -> bool:
    head = head_of(path)
    # The first task's annotations may be long and come first.
    return bool(re.match(rb"\[\s*\{", head)) and bool(
        _OF_TASKS.search(head) or _OF_TASKS.search(head_of(path, 64 * HEAD))
    )


@remembered(16)
def _content(path: Path) -> _Content:
    content = _Content()
    with expecting(path, "Label Studio's JSON, a list of tasks"):
        for task, start, end in json_elements(path):
            if not isinstance(task, dict):
                raise ValueError(f"an element that is {str(task)[:40]!r}, no task")
            _note(content, task, start, end)
    return content


def _note(content: _Content, task: dict[str, Any], start: int, end: int) -> None:
    images, number, annotations = addresses_of(task), number_of(task.get("id")), annotations_of(task)
    place = f"task {number}" if number >= 0 else "".join(images[:1])
    cancelled = len(task.get("annotations") or task.get("completions") or annotations) - len(annotations)
    content.notes.add("annotations were cancelled (skipped), and are left out", place, cancelled)
    if not annotations:
        content.bare.append((number, images))
        if task.get("predictions"):
            content.notes.add("tasks have predictions only, which are no annotations", place)
    for index, annotation in enumerate(annotations):
        notes = Notes()
        labels = tuple(dict.fromkeys(label for label, _ in regions_of(annotation, notes, place)))
        when = str(annotation.get("updated_at") or annotation.get("created_at") or "")
        own = number_of(annotation.get("annotation_id", annotation.get("id")))
        rank = (bool(annotation.get("ground_truth")), when, own)
        content.entries.append(
            _Entry(number, own, images, rank, index, labels, notes, people_of(annotation), start, end)
        )


def _folder(root: Path) -> Path:
    return root.parent if root.is_file() else root


def _by_split(root: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in _files(root):
        files.setdefault(split_of_file(path, root), []).append(path)
    return files or {WHOLE: []}


def _read(root: Path, split: str, files: list[Path], options: DatasetOptions) -> Listing:
    folder, contents = _folder(root), {path: _content(path) for path in _files(root)}
    brushes = brush_files(folder)
    if not contents:
        return _without_json(root, brushes)
    labels, ids = _labels(root, contents, brushes)
    here = {path: contents[path] for path in files}
    notes, search = Notes(), ImageSearch([options.images, folder / "images", folder])
    for content in here.values():
        notes.update(content.notes)
    entries = [(path, entry) for path, content in here.items() for entry in _entries(content, brushes)]
    if options.annotator:
        entries = _of_annotator(root, options.annotator, entries)
    by_image: dict[Path, list[tuple[Path, _Entry]]] = defaultdict(list)
    absent = []
    for path, entry in entries:
        if (image := next((place for name in entry.images if (place := search.find(name, split))), None)) is None:
            absent.append(entry.images[0] if entry.images else f"task {entry.task}")
        else:
            by_image[image].append((path, entry))
    items: dict[str, Item] = {}
    problems = []
    for image, rivals in by_image.items():
        path, entry = _chosen(rivals, notes)
        name = stem_of(PurePosixPath(entry.images[-1]).name)
        name = f"{name}-task-{entry.task}" if name in items else name
        items[name] = Item(name, image, _mask(path, image, entry, brushes, ids, notes))
        if unknown := [label for label in entry.labels if label not in ids]:
            hint = did_you_mean(unknown[0], ids)
            problems.append(f"{path}, task {entry.task}: {listed(unknown)}, no label of the configuration{hint}")
    absent = [*dict.fromkeys(absent)]
    problems += missing(root, absent, len(absent) + len(items), _NO_IMAGES)
    bare = sum(number not in brushes for content in here.values() for number, _ in content.bare)
    left_out = {"no annotation, or cancelled ones only": bare} if bare else {}
    read_as = f"Label Studio's JSON, with {counted(len(labels), 'class')}; later regions over earlier"
    lines = notes.lines(root)
    return Listing(str(root), (*items.values(),), labels, None, tuple(problems), lines, "", left_out, read_as)


def _entries(content: _Content, brushes: BrushFiles) -> Iterator[_Entry]:
    """The annotations of a file, and those that brush masks alone have, of tasks that it lists."""
    yield from content.entries
    for number, images in content.bare:
        for own in brushes.get(number, {}):
            yield _Entry(number, own, images, (False, "", own), 0, (), Notes(), (), 0, 0)


def _of_annotator(root: Path, annotator: str, entries: list[tuple[Path, _Entry]]) -> list[tuple[Path, _Entry]]:
    theirs = [(path, entry) for path, entry in entries if annotator in entry.people]
    if entries and not theirs:
        known = sorted({person for _, entry in entries for person in entry.people})
        raise ValueError(f"{root}: no annotation of {annotator!r}{did_you_mean(annotator, known)}")
    return theirs


def _chosen(rivals: list[tuple[Path, _Entry]], notes: Notes) -> tuple[Path, _Entry]:
    """Of the annotations of an image the one that counts."""
    path, entry = max(rivals, key=lambda rival: rival[1].rank)
    if len(rivals) > 1:
        others = f"annotation {entry.number} of {len(rivals)}"
        kind = "images have several annotations: the ground truth or the newest counts, unless --annotator says whose"
        notes.add(kind, f"task {entry.task} ({others})")
    notes.update(entry.notes)
    return path, entry


def _mask(
    path: Path, image: Path, entry: _Entry, brushes: BrushFiles, ids: dict[str, int], notes: Notes
) -> LabelStudioMask | BrushFilesMask:
    """The mask of an annotation: of its regions in the JSON, or of brush masks where it has none."""
    files = () if entry.labels else brushes.get(entry.task, {}).get(entry.number, ())
    if not files:
        return LabelStudioMask(path, tuple(ids.items()), image, entry.start, entry.end, entry.place, entry.task)
    mask = BrushFilesMask(tuple((file.path, ids[class_of(file, ids)]) for file in files))
    if shared := merged(mask.files)[1]:
        notes.add("tasks have brush masks that overlap: the smaller is on top", f"task {entry.task}, {shared} pixels")
    return mask


def _labels(root: Path, contents: dict[Path, _Content], brushes: BrushFiles) -> tuple[Labels, dict[str, int]]:
    """The classes, and class id by label: of the configuration, or of all annotations."""
    names = _configured(root)
    if not names:
        labels = {label for content in contents.values() for entry in content.entries for label in entry.labels}
        of_brushes = [file for annotations in brushes.values() for files in annotations.values() for file in files]
        names = sorted(labels | {class_of(file, labels) for file in of_brushes})
    return with_background(root, names)


def _configured(root: Path) -> list[str]:
    """The labels of the labelling configuration, if there is one: an XML file with `<View>`."""
    for path in sorted(_folder(root).glob("*.xml")):
        if b"<View" not in head_of(path):
            continue
        with expecting(path, "a labelling configuration"):
            view = parse_xml(path.read_bytes())
        names: list[str] = []
        for control in (element for element in view.iter() if element.tag in _CONTROLS):
            own = [(label.get("alias") or label.get("value") or "").strip() for label in control.iter("Label")]
            if len({*own}) < len(own):
                with_background(path, own)  # which names the label that is there twice
            names += [name for name in own if name not in names]
        return names
    return []


def _without_json(root: Path, brushes: BrushFiles) -> Listing:
    files = [file for annotations in brushes.values() for files in annotations.values() for file in files]
    labels, _ = with_background(root, sorted({class_of(file, ()) for file in files}))
    tasks, classes = counted(len(brushes), "task"), counted(len(labels), "class")
    read_as = f"{len(files)} brush masks of Label Studio, of {tasks} and {classes}, without images"
    return Listing(str(root), (), labels, problems=(f"{root}: {_NO_JSON}, {SAY_WHERE}",), read_as=read_as)


LAYOUT = Layout.of(
    "a JSON of Label Studio, with the images in images/",
    _by_split,
    _read,
    recognise=lambda root: _files(root) or brush_files(root),
)
