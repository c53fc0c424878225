"""COCO's panoptic format: `panoptic_SPLIT.json` with `segments_info`, and PNGs of ids, R + 256 G + 65536 B.

The categories are the classes, in the order of their ids, after background if there is one. Pixels of no segment, id 0,
are void, which is ignored; but background where a category bears that name, all categories are things, or less than
three quarters of the pixels are of a segment. Crowds are ignored.

Layout: `annotations/panoptic_SPLIT2017.json` with a folder of its name, and `SPLIT2017/`, as distributed, or
`images/SPLIT/`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atrous.data.datasets.annotations import expecting, head_of
from atrous.data.datasets.base import WHOLE, FileMask, Item, Items, Layout, Listing, by_split, files_with, is_empty
from atrous.data.datasets.class_files import background_index, with_background
from atrous.data.datasets.json_records import json_records
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.pairing import stem
from atrous.data.images.image_file import decode_file
from atrous.data.images.image_io import MAX_PIXELS, Pixels
from atrous.data.labels import Labels, looked_up, voc_palette
from atrous.messages import counted, listed

_PUBLISHED = "COCO's panoptic annotations are published at https://cocodataset.org/#download"
_YEAR = re.compile(r"20\d\d$")
_COVERED = 0.75


@dataclass(frozen=True, slots=True)
class PanopticMask(FileMask):
    """A PNG of segments' ids.

    Attributes:
        segments: id of the segment and class id, a pair each, as text: it takes less memory than numbers.
        void: class id of pixels of no segment.
    """

    segments: str
    void: int

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError naming the file and the segments that the JSON does not list."""
        colours = decode_file(self.path, MAX_PIXELS, _rgb)
        pairs = (pair.split(":") for pair in self.segments.split())
        known = {0: self.void} | {int(number): int(value) for number, value in pairs}
        ids, unknown = looked_up(colours.astype(np.int64) @ (1, 256, 65536), known)
        if unknown.size:
            counts = [f"{value} ({count} pixels)" for value, count in sorted(Counter(unknown.tolist()).items())]
            raise ValueError(f"{self}: segments {listed(counts)} are not in segments_info; expected those of the JSON")
        return ids


def _rgb(image: Image.Image) -> Pixels:
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"a mask of mode {image.mode}; expected RGB, of which ids are R + 256 G + 65536 B")
    return np.asarray(image.convert("RGB"))


@dataclass
class _Content:
    """What a JSON holds: file names and pixels of images by id; records of annotations; names of categories by id."""

    images: dict[int, tuple[str, int]] = field(default_factory=dict)
    annotations: list[Mapping[str, Any]] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)
    things: list[bool] = field(default_factory=list)


def _files(root: Path) -> dict[str, Path]:
    if root.is_file():
        return {WHOLE: root} if _is_ours(root) else {}
    files: dict[str, Path] = {}
    for path in (path for folder in (root, root / "annotations") for path in files_with(folder, ".json")):
        if _is_ours(path):
            name = path.stem.removeprefix("panoptic_")
            files[_YEAR.sub("", name) or name] = path
    return {WHOLE: next(iter(files.values()))} if [*files] == ["panoptic"] else by_split(root, files)


def _is_ours(path: Path) -> bool:
    head = head_of(path)
    ours = b'"segments_info"' in head or path.stem.startswith("panoptic")
    return ours and (head.startswith(b"{") or is_empty(path))  # which is refused by its reader


def _read(root: Path, split: str, path: Path, _: DatasetOptions) -> Listing:
    with expecting(path, "COCO's panoptic JSON: images, categories, and annotations with file_name and segments_info"):
        return _listing(path)


def _listing(path: Path) -> Listing:
    content = _parse(path)
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    images = _folder(base, path, [name for name, _ in content.images.values()], ("images",))
    masks = _folder(path.parent, path, [str(record["file_name"]) for record in content.annotations], ("masks",))
    labels, ids, void, how = _classes(path, content)
    rows, problems, warnings = _rows(path, content, images, masks, ids, labels.ignore)
    items = Items(sorted(rows), partial(_item, str(images), str(masks), void))
    read_as = f"COCO's panoptic format with {counted(len(labels), 'class')}: {listed(labels.names)}; {how}"
    return Listing(str(path), items, labels, problems=problems, warnings=warnings, read_as=read_as)


def _item(images: str, masks: str, void: int, name: str, image: str, mask: str, segments: str) -> Item:
    return Item(name, Path(images, image), PanopticMask(Path(masks, mask), segments, void))


