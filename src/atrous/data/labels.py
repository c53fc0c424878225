"""Class names, colours and ids: of a data set's `dataset.yaml`, of VOC, Cityscapes, COCO and CamVid.

A mask holds one id a pixel. Ids 0 to K-1 are classes; one more id, 255 by default, is ignored by loss and metrics, as
in section 4 of the paper. The paper evaluates on PASCAL VOC 2012 (21 classes) and Cityscapes (19), and pretrains on
COCO.

    labels = Labels(("background", "leaf"), voc_palette(2))
    labels.names[0], labels.palette[0]
"""

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from atrous.atomic import write_text
from atrous.colours import Colour as Colour
from atrous.colours import voc_palette as voc_palette
from atrous.messages import listed

CLASSES = "classes.yaml"
"""In a folder of predictions: the classes of its masks, in the form of `dataset.yaml`."""

IGNORE_COLOUR: Colour = (224, 224, 192)
"""The colour that VOC draws its ignored border in: entry 255 of its colour map."""


MOST_CLASSES = 4096
"""Metrics count every pair of a true and a predicted class: with as many, 134 MB for a data set."""


@dataclass(frozen=True)
class Labels:
    """The classes of a data set, in the order of their ids.

    Attributes:
        names: K unique, nonempty names, 1 to `MOST_CLASSES`; the index is the id.
        palette: K colours, red, green, blue in 0..255.
        ignore: the id, 0..65535 and no class's, of pixels that loss and metrics ignore. Masks have 8 bits, or 16 if
            there are more than 255 classes.

    Raises:
        ValueError: if an attribute is not as described.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore: int = 255

    def __post_init__(self) -> None:
        _check_names(self.names)
        _check_palette(self.palette, len(self.names))
        if not isinstance(self.ignore, int) or isinstance(self.ignore, bool) or not 0 <= self.ignore <= self.largest_id:
            raise ValueError(f"ignore is {reprlib.repr(self.ignore)}; expected an integer in 0..{self.largest_id}")
        if self.ignore < len(self.names):
            raise ValueError(
                f"ignore is {self.ignore}, the id of class {self.names[self.ignore]!r}; "
                f"expected an id that is no class's, {len(self.names)}..{self.largest_id}"
            )

    def __len__(self) -> int:
        """The number of classes, K."""
        return len(self.names)

    @property
    def largest_id(self) -> int:
        """Of a mask of these classes: 255, or 65,535 if there are more classes than fit."""
        return ignored_id(len(self.names))


def ignored_id(classes: int) -> int:
    """The ignored id, if nothing else is said, for a number of classes: 255, or 65,535 if it is a class's."""
    return 255 if classes <= 255 else 65535


def _check_names(names: tuple[str, ...]) -> None:
    if not 1 <= len(names) <= MOST_CLASSES:
        raise ValueError(f"names has {len(names)} classes; expected 1 to {MOST_CLASSES}")
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"names[{index}] is {reprlib.repr(name)}; expected a string")
        if not name.strip() or not name.isprintable():
            raise ValueError(f"names[{index}] is {reprlib.repr(name)}; expected a printable, nonempty name")
    if len(set(names)) < len(names):
        counts = Counter(names)
        twice = next(name for name in names if counts[name] > 1)
        raise ValueError(f"names has {twice!r} {counts[twice]} times; expected every name once")


def names_alike(names: Sequence[str]) -> list[list[int]]:
    """Ids of classes whose names differ in upper and lower case or in spaces alone, such as Leaf and leaf."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(" ".join(name.split()).casefold(), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _check_palette(palette: tuple[Colour, ...], count: int) -> None:
    if len(palette) != count:
        raise ValueError(f"palette has {len(palette)} colours for {count} names; expected one each")
    for index, colour in enumerate(palette):
        if (
            not isinstance(colour, tuple)
            or len(colour) != 3
            or not all(p in range(256) and type(p) is int for p in colour)
        ):
            raise ValueError(f"palette[{index}] is {reprlib.repr(colour)}; expected three integers in 0..255")


_VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow "
    "diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
)
VOC = Labels(tuple(_VOC_NAMES.split()), voc_palette(21))
"""PASCAL VOC 2012: background and 20 objects."""

# One row a class: name, colour, and the id in *_gtFine_labelIds.png, from cityscapesscripts/helpers/labels.py.
_CITYSCAPES: tuple[tuple[str, Colour, int], ...] = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)
CITYSCAPES = Labels(tuple(row[0] for row in _CITYSCAPES), tuple(row[1] for row in _CITYSCAPES))
"""Cityscapes: the 19 classes that are trained and evaluated."""

CITYSCAPES_LABEL_IDS: tuple[int, ...] = tuple(row[2] for row in _CITYSCAPES)
"""Label id by train id; the Cityscapes evaluation server expects label ids."""

CITYSCAPES_TRAIN_IDS: tuple[int, ...] = tuple(
    CITYSCAPES_LABEL_IDS.index(label) if label in CITYSCAPES_LABEL_IDS else 255 if label in (*range(34), 255) else -1
    for label in range(256)
)
"""Train id by label id, 256 entries: 255 for a label that is not trained, and for the licence plate, whose -1 is stored
as 255; -1 for an id without a label, of which there are 34, 0 unlabeled to 33 bicycle."""

CAMVID = Labels(
    tuple("sky building pole road pavement tree sign fence car pedestrian bicyclist".split()),
    (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)
"""CamVid with the 11 classes and colours of the SegNet split."""

COCO_NAMES = {
    "airplane": "aeroplane",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "couch": "sofa",
    "tv": "tvmonitor",
}
"""VOC's name by COCO's, for the objects that the two name differently."""


def coco_to_voc(name: str) -> int:
    """VOC's id of a COCO category; 0, background, if VOC lacks it (section 4.3, "Pretrained on COCO")."""
    name = COCO_NAMES.get(name, name)
    return VOC.names.index(name) if name in VOC.names else 0


