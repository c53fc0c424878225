"""The parts `train` and `val` of a data set without splits: seeded, stratified, the same for every command."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from atrous.data.datasets.base import WHOLE, Item, Listing, selected, stamp_of
from atrous.data.datasets.split import SHARE, divide
from atrous.data.images.image_file import say_once
from atrous.data.images.image_io import read_mask
from atrous.messages import counted

PARTS = ("train", "val")
MOST_READ = 2000
"""Of more images, the masks are not read for the division: by chance alone, it then has the classes on both sides."""

_KNOWN: dict[bytes, tuple[list[int], list[int]]] = {}


def is_undivided(splits: Sequence[str]) -> bool:
    """Whether `train` and `val` are made of the split `all`: where neither of them is there."""
    return WHOLE in splits and not any(part in splits for part in PARTS)


def part_of(listing: Listing, part: str) -> Listing:
    """The images of `train` or `val` of a listing of all images; how it was divided is in `read_as`, and is said.

    Raises:
        ValueError: if there is but one image.
    """
    if not listing.items:
        return listing  # whose problems say why
    train, val = _divided(listing)
    how = "stratified by class" if len(listing.items) <= MOST_READ else "by name"
    text = (
        f"no split there: divided into {counted(len(train), 'image')} to train on and {len(val)} to validate on, "
        f"seed 0, {how}"
    )
    say_once(f"{listing.place}: {text}; `atrous data convert` writes it down")
    items = selected(listing.items, train if part == "train" else val)
    return replace(listing, items=items, read_as=f"{listing.read_as}; {text}")


def classes_in(listing: Listing) -> list[frozenset[int]]:
    """The classes that occur in each mask; none for a mask that cannot be read, which others report."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda item: _classes(item, listing), listing.items))


def _classes(item: Item, listing: Listing) -> frozenset[int]:
    try:
        if item.mask is None:
            return frozenset()
        palette = listing.colours or (listing.labels.palette if listing.remap is None else None)
        ids = np.unique(read_mask(item.mask, palette=palette) if isinstance(item.mask, Path) else item.mask.read())
        classes = ids if listing.remap is None else np.array(listing.remap)[ids]
    except (ValueError, OSError, IndexError):
        return frozenset()
    return frozenset(classes.tolist()) - {listing.labels.ignore, -1}


def _divided(listing: Listing) -> tuple[list[int], list[int]]:
    items = listing.items
    if len(items) < 2:
        raise ValueError(f"{listing.place}: {counted(len(items), 'image')}; expected two or more, to divide them")
    text = repr((listing.place, len(items), listing.labels, listing.remap))
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape"))
    for item in items:
        path = item.mask if isinstance(item.mask, Path) else getattr(item.mask, "path", None)
        digest.update(f"{item.name}\0{stamp_of(path) if path else ''}\0".encode("utf-8", "surrogateescape"))
    key = digest.digest()
    if key not in _KNOWN:
        classes = classes_in(listing) if len(items) <= MOST_READ else None
        _KNOWN[key] = divide([item.name for item in items], classes, SHARE)
    return _KNOWN[key]
