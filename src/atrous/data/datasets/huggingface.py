"""Hugging Face data sets: a folder with `metadata.jsonl` or `metadata.csv`, or parquet files with images as bytes.

| column | names |
| --- | --- |
| image | `image`, `pixel_values`, `img`; as a file, `file_name`, `image_file_name` |
| mask | `label`, `labels`, `annotation`, `mask`, `segmentation_mask`, ...; as a file, also with `_file_name` |

Parquet files are unpacked once, as archives are. The classes are those of a file of `class_files.py`, such as
`id2label.json`; without one, they come from the values of the masks. Parquet takes `pip install 'atrous[parquet]'`.
"""

from __future__ import annotations

import csv
import importlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from atrous.data.datasets.annotations import expecting
from atrous.data.datasets.archive import unpacked_by
from atrous.data.datasets.base import (
    WHOLE,
    Items,
    Layout,
    Listing,
    by_split,
    names_in,
    split_name,
    subfolders,
)
from atrous.data.datasets.class_files import read_lines
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.pairing import MASK_SUFFIXES, stem, suffixed
from atrous.data.datasets.pairs import classes_of, item_of
from atrous.messages import listed

_METADATA = ("metadata.jsonl", "metadata.csv")
_IMAGES = ("image", "pixel_values", "img", "images", "file_name")
_MASKS = (
    "label labels annotation annotations mask masks segmentation segmentation_mask semantic_mask seg_mask label_mask "
    "semantic_segmentation ground_truth gt"
).split()
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?([-_.][0-9a-f]{8,})?$")


@dataclass(frozen=True)
class _Rows:
    """Image and mask of each row of a split, relative to a folder, and a line for each kind of row that lacks one."""

    folder: Path
    pairs: list[tuple[str, str]]
    problems: tuple[str, ...] = ()


