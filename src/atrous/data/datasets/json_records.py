"""Parse JSON: a file whole, or the lists of a large object one element at a time with the byte range of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_BOM = "\xef\xbb\xbf"


def load_json(path: Path, expected: str) -> Any:
    """The content of a JSON file, UTF-8 with or without BOM.

    Args:
        path: the file.
        expected: what it should hold, for messages.

    Raises:
        ValueError: naming the file, if it is empty, not JSON, or nested too deep.
    """
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path}: an empty file; expected {expected}")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {' '.join(str(error).split())}; expected {expected}") from None


def json_records(path: Path) -> Iterator[tuple[str, Any, int, int]]:
    """Key, element, first and last byte of each element of every list in a file's JSON object.

    Raises:
        ValueError, IndexError: if it is not JSON of an object.
    """
    text, place = _opened(path)
    place = _after(text, place, "{")
    while text[place] != "}":
        key, place = _DECODE(text, place)
        place = _after(text, place, ":")
        if text[place] == "[":
            end = place + 1
            for element, start, end in _elements(text, place):
                yield key, element, start, end
            place = _next(text, end, "]") + 1  # behind the bracket, and a comma before it
        else:
            _, place = _DECODE(text, place)
        place = _next(text, place, "}")


def json_elements(path: Path) -> Iterator[tuple[Any, int, int]]:
    """Element, first and last byte of each element of a file's JSON list.

    Raises:
        ValueError: if it is not JSON of a list; RecursionError, if it is nested too deep.
    """
    yield from _elements(*_opened(path))


_DECODE = json.JSONDecoder().raw_decode


def _opened(path: Path) -> tuple[str, int]:
    """A file's bytes as Latin-1, so that an index is an offset in the file, and where it starts behind its mark."""
    text = path.read_bytes().decode("latin-1")
    return text, len(_BOM) if text.startswith(_BOM) else 0


def _elements(text: str, place: int) -> Iterator[tuple[Any, int, int]]:
    """As `json_elements`, of the list at a place."""
    place = _after(text, place, "[")
    while text[place : place + 1] != "]":
        element, end = _DECODE(text, place)
        if not text[place:end].isascii():  # the text of a record is UTF-8
            element = json.loads(text[place:end].encode("latin-1"))
        yield element, place, end
        place = _next(text, end, "]")


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
