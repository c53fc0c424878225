"""Folders of images and folders of masks, with a file of `class_files.py` that names the classes by colour or id.

| images | masks | |
| --- | --- | --- |
| `SPLIT/` | `SPLIT_labels/`, `SPLITannot/`, `SPLIT_masks/` | CamVid |
| `SPLIT/image_2/` | `SPLIT/semantic_rgb/` | KITTI |
| `images/SPLIT/` or `images/` | `labels/`, `masks/`, `annotations/` or `gt/` likewise | |
| `SPLIT/images/` | `SPLIT/labels/`, ... | |

A mask has its image's stem, or that and `_L`, `_mask`, `_label`, `_labels`, `_gt`. Without splits, all is one: `all`.
"""

from __future__ import annotations

from pathlib import Path

from atrous.data.datasets.base import WHOLE, Layout, Listing, MaskSource, by_split, files_by_stem, pair, subfolders
from atrous.data.datasets.class_files import ColourMask, find_class_file, read_classes
from atrous.data.datasets.options import DatasetOptions
from atrous.messages import counted, listed

_IMAGES = ("images", "imgs", "image", "img", "JPEGImages", "image_2")
_MASKS = ("semantic_rgb", "labels", "masks", "mask", "annotations", "label", "gt", "SegmentationClass")
_BESIDE = ("_labels", "annot", "_masks", "_mask", "_label")
_ENDS = ("", "_L", "_mask", "_label", "_labels", "_gt")


def _recognise(root: Path) -> Path | None:
    return root if find_class_file((root,)) and _folders(root) else None


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of masks by split."""
    names = subfolders(root)
    beside = {
        name: (root / name, root / f"{name}{end}") for name in names for end in _BESIDE if f"{name}{end}" in names
    }
    inside = {name: pairs for name in names if (pairs := _of_kinds(root / name))}
    if beside or inside:
        return by_split(root, beside | inside)
    kinds = _of_kinds(root)
    if kinds is None:
        return {}
    images, masks = kinds
    splits = {name: (images / name, masks / name) for name in subfolders(images) if (masks / name).is_dir()}
    return by_split(images, splits) or {WHOLE: kinds}


def _of_kinds(root: Path) -> tuple[Path, Path] | None:
    pairs = ((root / image, root / mask) for image in _IMAGES for mask in _MASKS)
    return next(((image, mask) for image, mask in pairs if image.is_dir() and _holds_masks(mask)), None)


def _holds_masks(folder: Path) -> bool:
    """Whether images are in a folder or in one of its folders: YOLO's labels/ has text."""
    return any(files_by_stem(place)[0] for place in (folder, *(folder / name for name in subfolders(folder))))


def _read(root: Path, split: str, _: DatasetOptions) -> Listing:
    class_file = find_class_file((root,))
    assert class_file is not None
    labels, by_colour = read_classes(class_file)
    image_folder, mask_folder = _folders(root)[split]
    images, duplicates = files_by_stem(image_folder)
    files, mask_duplicates = files_by_stem(mask_folder)
    named = {stem: path for stem in images for end in _ENDS if (path := files.get(f"{stem}{end}"))}
    masks: dict[str, Path | MaskSource] = {
        stem: ColourMask(path, labels, class_file) if by_colour else path for stem, path in named.items()
    }
    items, problems = pair(image_folder, images, images, masks, str(mask_folder))
    orphans = sorted(path.name for path in {*files.values()} - {*named.values()})
    warnings = (f"{mask_folder}: {len(orphans)} masks have no image: {listed(orphans)}",) if orphans else ()
    read_as = f"images with masks, with the {counted(len(labels), 'class', 'classes')} of {class_file.name}"
    problems = [*duplicates, *mask_duplicates, *problems]
    return Listing(str(image_folder), items, labels, problems=tuple(problems), warnings=warnings, read_as=read_as)


LAYOUT = Layout(
    "class_dict.csv, label_colors.txt, labelmap.txt or labels.txt beside folders of images and of masks",
    "",
    _recognise,
    lambda root: list(_folders(root)),
    _read,
)
