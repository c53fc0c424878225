"""Tasks of Label Studio's JSON and JSON-MIN: their annotations, regions, and the names that their images may have."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from atrous.data.datasets.annotations import Notes
from atrous.data.datasets.label_studio_regions import region_kind
from atrous.data.images.image_file import IMAGE_SUFFIXES
from atrous.messages import listed

_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")


def annotations_of(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a task that are not cancelled; of JSON-MIN, where a task has one, itself."""
    if "annotation_id" in task or ("annotator" in task and "data" not in task):
        return [task]
    entries = task.get("annotations") or task.get("completions") or []
    return [entry for entry in entries if not (entry.get("was_cancelled") or entry.get("skipped"))]


def regions_of(
    annotation: dict[str, Any], notes: Notes | None = None, place: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and value, with the size of the image, of each region that has an area; others are noted."""
    notes = notes or Notes()
    results = [value for value in _values(annotation) if isinstance(value, dict)]
    labelled = {value["id"] for value in results if value.get("id") and _labels_of(value)}
    for value in results:
        labels, kind = _labels_of(value), region_kind(value)
        if not labels:
            if kind and value.get("id") not in labelled:
                notes.add("regions have no label, and are left out", place)
            elif not kind and value.get("type"):
                notes.add(f"results of the type {value['type']!s:.40} are no regions, and are left out", place)
        elif not kind:
            notes.add(f"regions of {listed(labels)} have no area that is read, such as points, and are left out", place)
        elif value.get("item_index"):
            notes.add("regions are of further images of a task, and are left out", place)
        else:
            if len(labels) > 1:
                notes.add("regions have several labels: the first counts", place)
            if kind == "rectangle":
                notes.add("regions are boxes, and are filled", place)
            if value.get("image_rotation"):
                notes.add("regions are of an image that was turned in Label Studio: look at their place", place)
            yield labels[0], value


def _values(annotation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The regions of an annotation, each with its value and the size of the image in one object, as in JSON-MIN."""
    if "annotation_id" in annotation or "result" not in annotation:
        for part in annotation.values():
            if isinstance(part, list):
                yield from (entry for entry in part if isinstance(entry, dict) and "original_width" in entry)
        return
    for entry in annotation["result"]:
        yield {**entry, **value} if isinstance(value := entry.get("value"), dict) else dict(entry)


def _labels_of(value: dict[str, Any]) -> list[str]:
    for key, labels in value.items():
        if key.endswith("labels") and isinstance(labels, list) and labels:
            return [str(label).strip() for label in labels]
    return []


def addresses_of(task: dict[str, Any]) -> tuple[str, ...]:
    """The names that a task's image may have, most telling first."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    texts = [value for value in data.values() if isinstance(value, str)]
    pictures = [text for text in texts if PurePosixPath(_path_of(text)).suffix.lower() in IMAGE_SUFFIXES]
    first = data.get("image") if isinstance(data.get("image"), str) else None
    paths = [_path_of(text) for text in [first, *pictures[:1], task.get("file_upload")] if isinstance(text, str)]
    both = (
        (path, str(path.with_name(_PREFIX.sub("", path.name, count=1))))
        for path in map(PurePosixPath, filter(None, paths))
    )
    return (*dict.fromkeys(str(name) for names in both for name in names),)


def _path_of(address: str) -> str:
    """The path in an address: of uploads, local files, clouds, the web."""
    try:
        parts = urlsplit(address)
        query = parse_qs(parts.query)
        if "fileuri" in query:
            return _path_of(base64.b64decode(query["fileuri"][0] + "==").decode())
    except ValueError:
        return ""
    path = query["d"][0] if parts.path.endswith("/local-files/") and "d" in query else unquote(parts.path)
    path = re.sub(r"^/?data/upload/(\d+/)?", "", path).strip("/\0")
    return path if PurePosixPath(path).name else ""


def people_of(annotation: dict[str, Any]) -> tuple[str, ...]:
    """What the annotator is called: a number, an e-mail address, a name."""
    who = annotation.get("completed_by", annotation.get("annotator"))
    return tuple(str(part) for part in (who.values() if isinstance(who, dict) else (who,)) if part not in (None, ""))


def number_of(value: object) -> int:
    """A number of a task or annotation; -1 for anything else."""
    text = str(value)
    return int(text) if text.isdecimal() and len(text) < 19 else -1
