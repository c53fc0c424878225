"""PASCAL VOC 2012 as distributed, with SBD beside it: at VOC2012, VOCdevkit or the folder that holds VOCdevkit.

Section 4.1 trains on `trainaug`, 10,582 images. Its masks are `SegmentationClassAug/*.png`; without that folder, VOC's
own masks and for the other images SBD's .mat files (they need scipy), from `benchmark_RELEASE` or `SBD` in any of those
folders. Its names are in `ImageSets/Segmentation/trainaug.txt`; without that file, they are SBD's train and val and
VOC's train less VOC's val. The masks of `test`, 1,456 images, are not public: it can be predicted only.

    dataset = open_dataset("voc:VOCdevkit", "trainaug")
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atrous.data.datasets.base import Layout, Listing, MaskSource, files_by_stem, pair
from atrous.data.image_io import Pixels
from atrous.data.labels import VOC

_PUBLISHED = (
    "VOC 2012 is published at http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (the images of test in an archive of "
    "their own); SBD, which trainaug needs, at "
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
)


@dataclass(frozen=True)
class SbdMask:
    """A mask of SBD, a MATLAB file with `GTcls.Segmentation`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Pixels:
        """Class ids, uint8 H,W; ValueError naming the file if there is no scipy or no such mask in it."""
        try:
            loadmat = importlib.import_module("scipy.io").loadmat
        except ImportError:
            raise ValueError(
                f"{self}: SBD's .mat files need scipy; install it, or use SegmentationClassAug/*.png"
            ) from None
        try:
            mask = np.asarray(loadmat(self.path)["GTcls"]["Segmentation"][0, 0])
        except FileNotFoundError:
            raise
        # scipy raises many kinds on files that are not MATLAB's.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self}: {reason}; expected a MATLAB file with GTcls.Segmentation") from None
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"{self}: Segmentation is {mask.dtype} of shape {mask.shape}; expected uint8 H,W")
        return mask


def _recognise(root: Path) -> Path | None:
    homes = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((home for home in homes if (home / "ImageSets" / "Segmentation").is_dir()), None)


def _find_sbd(home: Path) -> Path | None:
    """The folder of SBD that holds cls/, img/, train.txt and val.txt, near VOC's."""
    bases = (home, home.parent, home.parent.parent)
    names = ("benchmark_RELEASE/dataset", "SBD", "SBD/dataset", "sbd", "sbd/dataset")
    return next((base / name for base in bases for name in names if (base / name / "cls").is_dir()), None)


def _splits(home: Path) -> list[str]:
    splits = {path.stem for path in (home / "ImageSets" / "Segmentation").glob("*.txt")}
    if {"train", "val"} <= splits and _find_sbd(home):
        splits.add("trainaug")
    if "test" in splits and not _any_image(home, "test"):  # people copy test.txt without its images
        splits.remove("test")
    return sorted(splits)


def _any_image(home: Path, split: str) -> bool:
    return any((home / "JPEGImages" / f"{name}.jpg").is_file() for name in _names(home, split))


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the names of a split, one a line")
    # Some trainaug.txt hold "image path, mask path" instead of the name.
    return [Path(line.split()[0]).stem for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]


def _names(home: Path, split: str) -> list[str]:
    sets, sbd = home / "ImageSets" / "Segmentation", _find_sbd(home)
    if split != "trainaug" or (sets / "trainaug.txt").is_file() or sbd is None:
        return _read_names(sets / f"{split}.txt")
    names = {*_read_names(sbd / "train.txt"), *_read_names(sbd / "val.txt"), *_read_names(sets / "train.txt")}
    return sorted(names - set(_read_names(sets / "val.txt")))


def _read(home: Path, split: str) -> Listing:
    place = home / "ImageSets" / "Segmentation" / f"{split}.txt"
    names = _names(home, split)
    images, duplicates = files_by_stem(home / "JPEGImages")
    if split == "test":
        items, problems = pair(place, names, images, None, "", _PUBLISHED)
        why = "VOC keeps the masks of its test split for its server"
        return Listing(str(place), items, VOC, problems=(*duplicates, *problems), unlabelled=why)
    masks, more_images, where = _masks(home, split)
    items, problems = pair(place, names, {**more_images, **images}, masks, where, _PUBLISHED)
    return Listing(str(place), items, VOC, problems=(*duplicates, *problems))


def _masks(home: Path, split: str) -> tuple[dict[str, Path | MaskSource], dict[str, Path], str]:
    """Masks by name, SBD's images by name, and where the masks are, for messages."""
    if split == "trainaug" and (home / "SegmentationClassAug").is_dir():
        return {**files_by_stem(home / "SegmentationClassAug")[0]}, {}, "SegmentationClassAug"
    own, sbd = files_by_stem(home / "SegmentationClass")[0], _find_sbd(home)
    if split != "trainaug" or sbd is None:
        return {**own}, {}, "SegmentationClass"
    theirs = {name: SbdMask(path) for name, path in files_by_stem(sbd / "cls", (".mat",))[0].items()}
    # VOC's own masks come first: they are finer and mark the ignored border.
    return {**theirs, **own}, files_by_stem(sbd / "img")[0], f"SegmentationClass or {sbd / 'cls'}"


LAYOUT = Layout(
    "ImageSets/Segmentation/, JPEGImages/ and SegmentationClass/ in VOC2012", _PUBLISHED, _recognise, _splits, _read
)
