"""PASCAL VOC 2012 as distributed, with SBD beside it: at VOC2012, VOCdevkit or the folder that holds VOCdevkit.

Section 4.1 trains on `trainaug`, 10,582 images. Its masks are `SegmentationClassAug/*.png`; without that folder, VOC's
own masks and for the other images SBD's .mat files (they need scipy), from `benchmark_RELEASE` or `SBD` in any of those
folders. Its names are in `ImageSets/Segmentation/trainaug.txt`; without that file, they are SBD's train and val and
VOC's train less VOC's val. The masks of `test`, 1,456 images, are not public: it can be predicted only.

    dataset = open_dataset("voc:VOCdevkit", "trainaug")

The layout is also what CVAT ("Segmentation mask 1.1"), LabelMe and others export. A data set with a file of
`class_files.py` beside ImageSets has the classes that it names, by colour or by id. Without one, masks must have VOC's
own palette.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from atrous.data.datasets.annotations import expecting
from atrous.data.datasets.base import FileMask, Layout, Listing, MaskSource, by_split, files_by_stem, pair
from atrous.data.datasets.class_files import ColourMask, find_class_file, read_classes, read_lines, read_palette
from atrous.data.datasets.image_search import SAY_WHERE, ImageSearch, stem_of
from atrous.data.datasets.options import DatasetOptions
from atrous.data.images.image_file import IMAGE_SUFFIXES, decode_file
from atrous.data.images.image_io import MAX_PIXELS, Pixels, read_mask
from atrous.data.labels import VOC
from atrous.messages import counted

_PUBLISHED = (
    "VOC 2012 is published at http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (the images of test in an archive of "
    "their own); SBD, which trainaug needs, at "
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
)


@dataclass(frozen=True, slots=True)
class SbdMask(FileMask):
    """A mask of SBD, a MATLAB file with `GTcls.Segmentation`."""

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError naming the file if there is no scipy or no such mask in it."""
        try:
            loadmat = importlib.import_module("scipy.io").loadmat
        except ImportError:
            raise ValueError(
                f"{self}: SBD's .mat files need scipy; install it, or use SegmentationClassAug/*.png"
            ) from None
        # scipy raises many kinds on files that are not MATLAB's.
        with expecting(self, "a MATLAB file with GTcls.Segmentation", Exception):
            mask = np.asarray(loadmat(self.path)["GTcls"]["Segmentation"][0, 0])
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"{self}: Segmentation is {mask.dtype} of shape {mask.shape}; expected uint8 H,W")
        return mask


_SETS = Path("ImageSets", "Segmentation")
_VOC_NAME = re.compile(r"20\d\d_\d{6}")
_OWN_CLASSES = (
    "if these are other classes than VOC's, name them beside ImageSets in labels.txt, one a line in the order of ids, "
    "or in labelmap.txt by colour, NAME:RED,GREEN,BLUE::"
)


@dataclass(frozen=True, slots=True)
class VocMask(FileMask):
    """A mask of VOC's 21 classes, refused where its palette says that they are others.

    Attributes:
        gray: whether it may be ids without a palette.
    """

    gray: bool

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError naming the file, if it cannot be read or its palette is not VOC's."""
        ids = read_mask(self.path, palette=VOC.palette)
        palette = read_palette(self.path)
        if palette is None:
            mode = decode_file(self.path, MAX_PIXELS, lambda image: image.mode)
            if not self.gray and not mode.startswith("RGB"):
                raise ValueError(f"{self}: ids without a palette; expected VOC's colours; {_OWN_CLASSES}")
            return ids
        if palette[: len(VOC)] == [*VOC.palette]:
            return ids
        for value in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[: len(VOC)]):
            if palette[value] != VOC.palette[value]:
                raise ValueError(
                    f"{self}: id {value} has the colour {palette[value]}; expected {VOC.palette[value]}, that of VOC's "
                    f"{VOC.names[value]}; {_OWN_CLASSES}"
                )
        return ids


def _recognise(root: Path) -> Path | None:
    homes = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((home for home in homes if (home / _SETS).is_dir()), None)


def _find_sbd(home: Path) -> Path | None:
    """The folder of SBD that holds cls/, img/, train.txt and val.txt, near VOC's."""
    bases = (home, home.parent, home.parent.parent)
    names = ("benchmark_RELEASE/dataset", "SBD", "SBD/dataset", "sbd", "sbd/dataset")
    return next((base / name for base in bases for name in names if (base / name / "cls").is_dir()), None)


def _class_file(home: Path) -> Path | None:
    """The file that names the data set's own classes; none in VOC itself."""
    return find_class_file((home, home.parent) if home.name == "VOC2012" else (home,))


def _splits(home: Path) -> list[str]:
    if _class_file(home):
        return sorted(_lists(home))
    splits = {*files_by_stem(home / _SETS, (".txt",))[0]}
    if {"train", "val"} <= splits and _find_sbd(home):
        splits.add("trainaug")
    if "test" in splits and not any((home / "JPEGImages" / f"{n}.jpg").is_file() for n in _names(home, "test")):
        splits.remove("test")  # people copy test.txt without its images
    return sorted(splits)