def _recognise(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix.lower() == ".parquet" else None
    return root if _metadata(root) or _parquets(root) else None


def _metadata(root: Path) -> dict[str, Path]:
    """Files of metadata with a column of masks, by split."""
    places = {WHOLE: root} | {name: root / name for name in subfolders(root)}
    places |= {name: root / "data" / name for name in subfolders(root / "data")}
    files = ((split, place / name) for split, place in places.items() for name in _METADATA)
    return by_split(root, {split: path for split, path in files if path.is_file() and _has_masks(path)})


def _has_masks(path: Path) -> bool:
    try:
        first = next(_records(path), {})
    except ValueError:
        return True  # which reading explains
    mask = first.get(_column(first, _MASKS) or "")  # in a classification, a word
    return _column(first, _IMAGES) is not None and isinstance(mask, str) and bool(suffixed([mask], MASK_SUFFIXES))


def _column(names: Mapping[str, Any] | Sequence[str], known: Sequence[str]) -> str | None:
    by_plain = {re.sub(r"_?(file_?name|path|file)$", "", name.strip().lower()) or "file_name": name for name in names}
    return next((by_plain[name] for name in known if name in by_plain), None)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of metadata; ValueError naming the file and the line."""
    lines = read_lines(path)
    if path.suffix == ".csv":
        yield from csv.DictReader(lines, skipinitialspace=True)
        return
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number} is {line[:60]!r}; expected a JSON object a line, with file_name")
        yield record


def _rows_of_metadata(path: Path) -> _Rows:
    pairs, absent, empty = [], [], 0
    for record in _records(path):
        image, mask = (_column(record, known) for known in (_IMAGES, _MASKS))
        names = [record.get(column or "") for column in (image, mask)]
        if not all(isinstance(name, str) and name for name in names):
            empty += 1
            continue
        files = [str(name).replace("\\", "/") for name in names]
        if missing := [name for name in files if not _within(path.parent, name)]:
            absent += missing
        else:
            pairs.append((files[0], files[1]))
    problems = [f"{path}: {len(absent)} files that it names are not there: {listed(absent)}"] if absent else []
    problems += [f"{path}: {empty} rows have no name of an image or no name of a mask"] if empty else []
    return _Rows(path.parent, pairs, tuple(problems))


def _within(folder: Path, name: str) -> bool:
    """Whether a file is there, and in the folder or in one beside it."""
    return ".." not in Path(name).parts[1:] and not Path(name).is_absolute() and (folder / name).is_file()


def _parquets(root: Path) -> dict[str, list[Path]]:
    """Parquet files by split, which their names begin with or their folders have."""
    if root.is_file():
        return {WHOLE: [root]}
    files = [root / name for name in names_in(root) if name.endswith(".parquet")]
    for folder in ("data", *subfolders(root)):
        files += [root / folder / name for name in names_in(root / folder) if name.endswith(".parquet")]
    by_name: dict[str, list[Path]] = {}
    for path in dict.fromkeys(files):
        own = split_name(_SHARD.sub("", path.stem).lower())
        beside = split_name(path.parent.name.lower()) if path.parent != root and path.parent.name != "data" else ""
        by_name.setdefault(beside or (own if own in ("train", "val", "test") else WHOLE), []).append(path)
    return by_name


def _rows_of_parquet(root: Path, files: Sequence[Path]) -> _Rows:
    """Those of parquet files, whose images are files of a folder, unpacked once."""
    stamp = "/".join(f"{path.name}/{path.stat().st_size}/{path.stat().st_mtime_ns}" for path in files)
    base = root if root.is_dir() else root.parent
    folder = unpacked_by(base / files[0].parent / stem(files[0].name), stamp, partial(_fill, files), files[0])
    pairs = [(f"images/{name}", "") for name in names_in(folder / "images")]
    masks = {stem(name): f"masks/{name}" for name in names_in(folder / "masks")}
    whole = [(image, masks[own]) for image, _ in pairs if (own := stem(image.removeprefix("images/"))) in masks]
    lacking = len(pairs) - len(whole)
    problems = (f"{files[0]}: {lacking} rows have no mask",) if lacking else ()
    return _Rows(folder, whole, problems)


def _fill(files: Sequence[Path], folder: Path) -> None:
    """Write the images and masks of parquet files into a folder."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    number = itertools.count()
    for path in files:
        for image, mask in _cells(path):
            name = f"{next(number):06d}"
            _write(path, folder / "images" / name, image)
            if mask is not None:
                _write(path, folder / "masks" / name, mask)


def _cells(path: Path) -> Iterator[tuple[Any, Any]]:
    """Image and mask of each row."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(f"{path}: parquet files are read by pyarrow; pip install 'atrous[parquet]'") from None
    # pyarrow raises many kinds on files that are not its own.
    with expecting(path, "a whole parquet file", Exception):
        file = parquet.ParquetFile(path)
    with file:
        names = file.schema_arrow.names
        columns = [_column(names, known) for known in (_IMAGES, _MASKS)]
        if None in columns:
            raise ValueError(
                f"{path}: the columns {listed(names, 9)}; expected one of images, such as image or pixel_values, and "
                f"one of masks, such as label, annotation or mask"
            )
        for batch in file.iter_batches(batch_size=16, columns=columns):
            image, mask = (batch.column(name) for name in columns)
            yield from ((one.as_py(), other.as_py()) for one, other in zip(image, mask, strict=True))


def _write(path: Path, place: Path, cell: Any) -> None:
    """Write the bytes of an image with the suffix of their format."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        what = (
            f"a file beside it, {cell['path']}" if isinstance(cell, dict) and cell.get("path") else type(cell).__name__
        )
        raise ValueError(
            f"{path}: row {int(place.name)} of {place.parent.name} holds {what}; expected an image as bytes"
        )
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = image.format or "png"
    # Pillow raises many kinds on damaged content, which is written as it is, for its reader to name.
    except Exception:
        kind = "png"
    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    place.with_name(f"{place.name}.{suffix}").write_bytes(content)


def _splits(root: Path) -> list[str]:
    return list(_metadata(root) or _parquets(root))


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    metadata, parquets = _metadata(root), _parquets(root)
    rows = {name: _rows_of_metadata(path) for name, path in metadata.items()}
    rows = rows or {name: _rows_of_parquet(root, files) for name, files in parquets.items()}
    own = rows[split]

    def masks(step: int) -> list[Path]:
        return [one.folder / mask for one in rows.values() for _, mask in one.pairs[::step]]

    base, count = root if root.is_dir() else root.parent, sum(len(one.pairs) for one in rows.values())
    named = base / "id2label.json"
    labels, remap, source, how = classes_of(base, count, masks, options, named if named.is_file() else None)
    pairs = ((stem(image.removeprefix("images/")), image, mask) for image, mask in own.pairs)
    items = Items(pairs, partial(item_of, str(own.folder), str(own.folder), source))
    return Listing(str(own.folder), items, labels, remap, own.problems, read_as=f"a Hugging Face data set{how}")


LAYOUT = Layout(
    "metadata.jsonl or .csv with file_name and a column of masks, or parquet files with images as bytes",
    "",
    _recognise,
    _splits,
    _read,
)
