"""Classes of masks that come without names: from the values, or the colours, that the masks store.

| values | read as |
| --- | --- |
| 0 and one more, such as {0, 255} | background and object |
| 0, 1, 2, ... and 255 | 255 is ignored |
| others | 0 is background, each other a class |
| colours | black is background, each other a class; VOC's border colour is ignored |

Which it was is said with the counts; a dataset.yaml beside the folders overrules it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atrous.data.datasets.array_mask import read_values
from atrous.data.datasets.base import FileMask, MaskSource, stamp_of
from atrous.data.datasets.class_files import ColourMask, read_palette
from atrous.data.images.image_file import decode_file
from atrous.data.images.image_io import MAX_PIXELS, Pixels
from atrous.data.labels import IGNORE_COLOUR, Colour, Labels, colour_of, looked_up, voc_palette
from atrous.messages import counted, listed

MOST_READ = 1000
"""Of more masks, as many are read, evenly spread."""
_SMALL = 64
_MOST_COLOURS = 64
_BLURRED = 8
_INSIDE = 0.05
"""The share of a class's pixels, at least, whose four neighbours are of it, too."""

_KNOWN: dict[bytes, InferredClasses] = {}


@dataclass(frozen=True)
class InferredClasses:
    """What the values of masks were taken for.

    Attributes:
        labels: the classes.
        values: the stored value of each class; none where colours are.
        ignored: stored values that are ignored.
        source: what stores them, for messages.
        said: a clause that says so, with counts and what overrules it.
    """

    labels: Labels
    values: tuple[int, ...]
    ignored: tuple[int, ...]
    source: Path
    said: str

    def mask(self, path: Path) -> MaskSource:
        """The mask in a file."""
        if not self.values:
            return ColourMask(path, self.labels, self.source)
        return ValueMask(path, self.values, self.ignored, self.labels.ignore)


