"""Class names and colours from the files that labelling tools write, and masks that are read by colour.

| file | line |
| --- | --- |
| `labelmap.txt` (CVAT) | `LABEL:RED,GREEN,BLUE:PARTS:ACTIONS` |
| `class_dict.csv` | `NAME,RED,GREEN,BLUE`, after a line of headings |
| `label_colors.txt` (CamVid, KITTI) | `RED GREEN BLUE NAME` |
| `labels.txt`, `class_names.txt`, `classes.txt`, `codes.txt` | `NAME`, in the order of ids; `__ignore__` has no id |
| `id2label.json` (Hugging Face) | `{"0": NAME, ...}` |
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from atrous.data.datasets.annotations import expecting
from atrous.data.datasets.base import FileMask
from atrous.data.datasets.pairing import ARRAY_SUFFIXES
from atrous.data.images.image_file import decode_file
from atrous.data.images.image_io import MAX_PIXELS, Pixels
from atrous.data.labels import MOST_CLASSES, Colour, Labels, colour_of, ids_and_unknown, ignored_id, voc_palette
from atrous.messages import listed

_BLACK: Colour = (0, 0, 0)
_BACKGROUND = ("background", "_background_")
_MOST_BYTES = 1 << 20
_MOST_IDS = 64
HOLD_IDS = "the masks hold ids"
_LOSSY = (".jpg", ".jpeg", ".webp", ".avif")

Row = tuple[str, Colour]


@dataclass(frozen=True, slots=True)
class ColourMask(FileMask):
    """A mask whose colours are classes: RGB, gray or a palette image, whose palette counts and not its indices.

    Attributes:
        labels: the classes by colour; VOC's border colour is ignored.
        source: the file that names the colours, for messages.
    """

    labels: Labels
    source: Path

    def read(self, ignored: Sequence[Colour] = ()) -> npt.NDArray[Any]:
        """Class ids, uint8 or uint16 H,W; ValueError naming the file, its unknown colours and their pixels.

        The `ignored` colours are ignored, as VOC's border is.
        """
        if self.path.suffix.lower() in _LOSSY:
            raise ValueError(f"{self.path}: a mask in a format that changes colours; expected a lossless PNG")
        colours = decode_file(self.path, MAX_PIXELS, _colours)
        ids, unknown = ids_and_unknown(colours, self.labels.palette, self.labels.ignore, ignored)
        if unknown.size:
            counts = listed([f"{colour_of(c)} ({n} pixels)" for c, n in Counter(unknown.tolist()).most_common()])
            hint = _hint(unknown, self.labels, self.source)
            raise ValueError(
                f"{self.path}: the colours {counts} are not in {self.source}; expected only colours listed there{hint}"
            )
        return ids


def _hint(unknown: npt.NDArray[Any], labels: Labels, source: Path) -> str:
    """How ids are read, if unknown colours are probably ids: grays as dark as ids, where no class is gray."""
    colours = {colour_of(code) for code in np.unique(unknown).tolist()} - {(255, 255, 255)}
    ids = colours and all(len({*colour}) == 1 and colour[0] < _MOST_IDS for colour in colours)
    if not ids or any(len({*colour}) == 1 and colour != _BLACK for colour in labels.palette):
        return ""
    names = "labels.txt in its place, a name a line in the order of the ids, without colours"
    return f"; if {HOLD_IDS}, they need {names}: move {source.name} elsewhere"


def _colours(image: Image.Image) -> Pixels:
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise ValueError(f"a mask of mode {image.mode}; expected 8-bit colours")
    if image.mode == "RGBA" and np.asarray(image)[:, :, 3].min() < 255:
        raise ValueError("a colour mask with transparent pixels; expected opaque colours")
    return np.asarray(image.convert("RGB"))


def read_palette(path: Path) -> list[Colour] | None:
    """The 256 colours of a palette image, black where it has fewer; None for another image, and for an array."""
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return None
    parts = decode_file(path, MAX_PIXELS, _palette)
    if parts is None:
        return None
    channels = [[*parts[channel::3], *[0] * 256][:256] for channel in range(3)]
    return list(zip(*channels, strict=True))


def _palette(image: Image.Image) -> list[int] | None:
    if image.mode != "P" or image.palette is None:
        return None
    form, data = image.palette.getdata()
    return list(data) if form == "RGB" else image.getpalette("RGB")  # which would decode the pixels


def find_class_file(folders: Iterable[Path]) -> Path | None:
    """The first file that names classes, in the first of the folders that has one; files of colours come first."""
    places = (folder / name for folder in folders for name in (*_COLOUR_FILES, *_NAME_FILES))
    return next((place for place in places if place.is_file()), None)


def read_classes(path: Path) -> tuple[Labels, bool]:
    """The classes that a file of the table above names, and whether by colour.

    Raises:
        ValueError: naming the file and the line, if it is not as in the table.
    """
    by_colour = path.name in _COLOUR_FILES
    lines = _names_by_id(path) if path.suffix == ".json" else read_lines(path)
    if not by_colour:
        names = tuple(line for line in lines if line != "__ignore__" or path.suffix == ".json")  # which has the ids
        return _labels(path, names, voc_palette(min(MOST_CLASSES, len(names)))), False
    if path.name == "labelmap.txt" and all(line.endswith(":::") for line in lines if not line.startswith("#")):
        # Datumaro writes no colours where it draws in VOC's.
        plain = [line.removesuffix(":::") for line in lines if not line.startswith("#")]
        lines = [f"{n}:{','.join(map(str, c))}::" for n, c in zip(plain, voc_palette(len(plain)), strict=True)]
    rows = _rows(path, lines, _COLOUR_FILES[path.name])
    if _BLACK not in (colour for _, colour in rows) and not any(name.lower() in _BACKGROUND for name, _ in rows):
        rows.insert(0, ("background", _BLACK))
    by_colour_name: dict[Colour, str] = {}
    for name, colour in rows:
        if (other := by_colour_name.setdefault(colour, name)) != name:
            raise ValueError(f"{path}: {other} and {name} have the colour {colour}; expected one each")
    return _labels(path, tuple(name for name, _ in rows), tuple(colour for _, colour in rows)), True


def _names_by_id(path: Path) -> list[str]:
    with expecting(path, 'names by id from 0 on, as in {"0": "background"}'):
        by_id = {int(number): str(name) for number, name in json.loads(path.read_text("utf-8-sig")).items()}
        return [by_id[index] for index in range(len(by_id))]


def _labels(path: Path, names: tuple[str, ...], palette: tuple[Colour, ...]) -> Labels:
    try:
        return Labels(names, palette, ignored_id(len(names)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _rows(path: Path, lines: list[str], parse: Callable[[str], Row]) -> list[Row]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#") or (number == 1 and line.lower().replace(" ", "").startswith("name,")):
            continue
        try:
            rows.append(parse(line))
        except ValueError:
            raise ValueError(f"{path}: line {number} is {line[:80]!r}; expected {parse.__doc__}") from None
    return rows


def _label_map_row(line: str) -> Row:
    """LABEL:RED,GREEN,BLUE:PARTS:ACTIONS"""
    name, colour, _, _ = line.rsplit(":", 3)
    return name.strip(), _colour(colour.split(","))


def _class_dict_row(line: str) -> Row:
    """NAME,RED,GREEN,BLUE"""
    name, *colour = next(csv.reader([line], skipinitialspace=True))
    return name.strip(), _colour(colour)


def _label_colors_row(line: str) -> Row:
    """RED GREEN BLUE NAME"""
    *colour, name = line.split(maxsplit=3)
    return name, _colour(colour)


def _colour(parts: list[str]) -> Colour:
    red, green, blue = (int(part) for part in parts)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"colour {red}, {green}, {blue}")
    return red, green, blue


_COLOUR_FILES: dict[str, Callable[[str], Row]] = {
    "labelmap.txt": _label_map_row,
    "class_dict.csv": _class_dict_row,
    "label_colors.txt": _label_colors_row,
}
_NAME_FILES = ("class_names.txt", "labels.txt", "classes.txt", "codes.txt")


def background_index(names: Sequence[str]) -> int | None:
    """The place of background among names of classes; None if it is not there."""
    return next((index for index, name in enumerate(names) if name.lower() in _BACKGROUND), None)


def with_background(path: Path, names: Sequence[str]) -> tuple[Labels, dict[str, int]]:
    """Classes of annotations that cover a part of an image: background, which may be among the names, comes first.

    Returns:
        The classes in VOC's colours, and class id by name, in the order of the names.

    Raises:
        ValueError: naming the file that has them, for names that cannot be classes.
    """
    background = background_index(names)
    others = [name for index, name in enumerate(names) if index != background]
    ordered = ("background" if background is None else names[background], *others)
    labels = _labels(path, ordered, voc_palette(min(MOST_CLASSES, len(ordered))))
    places = {name: place for place, name in enumerate(ordered)}
    return labels, {name: places[name] for name in names}


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, UTF-8 with or without BOM, stripped, without blank ones.

    Raises:
        ValueError: naming the file, if it is missing, too large or not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected text")
    if path.stat().st_size > _MOST_BYTES * 64:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; expected a list of names")
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; expected text in UTF-8") from None
    return [line.strip() for line in lines if line.strip()]
