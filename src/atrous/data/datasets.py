"""Data sets as they lie on disk: a plain folder, PASCAL VOC 2012 with SBD, Cityscapes; images with their masks.

`open_dataset("camvid", "train")` recognises the layout; `"voc:PATH"` names it. A listing knows what is wrong with a
split before any pixel is read; a `SegmentationDataset` refuses a split with anything wrong. Section 4 of the paper says
which splits train and evaluate: VOC's `trainaug` is 10,582 images, with masks from SBD.

    dataset = open_dataset("voc:VOCdevkit", "trainaug")
    name, image, mask = dataset[0]
"""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from atrous.data.image import MAX_PIXELS, Pixels, read_image, read_mask
from atrous.data.labels import CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC, Labels, load_labels

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_USUAL = ("train", "trainaug", "trainval", "val", "test")


class Item(NamedTuple):
    """One image and its mask on disk; no mask means that every pixel is ignored."""

    name: str
    image: Path
    mask: Path | None


class Sample(NamedTuple):
    """One image, uint8 3,H,W, and its mask, uint8 H,W: class ids, or the ignored id."""

    name: str
    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Listing:
    """What a split holds, before any pixel is read.

    Attributes:
        place: where it lies, for messages.
        items: the pairs that are there.
        labels: the classes.
        remap: 256 ids by stored id, or none.
        problems: one line for each thing that makes the split unfit.
        warnings: one line for each thing that looks like a mistake.
    """

    place: str
    items: tuple[Item, ...]
    labels: Labels
    remap: tuple[int, ...] | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class SegmentationDataset(Dataset[Sample]):
    """Images with masks, decoded when asked for, checked as they are decoded. It pickles, for workers to read from."""

    def __init__(
        self,
        items: Sequence[Item],
        labels: Labels,
        *,
        remap: Sequence[int] | None = None,
        cache: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Nothing is read yet.

        Args:
            items: the pairs, kept in order as `items`.
            labels: the classes that the masks hold, after `remap`.
            remap: 256 entries, the id for each stored id.
            cache: keep every decoded sample in the memory of each process that reads; do not write to the tensors then.
            max_pixels: as for `read_image`.
        """
        if remap is not None and (len(remap) != 256 or not all(0 <= entry <= 255 for entry in remap)):
            raise ValueError(f"remap has {len(remap)} entries; expected 256 ids in 0..255")
        self.items = tuple(items)
        self.labels = labels
        self._unknown = np.ones(256, dtype=bool)
        self._unknown[[*range(len(labels)), labels.ignore]] = False
        self._remap = None if remap is None else np.array(remap, dtype=np.uint8)
        self._max_pixels = max_pixels
        self._cache: dict[int, Sample] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """The name of every item, in order."""
        return [item.name for item in self.items]

    def __getitem__(self, index: int) -> Sample:
        """Decode one pair.

        Raises:
            FileNotFoundError: if a file is gone.
            ValueError: naming the file, if it cannot be read, the sizes differ, or an id is out of range.
        """
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        item = self.items[index]
        image = read_image(item.image, max_pixels=self._max_pixels)
        mask = self.read_ids(item, image.shape[:2])
        # A view of the decoder's H,W,3: no copy, and the layout in which resampling is fastest.
        sample = Sample(item.name, torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask))
        if self._cache is not None:
            self._cache[index] = sample
        return sample

    def read_ids(self, item: Item, size: tuple[int, ...]) -> Pixels:
        """The mask of an item, remapped, uint8 H,W; ValueError unless its size is `size` and its ids are in range."""
        if item.mask is None:
            return np.full(size, self.labels.ignore, dtype=np.uint8)
        if item.mask.suffix == ".mat":
            mask = _read_sbd_mask(item.mask)
        else:
            mask = read_mask(item.mask, palette=self.labels.palette, ignore=self.labels.ignore)
        if mask.shape != size:
            (high, wide), (rows, columns) = size, mask.shape
            raise ValueError(f"{item.mask}: mask of {columns}x{rows}; expected {wide}x{high}, the size of {item.image}")
        if self._remap is not None:
            mask = self._remap[mask]
        self._check_ids(item.mask, mask)
        return mask

    def _check_ids(self, path: Path, mask: Pixels) -> None:
        if not self._unknown[mask].any():
            return
        counts = np.bincount(mask.ravel(), minlength=256)
        counts[~self._unknown] = 0
        found = [f"{value} ({counts[value]} pixels)" for value in np.flatnonzero(counts)]
        if found:
            shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            expected = f"0..{len(self.labels) - 1} or {self.labels.ignore}, ignored"
            raise ValueError(f"{path}: mask has id {shown}; expected {expected}")


def _read_sbd_mask(path: Path) -> Pixels:
    try:
        loadmat = importlib.import_module("scipy.io").loadmat
    except ImportError:
        raise ValueError(
            f"{path}: SBD's .mat files need scipy; install it, or use SegmentationClassAug/*.png"
        ) from None
    try:
        mask = np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0])
    except FileNotFoundError:
        raise
    # scipy raises many kinds on files that are not MATLAB's.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {reason}; expected a MATLAB file with GTcls.Segmentation") from None
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"{path}: Segmentation is {mask.dtype} of shape {mask.shape}; expected uint8 H,W")
    return mask


def open_dataset(data: str | Path, split: str, *, cache: bool = False) -> SegmentationDataset:
    """Open a split of `NAME:PATH` (NAME is folder, voc or cityscapes) or of a PATH whose layout is recognised.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the layout is not recognised, there is no such split, or it is empty or lacks files.
    """
    return _opened(list_split(data, split), cache)


def read_folder(root: str | Path, split: str) -> SegmentationDataset:
    """A plain folder: `dataset.yaml`, `images/SPLIT/NAME.jpg|png`, `masks/SPLIT/NAME.png`; errors as `open_dataset`."""
    return open_dataset(f"folder:{root}", split)


def read_voc(root: str | Path, split: str) -> SegmentationDataset:
    """PASCAL VOC 2012 as distributed, at VOCdevkit, VOC2012 or the folder that holds VOCdevkit.

    `trainaug` takes its masks from `SegmentationClassAug/*.png`, or from SBD as distributed where VOC has no mask of
    its own: `benchmark_RELEASE` or `SBD`, in any of those folders; its .mat files need scipy. Its names are those of
    `ImageSets/Segmentation/trainaug.txt`, or, without that file, SBD's train and val and VOC's train less VOC's val.
    Errors as `open_dataset`.
    """
    return open_dataset(f"voc:{root}", split)


def read_cityscapes(root: str | Path, split: str) -> SegmentationDataset:
    """Cityscapes, fine: `leftImg8bit/SPLIT/CITY`, `gtFine/SPLIT/CITY/*_labelIds.png` as 19 train ids.

    Errors as `open_dataset`.
    """
    return open_dataset(f"cityscapes:{root}", split)


def splits(data: str | Path) -> list[str]:
    """The splits that are there, train first; errors as `open_dataset`."""
    kind, root = _recognised(data)
    found = _KINDS[kind].splits(root)
    return sorted(found, key=lambda name: (_USUAL.index(name) if name in _USUAL else len(_USUAL), name))


def list_split(data: str | Path, split: str) -> Listing:
    """What a split holds, with its problems collected rather than raised; other errors as `open_dataset`."""
    kind, root = _recognised(data)
    there = splits(data)
    if split not in there:
        listed = ", ".join(there) or f"none in {_KINDS[kind].expected}"
        raise ValueError(f"{root}: no split {split!r}; the splits there are {listed}")
    listing = _KINDS[kind].list(root, split)
    if not listing.items and not listing.problems:
        raise ValueError(f"{listing.place}: no images; expected {_KINDS[kind].expected}")
    return listing


def _opened(listing: Listing, cache: bool) -> SegmentationDataset:
    if listing.problems:
        more = len(listing.problems) - 1
        raise ValueError(listing.problems[0] + (f" (and {more} more problems: atrous data check)" if more else ""))
    return SegmentationDataset(listing.items, listing.labels, remap=listing.remap, cache=cache)


def _recognised(data: str | Path) -> tuple[str, Path]:
    kind, colon, rest = str(data).partition(":")
    if colon and kind in _KINDS:
        root = _existing(Path(rest).expanduser())
        if _KINDS[kind].find(root) is None:
            raise ValueError(f"{root}: not the layout of {kind}; expected {_KINDS[kind].expected}")
        return kind, root
    if colon and not Path(data).exists():
        raise ValueError(f"{data}: unknown kind of data set {kind!r}; expected {', '.join(_KINDS)}, or a path")
    root = _existing(Path(data).expanduser())
    for kind, layout in _KINDS.items():
        if layout.find(root) is not None:
            return kind, root
    known = "; ".join(f"{kind}: {layout.expected}" for kind, layout in _KINDS.items())
    raise ValueError(f"{root}: layout not recognised; expected one of {known}")


def _existing(root: Path) -> Path:
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder; expected a data set")
    if not root.is_dir():
        raise ValueError(f"{root}: a file; expected the folder of a data set")
    return root


def _by_stem(folder: Path, suffixes: tuple[str, ...] = _SUFFIXES) -> tuple[dict[str, Path], list[str]]:
    """The pictures of a folder by stem, sorted, and a line for each stem that two of them share."""
    found: dict[str, Path] = {}
    doubles = []
    names = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
    for path in (folder / name for name in names if not name.startswith(".")):
        if path.suffix.lower() not in suffixes:
            continue
        other = found.setdefault(path.stem, path)
        if other != path:
            doubles.append(f"{folder}: {other.name} and {path.name} have the same stem; expected one file a name")
    return found, doubles


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _paired(
    place: Path, names: Iterable[str], images: dict[str, Path], masks: dict[str, Path], where: str
) -> tuple[tuple[Item, ...], list[str]]:
    """The pairs that are whole, and a line each for the names that lack an image or a mask."""
    names = list(names)
    no_image = [name for name in names if name not in images]
    no_mask = [name for name in names if name in images and name not in masks]
    problems = []
    if no_image:
        problems.append(f"{place}: {len(no_image)} of {len(names)} names have no image: {_named(no_image)}")
    if no_mask:
        problems.append(f"{place}: {len(no_mask)} of {len(names)} images have no mask in {where}: {_named(no_mask)}")
    items = tuple(Item(name, images[name], masks[name]) for name in names if name in images and name in masks)
    return items, problems


def _find_folder(root: Path) -> Path | None:
    return root if (root / "dataset.yaml").is_file() else None


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []


def _list_folder(root: Path, split: str) -> Listing:
    place = root / "images" / split
    images, doubles = _by_stem(place)
    masks, mask_doubles = _by_stem(root / "masks" / split)
    items, problems = _paired(place, images, images, masks, f"masks/{split}, of the same stem")
    orphans = [name for name in masks if name not in images]
    warnings = (f"{root / 'masks' / split}: {len(orphans)} masks have no image: {_named(orphans)}",) if orphans else ()
    labels = load_labels(root / "dataset.yaml")
    return Listing(str(place), items, labels, None, (*doubles, *mask_doubles, *problems), warnings)


def _find_voc(root: Path) -> Path | None:
    homes = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((home for home in homes if (home / "ImageSets" / "Segmentation").is_dir()), None)


def _find_sbd(home: Path) -> Path | None:
    """The folder of SBD that holds cls/, img/, train.txt and val.txt, near VOC's."""
    bases = (home, home.parent, home.parent.parent)
    names = ("benchmark_RELEASE/dataset", "SBD", "SBD/dataset", "sbd", "sbd/dataset")
    return next((base / name for base in bases for name in names if (base / name / "cls").is_dir()), None)


def _voc_home(root: Path) -> Path:
    return _find_voc(root) or root


def _voc_splits(root: Path) -> list[str]:
    home = _voc_home(root)
    found = {path.stem for path in (home / "ImageSets" / "Segmentation").glob("*.txt")}
    if {"train", "val"} <= found and _find_sbd(home):
        found.add("trainaug")
    return sorted(found - {"test"})  # the masks of VOC's test split are not public


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the names of a split, one a line")
    # Some lists of trainaug hold the paths of image and mask in place of the name.
    return [Path(line.split()[0]).stem for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]


def _voc_names(home: Path, split: str) -> list[str]:
    sets, sbd = home / "ImageSets" / "Segmentation", _find_sbd(home)
    if split != "trainaug" or (sets / "trainaug.txt").is_file() or sbd is None:
        return _read_names(sets / f"{split}.txt")
    every = {*_read_names(sbd / "train.txt"), *_read_names(sbd / "val.txt"), *_read_names(sets / "train.txt")}
    return sorted(every - set(_read_names(sets / "val.txt")))


def _list_voc(root: Path, split: str) -> Listing:
    home = _voc_home(root)
    names = _voc_names(home, split)
    images, problems = _by_stem(home / "JPEGImages")
    masks, where = _by_stem(home / "SegmentationClass")[0], "SegmentationClass"
    sbd = _find_sbd(home)
    if split == "trainaug" and (home / "SegmentationClassAug").is_dir():
        masks, where = _by_stem(home / "SegmentationClassAug")[0], "SegmentationClassAug"
    elif split == "trainaug" and sbd is not None:
        # VOC's own masks are the finer ones, and have the ignored border.
        masks, where = {**_by_stem(sbd / "cls", (".mat",))[0], **masks}, f"SegmentationClass or {sbd / 'cls'}"
        images = {**_by_stem(sbd / "img")[0], **images}
    place = home / "ImageSets" / "Segmentation" / f"{split}.txt"
    items, missing = _paired(place, names, images, masks, where)
    return Listing(str(place), items, VOC, None, (*problems, *missing))


def _find_cityscapes(root: Path) -> Path | None:
    return root if (root / "leftImg8bit").is_dir() else None


def _list_cityscapes(root: Path, split: str) -> Listing:
    place, end, mask_end = root / "leftImg8bit" / split, "_leftImg8bit.png", "_gtFine_labelIds.png"
    images = {path.name.removesuffix(end): path for path in sorted(place.glob(f"*/*{end}"))}
    masks = {path.name.removesuffix(mask_end): path for path in (root / "gtFine" / split).glob(f"*/*{mask_end}")}
    items, problems = _paired(place, images, images, masks, f"gtFine/{split}")
    return Listing(str(place), items, CITYSCAPES, CITYSCAPES_TRAIN_IDS, tuple(problems))


@dataclass(frozen=True)
class _Layout:
    expected: str
    find: Callable[[Path], Path | None]
    splits: Callable[[Path], list[str]]
    list: Callable[[Path, str], Listing]


_KINDS = {
    "folder": _Layout(
        "dataset.yaml, images/SPLIT/ and masks/SPLIT/",
        _find_folder,
        lambda root: _subfolders(root / "images"),
        _list_folder,
    ),
    "voc": _Layout(
        "ImageSets/Segmentation/, JPEGImages/ and SegmentationClass/ in VOC2012",
        _find_voc,
        _voc_splits,
        _list_voc,
    ),
    "cityscapes": _Layout(
        "leftImg8bit/SPLIT/CITY/ and gtFine/SPLIT/CITY/",
        _find_cityscapes,
        lambda root: _subfolders(root / "leftImg8bit"),
        _list_cityscapes,
    ),
}