def _folder(base: Path, path: Path, names: list[str], others: tuple[str, ...]) -> Path:
    """The folder that has the first file; if none has, the one of the JSON's name."""
    own = path.stem.removeprefix("panoptic_")
    named = (path.stem, own, f"images/{own}", *others)
    places = [base / name for name in named] + [base, path.parent]
    there = (place for place in places if names and (place / names[0]).is_file())
    return next(there, None) or next((place for place in places if place.is_dir()), base)


def _classes(path: Path, content: _Content) -> tuple[Labels, dict[int, int], int, str]:
    """The classes, class id by category, class id of void, and a clause that says what void is."""
    names = [content.categories[number] for number in sorted(content.categories)]
    pixels = sum(size for _, size in content.images.values())
    areas = (float(segment.get("area", 0)) for record in content.annotations for segment in record["segments_info"])
    covered = sum(areas) / max(1, pixels)
    if background_index(names) is None and not all(content.things) and covered >= _COVERED:
        try:
            labels = Labels(tuple(names), voc_palette(min(256, len(names))))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        ids = {number: index for index, number in enumerate(sorted(content.categories))}
        return labels, ids, labels.ignore, "pixels of no segment are ignored"
    labels, by_name = with_background(path, names)
    ids = {number: by_name[name] for number, name in content.categories.items()}
    why = "" if background_index(names) is not None else f", for segments cover {covered:.0%} of the pixels"
    return labels, ids, 0, f"pixels of no segment are background{why}"


def _rows(
    path: Path, content: _Content, images: Path, masks: Path, ids: Mapping[int, int], ignore: int
) -> tuple[list[tuple[str, str, str, str]], tuple[str, ...], tuple[str, ...]]:
    """Name, image, mask and segments of each annotation; problems; warnings."""
    rows, absent, unmasked, mixed, lost = [], [], [], [], 0
    for record in content.annotations:
        if int(record["image_id"]) not in content.images:
            lost += 1
            continue
        name, mask = content.images[int(record["image_id"])][0], str(record["file_name"])
        if not (images / name).is_file():
            absent.append(name)
        elif not (masks / mask).is_file():
            unmasked.append(mask)
        elif (segments := _segments(record, ids, ignore)) is None:
            mixed.append(mask)
        else:
            rows.append((stem(name), name, mask, segments))
    annotated = {int(record["image_id"]) for record in content.annotations}
    spare = [name for number, (name, _) in content.images.items() if number not in annotated]
    lines = (
        (absent, f"{images}: {len(absent)} images of {path.name} are not there: {listed(absent)}"),
        (unmasked, f"{masks}: {len(unmasked)} masks of {path.name} are not there: {listed(unmasked)}"),
        (mixed, f"{path}: {len(mixed)} masks have one id for segments of two categories: {listed(mixed)}"),
    )
    warnings = [f"{path}: {len(spare)} images have no annotation, and are left out: {listed(spare)}"] if spare else []
    warnings += [f"{path}: {lost} annotations are of images that it does not list"] if lost else []
    return rows, tuple(line for names, line in lines if names), tuple(warnings)


def _segments(record: Mapping[str, Any], ids: Mapping[int, int], ignore: int) -> str | None:
    """The segments as `PanopticMask` has them; None if an id stands for two classes."""
    values: dict[int, int] = {}
    for segment in record["segments_info"]:
        if not 0 <= (number := int(segment["id"])) < 1 << 24:
            raise ValueError(f"segment {number} of {record['file_name']}, which no colour is the id of")
        value = ignore if segment.get("iscrowd") else ids[int(segment["category_id"])]
        if values.setdefault(number, value) != value:
            return None
    return " ".join(f"{number}:{value}" for number, value in values.items())


def _parse(path: Path) -> _Content:
    content = _Content()
    for section, record, _, _ in json_records(path):
        if section == "images":
            size = int(record.get("height", 0)) * int(record.get("width", 0))
            content.images[int(record["id"])] = (str(record["file_name"]), size)
        elif section == "categories":
            if not isinstance(record["name"], str):
                raise ValueError(f"category {record['id']} has the name {record['name']!r}, which is no text")
            content.categories[int(record["id"])] = record["name"].strip()
            content.things.append(bool(record.get("isthing", 1)))
        elif section == "annotations":
            content.annotations.append(record)
    if not content.categories:
        raise ValueError("it has no categories")
    used = {int(segment["category_id"]) for record in content.annotations for segment in record["segments_info"]}
    if unknown := used - content.categories.keys():
        raise ValueError(f"segments of category {listed(sorted(map(str, unknown)))}, which it does not list")
    return content


LAYOUT = Layout.of(
    "annotations/panoptic_SPLIT.json with a folder of PNGs of its name, and images/SPLIT/", _files, _read, _PUBLISHED
)
