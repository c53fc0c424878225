"""Explain ids of masks that fit neither the class names nor each other, and say what would mend them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from atrous.data.labels import Colour, Labels
from atrous.messages import listed


class UnknownIdError(ValueError):
    """A mask holds ids of no class.

    Attributes:
        reason: the message without the advice.
        advice: what would mend it, or "".
        histogram: pixels of each stored id, int64 256.
    """

    def __init__(self, reason: str, advice: str, histogram: npt.NDArray[np.int64]) -> None:
        super().__init__(f"{reason}; {advice}" if advice else reason)
        self.reason, self.advice, self.histogram = reason, advice, histogram

    def __reduce__(self) -> tuple[type[UnknownIdError], tuple[str, str, npt.NDArray[np.int64]]]:
        return type(self), (self.reason, self.advice, self.histogram)


class Drawn(NamedTuple):
    """The colours in which a palette image draws the stored ids of classes that occur in it.

    Attributes:
        path: the mask.
        colours: by stored id.
        ours: whether its palette is the one that this package writes for the classes.
    """

    path: Path
    colours: dict[int, Colour]
    ours: bool


def palette_conflicts(masks: Iterable[Drawn], labels: Labels) -> list[str]:
    """A line for each mask that draws an id in another colour than a mask before it: its ids mean something else.

    Masks that this package wrote, pseudo-labels among own masks, conflict only with masks in the colours of `labels`.
    """
    masks = list(masks)
    ours = next((mask.path for mask in masks if mask.ours), None)
    first: dict[int, tuple[Colour, Path]] = {}
    lines = []
    for path, colours, _ in (mask for mask in masks if not mask.ours):
        for value, colour in colours.items():
            other, where = first.setdefault(value, (colour, path))
            if ours and value < len(labels) and colour in labels.palette:
                other, where = (other, where) if other != colour else (labels.palette[value], ours)
            if other != colour:
                lines.append(
                    f"{path}: id {value} is drawn in {colour}, but in {where} in {other}; expected each id in one "
                    f"colour, for ids count and not colours: a tool has probably renumbered the palette of each file; "
                    f"save the masks as RGB and give their colours as `palette` in dataset.yaml, or take the originals"
                )
                break
    return lines


def described(histogram: npt.NDArray[np.int64], most: int = 5) -> str:
    """The ids of a histogram, int64 256, with their pixels: `0 (512 pixels), 255 (128 pixels)`."""
    return listed([f"{value} ({histogram[value]} pixels)" for value in np.flatnonzero(histogram)], most)


def likely_fix(histogram: npt.NDArray[np.int64], labels: Labels) -> str:
    """What dataset.yaml would say if stored ids mean what such ids usually mean; "" if nothing is likely.

    Args:
        histogram: pixels of each stored id, int64 256.
        labels: the classes as they are named now.
    """
    values = [int(value) for value in np.flatnonzero(histogram)]
    names, count = labels.names, len(labels)
    classes = [value for value in values if value != labels.ignore]
    if count == 1 and len(values) == 2 and values[0] == 0:
        return _advice(f"{values[1]} is {names[0]} and 0 is background", ("background", *names), {values[1]: 1})
    if classes == [0] and labels.ignore in values:
        which = f"{labels.ignore} is {names[1] if count == 2 else 'one of the classes'}"
        return _advice(which, None, {labels.ignore: 1 if count == 2 else "ID"})
    if classes == list(range(1, count + 1)):
        return _advice(f"the first class, {names[0]}, is id 1", None, {value: value - 1 for value in classes})
    if classes == list(range(count + 1)):
        return _advice("0 is background", ("background", *names), {})
    for ids in (values, classes):
        if len(ids) == count and classes and classes[-1] >= count:
            return _advice("ids are in the order of the names", None, {value: i for i, value in enumerate(ids)})
    return ""


def _advice(condition: str, names: Sequence[str] | None, ids: Mapping[int, int | str]) -> str:
    lines = [] if names is None else [f"names: {_flow(list(names))}"]
    changed = {value: number for value, number in ids.items() if value != number}
    lines += [f"map: {{{', '.join(f'{value}: {number}' for value, number in changed.items())}}}"] if changed else []
    return f"if {condition}, write `{'` and `'.join(lines)}` in dataset.yaml"


def _flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20).strip()