# Some lists have the paths of image and mask in place of a name, some a mark behind it.
_NAME_AND_MORE = re.compile(r"(\S+)\s+(?:-?[01]|\S+\.png)")


def _read_names(path: Path) -> list[str]:
    names = [Path(match[1] if (match := _NAME_AND_MORE.fullmatch(line)) else line) for line in read_lines(path)]
    return [name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name for name in names]


def _names(home: Path, split: str) -> list[str]:
    sets, sbd = home / _SETS, _find_sbd(home)
    if split != "trainaug" or (sets / "trainaug.txt").is_file() or sbd is None:
        return _read_names(sets / f"{split}.txt")
    names = {*_read_names(sbd / "train.txt"), *_read_names(sbd / "val.txt"), *_read_names(sets / "train.txt")}
    return sorted(names - set(_read_names(sets / "val.txt")))


def _read(home: Path, split: str, options: DatasetOptions) -> Listing:
    place = home / _SETS / f"{split}.txt"
    if class_file := _class_file(home):
        return _read_own(home, _lists(home)[split], class_file, options)
    images, duplicates = files_by_stem(home / "JPEGImages")
    masks, more_images, where = (None, {}, "") if split == "test" else _masks(home, split)
    items, problems = pair(place, _names(home, split), {**more_images, **images}, masks, where, _PUBLISHED)
    why = "VOC keeps the masks of its test split for its server" if split == "test" else ""
    read_as = "" if why else "PASCAL VOC, with its 21 classes"
    return Listing(str(place), items, VOC, problems=(*duplicates, *problems), unlabelled=why, read_as=read_as)


def _lists(home: Path) -> dict[str, Path]:
    """The lists of a data set with classes of its own, by split: CVAT calls the split of an export default.txt."""
    return by_split(home, files_by_stem(home / _SETS, (".txt",))[0])


def _read_own(home: Path, place: Path, class_file: Path, options: DatasetOptions) -> Listing:
    """A split of a data set in this layout with classes of its own, as CVAT, LabelMe and others export."""
    labels, by_colour = read_classes(class_file)
    search = ImageSearch([home / "JPEGImages", options.images, home / "images"])
    files, duplicates = files_by_stem(home / "SegmentationClass")
    images, masks, names = {}, dict[str, Path | MaskSource](), []
    for line in read_lines(place):
        name, mask = _own_mask(home, files, line)
        names.append(name)
        if (image := search.find(name)) is not None:
            images[name] = image
        if mask is not None:
            masks[name] = ColourMask(mask, labels, class_file) if by_colour else mask
    images_missing = "" if images else f"JPEGImages is empty: export with images, or put them there, {SAY_WHERE}"
    items, problems = pair(place, names, images, masks, "SegmentationClass", images_missing)
    tool = "a CVAT export, " if class_file.name == "labelmap.txt" else ""
    read_as = f"{tool}VOC's layout with the {counted(len(labels), 'class')} of {class_file.name}"
    return Listing(str(place), items, labels, problems=(*duplicates, *problems), read_as=read_as)


def _own_mask(home: Path, files: Mapping[str, Path], line: str) -> tuple[str, Path | None]:
    """The name in a line of a list, which may have folders and spaces, and the mask of that name."""
    match = _NAME_AND_MORE.fullmatch(line)
    names = [stem_of(text) for text in (line, match[1] if match else line)]
    for name in names:
        place = home / "SegmentationClass" / f"{name}.png"
        if ".." not in place.parts and place.is_file():
            return name, place
    name = PurePosixPath(names[-1]).name
    return name, files.get(name)


def _masks(home: Path, split: str) -> tuple[dict[str, Path | MaskSource], dict[str, Path], str]:
    """Masks by name, SBD's images by name, and where the masks are, for messages."""
    if split == "trainaug" and (home / "SegmentationClassAug").is_dir():
        return _voc_masks(home / "SegmentationClassAug", gray=True), {}, "SegmentationClassAug"
    own, sbd = _voc_masks(home / "SegmentationClass"), _find_sbd(home)
    if split != "trainaug" or sbd is None:
        return own, {}, "SegmentationClass"
    theirs = {name: SbdMask(path) for name, path in files_by_stem(sbd / "cls", (".mat",))[0].items()}
    # VOC's own masks come first: they are finer and mark the ignored border.
    return {**theirs, **own}, files_by_stem(sbd / "img")[0], f"SegmentationClass or {sbd / 'cls'}"


def _voc_masks(folder: Path, gray: bool = False) -> dict[str, Path | MaskSource]:
    files = files_by_stem(folder)[0]
    return {name: VocMask(path, gray or bool(_VOC_NAME.fullmatch(name))) for name, path in files.items()}


LAYOUT = Layout(
    "ImageSets/Segmentation/, JPEGImages/ and SegmentationClass/ in VOC2012", _PUBLISHED, _recognise, _splits, _read
)
