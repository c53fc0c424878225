"""Find the folders of images and of masks, by split, in the ways that people arrange them.

| images | masks |
| --- | --- |
| `images/` or `images/SPLIT/` | `masks/` likewise |
| `SPLIT/images/` | `SPLIT/masks/` |
| `SPLIT/` | `SPLIT_masks/`, `SPLITannot/` |
| `SPLIT_images/`, `images_SPLIT/` | `SPLIT_masks/`, `masks_SPLIT/` |
| `X.jpg`, here or in `SPLIT/` | `X_mask.png` beside it |

Also in upper case, and with the other names of the two lists below. Without splits, all is one: `all`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atrous.data.datasets.base import WHOLE, by_split, files_and_folders, split_name, subfolders
from atrous.data.datasets.pairing import MASK_SUFFIXES, are_beside, is_mask_name, suffixed
from atrous.data.images.image_file import IMAGE_SUFFIXES

_IMAGES = (
    "images imgs image img jpegimages image_2 img_dir input inputs photos photo pictures original originals rgb jpg "
    "jpgs x images_png 701_stillsraw_full"
).split()
_MASKS = (
    "semantic_rgb 1st_manual labels masks mask annotations label gt segmentationclass annotation ground_truth "
    "groundtruth ground_truths gts ann_dir anns ann annots annot seg segs segmentation segmentations segmaps targets "
    "target y label_images mask_images masks_png labels_png labeledapproved_full semantic"
).split()
"""The first that holds images counts."""
_ENDS = ("_labels", "annot", "_annot", "_masks", "_mask", "_label", "_gt", "_annotations", "masks", "labels")
_SPLITS = ("train", "val", "test", "trainval")
_PEEKED = 2000
_FEW = 50


@dataclass(frozen=True)
class Place:
    """The folders of one split.

    Attributes:
        images: the folder of images.
        masks: that of masks, which may be the same; None where a split has none.
        deep: whether the folders in them count, too.
    """

    images: Path
    masks: Path | None
    deep: bool = True


def places_of(root: Path) -> dict[str, Place]:
    """The folders by split; none where the arrangement is another one."""
    names = subfolders(root)
    if places := _beside(root, names) | _inside(root, names):
        if len(places) == 1 and not _is_split(next(iter(places))):
            return {WHOLE: next(iter(places.values()))}
        return by_split(root, places)
    if places := _named_by_split(root, names):
        return by_split(root, places)
    if kinds := _of_kinds(root, names):
        return _below(*kinds)
    if _is_flat(root):
        return {WHOLE: Place(root, root, deep=False)}
    flat = {name: Place(root / name, root / name, deep=False) for name in names if _is_flat(root / name)}
    return by_split(root, flat) if any(map(_is_split, flat)) else {}


def unread_masks(place: Place) -> list[str]:
    """The folders of masks beside the one that is read, but for KITTI's, which hold the same in other forms."""
    if place.masks is None or place.masks == place.images:
        return []
    parent = place.masks.parent
    named = (name for name in subfolders(parent) if _plain(name) in _MASKS and _plain(name) != "semantic")
    return [name for name in named if parent / name not in (place.masks, place.images) and _holds_masks(parent / name)]


def _beside(root: Path, names: list[str]) -> dict[str, Place]:
    there = {name.lower(): name for name in names}
    pairs = ((name, there.get(f"{name.lower()}{end}")) for name in names for end in _ENDS)
    return {
        WHOLE if _plain(name) in _IMAGES else name: Place(root / name, root / masks)
        for name, masks in pairs
        if masks and _plain(name) not in _MASKS and _holds_masks(root / masks) and _holds_masks(root / name)
    }


def _inside(root: Path, names: list[str]) -> dict[str, Place]:
    places = {name: Place(*kinds) for name in names if (kinds := _of_kinds(root / name, subfolders(root / name)))}
    if not any(map(_is_split, places)):
        return {}
    for name in names:  # a test split may come without masks
        images = next(iter(_with_role(root / name, subfolders(root / name), _IMAGES)), None)
        if split_name(name) == "test" and name not in places and images:
            places[name] = Place(images, None)
    return places


def _named_by_split(root: Path, names: list[str]) -> dict[str, Place]:
    """`train_images/` and `train_masks/`, or the words the other way round."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for name in names:
        words = re.split(r"[ _-]", name.lower())
        for split, rest in ((words[0], words[1:]), (words[-1], words[:-1])):
            role = "_".join(rest)
            if _is_split(split) and (role in _IMAGES or role in _MASKS):
                (images if role in _IMAGES else masks)[split] = root / name
    return {split: Place(images[split], masks[split]) for split in images if split in masks}


def _of_kinds(folder: Path, names: list[str]) -> tuple[Path, Path] | None:
    images, masks = _with_role(folder, names, _IMAGES), _with_role(folder, names, _MASKS)
    return next(((image, mask) for image in images for mask in masks if _holds_masks(mask)), None)


def _with_role(folder: Path, names: Iterable[str], words: list[str]) -> list[Path]:
    """The folders whose names are among some words, in the order of the words."""
    known = sorted((words.index(plain), name) for name in names if (plain := _plain(name)) in words)
    return [folder / name for _, name in known]


def _below(images: Path, masks: Path) -> dict[str, Place]:
    """The splits of two folders: folders in both of them with a split's name; else all is one, folders included."""
    inside = subfolders(images)
    there = {*subfolders(masks)}
    if not any(_is_split(name) for name in inside if name in there):
        return {WHOLE: Place(images, masks)}
    splits = {name: Place(images / name, masks / name) for name in inside if name in there}
    splits |= {name: Place(images / name, None) for name in inside if name not in there}
    return by_split(images, splits)


def _is_flat(folder: Path) -> bool:
    """Whether masks are beside their images, by their names."""
    names = files_and_folders(folder)[0]
    # As many as tell: there may be a hundred thousand, and this is asked often.
    masks = [*itertools.islice(filter(is_mask_name, suffixed(names, MASK_SUFFIXES)), _FEW)]
    there = {*masks}
    return bool(masks) and are_beside((name for name in suffixed(names, IMAGE_SUFFIXES) if name not in there), masks)


def _holds_masks(folder: Path) -> bool:
    """Whether images or arrays are in a folder or in one of its folders: YOLO's labels/ has text."""
    places = itertools.chain((folder,), (folder / name for name in subfolders(folder)))
    return any(suffixed(files_and_folders(place)[0][:_PEEKED], MASK_SUFFIXES) for place in places)


def _is_split(name: str) -> bool:
    return split_name(name).lower() in _SPLITS


def _plain(name: str) -> str:
    return re.sub(r"[ -]", "_", name.lower())
