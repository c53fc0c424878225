"""Joined splits, bootstrapping on hard classes, repeat-factor sampling: which images an epoch shows more than once.

Section 4.3 of the paper bootstraps: "we duplicate the images that contain hard classes (namely bicycle, chair, table,
pottedplant, and sofa) in the training set". Repeat-factor sampling (Gupta et al. 2019, "LVIS", section 3.3) repeats the
images of all rare classes, the rarer the more often. Both repeat items of the data set: an epoch is one pass over them.

    dataset = open_splits("my-data", "train*2+pseudo")
    dataset = repeated(dataset, repeat_factors(presence, threshold=0.1), seed=0)
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atrous.data.datasets.base import selected
from atrous.data.datasets.dataset import Item, SegmentationDataset, open_dataset
from atrous.data.datasets.mask_values import Drawn, histogram_of, palette_conflicts
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.data.images.image_io import read_size
from atrous.data.labels import Labels
from atrous.messages import counted

Presence = npt.NDArray[np.bool_]
"""N,K: which image has which class."""


def open_splits(data: str | Path, splits: str, options: DatasetOptions = NO_OPTIONS) -> SegmentationDataset:
    """One data set of several splits: ``train``, ``train+val``, or ``train*2+pseudo``, which has train's images twice.

    Args:
        data: as for `open_dataset`.
        splits: their names, joined.
        options: as for `open_dataset`.

    Raises:
        ValueError: if a count is not a positive number, or the splits' classes differ; and as `open_dataset`.
        FileNotFoundError: as `open_dataset`.
    """
    parts = [_counted(part) for part in splits.split("+")]
    opened = [(open_dataset(data, name, options), count) for name, count in parts]
    first = opened[0][0]
    for (name, _), (dataset, _) in zip(parts, opened, strict=True):
        if dataset.labels != first.labels:
            raise ValueError(f"the splits {parts[0][0]} and {name} of {data} have different classes")
    if len(opened) == 1 and opened[0][1] == 1:
        return first
    return first.with_items([item for dataset, count in opened for item in dataset.items * count])


def _counted(part: str) -> tuple[str, int]:
    name, star, count = part.partition("*")
    if star and not (count.strip().isdecimal() and int(count) > 0):
        raise ValueError(f"split {part!r}: expected NAME or NAME*COUNT, joined by +")
    return name.strip(), int(count) if star else 1


def pixel_counts(dataset: SegmentationDataset) -> npt.NDArray[np.int64]:
    """Pixels of each class in each image, int64 N,K; as `id_histograms`."""
    return id_histograms(dataset)[:, : len(dataset.labels)]


def id_histograms(dataset: SegmentationDataset, drawn: list[Drawn] | None = None) -> npt.NDArray[np.int64]:
    """Pixels of each id in each mask, a row of `histogram_of` each; an item that occurs twice is read once.

    Args:
        dataset: N items.
        drawn: the colours of palette masks read before, such as another split's; those of this data set are added.

    Raises:
        ValueError: for a mask that cannot be read, of another size than its image, with an id out of range, or with a
            palette that contradicts that of another mask.
        FileNotFoundError: for a file that is missing.
    """

    def examined(item: Item) -> tuple[npt.NDArray[np.int64], Drawn | None]:
        ids, colours = dataset.read_checked(item, read_size(item.image))
        return histogram_of(ids, dataset.labels), colours

    once = list(dict.fromkeys(dataset.items))
    with ThreadPoolExecutor() as pool:
        counts = dict(zip(once, pool.map(examined, once), strict=True))
    drawn = [] if drawn is None else drawn
    drawn += [colours for _, colours in counts.values() if colours]
    if conflicts := palette_conflicts(drawn, dataset.labels):
        more = f" (and {counted(len(conflicts) - 1, 'more mask')}: atrous data check)" if len(conflicts) > 1 else ""
        raise ValueError(conflicts[0] + more)
    return np.stack([counts[item][0] for item in dataset.items])


def bootstrap_factors(
    presence: Presence, labels: Labels, classes: Sequence[str], times: int
) -> npt.NDArray[np.float64]:
    """How often to show each image, float N: `times` if it has one of `classes`, else 1.

    Args:
        presence: N,K.
        labels: K classes.
        classes: names of the hard ones.
        times: 2 for the paper's duplicates.

    Raises:
        ValueError: for an unknown class name.
    """
    unknown = [name for name in classes if name not in labels.names]
    if unknown:
        raise ValueError(f"bootstrap names {', '.join(unknown)}; the classes are {', '.join(labels.names)}")
    hard = presence[:, [labels.names.index(name) for name in classes]].any(axis=1)
    return np.where(hard, float(times), 1.0)


def repeat_factors(presence: Presence, threshold: float) -> npt.NDArray[np.float64]:
    """How often to show each image, float N, so that classes in less than `threshold` of the images come more often.

    The factor of an image is that of its rarest class: ``max(1, sqrt(threshold / share))``, where `share` of the images
    have the class.

    Args:
        presence: N,K.
        threshold: share of the images, 0 to 1; 0 repeats nothing.
    """
    share = presence.mean(axis=0)
    by_class = np.sqrt(np.divide(threshold, share, out=np.zeros_like(share), where=share > 0)).clip(min=1.0)
    factors: npt.NDArray[np.float64] = np.where(presence, by_class, 1.0).max(axis=1)
    return factors


def repeated(dataset: SegmentationDataset, factors: npt.NDArray[np.float64], *, seed: int = 0) -> SegmentationDataset:
    """A data set with each item repeated by its factor; the fraction is a probability, drawn once.

    Args:
        dataset: N items.
        factors: float N, each at least 1.
        seed: of the draws.
    """
    draws = np.random.default_rng(seed).random(len(factors))
    indices = np.repeat(np.arange(len(factors)), np.floor(factors + draws).astype(int))
    return dataset.with_items(selected(dataset.items, indices.tolist()))
