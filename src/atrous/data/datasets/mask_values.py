"""Count the ids of masks, and explain those that fit neither the class names nor each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from atrous.data.datasets.class_files import background_index
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


@dataclass(frozen=True)
class Counts:
    """Pixels and images of each class.

    Attributes:
        pixels: int64 K, pixels of each class.
        images: int64 K, images in which each class occurs.
        ignored: pixels with the ignored id.
    """

    pixels: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    ignored: int

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Float K, the share of each class in the pixels that are not ignored; zeros if there are none."""
        return self.pixels / max(1, int(self.pixels.sum()))

    @property
    def ignored_share(self) -> float:
        """The share of ignored pixels in all pixels."""
        return self.ignored / max(1, int(self.pixels.sum()) + self.ignored)


def histogram_of(mask: npt.NDArray[Any], labels: Labels) -> npt.NDArray[np.int64]:
    """Pixels of each id in a mask, int64 256; for more than 255 classes K + 1, the last of the ignored id."""
    if labels.largest_id < 256:
        return np.bincount(mask.ravel(), minlength=256)
    return np.bincount(np.minimum(mask.ravel().astype(np.int64), len(labels)), minlength=len(labels) + 1)


def ignored_place(labels: Labels) -> int:
    """Of the ignored id in the histograms of `histogram_of`."""
    return labels.ignore if labels.largest_id < 256 else len(labels)


def class_counts(histograms: npt.NDArray[np.int64], labels: Labels) -> Counts:
    """Counts from histograms of ids, those of `histogram_of`, one row an image; N may be 0."""
    classes = histograms[:, : len(labels)]
    return Counts(classes.sum(axis=0), (classes > 0).sum(axis=0), int(histograms[:, ignored_place(labels)].sum()))


def class_problems(counts: Counts, labels: Labels) -> list[str]:
    """Why readable masks are unfit to train on: classes without a pixel, one class alone, ids 0 and 255 only.

    Each line says what to do, and names the options that accept it.
    """
    absent = [labels.names[index] for index in np.flatnonzero(counts.pixels == 0)]
    histogram = np.zeros(labels.largest_id + 1, dtype=np.int64)
    histogram[: len(labels)], histogram[labels.ignore] = counts.pixels, counts.ignored
    if len(labels) == 1:
        reason = f"{labels.names[0]} is the only class, so that there is nothing to tell it from"
    elif len(absent) == len(labels):
        reason = f"every pixel is ignored; expected some of the {len(labels)} classes"
    elif absent:
        reason = f"no pixel of {', '.join(absent)}; expected every class"
    else:
        return []
    fix = likely_fix(histogram, labels) if len(absent) < len(labels) else ""
    fix = f"; {fix}" if fix else ""
    options = "--allow-empty-classes, or in training --set allow_empty_classes=true"
    return [f"{reason}; the masks have the ids {described(histogram)}{fix}; to accept that: {options}"]


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
        one = names[0] if background_index(names) is None else "object"
        return _advice(f"{values[1]} is {one} and 0 is background", ("background", one), {values[1]: 1})
    if classes == [0] and labels.ignore in values:
        which = f"{labels.ignore} is {names[1] if count == 2 else 'one of the classes'}"
        return _advice(which, None, {labels.ignore: 1 if count == 2 else "ID"})
    if classes and classes[-1] == count:  # of one mask, which need not have every class
        if classes[0] > 0:
            first = f"the first class, {names[0]}, is id 1"
            return _advice(first, None, {value: value - 1 for value in range(1, count + 1)})
        if background_index(names) is None:
            return _advice("0 is background", ("background", *names), {})
    for ids in (values, classes):
        if len(ids) == count and classes and classes[-1] >= count:
            return _advice("ids are in the order of the names", None, {value: i for i, value in enumerate(ids)})
    spread = {round(index * 255 / (count - 1)): index for index in range(count)} if 2 < count < 18 else {}
    if {*values} <= {*spread}:
        return _advice("ids are spread over 0..255, to be seen", None, spread)
    return ""


def _advice(condition: str, names: Sequence[str] | None, ids: Mapping[int, int | str]) -> str:
    lines = [] if names is None else [f"names: {_flow(list(names))}"]
    changed = {value: number for value, number in ids.items() if value != number}
    lines += [f"map: {{{', '.join(f'{value}: {number}' for value, number in changed.items())}}}"] if changed else []
    return f"if {condition}, write `{'` and `'.join(lines)}` in dataset.yaml"


def _flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20).strip()