@dataclass(frozen=True, slots=True)
class ValueMask(FileMask):
    """A mask whose values are numbered in order.

    Attributes:
        values: the stored value of each class, ascending.
        ignored: values that become `ignore`.
        ignore: the ignored id.
    """

    values: tuple[int, ...]
    ignored: tuple[int, ...]
    ignore: int

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError naming the file and the values that no class has."""
        stored = read_values(self.path)
        if stored.ndim == 3:
            raise ValueError(f"{self}: a mask in colours, among masks of numbers; expected all of one kind")
        known = dict.fromkeys(self.ignored, self.ignore) | {value: index for index, value in enumerate(self.values)}
        ids, unknown = looked_up(stored, known)
        if unknown.size:
            raise ValueError(
                f"{self}: values {_listed(Counter(unknown.tolist()))}, which no mask had that was read to find "
                f"the classes; expected {listed([*map(str, sorted(known))], 9)}; name the classes in dataset.yaml"
            )
        return ids

    def palette(self) -> list[Colour] | None:
        """The colour in which a palette image draws each class; None for another image, or one that is read by them."""
        palette = read_palette(self.path)
        if palette is None or decode_file(self.path, MAX_PIXELS, lambda image: image.format) == "GIF":
            return None
        return [palette[value] for value in self.values if value < len(palette)]


def step_of(count: int) -> int:
    """The step from one to the next of those masks that are read of many."""
    return max(1, -(-count // MOST_READ))


def infer_classes(root: Path, some: Sequence[Path], count: int, binary: str = "") -> InferredClasses:
    """The classes of masks without names.

    Args:
        root: of the data set, for messages.
        some: masks of all splits, as many as are to be read.
        count: how many masks there are.
        binary: what 255 is in masks of 0 and 255, as of `DatasetOptions`.

    Raises:
        ValueError: if none can be read, or their values are not those of classes.
    """
    text = binary + "\0".join(f"{path} {stamp_of(path)}" for path in some)
    key = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    if key not in _KNOWN:
        _KNOWN[key] = _find(root, some, count, binary)
    return _KNOWN[key]


def _find(root: Path, some: Sequence[Path], count: int, binary: str) -> InferredClasses:
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(_pixels, some))
    wrong = [one for one in read if isinstance(one, str)]
    values, colours, inner = Counter[int](), Counter[Colour](), Counter[int]()
    for one in read:
        if not isinstance(one, str):
            values.update(one[0])
            colours.update(one[1])
            inner.update(one[2])
    if not values and not colours:
        raise ValueError(wrong[0] + (f" (and {counted(len(wrong) - 1, 'more mask')})" if len(wrong) > 1 else ""))
    of = f"{len(some)} of {count} masks" if len(some) < count else counted(count, "mask")
    if colours:
        for value, pixels in values.items():
            colours[value, value, value] += pixels
        return _of_colours(root, colours, of)
    _refuse_shades(root, values, inner, of)
    return _of_values(root, values, of, binary)


def _pixels(path: Path) -> tuple[Counter[int], Counter[Colour], Counter[int]] | str:
    """Pixels of each value or each colour, and of each value those inside its regions; or why they cannot be read."""
    try:
        stored = read_values(path)
    except (ValueError, OSError) as error:
        return str(error)
    if stored.ndim == 2:
        middle = stored[1:-1, 1:-1]
        inside = (middle == stored[:-2, 1:-1]) & (middle == stored[2:, 1:-1])
        inside &= (middle == stored[1:-1, :-2]) & (middle == stored[1:-1, 2:])
        return _counted(stored), Counter(), _counted(middle[inside])
    codes = _counted(stored.astype(np.int64) @ (65536, 256, 1))
    return Counter(), Counter({colour_of(code): count for code, count in codes.items()}), Counter()


def _counted(values: npt.NDArray[Any]) -> Counter[int]:
    distinct, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))


def _of_values(root: Path, pixels: Counter[int], of: str, binary: str) -> InferredClasses:
    values = sorted(value for value in pixels if value >= 0)
    others = [value for value in values if value != 255]
    ignored = [value for value in pixels if value < 0]
    if 255 in values and others and (binary == "ignore" or (len(others) > 1 and others[-1] < _SMALL)):
        values = others
        ignored.append(255)
    two = len(values) == 2 and values[0] == 0
    names = ["background", "object"] if two else [f"class {v}" if v else "background" for v in values]
    if not 0 < len(names) <= 255:
        raise ValueError(
            f"{root}: {len(names)} values in {of}, {_listed(pixels)}; expected 1 to 255, one a class, not one "
            "an instance"
        )
    meanings = [f"{value} is {name}" for value, name in zip(values, names, strict=True)]
    meanings += [f"{value} is ignored" for value in ignored]
    or_flag = ", or with `binary: ignore`" if [*values] == [0, 255] else ""
    changed = ", ".join(f"{value}: {index}" for index, value in enumerate(values[:9]) if value != index)
    example = f"`names: [{', '.join(names[:9])}]`" + (f" with `map: {{{changed}}}`" if changed else "")
    said = (
        f"no names of classes, so that they come from the values in {of}: {listed(meanings, 9)} (pixels: "
        f"{_listed(pixels)}); a dataset.yaml there says otherwise, such as {example}{or_flag}"
    )
    labels = Labels(tuple(names), voc_palette(len(names)))
    return InferredClasses(labels, tuple(values), tuple(ignored), root, said)


def _refuse_shades(root: Path, pixels: Counter[int], inner: Counter[int], of: str) -> None:
    """Raise ValueError for gray levels between the values of classes, which no region has inside, or a photograph."""
    few = len(pixels) <= _BLURRED
    if few or not {*pixels} <= {*range(256)}:
        return
    top = max(pixels)
    extremes = (pixels[0] + pixels[top]) / pixels.total()
    edges = [value for value, count in pixels.items() if inner[value] < _INSIDE * count]
    if len(edges) > max(_BLURRED, len(pixels) / 2) and extremes <= 0.9:
        kept = listed([str(value) for value in sorted(pixels) if value not in edges], 9) or "none"
        raise ValueError(
            f"{root}: {len(pixels)} values in {of}, of which {len(edges)} are at edges alone, not inside ({kept}): "
            "shades of gray, as of masks that were resized smoothly or stored as JPEG, or no masks; expected one value "
            "a class: export the masks again, as PNG, without resizing; if these are the classes, name them in "
            "dataset.yaml, `names: {VALUE: NAME}`"
        )
    if len(pixels) > 200 or (extremes > 0.9 and top > 2 * len(pixels)):
        raise ValueError(
            f"{root}: {len(pixels)} values in {of}, {_listed(pixels)}: shades of gray, as of masks that were resized "
            f"smoothly or stored as JPEG, or no masks; expected one value a class; if they are 0 and {top} but for "
            "blurred edges, threshold them: Image.open(PATH).convert('L').point(lambda v: 255 * (v > 127)).save(PATH)"
        )


def _of_colours(root: Path, pixels: Counter[Colour], of: str) -> InferredClasses:
    colours = sorted(colour for colour in pixels if colour != IGNORE_COLOUR)
    if not 0 < len(colours) <= _MOST_COLOURS:
        raise ValueError(
            f"{root}: {len(colours)} colours in {of}, {_listed(pixels, 3)}; expected at most {_MOST_COLOURS}, one a "
            "class: are they masks, without blurred edges? If so, name them in label_colors.txt, R G B NAME a line"
        )
    names = ["background" if colour == (0, 0, 0) else f"class {index}" for index, colour in enumerate(colours)]
    if len(colours) == 2 and colours[0] == (0, 0, 0):
        names[1] = "object"
    meanings = [f"{colour} is {name}" for colour, name in zip(colours, names, strict=True)]
    said = (
        f"no names of classes, so that they come from the colours in {of}: {listed(meanings, 9)}; a label_colors.txt "
        f"there names them, R G B NAME a line"
    )
    return InferredClasses(Labels(tuple(names), tuple(colours)), (), (), root, said)


def _listed(pixels: Counter[int] | Counter[Colour], most: int = 6) -> str:
    return listed([f"{value} ({count} pixels)" for value, count in sorted(pixels.items())], most)
