"""COCO's instances as masks of VOC's 21 classes (section 4.3, "Pretrained on COCO").

The paper: "we only select the images that have annotation regions larger than 1000 pixels and contain the classes
defined in PASCAL VOC 2012 ... the MS-COCO classes not defined in PASCAL VOC 2012 are all treated as background". Here:

- An image is kept if it has an annotation of one of VOC's 20 classes, not a crowd, with an `area` above 1,000. The
  listing says how many are left out, and why.
- Other categories are background and cover nothing: a cup on a table is table, because COCO's polygon of the table
  continues under it.
- Where regions overlap, the one of smaller `area` is on top; among equals, the later in the file.
- Crowds of VOC's classes are ignored pixels, 255, and take part in that order; other crowds are background.

Layout: `annotations/instances_SPLIT2017.json` with `SPLIT2017/`, as distributed (2014 likewise: the newest year
counts), or `instances_SPLIT.json` with `images/SPLIT/`. The paper's trainval_minus_minival is train of 2017.

    pip install 'atrous[coco]'
    dataset = open_dataset("coco:PATH", "train")

The JSON, 450 MB, is parsed one annotation at a time, and only the byte range of each is kept; a loader worker reads and
draws the annotations of one image when it needs that mask.
"""

from __future__ import annotations

import importlib
import json
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atrous.data.datasets.base import Item, Layout, Listing, first_few
from atrous.data.image_io import MAX_PIXELS, Pixels
from atrous.data.labels import VOC, coco_to_voc

MIN_AREA = 1000
"""An image is kept if a region has more than this many pixels."""

_PUBLISHED = "COCO is published at https://cocodataset.org/#download (train2017, val2017, annotations_trainval2017)"
_SPACE = re.compile(r"[ \t\n\r]*")
_YEAR = re.compile(r"20\d\d$")


class _Region(NamedTuple):
    """An annotation: its area, its value in the mask, and its byte range in the file."""

    area: float
    value: int
    start: int
    end: int


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
    """

    path: Path
    image_id: int
    height: int
    width: int
    regions: bytes

    def __str__(self) -> str:
        return f"{self.path}, image {self.image_id}"

    def read(self) -> Pixels:
        """Class ids of VOC, 255 in crowds, uint8 H,W.

        Raises:
            FileNotFoundError: if the file is gone.
            ValueError: naming file and annotation, if the file has changed since it was listed, or cannot be drawn.
        """
        mask = np.zeros((self.height, self.width), dtype=np.uint8)
        with self.path.open("rb") as file:
            for value, start, end in np.frombuffer(self.regions, dtype=np.int64).reshape(-1, 3).tolist():
                file.seek(start)
                mask[self._drawn(file.read(end - start))] = value
        return mask

    def _drawn(self, text: bytes) -> npt.NDArray[np.bool_]:
        try:
            annotation = json.loads(text)
            assert annotation["image_id"] == self.image_id
        except Exception:
            raise ValueError(f"{self}: the file has changed since it was listed; expected it as it was") from None
        try:
            return draw(annotation["segmentation"], self.height, self.width)
        # pycocotools raises many kinds, Exception itself among them.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{self}: annotation {annotation.get('id')}: {reason}; expected polygons, or RLE of the image's size"
            ) from None


def draw(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Rasterise a region as COCO's own API does, bool H,W.

    Args:
        segmentation: polygons, each a list x, y, x, y, ... of which those of fewer than three points have no area; or
            RLE, `{"size": [height, width], "counts": list or string}`.
        height: of the image.
        width: likewise.

    Raises:
        ValueError: if it is neither, does not fit the image, or there is no pycocotools; and what pycocotools raises.
    """
    coder = _coder()
    if isinstance(segmentation, list):
        encoded = coder.merge(coder.frPyObjects(_polygons(segmentation, height, width), height, width))
    else:
        if segmentation["size"] != [height, width]:
            raise ValueError(f"RLE of size {segmentation['size']} in an image of {[height, width]}")
        counts = segmentation["counts"]
        counts = _run_lengths(counts) if isinstance(counts, str) else counts
        # Where runs are too short, pycocotools would return whatever is in the memory behind them.
        if min(counts, default=0) < 0 or sum(counts) != height * width:
            raise ValueError("RLE that does not fill the image")
        encoded = coder.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return np.asarray(coder.decode(encoded), dtype=bool)


def _run_lengths(text: str) -> list[int]:
    """Decode COCO's compressed counts: signed, five bits a character, from the third on less the count two before."""
    counts: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in text):
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _polygons(polygons: list[Any], height: int, width: int) -> list[Any]:
    if not polygons:
        raise ValueError("no polygon")
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        # Beyond this, COCO's rasteriser walks edges of any length, a step a pixel.
        inside = np.abs(points) <= 2 * max(height, width) + 1
        if points.ndim != 1 or len(points) % 2 or not inside.all():
            raise ValueError(f"a polygon of {points.size} numbers that are not x, y, ... about the image")
    # If none is left, one polygon without area: pycocotools draws it as nothing, and would fail on an empty list.
    return [polygon for polygon in polygons if len(polygon) >= 6] or [[0, 0, 0, 0, 0, 0]]


def _coder() -> Any:
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError:
        raise ValueError("COCO's regions are drawn by pycocotools; pip install 'atrous[coco]'") from None


