"""`open_dataset` and `SegmentationDataset`: images with masks, decoded and checked when they are asked for.

Data sets come in the layouts of `layouts.py`. Section 4 of the paper says which splits train and evaluate.

    dataset = open_dataset("voc:VOCdevkit", "trainaug")
    name, image, mask = dataset[0]
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from atrous.data.datasets.base import Item, Items, Listing, MaskSource
from atrous.data.datasets.class_files import ColourMask, read_palette
from atrous.data.datasets.inferred_classes import ValueMask
from atrous.data.datasets.layouts import kind_of, list_split, splits
from atrous.data.datasets.mask_values import Drawn, UnknownIdError, described, likely_fix
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.data.images.image_io import MAX_PIXELS, mask_palette, read_image, read_mask
from atrous.data.images.samples import AS_IT_IS, ImageRule
from atrous.data.labels import Colour, Labels, voc_palette
from atrous.messages import counted

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


class Sample(NamedTuple):
    """One image, uint8 3,H,W, and its mask, H,W: class ids, or the ignored id.

    The mask is uint8, or int32 for more than 255 classes.
    """

    name: str
    image: Tensor
    mask: Tensor


class SegmentationDataset(Dataset[Sample]):
    """Images with masks, decoded and checked when they are asked for. It pickles, for loader workers."""

    def __init__(
        self,
        items: Sequence[Item],
        labels: Labels,
        *,
        remap: Sequence[int] | None = None,
        colours: Sequence[Colour] | None = None,
        ignored: Sequence[Colour] = (),
        rule: ImageRule = AS_IT_IS,
        cache: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Nothing is read yet.

        Args:
            items: images and masks, kept in order as `items`.
            labels: the classes that the masks hold, after `remap`.
            remap: class id by stored id, 256 or 65,536 entries, -1 for an id that must not occur; None: stored ids are
                class ids.
            colours: by stored id, for masks of colours; None: those of `labels`, if there is no `remap`.
            ignored: more colours, that are ignored.
            rule: how the samples of images become colours; kept as `rule`.
            cache: keep every decoded sample in the memory of each process that reads; do not write to the tensors then.
            max_pixels: as for `read_image`.
        """
        most = labels.largest_id
        if remap is not None and (len(remap) not in (256, 65536) or not all(-1 <= entry <= most for entry in remap)):
            raise ValueError(f"remap has {len(remap)} entries; expected 256 ids in 0..{most}, or -1")
        self.items = items if isinstance(items, Items) else tuple(items)
        self.labels = labels
        self.rule = rule
        known = np.array([*range(len(labels)), labels.ignore])
        self._unknown = ~np.isin(np.arange(most + 1) if remap is None else np.array(remap), known)
        self._dtype = np.uint8 if most < 256 else np.uint16
        self._remap = None if remap is None else np.maximum(remap, 0).astype(self._dtype)
        self._colours = labels.palette if colours is None and remap is None else colours
        self._ignored = tuple(ignored)
        self._max_pixels = max_pixels
        self._cache: dict[int, Sample] | None = {} if cache else None

    @classmethod
    def of(cls, listing: Listing, *, cache: bool = False) -> "SegmentationDataset":
        """The images and masks of a listing, whatever its problems are."""
        return cls(
            listing.items, listing.labels, remap=listing.remap, colours=listing.colours, ignored=listing.ignored,
            rule=listing.rule, cache=cache,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """The name of every item, in order."""
        return [item.name for item in self.items]

    def with_items(self, items: Sequence[Item]) -> "SegmentationDataset":
        """A copy with other items; an item may be given several times."""
        other = copy.copy(self)
        other.items = items if isinstance(items, Items) else tuple(items)
        other._cache = None if self._cache is None else {}
        return other

    def with_rule(self, rule: ImageRule) -> "SegmentationDataset":
        """A copy whose images are read by another rule."""
        other = self.with_items(self.items)
        other.rule = rule
        return other

    def __getitem__(self, index: int) -> Sample:
        """Decode one image and its mask.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: naming the file, if it cannot be read, the sizes differ, or an id is out of range.
        """
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        item = self.items[index]
        image = read_image(item.image, max_pixels=self._max_pixels, rule=self.rule)
        mask = self.read_ids(item, image.shape[:2])
        # A view of the decoder's H,W,3: no copy, and the layout in which resampling is fastest.
        mask = mask if mask.dtype == np.uint8 else mask.astype(np.int32)  # PyTorch does little with uint16
        sample = Sample(item.name, torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask))
        if self._cache is not None:
            self._cache[index] = sample
        return sample

    def read_ids(self, item: Item, size: tuple[int, ...]) -> npt.NDArray[Any]:
        """The mask of an item, remapped, uint8 H,W, or uint16 for more than 255 classes.

        Args:
            item: of this data set.
            size: H,W of its image.

        Raises:
            ValueError: naming the file, if its size is not `size`, or an id is out of range.
        """
        return self._remapped(self._stored(item, size), item)

    def read_checked(self, item: Item, size: tuple[int, ...]) -> tuple[npt.NDArray[Any], Drawn | None]:
        """As `read_ids`, and the colours of its ids if the mask is a palette image, for `palette_conflicts`.

        Raises:
            ValueError: also if the palette has the colours of the classes in another order.
        """
        mask = self._stored(item, size)
        drawn = self._drawn(item.mask, mask)
        if drawn and self._remap is None:
            self._check_palette(drawn)
        return self._remapped(mask, item), drawn

    def _remapped(self, mask: npt.NDArray[Any], item: Item) -> npt.NDArray[Any]:
        if self._remap is None or item.mask is None:
            return mask.astype(self._dtype, copy=False)
        classes: npt.NDArray[Any] = self._remap[mask]
        return classes

    def _stored(self, item: Item, size: tuple[int, ...]) -> npt.NDArray[Any]:
        if item.mask is None:
            return np.full(size, self.labels.ignore, dtype=self._dtype)
        if isinstance(item.mask, Path):
            mask = read_mask(
                item.mask, palette=self._colours, ignore=self.labels.ignore, ignored=self._ignored,
                largest=len(self._unknown) - 1,
            )  # fmt: skip
        elif isinstance(item.mask, ColourMask):
            mask = item.mask.read(self._ignored)
        else:
            mask = item.mask.read()
        if mask.shape != size:
            (high, wide), (rows, columns) = size, mask.shape
            raise ValueError(f"{item.mask}: mask of {columns}x{rows}; expected {wide}x{high}, the size of {item.image}")
        self._check_ids(item.mask, mask)
        return mask

    def _check_ids(self, source: Path | MaskSource, mask: npt.NDArray[Any]) -> None:
        """Raise ValueError for stored ids that no class has."""
        if not self._unknown[mask].any():
            return
        histogram = np.bincount(mask.ravel(), minlength=len(self._unknown))
        unknown = described(np.where(self._unknown, histogram, 0))
        expected = f"0..{len(self.labels) - 1} or {self.labels.ignore}, ignored"
        expected = expected if self._remap is None else self._known_ids()
        advice = likely_fix(histogram, self.labels) if self._remap is None else ""
        raise UnknownIdError(f"{source}: mask has id {unknown}; expected {expected}", advice, histogram)

    def palette_of(self, mask: Path | MaskSource | None) -> list[Colour] | None:
        """The colours of a palette image by stored id, without decoding it; None for another mask.

        Raises:
            ValueError, FileNotFoundError: if it cannot be read.
        """
        if self.labels.largest_id > 255:
            return None
        if isinstance(mask, ValueMask):
            return mask.palette()
        return read_palette(mask) if isinstance(mask, Path) else None

    def _drawn(self, source: Path | MaskSource | None, mask: npt.NDArray[Any]) -> Drawn | None:
        palette = self.palette_of(source) if mask.dtype == np.uint8 else None
        if palette is None:
            return None
        path = source if isinstance(source, Path) else Path(str(source))
        used = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
        classes = range(256) if self._remap is None else self._remap
        colours = {value: palette[value] for value in used if classes[value] != self.labels.ignore}
        ours = bytes(part for colour in palette for part in colour) == mask_palette(self.labels)
        return Drawn(path, colours, ours)

    def _check_palette(self, drawn: Drawn) -> None:
        """Raise ValueError where a palette image draws its ids in the colours of other classes."""
        if self.labels.palette == voc_palette(len(self.labels)):  # the default, which says nothing about the masks
            return
        if len(drawn.colours) < 2 or not {*drawn.colours.values()} <= {*self.labels.palette}:
            return
        for value, colour in drawn.colours.items():
            if colour != self.labels.palette[value]:
                other = self.labels.names[self.labels.palette.index(colour)]
                raise ValueError(
                    f"{drawn.path}: id {value}, {self.labels.names[value]}, is drawn in {colour}, the colour of "
                    f"{other}; expected names, palette and masks in the same order"
                )

    def _known_ids(self) -> str:
        """The ids that may be stored, as ranges."""
        known = np.flatnonzero(~self._unknown)
        runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
        return " or ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def open_dataset(
    data: str | Path, split: str, options: DatasetOptions = NO_OPTIONS, *, cache: bool = False
) -> SegmentationDataset:
    """Open one split of a data set.

    Args:
        data: as for `list_split`.
        split: such as train or val.
        options: overrule those of the data's `dataset.yaml`.
        cache: as for `SegmentationDataset`.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the layout is not recognised, or there is no such split, or it is empty or lacks files or masks.
    """
    listing = list_split(data, split, options)
    if listing.unlabelled:
        raise ValueError(
            f"{listing.place}: no masks, for {listing.unlabelled}; expected a split to train on or to score"
        )
    refuse_problems(listing)
    return SegmentationDataset.of(listing, cache=cache)


def refuse_problems(listing: Listing) -> None:
    """Raise ValueError with the first of a listing's problems, and how many there are."""
    if listing.problems:
        more = len(listing.problems) - 1
        rest = f" (and {counted(more, 'more problem')}: atrous data check)" if more else ""
        raise ValueError(listing.problems[0] + rest)
