"""Say which tool's export a path looks like, if its layout is not read, and what to do."""

from __future__ import annotations

import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from atrous.data.datasets.base import is_clutter
from atrous.data.images.image_file import IMAGE_SUFFIXES, decode_file
from atrous.data.images.image_io import MAX_PIXELS
from atrous.messages import listed

_MOST_NAMES = 5000
_MOST_OPENED = 20
_MOST_BYTES = 1 << 18

_MASKS = r"\.(png|tiff?|gif|bmp|npy)"
_BOXES = (
    "boxes are no masks: draw polygons or masks; the polygons that supervision adds to them are read from the COCO or "
    "YOLO that it writes"
)
_NOT_ONLY_PHOTOGRAPHS = re.compile(r"(?i)mask|label|annot|seg|(^|[/_-])gt")
_NOTES = (".txt", ".md", ".pdf", ".html")
_PAIRS = "name the classes beside it in labels.txt, one a line in the order of ids, or in label_colors.txt, R G B NAME"
_COCO = "expected COCO's JSON: export it as that, or convert it with datumaro"
_AS_COCO = f"not read; {_COCO}"
_TASKS = "expected the export of the project, a list of tasks: Export, JSON"
_ANN = "expected the project as Supervisely downloads it, with annotations"
_STARTS = {".xml": (b"<",), ".json": (b"{", b"["), ".yaml": (b"",), ".yml": (b"",), ".csv": (b"",)}
"""How files of annotations start, behind blanks."""
_PAGE = re.compile(rb"(?i)<!doctype html|<html")
_PLAIN = "write masks of ids as PNG into masks/SPLIT/, images into images/SPLIT/, and the names into dataset.yaml"


class _Sign(NamedTuple):
    """What shows a format: a file whose path matches `name` and whose first bytes match `content`."""

    what: str
    advice: str
    name: str
    content: bytes = b""


_SIGNS = (
    _Sign("boxes in VOC's XML", _BOXES, r"\.xml$", rb"<bndbox>"),
    _Sign("LabelMe's or VOC's XML", "no object has a polygon or a mask: draw them", r"\.xml$", rb"<annotation[\s>]"),
    _Sign("Label Studio's JSON", f"one task alone; {_TASKS}", r"\.json$", rb'"(from_name|file_upload)"\s*:'),
    _Sign("a Supervisely project", f"no DATASET/ann beside; {_ANN}", r"(^|/)meta\.json$", rb'"classes"\s*:'),
    _Sign("a project of VGG's Image Annotator", _AS_COCO, r"\.json$", rb'"_via_|"region_attributes"'),
    _Sign("a Labelbox export", f"not read; {_COCO}", r"\.(nd)?json$", rb'"(data_row|DataRow ID|Labeled Data)"'),
    _Sign("V7's Darwin JSON", _AS_COCO, r"\.json$", rb'darwin_json|"darwin_version"|v7labs'),
    _Sign("Datumaro's own JSON", _AS_COCO, r"\.json$", rb'"dm_format_version"|"media_type"'),
    _Sign("a Roboflow export", "_classes.csv starts otherwise; expected Pixel Value, Class", r"_classes\.csv$"),
    _Sign("a COCO JSON", "give its folder", r"\.json$", rb'"(categories|image_id|segmentation)"\s*:'),
    _Sign(
        "a folder of images with masks",
        f"{_PAIRS}; or {_PLAIN}",
        rf"(?i)(^|/)(masks?|labels|annotations|gt)/.*({_MASKS})$",
    ),
)


def looks_like(path: Path) -> str:
    """A clause for messages about a folder, zip or other file that is not recognised; "" if its format is unknown."""
    if path.is_dir():
        return _clause(list(itertools.islice(_names(path), _MOST_NAMES)), lambda name: (path / name).open("rb"))
    if not zipfile.is_zipfile(path):
        return _clause([path.name], lambda _: path.open("rb"))
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not any(map(is_clutter, name.split("/")))]
        clause = _clause(names[:_MOST_NAMES], archive.open)
    return f"it is a zip archive: unpack it and give the folder{f' ({clause})' if clause else ''}"


def holds_photographs_only(root: Path) -> bool:
    """Whether the files below a folder are images and notes, and none has a name that masks or annotations have."""
    paths = [Path(name) for name in itertools.islice(_names(root), _MOST_NAMES)]
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    stems = {path.stem for path in images}
    notes = (
        path.suffix.lower() in _NOTES and path.stem not in stems
        for path in paths
        if path.suffix.lower() not in IMAGE_SUFFIXES
    )
    if not images or any(_NOT_ONLY_PHOTOGRAPHS.search(path.as_posix()) for path in paths) or not all(notes):
        return False
    try:  # masks have one channel
        return not decode_file(root / images[0], MAX_PIXELS, lambda image: image.mode in ("1", "L", "P", "I;16"))
    except (ValueError, OSError):
        return True


def _clause(names: list[str], open_name: Callable[[str], IO[bytes]]) -> str:
    def start_of(name: str) -> bytes | None:
        try:
            with open_name(name) as file:
                return file.read(_MOST_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
        # Encrypted or damaged members of archives raise many kinds.
        except Exception:
            return None

    for name in [name for name in names if Path(name).suffix.lower() in _STARTS][:_MOST_OPENED]:
        start, kind = start_of(name), Path(name).suffix.lower()
        if start == b"":
            return f"{name} is empty; expected annotations: export anew"
        if start is not None and _PAGE.match(start):
            return f"it looks like a web page ({name}): download the export anew, signed in"
        if start is not None and not start.startswith(_STARTS[kind]):
            return f"{name} starts with {start[:20].decode('latin-1')!r}, and is no {kind[1:].upper()}: export anew"
    for sign in _SIGNS:
        matching = [name for name in names if re.search(sign.name, name)]
        if matching and (not sign.content or re.search(sign.content, start_of(matching[0]) or b"")):
            return f"it looks like {sign.what} ({listed(matching, 1)}): {sign.advice}"
    return ""


def _names(root: Path) -> Iterator[str]:
    """Paths of the files below a folder, relative, without clutter."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_clutter(name))
        for name in sorted(name for name in files if not is_clutter(name)):
            path = Path(folder, name)
            if path.is_file():  # opening a pipe without a writer would block for ever
                yield path.relative_to(root).as_posix()