def _files(root: Path) -> dict[str, tuple[Path, str]]:
    """JSON file and name of the images' folder by split; the later of two years."""
    files = {}
    for folder in (root, root / "annotations"):
        for path in sorted(folder.glob("instances_*.json")):
            full = path.stem.removeprefix("instances_")
            files[_YEAR.sub("", full) or full] = (path, full)
    return files


def _recognise(root: Path) -> Path | None:
    return root if _files(root) else None


def _read(root: Path, split: str) -> Listing:
    _coder()
    path, name = _files(root)[split]
    try:
        return _listing(path, _images(root, name))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        wanted = "instances as COCO distributes them: images, annotations with area, iscrowd, segmentation, categories"
        raise ValueError(f"{path}: {' '.join(reason.split())}; expected {wanted}") from None


def _images(root: Path, name: str) -> Path:
    places = (root / name, root / "images" / name)
    return next((place for place in places if place.is_dir()), places[0])


def _listing(path: Path, folder: Path) -> Listing:
    # In Latin-1, an index into the text is an offset in the file.
    images, regions, categories = _index(path.read_bytes().decode("latin-1"))
    values = {number: coco_to_voc(name) for number, name in categories.items()}
    if not any(values.values()):
        raise ValueError(
            f"none of its {len(categories)} categories is a class of VOC: {first_few(list(categories.values()))}"
        )
    items, absent, left_out = [], [], Counter[str]()
    for number, (name, height, width) in images.items():
        ours = sorted(_ours(regions.pop(number, []), values), key=lambda region: -region.area)
        if reason := _unfit(ours):
            left_out[reason] += 1
        elif not (folder / name).is_file():
            absent.append(name)
        else:
            flat = array("q", (part for region in ours for part in region[1:]))
            mask = CocoMask(path, number, height, width, flat.tobytes())
            items.append(Item(str(Path(name).with_suffix("")), folder / name, mask))
    problems = [f"{folder}: {len(absent)} images of {path.name} are not there: {first_few(absent)}; {_PUBLISHED}"]
    lost = sum(map(len, regions.values()))
    warnings = [f"{path}: {lost} annotations are of {len(regions)} images that it does not list"]
    return Listing(
        str(path),
        tuple(sorted(items, key=lambda item: item.name)),
        VOC,
        problems=tuple(problems) if absent else (),
        warnings=tuple(warnings) if lost else (),
        left_out=dict(left_out),
    )


def _ours(regions: list[tuple[_Region, int]], values: dict[int, int]) -> Iterator[_Region]:
    """The regions of VOC's classes, each with its class's id, or 255 for a crowd."""
    for region, category in regions:
        if values[category]:
            yield region if region.value else region._replace(value=values[category])


def _unfit(regions: list[_Region]) -> str:
    whole = [region for region in regions if region.value != VOC.ignore]
    if not whole:
        return "no region of VOC's classes"
    return "" if max(region.area for region in whole) > MIN_AREA else f"no region of more than {MIN_AREA} pixels"


def _index(
    text: str,
) -> tuple[dict[int, tuple[str, int, int]], dict[int, list[tuple[_Region, int]]], dict[int, str]]:
    """Name, height, width by image; regions (255 for a crowd, else 0) with category by image; name by category."""
    images, categories = {}, {}
    regions: dict[int, list[tuple[_Region, int]]] = defaultdict(list)
    for section, record, start, end in _records(text):
        if section == "images":
            name = json.loads(text[start:end].encode("latin-1"))["file_name"]
            images[int(record["id"])] = (str(name), *_size(record))
        elif section == "categories":
            categories[int(record["id"])] = str(record["name"])
        elif section == "annotations":
            value = VOC.ignore if record.get("iscrowd", 0) else 0
            region = _Region(float(record["area"]), value, start, end)
            regions[int(record["image_id"])].append((region, int(record["category_id"])))
    return images, dict(regions), categories


def _size(record: dict[str, Any]) -> tuple[int, int]:
    height, width = int(record["height"]), int(record["width"])
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise ValueError(f"image {record['id']} of {width}x{height} pixels")
    return height, width


def _records(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """Key, element, start and end of each element of every list in a JSON object, parsed one at a time."""
    decode = json.JSONDecoder().raw_decode
    place = _after(text, 0, "{")
    while text[place] != "}":
        key, place = decode(text, place)
        place = _after(text, place, ":")
        if text[place] == "[":
            place = _after(text, place, "[")
            while text[place] != "]":
                element, end = decode(text, place)
                yield key, element, place, end
                place = _next(text, end, "]")
            place = _next(text, place + 1, "}")
        else:
            _, place = decode(text, place)
            place = _next(text, place, "}")


def _skipped(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    assert space is not None
    return space.end()


def _after(text: str, place: int, mark: str) -> int:
    place = _skipped(text, place)
    if text[place : place + 1] != mark:
        raise ValueError(f"no {mark!r} at byte {place}")
    return _skipped(text, place + 1)


def _next(text: str, place: int, end: str) -> int:
    """Where the next element starts, or the bracket that ends them."""
    place = _skipped(text, place)
    return place if text[place : place + 1] == end else _after(text, place, ",")


LAYOUT = Layout(
    "annotations/instances_train2017.json and train2017/, or instances_train.json and images/train/",
    _PUBLISHED,
    _recognise,
    lambda root: list(_files(root)),
    _read,
)
