"""How a data set is to be read: the keys of `dataset.yaml`, and the flags and settings that overrule them.

The file lies in the data's folder, whatever its layout is; or it is `--data FILE.yaml`, with `path:` and `layout:`.
`atrous.data.datasets.folding` applies the options to what a layout has read.

    options = DatasetOptions.parse({"classes": ["leaf", "stem"], "map": {"bud": "leaf"}})
    listing = list_split("voc:PATH", "train", options)
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from atrous.colours import Colour
from atrous.messages import did_you_mean
from atrous.yaml_io import parse_yaml

FILE = "dataset.yaml"
_YAML_BYTES = 1 << 20
_REST = ("background", "ignore")
_BINARY = ("object", "ignore")


@dataclass(frozen=True)
class DatasetOptions:
    """How a data set is to be read; each is empty where the layout's own rule counts.

    Classes are named, or given by the id that the masks store, as text: the name counts first.

    Attributes:
        names: of the classes, in the order of their ids; for a layout that has names, other names for them.
        ids: the ids that masks store for `names`, if they are given as id: name.
        palette: a colour for each class.
        ignore: names, stored ids, or colours of what neither trains nor counts.
        map: pairs of what is stored, a name or an id, and the class that it is to be.
        classes: names of those to keep, in this order; the others become the rest.
        rest: what the others become: ``background``, the default, or ``ignore``.
        images: folder of the images, for an export without them.
        annotator: whose annotations count, where an image has those of several people.
        binary: what 255 is in masks of 0 and 255: ``object`` or ``ignore``.
        value_range: samples that become 0 and 255, for images of more than 8 bits.
        bands: the three bands for red, green and blue, or the one for gray, counted from 1.
    """

    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    palette: tuple[Colour, ...] = ()
    ignore: tuple[str | Colour, ...] = ()
    map: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] = ()
    rest: str = ""
    images: str = ""
    annotator: str = ""
    binary: str = ""
    value_range: tuple[float, float] | None = None
    bands: tuple[int, ...] = ()

    @classmethod
    def parse(cls, values: Mapping[Any, Any]) -> DatasetOptions:
        """Options by their keys in `dataset.yaml`, as YAML or a program has them.

        Raises:
            ValueError: for an unknown key, with the nearest, or a value of another kind.
        """
        for key in values:
            if key not in KEYS:
                raise ValueError(f"unknown key {reprlib.repr(key)}{did_you_mean(key, KEYS, otherwise='expected')}")
        read: dict[str, Any] = {key: _READERS[key](value) for key, value in values.items()}
        names, ids = read.pop("names", ((), ()))
        return cls(names=names, ids=ids, **read)

    def _given(self) -> dict[str, Any]:
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}

    def over(self, other: DatasetOptions) -> DatasetOptions:
        """These options, and those of `other` where these say nothing."""
        given = self._given()
        # Names go with their ids.
        return replace(other, **given | ({"ids": self.ids} if "names" in given else {}))

    def as_dict(self) -> dict[str, Any]:
        """What is given, for `parse`, JSON and YAML."""
        given = self._given()
        ids = given.pop("ids", None)
        plain = {key: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value
                 for key, value in given.items()}  # fmt: skip
        plain |= {"names": dict(zip(map(str, ids), self.names, strict=True))} if ids else {}
        return plain | ({"map": dict(self.map)} if self.map else {})

    def __str__(self) -> str:
        """As flow YAML, without the outer braces."""
        return yaml.safe_dump(self.as_dict(), default_flow_style=True, allow_unicode=True, width=1 << 20).strip()[1:-1]

    def __bool__(self) -> bool:
        """Whether anything is given."""
        return self != NO_OPTIONS


NO_OPTIONS = DatasetOptions()
KEYS = tuple(each.name for each in fields(DatasetOptions) if each.name != "ids")
"""Of `dataset.yaml`; a file of its own has `PLACE_KEYS`, too."""
PLACE_KEYS = ("path", "layout")


def read_options(path: Path) -> tuple[DatasetOptions, dict[str, str]]:
    """The options of a `dataset.yaml`, and where the data is, by `PLACE_KEYS`, if the file says so.

    Every value is the text that is written: a class may be called yes, 1e3 or 2024-01-01.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, for any other content.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a dataset.yaml with the class names")
    if not path.is_file():  # opening a pipe without a writer would block for ever
        raise ValueError(f"{path}: not a file; expected a dataset.yaml with the class names")
    try:
        with path.open("rb") as file:
            content = file.read(_YAML_BYTES + 1)
        if len(content) > _YAML_BYTES:
            raise ValueError(f"larger than {_YAML_BYTES} bytes")
        document = parse_yaml(content.decode("utf-8-sig"), as_text=True)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({error}); expected keys such as `names`") from None
    try:
        if not isinstance(document, Mapping):
            raise ValueError(f"the document is {described(document)}; expected keys such as names; see docs/data.md")
        place = {key: _text(key)(document[key]) for key in PLACE_KEYS if key in document}
        options = DatasetOptions.parse({key: value for key, value in document.items() if key not in PLACE_KEYS})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if options.images:
        options = replace(options, images=str(path.parent / Path(options.images).expanduser()))
    return options, place


