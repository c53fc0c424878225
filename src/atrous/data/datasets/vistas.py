"""Mapillary Vistas: `training/images`, `training/labels` or `training/v2.0/labels`, and `config.json` with the classes.

A mask's id is a place in the list `labels` of the config; those with `evaluate` false are ignored. Of the two versions
of the labels, the newer is read.
"""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atrous.data.datasets.arrangement import Place
from atrous.data.datasets.base import Layout, Listing, by_split, subfolders
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.pairs import files_in, listing_of, plain_mask
from atrous.data.labels import Colour, Labels
from atrous.messages import counted, listed

_PUBLISHED = "Mapillary Vistas is published at https://www.mapillary.com/dataset/vistas"
_VERSIONS = (("v2.0", "config_v2.0.json"), ("v1.2", "config_v1.2.json"), ("", "config.json"))
_MOST_BYTES = 1 << 22


@dataclass(frozen=True)
class _Version:
    """Where the labels of a version are in the folder of a split, and the file that names its classes."""

    folder: str
    config: Path


def _version(root: Path) -> _Version | None:
    for folder, name in _VERSIONS:
        configs = [path for path in (root / name, root / folder / name) if path.is_file()]
        if configs and any((root / split / folder / "labels").is_dir() for split in subfolders(root)):
            return _Version(folder, configs[0])
    return None


def _recognise(root: Path) -> Path | None:
    version = _version(root)
    if version is None:
        return None
    with version.config.open("rb") as file:
        head = file.read(_MOST_BYTES)
    return root if b'"labels"' in head and b'"readable"' in head else None


def _folders(root: Path) -> dict[str, str]:
    return by_split(root, {name: name for name in subfolders(root) if (root / name / "images").is_dir()})


def _read(root: Path, split: str, _: DatasetOptions) -> Listing:
    version = _version(root)
    assert version is not None
    labels, remap, ignored = classes_of_config(version.config)
    folder = root / _folders(root)[split]
    masks = folder / version.folder / "labels"
    files = files_in(Place(folder / "images", masks if masks.is_dir() else None))
    read_as = f"Mapillary Vistas, with the {counted(len(labels), 'class')} of {version.config.name}"
    read_as += f"; ignored: {listed(ignored, 5)}" if ignored else ""
    return replace(listing_of(files, plain_mask, labels, read_as), remap=remap)


def classes_of_config(path: Path) -> tuple[Labels, tuple[int, ...], list[str]]:
    """The classes, class id by stored id, and the names of those that are ignored."""
    try:
        records = json.loads(path.read_text("utf-8-sig"))["labels"]
        names, colours, ignored, remap = _listed(records)
        return Labels(tuple(names), tuple(colours)), tuple(remap), ignored
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(
            f"{path}: {' '.join(reason.split())}; expected `labels`, a list of objects with readable, color, evaluate"
        ) from None


def _listed(records: Any) -> tuple[list[str], list[Colour], list[str], list[int]]:
    if not isinstance(records, list) or not 0 < len(records) <= 256:
        raise ValueError(f"labels is {reprlib.repr(records)}")
    readable = [str(record["readable"]).strip() for record in records]
    names: list[str] = []
    colours: list[Colour] = []
    ignored: list[str] = []
    remap = [-1] * 255 + [255]
    for index, record in enumerate(records):
        name = readable[index] if readable.count(readable[index]) == 1 else str(record["name"])
        if record.get("evaluate", True):
            remap[index] = len(names)
            names.append(name)
            red, green, blue = (int(part) for part in record["color"])
            colours.append((red, green, blue))
        else:
            remap[index] = 255
            ignored.append(name)
    return names, colours, ignored, remap


LAYOUT = Layout(
    "training/images/, training/labels/ and config.json with the list labels",
    _PUBLISHED,
    _recognise,
    lambda root: list(_folders(root)),
    _read,
)