def ids_of_colours(
    colours: npt.NDArray[np.uint8], palette: Sequence[Colour], ignore: int = 255, ignored: Sequence[Colour] = ()
) -> npt.NDArray[Any]:
    """Turn a mask of colours, uint8 H,W,3, into ids, H,W: palette[i] is i, VOC's border colour is `ignore`.

    The ids are uint8, or uint16 for more than 255 classes. The `ignored` colours are `ignore`, too.

    Raises:
        ValueError: with the colour and its number of pixels, if a colour is none of those.
    """
    ids, unknown = ids_and_unknown(colours, palette, ignore, ignored)
    if unknown.size:
        code, count = int(unknown[0]), int((unknown == unknown[0]).sum())
        shown = listed([str(colour) for colour in palette])
        raise ValueError(
            f"mask has colour {colour_of(code)} in {count} pixels, which is no class's; expected {shown}, by id (VOC's "
            f"colours, unless dataset.yaml has a `palette`), or a mask of ids"
        )
    return ids


def ids_and_unknown(
    colours: npt.NDArray[np.uint8], palette: Sequence[Colour], ignore: int, ignored: Sequence[Colour]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """As `ids_of_colours`, with the numbers of the colours that are no class's, for `colour_of`, of each such pixel."""
    # Of classes with the same colour the first counts, and a class counts before the border.
    known = {_code(colour): index for index, colour in reversed(list(enumerate(palette)))}
    known.setdefault(_code(IGNORE_COLOUR), ignore)
    known |= {_code(colour): ignore for colour in ignored}
    return looked_up(colours.astype(np.int64) @ _BASES, known)


_BASES = np.array((65536, 256, 1))


def _code(colour: Colour) -> int:
    return int(np.dot(colour, _BASES))


def colour_of(code: int) -> Colour:
    """The colour of a number, red being the highest byte."""
    return (code >> 16, code >> 8 & 255, code & 255)


def looked_up(stored: npt.NDArray[Any], known: Mapping[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Ids by stored value, uint8 or, where one needs it, uint16, of the same shape; and the values that are unknown."""
    values = np.array(sorted(known))
    places = np.searchsorted(values, stored).clip(max=len(values) - 1)
    dtype = np.uint8 if max(known.values()) < 256 else np.uint16
    return np.array([known[int(value)] for value in values], dtype)[places], stored[values[places] != stored]


def write_labels(path: str | Path, labels: Labels) -> None:
    """Write a `dataset.yaml`, atomically."""
    document = described_labels(labels)
    write_text(Path(path), yaml.safe_dump(document, sort_keys=False, default_flow_style=None, allow_unicode=True))


def difference(theirs: Labels, ours: Labels, whose: str) -> str:
    """How classes differ from those of `whose`, a clause for messages."""
    more = [name for name in theirs.names if name not in ours.names]
    fewer = [name for name in ours.names if name not in theirs.names]
    if more or fewer:
        parts = [f"{listed(more)} more"] * bool(more) + [f"no {listed(fewer)}"] * bool(fewer)
        return f"classes other than those of {whose}: {' and '.join(parts)}; expected the same in all splits"
    if theirs.names != ours.names:
        return f"the classes {listed(theirs.names, 9)}; expected those of {whose}: {listed(ours.names, 9)}"
    return f"other colours of its classes than {whose}; expected the same in all splits"


def described_labels(labels: Labels) -> dict[str, Any]:
    """Classes in the form of `dataset.yaml`."""
    return {"names": list(labels.names), "palette": [list(c) for c in labels.palette], "ignore": labels.ignore}