def described(value: object) -> str:
    """A value as it was read, for a message; reprlib bounds depth and length."""
    if value is None or value == "":
        return "empty"
    kinds: dict[type, str] = {dict: "a mapping", list: "a list", tuple: "a list", str: "the text"}
    return f"{kinds.get(type(value), type(value).__name__)} {reprlib.repr(value)}"


def _scalar(value: object, what: str) -> str:
    """A name or a number as text."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise ValueError(f"{what} is {described(value)}; expected a name or a number")


def _whole(value: object, what: str, most: int = 65535) -> int:
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > most:
        raise ValueError(f"{what} is {described(value)}; expected a whole number, 0 to {most}")
    return int(text)


def _list(value: object, key: str, of: str, *, alone: tuple[type, ...] = ()) -> list[Any]:
    """A list that is not empty; of one value, if it may stand alone."""
    values = [value] if isinstance(value, alone) and value != "" else value
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{key} is {described(value)}; expected a list of {of}")
    if not values and key != "palette":
        raise ValueError(f"{key} is empty; expected {of}")
    return list(values)


def _names(value: object) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names, and their stored ids if they are given by id."""
    if not isinstance(value, Mapping):
        names = _list(value, "names", "names, or id: name")
        return tuple(_scalar(name, f"names[{index}]") for index, name in enumerate(names)), ()
    by_id = sorted((_whole(key, "an id in names"), _scalar(name, f"names[{key}]")) for key, name in value.items())
    if twice := [key for (key, _), (after, _) in zip(by_id, by_id[1:], strict=False) if key == after]:
        raise ValueError(f"names has the id {twice[0]} twice; expected one name for each id")
    names = [name for _, name in by_id]
    return tuple(_list(names, "names", "the class names")), tuple(key for key, _ in by_id)


def _palette(value: object) -> tuple[Colour, ...]:
    colours = _list(value, "palette", "[red, green, blue]")
    return tuple(_colour(colour, f"palette[{index}]") for index, colour in enumerate(colours))


def _colour(value: object, what: str) -> Colour:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError(f"{what} is {described(value)}; expected [red, green, blue], each 0 to 255")
    red, green, blue = (_whole(part, what, 255) for part in value)
    return red, green, blue


def _ignore(value: object) -> tuple[str | Colour, ...]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    return tuple(
        _colour(entry, "a colour in ignore") if isinstance(entry, (list, tuple)) else _scalar(entry, "ignore")
        for entry in _list(entries, "ignore", "ids, colours or names")
    )


def _map(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"map is {described(value)}; expected stored ids or names with their class, such as 255: leaf")
    pairs = ((_scalar(a, "an entry of map"), _scalar(b, f"map of {reprlib.repr(a)}")) for a, b in value.items())
    return tuple(pairs)


def _classes(value: object) -> tuple[str, ...]:
    names = _list(value, "classes", "names to keep", alone=(str,))
    return tuple(_scalar(name, f"classes[{index}]") for index, name in enumerate(names))


def _text(key: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{key} is {described(value)}; expected text")
        return value

    return read


def _one_of(key: str, choices: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in choices:
            raise ValueError(f"{key} is {described(value)}; expected {' or '.join(choices)}")
        return str(value)

    return read


def value_range_of(value: object) -> tuple[float, float]:
    """LOW and HIGH from a list of two, or from ``LOW,HIGH``.

    Raises:
        ValueError: if they are not two finite numbers, the second the larger one.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        low, high = (float(part) for part in parts)  # type: ignore[attr-defined]
        if -math.inf < low < high < math.inf:
            return low, high
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"value_range is {described(value)}; expected LOW,HIGH, such as 0,4095: two numbers, low first")


def bands_of(value: object) -> tuple[int, ...]:
    """One band, or three, counted from 1, from a list or from ``4,3,2``.

    Raises:
        ValueError: if they are not so.
    """
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    if not isinstance(parts, (list, tuple)) or len(parts) not in (1, 3):
        raise ValueError(f"bands is {described(value)}; expected three, for red, green and blue, such as 4,3,2; or one")
    bands = tuple(_whole(part, "a band") for part in parts)
    if 0 in bands:
        raise ValueError("a band is 0; expected bands counted from 1")
    return bands


_READERS: dict[str, Callable[[object], Any]] = {
    "names": _names,
    "palette": _palette,
    "ignore": _ignore,
    "map": _map,
    "classes": _classes,
    "rest": _one_of("rest", _REST),
    "images": _text("images"),
    "annotator": _text("annotator"),
    "binary": _one_of("binary", _BINARY),
    "value_range": value_range_of,
    "bands": bands_of,
}
