"""Apply `DatasetOptions` to what a layout has read: other names, ignored ids, classes folded into others.

No mask is rewritten: the result is another table from stored ids to classes. The order is `names`, `palette`, `ignore`,
`map`, `classes`. All of `map` happens at once: `{a: b, b: c}` does not make a of c. A class of which nothing is left is
no class any more.

    listing = folded(listing, DatasetOptions.parse({"classes": ["car"], "map": {"bus": "car"}}))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from atrous.data.datasets.base import Listing
from atrous.data.datasets.class_files import background_index
from atrous.data.datasets.options import DatasetOptions, read_options
from atrous.data.labels import Colour, Labels, ignored_id, voc_palette
from atrous.messages import did_you_mean, listed

IGNORE = "ignore"
"""As the class that `map` names: neither trained on nor counted, if no class has that name."""


def own_labels(options: DatasetOptions) -> tuple[Labels, tuple[int, ...] | None]:
    """The classes that options name by themselves, for a layout that has no other names, and the ids of their masks.

    Returns:
        The classes; and the class id by stored id, -1 for one that must not occur, or None if ids are class ids.

    Raises:
        ValueError: without names, or for names, colours or an ignored id that do not go together.
    """
    if not options.names:
        raise ValueError("no key 'names'; expected the class names, such as names: [background, leaf]")
    count = len(options.names)
    if options.binary == "object" and not options.ids:
        if count != 2:
            names = listed(options.names)
            raise ValueError(
                f"binary is object, but the classes are {names}; expected two, such as background and leaf"
            )
        options = replace(options, ids=(0, 255))
    numbers = _numbers(options)
    stored = options.ids or range(count)
    if taken := [number for number in numbers if number in stored]:
        raise ValueError(_is_class(taken[0], options.names[list(stored).index(taken[0])]))
    ignore = next((number for number in numbers if count <= number <= ignored_id(count)), ignored_id(count))
    labels = Labels(options.names, options.palette or voc_palette(count), ignore)
    if not options.ids or options.ids == tuple(range(count)):
        return labels, None
    table = [-1] * _table_size(labels, options)
    table[ignore] = ignore
    for index, number in enumerate(options.ids):
        table[number] = index
    return labels, tuple(table)


def load_labels(path: Path) -> Labels:
    """The classes that a `dataset.yaml` names; errors as `read_options` and `folded`, naming the file."""
    try:
        options, _ = read_options(path)
        labels, remap = own_labels(options)
        return folded(Listing(str(path), (), labels, remap), options).labels
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def _is_class(number: int, name: str) -> str:
    end = "expected an id that is no class's, or the class's name, to ignore the class"
    return f"ignore is {number}, the id of class {name!r}; {end}"


def folded(listing: Listing, options: DatasetOptions) -> Listing:
    """The listing of the classes that the options ask for; itself if they ask for nothing.

    Raises:
        ValueError: for a class that is not there, two names for one, an ignored id that is a class, or if no class is
            left.
    """
    if not (options.names or options.palette or options.ignore or options.map or options.classes or options.rest):
        return listing
    labels = _renamed(listing.labels, options)
    labels = replace(labels, palette=options.palette) if options.palette else labels
    before = _table(labels, listing.remap, options)
    table = _mapped(_ignoring(before, labels, options), labels, options)
    kept = [index for index in range(len(labels)) if index in table or index not in before]
    order, table = _kept(table, labels, kept, options)
    result = _relabelled(labels, order)
    ids = {index: place for place, index in enumerate(order)} | {labels.ignore: result.ignore, -1: -1}
    remap: tuple[int, ...] | None = tuple(ids[index] for index in table)
    if remap == tuple(_table(result, None, options)):
        remap = None
    gone = [name for index, name in enumerate(labels.names) if index not in order]
    said = f"; folded away: {listed(gone, 6)}" if gone else ""
    colours = listing.colours or (labels.palette if listing.remap is None else None)
    ignored = tuple(entry for entry in options.ignore if not isinstance(entry, str))
    taken = [colour for colour in ignored if colour in labels.palette]
    if taken and labels.palette != voc_palette(len(labels)):  # the default says nothing about the masks
        name = labels.names[labels.palette.index(taken[0])]
        raise ValueError(f"ignore has {taken[0]}, the colour of class {name!r}; expected one that is no class's")
    return replace(
        listing, labels=result, remap=remap, read_as=listing.read_as + said, colours=colours, ignored=ignored
    )


def _renamed(labels: Labels, options: DatasetOptions) -> Labels:
    if not options.names or options.names == labels.names:
        return labels
    if not options.ids:
        if len(options.names) != len(labels):
            raise ValueError(
                f"names has {len(options.names)} names, the data {len(labels)} classes: {', '.join(labels.names)}; "
                "expected one each, or id: name for some of them"
            )
        return replace(labels, names=options.names)
    names = list(labels.names)
    for number, name in zip(options.ids, options.names, strict=True):
        if number >= len(names):
            raise ValueError(f"names has the id {number}; the data has the ids 0 to {len(names) - 1}")
        names[number] = name
    return replace(labels, names=tuple(names))


def _numbers(options: DatasetOptions) -> list[int]:
    """The ids that `ignore` names; a name that is a number is a class."""
    words = [entry for entry in options.ignore if isinstance(entry, str) and entry.isdecimal()]
    return [int(word) for word in words if word not in options.names]


def _table_size(labels: Labels, options: DatasetOptions) -> int:
    mapped = [int(word) for pair in options.map for word in pair if word.isdecimal()]
    return 256 if max(len(labels), labels.ignore, *options.ids, *mapped, *_numbers(options), 0) < 256 else 65536


def _table(labels: Labels, remap: Sequence[int] | None, options: DatasetOptions) -> list[int]:
    """Class id by stored id, -1 for one that must not occur."""
    size = _table_size(labels, options)
    if remap is not None:
        return [*remap, *[-1] * (size - len(remap))]
    return [index if index < len(labels) or index == labels.ignore else -1 for index in range(size)]


def _number(word: str, labels: Labels, size: int, key: str) -> int:
    """A word that is no class's name as a stored id."""
    if not word.isdecimal():
        hint = did_you_mean(word, labels.names, otherwise="the classes are")
        raise ValueError(f"{key} has {word!r}, which is no class{hint}")
    if int(word) >= size:
        raise ValueError(f"{key} has the id {word}; expected 0 to {size - 1}")
    return int(word)


