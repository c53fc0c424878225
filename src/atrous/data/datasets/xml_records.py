"""Parse XML of annotations, whole or one element at a time; document types, entities and deep nesting are refused.

Entities can expand without bound (`<!ENTITY a "&b;&b;">`), and no labelling tool writes a document type.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

_MOST_LEVELS = 32
_CHUNK = 1 << 16
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class XmlRecord(NamedTuple):
    """A child of the root, and its first and last byte in the file; `parse_xml` reads those again."""

    element: Element
    start: int
    end: int


class _Builder:
    """Elements of one level from expat's events."""

    def __init__(self, level: int, encoding: str | None = None) -> None:
        self.level = level
        self.depth = 0
        self.encoding = "utf-8"
        self.done: list[XmlRecord] = []
        self.parser = expat.ParserCreate(encoding)
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.XmlDeclHandler = self._declared
        self._tree: TreeBuilder | None = None
        self._open: tuple[Element, int] | None = None

    def parse(self, data: bytes, final: bool) -> None:
        """Feed a part of a document; ValueError if it is not XML."""
        try:
            self.parser.Parse(data, final)
        except (expat.ExpatError, LookupError) as error:
            raise ValueError(f"not XML: {error}") from None
        if final:
            self._finish(self.parser.CurrentByteIndex)

    def _declared(self, _version: str, encoding: str | None, _standalone: int) -> None:
        self.encoding = encoding or "utf-8"

    def _refuse(self, *_: object) -> NoReturn:
        raise ValueError("a document type, whose entities can expand without bound; expected XML without <!DOCTYPE>")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if self.depth <= self.level:
            self._finish(self.parser.CurrentByteIndex)
        if self.depth == self.level:
            self._tree, self._begin = TreeBuilder(), self.parser.CurrentByteIndex
        if self._tree is not None:
            self._tree.start(tag, attributes)
        self.depth += 1
        if self.depth > _MOST_LEVELS:
            raise ValueError(f"more than {_MOST_LEVELS} levels of elements; expected annotations")

    def _end(self, tag: str) -> None:
        if self.depth <= self.level:
            self._finish(self.parser.CurrentByteIndex)
        self.depth -= 1
        if self._tree is not None:
            self._tree.end(tag)
            if self.depth == self.level:
                # Where the end tag ends is known when the next event comes.
                self._open, self._tree = (self._tree.close(), self._begin), None

    def _text(self, text: str) -> None:
        if self._tree is not None:
            self._tree.data(text)

    def _finish(self, end: int) -> None:
        if self._open is not None:
            element, start = self._open
            self.done.append(XmlRecord(element, start, end))
            self._open = None


def xml_records(path: Path) -> Iterator[tuple[XmlRecord, str]]:
    """The children of a file's root, one at a time, each with the file's encoding.

    Raises:
        ValueError: saying what was found, without the file's name.
    """
    builder = _Builder(level=1)
    with path.open("rb") as file:
        chunk = file.read(_CHUNK)
        if chunk[:2] in _UTF_16:
            raise ValueError("UTF-16; expected UTF-8: save it in that encoding")
        while chunk:
            following = file.read(_CHUNK)
            builder.parse(chunk, final=not following)
            yield from ((record, builder.encoding) for record in builder.done)
            builder.done.clear()
            chunk = following


def parse_xml(data: bytes, encoding: str | None = None) -> Element:
    """The root of a document, or of a part of one that is one element; ValueError as `xml_records`."""
    if not data.strip():
        raise ValueError("an empty file")
    if data[:2] in _UTF_16:
        raise ValueError("UTF-16; expected UTF-8: save it in that encoding")
    builder = _Builder(0, encoding)
    builder.parse(data, final=True)
    return builder.done[0].element
