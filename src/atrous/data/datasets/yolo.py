"""YOLO's polygons: `data.yaml` with `names`, `images/` and `labels/` with a text file of the same stem an image.

A line of a text file is `CLASS X Y X Y X Y ...`, coordinates as shares of width and height. Larger polygons are drawn
first; what none covers is background. Lines of five numbers are boxes, of which no mask can be made. Where the folders
that `data.yaml` names are not there, as in Roboflow's exports, which say `../train/images`, they are looked for here.
A split may also be a list: a text file with the path of an image a line.
"""

from __future__ import annotations

import math
import reprlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from atrous.data.datasets.annotations import OUTLINE, expecting
from atrous.data.datasets.base import WHOLE, FileMask, Item, Layout, Listing, by_split, files_by_stem, subfolders
from atrous.data.datasets.class_files import read_lines, with_background
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.regions import blank_mask, fill_polygon
from atrous.data.images.image_io import Pixels, read_size
from atrous.messages import counted, listed
from atrous.yaml_io import parse_yaml

_KEYS = {"nc", "train", "val", "test", "path"}
_PEEKED = 50
_NO_LABELS = {"classes", "labels"}
"""Stems of text files beside the labels that have none."""
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class YoloMask(FileMask):
    """The polygons of one image; without the file, it has no object.

    Attributes:
        image: for its size.
        ids: class id by class of the file.
    """

    image: Path
    ids: tuple[int, ...]

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError naming file and line, for one that is no polygon."""
        height, width = read_size(self.image)
        mask = blank_mask(height, width, self.ids)
        lines = enumerate(read_lines(self.path) if self.path.is_file() else [], start=1)
        polygons = [(f"{self}: line {number}", *self._polygon(number, line, height, width)) for number, line in lines]
        for place, value, points in sorted(polygons, key=lambda polygon: -_area(polygon[2])):
            with expecting(place):
                mask[fill_polygon(points, height, width)] = value
        return mask

    def _polygon(self, number: int, line: str, height: int, width: int) -> tuple[int, list[tuple[float, float]]]:
        try:
            value, *shares = (float(part) for part in line.split())
            inside = all(-1 <= share <= 2 for share in shares)
        except ValueError:
            raise ValueError(f"{self}: line {number} is {line[:60]!r}; expected CLASS X Y X Y X Y ...") from None
        if len(shares) == 4:
            raise ValueError(f"{self}: line {number} is a box; {OUTLINE}; expected CLASS X Y X Y X Y ...")
        if len(shares) < 6 or len(shares) % 2 or not inside:
            raise ValueError(f"{self}: line {number} has {len(shares)} coordinates; expected 6 or more, 0..1, X Y each")
        if value not in range(len(self.ids)):
            raise ValueError(f"{self}: line {number} has class {value:g}; expected 0..{len(self.ids) - 1} of data.yaml")
        # Of shares with five decimals, which tools write, whole pixels become 42.998.
        points = [(round(x * width, 2), round(y * height, 2)) for x, y in zip(shares[::2], shares[1::2], strict=True)]
        return self.ids[int(value)], points


def _area(points: list[tuple[float, float]]) -> float:
    """By the shoelace formula."""
    following = [*points[1:], points[0]]
    return abs(math.fsum(x * v - u * y for (x, y), (u, v) in zip(points, following, strict=True))) / 2


def _file(root: Path) -> Path | None:
    files = [root / name for name in ("data.yaml", "data.yml", "dataset.yaml") if (root / name).is_file()]
    described = next((path for path in files if path.stem == "data" or _KEYS & _document(path).keys()), None)
    # Label Studio writes no YAML, but classes.txt.
    plain = root / "classes.txt"
    return described or (plain if plain.is_file() and any((root / "labels").glob("*.txt")) else None)


def _document(path: Path) -> Mapping[str, Any]:
    """The content, with every value as text: a class may be called yes or 1e3; empty if it cannot be read."""
    try:
        return _load(path)
    except (ValueError, OSError):
        return {}


def _load(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".txt":
        return {"names": read_lines(path)}
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; expected the names of classes and folders")
    with expecting(path, "YAML with names"):
        document = parse_yaml(path.read_text("utf-8-sig"), as_text=True)
    return document if isinstance(document, Mapping) else {}


def _folders(root: Path) -> dict[str, list[Path]]:
    """Folders of images by split, or lists of them."""
    path = _file(root)
    document = {} if path is None else _document(path)
    base, folders = str(document.get("path", "")), {}
    for split in ("train", "val", "test"):
        names = document.get(split) or []
        places = [_find_either(root, str(name), base) for name in ([names] if isinstance(names, str) else names)]
        if there := [place for place in places if place is not None]:
            folders[split] = there
    if folders:
        return folders
    for kind in ("images", "labels"):  # labels alone, where the images were not exported
        inside = {name: root / kind / name for name in subfolders(root / kind)}
        beside = {name: root / name / kind for name in subfolders(root) if (root / name / kind).is_dir()}
        whole = {WHOLE: root / kind} if (root / kind).is_dir() else {}
        if inside or beside or whole:
            return {split: [place] for split, place in by_split(root, inside or beside or whole).items()}
    return {}


def _find_either(root: Path, name: str, base: str) -> Path | None:
    """The folder of images that data.yaml means; or the list, if images in it are there."""
    if not name.lower().endswith(".txt"):
        return _find(root, name, base)
    lists = (place for place in _candidates(root, name, base) if place.is_file())
    return next((place for place in lists if _listed(root, place)[0]), None)


def _find(root: Path, name: str, base: str = "") -> Path | None:
    """The folder of images of this name, with its labels beside it, within the data set."""
    places = _candidates(root, name, base)
    return next((place for place in places if place.is_dir() and _labels_of(place).is_dir()), None)


def _candidates(root: Path, name: str, base: str) -> Iterator[Path]:
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("..", ".", "/")]
    yield root / base / name
    yield from (root.joinpath(*parts[start:]) for start in range(len(parts)))


def _listed(root: Path, path: Path) -> tuple[dict[Path, set[str]], list[str]]:
    """The stems of the images in a list, by their folder; and the lines whose folder is not there."""
    by_folder: dict[str, list[PurePosixPath]] = defaultdict(list)
    for line in read_lines(path):
        image = PurePosixPath(line.replace("\\", "/"))
        by_folder[str(image.parent)].append(image)
    stems: dict[Path, set[str]] = defaultdict(set)
    lost: list[str] = []
    for name, images in by_folder.items():
        if folder := _find(root, name):
            stems[folder] |= {image.stem for image in images}
        else:
            lost += map(str, images)
    return dict(stems), lost


def _labels_of(images: Path) -> Path:
    """The folder of the text files that belong to one of images; itself, if it is one of text files."""
    parts = list(images.parts)
    if "labels" in parts and "images" not in parts[parts.index("labels") :]:
        return images
    last = max((index for index, part in enumerate(parts) if part == "images"), default=len(parts) - 1)
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def _read(root: Path, split: str, folders: list[Path], options: DatasetOptions) -> Listing:
    path = _file(root)
    assert path is not None
    document = _load(path)
    if "kpt_shape" in document:
        raise ValueError(f"{path}: kpt_shape, that is keypoints, of which no mask can be made; expected polygons")
    names = document.get("names")
    if isinstance(names, Mapping) and sorted(names) == sorted(str(number) for number in range(len(names))):
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: names is {reprlib.repr(names)}; expected a list of class names, or 0: NAME, ...")
    labels, ids = with_background(path, names)
    classes = tuple(ids[name] for name in names)
    items: list[Item] = []
    problems, warnings = _counted(path, names), []
    for folder, only in _places(root, folders, problems):
        images, duplicates = files_by_stem(folder)
        texts, _ = files_by_stem(_labels_of(folder), (".txt",))
        problems += duplicates
        if only is not None:
            images, texts = ({stem: of[stem] for stem in of.keys() & only} for of in (images, texts))
        search = ImageSearch([options.images, root / "images"])
        images |= {stem: file for stem in texts.keys() - images.keys() if (file := search.find(stem, split))}
        if absent := sorted(texts.keys() - images.keys() - _NO_LABELS):
            advice = f"put them into {folder}, {SAY_WHERE}"
            problems.append(f"{root}: {len(absent)} text files have no image: {listed(absent)}; {advice}")
        for stem, image in sorted(images.items()):
            text = texts.get(stem, _labels_of(folder) / f"{stem}.txt")  # which may be .TXT
            items.append(Item(stem, image, YoloMask(text, image, classes)))
        if without := sum(stem not in texts for stem in images):
            warnings.append(f"{folder}: {without} images have no text file, and so no object")
    warnings += _of_first_lines(root, items)
    read_as = f"YOLO's polygons, with the {counted(len(names), 'class')} of {path.name}; smaller polygons over larger"
    place = ", ".join(map(str, folders))
    return Listing(place, tuple(items), labels, None, tuple(problems), tuple(warnings), read_as=read_as)


def _places(root: Path, folders: list[Path], problems: list[str]) -> Iterator[tuple[Path, set[str] | None]]:
    """Folders, each with the stems that count in it, None for all; a problem for each list with lines of no image."""
    for folder in folders:
        if folder.is_dir():
            yield folder, None
            continue
        stems, lost = _listed(root, folder)
        for place, names in stems.items():
            there = files_by_stem(place)[0].keys() | files_by_stem(_labels_of(place), (".txt",))[0].keys()
            lost += sorted(names - there)
            yield place, names
        if lost:
            problems.append(f"{folder}: {counted(len(lost), 'line')} of images that are not there: {listed(lost)}")


def _counted(path: Path, names: list[str]) -> list[str]:
    """A problem, if the number of classes that the file says is another than that of its names."""
    said = _document(path).get("nc", "")
    if said == "" or str(said) == str(len(names)):
        return []
    return [f"{path}: nc is {str(said)[:20]}, and there are {len(names)} names; expected as many: correct either"]


def _of_first_lines(root: Path, items: list[Item]) -> list[str]:
    """A warning, if the first text files have no polygon; ValueError, if they have boxes."""
    masks = [item.mask for item in items if isinstance(item.mask, YoloMask) and item.mask.path.is_file()][:_PEEKED]
    lines = [line for mask in masks for line in read_lines(mask.path)]
    if lines and all(len(line.split()) == 5 for line in lines):
        raise ValueError(f"{masks[0]}: boxes, five numbers a line, of which no mask can be made; expected polygons")
    if not masks or lines:
        return []
    return [f"{root}: no polygon in the first {counted(len(masks), 'text file')}; expected CLASS X Y X Y X Y ..."]


LAYOUT = Layout.of(
    "data.yaml with names, and images/ and labels/ with polygons as text",
    _folders,
    _read,
    recognise=lambda root: _file(root) and _folders(root),
)