def _ignoring(before: list[int], labels: Labels, options: DatasetOptions) -> list[int]:
    table = list(before)
    for entry in (entry for entry in options.ignore if isinstance(entry, str)):  # colours are for those who read them
        if entry in labels.names:
            index = labels.names.index(entry)
            table = [labels.ignore if value == index else value for value in table]
            continue
        number = _number(entry, labels, len(table), "ignore")
        if table[number] not in (-1, labels.ignore):
            raise ValueError(_is_class(number, labels.names[table[number]]))
        table[number] = labels.ignore
    return table


def _mapped(before: list[int], labels: Labels, options: DatasetOptions) -> list[int]:
    table = list(before)
    # Ids after names, for they say more.
    for word, target in sorted(options.map, key=lambda pair: pair[0] not in labels.names):
        to = _target(target, labels)
        if word in labels.names:
            index = labels.names.index(word)
            table = [to if was == index else value for was, value in zip(before, table, strict=True)]
        else:
            table[_number(word, labels, len(table), "map")] = to
    return table


def _target(word: str, labels: Labels) -> int:
    if word in labels.names:
        return labels.names.index(word)
    if word == IGNORE or (word.isdecimal() and int(word) == labels.ignore):
        return labels.ignore
    if word.isdecimal() and int(word) < len(labels):
        return int(word)
    hint = did_you_mean(word, labels.names, otherwise="the classes are")
    raise ValueError(
        f"map leads to {word!r}, which is no class{hint}; or {IGNORE}; `names` can give a class another name"
    )


def _kept(table: list[int], labels: Labels, there: list[int], options: DatasetOptions) -> tuple[list[int], list[int]]:
    """The classes to keep, in their new order, -2 for a new background; and the table with the rest folded."""
    order = there
    if options.classes:
        chosen = [labels.names.index(name) for name in _chosen(options.classes, [labels.names[i] for i in there])]
        rest = labels.ignore
        if options.rest != IGNORE:
            background = background_index(labels.names)
            rest = _NEW if background is None or background not in there else background
        order = [rest, *chosen] if rest not in (labels.ignore, *chosen) else chosen
        table = [value if value in (-1, labels.ignore, *order) else rest for value in table]
        if rest == _NEW and len(chosen) == len(there):
            order = chosen  # nothing is left for it
    elif options.rest:
        raise ValueError(f"rest is {options.rest}, but there are no classes to keep; expected `classes` with it")
    if not [index for index in order if index != _NEW and labels.names[index] != "background"]:
        raise ValueError(f"no class is left of {', '.join(labels.names)}; expected one beside background")
    return order, table


_NEW = -2
"""The index of a background that the data does not have."""


def _chosen(classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that are asked for; a word that is no name may hold several, with commas between."""
    chosen = [name for word in classes for name in ([word] if word in names else _split(word, names))]
    if twice := next((name for name in chosen if chosen.count(name) > 1), None):
        raise ValueError(f"classes has {twice!r} {chosen.count(twice)} times; expected every class once")
    return chosen


def _split(word: str, names: Sequence[str]) -> list[str]:
    """The names in ``a,b``, where names may hold commas, too."""
    parts, chosen = word.split(","), list[str]()
    while parts:
        ends = range(len(parts), 0, -1)
        name, end = next(
            ((name, end) for end in ends if (name := ",".join(parts[:end]).strip()) in names), (parts[0].strip(), 0)
        )
        if not end:
            hint = did_you_mean(name, names, otherwise="the classes are")
            raise ValueError(f"classes has {name!r}, which is no class{hint}")
        chosen.append(name)
        parts = parts[end:]
    return chosen


def _relabelled(labels: Labels, order: Sequence[int]) -> Labels:
    black: Colour = (0, 0, 0)
    names = tuple("background" if index == _NEW else labels.names[index] for index in order)
    palette = tuple(black if index == _NEW else labels.palette[index] for index in order)
    most = ignored_id(len(order))
    ignore = labels.ignore if len(order) <= labels.ignore <= most else most
    return Labels(names, palette, ignore)
