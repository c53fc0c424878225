"""Decide the value range of a data set whose images have more than 8 bits, once for all of them.

Image by image, a dark one would be taken for one of fewer bits and be read brighter than the others.

    dataset, said = decided(open_dataset("my-data", "train"))
    dataset.rule.value_range    # (0, 4095), for one
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from atrous.data.datasets.dataset import SegmentationDataset
from atrous.data.images.image_file import SAID
from atrous.data.images.image_io import stored_top
from atrous.data.images.samples import GUESSED_BITS

SAMPLE = 64
"""Images that are looked at, evenly over the data set."""


def decided(dataset: SegmentationDataset) -> tuple[SegmentationDataset, str]:
    """The data set with a value range, and a line that says which and why.

    Without images of 16 bits, or with a range already, it is the data set itself and "". Images that cannot be read
    are left to those who read all of them.
    """
    if dataset.rule.value_range or not dataset.items:
        return dataset, ""
    paths = list(dict.fromkeys(item.image for item in dataset.items))
    looked_at = paths[:: -(-len(paths) // SAMPLE)]
    tops = {path: top for path in looked_at if (top := _top(path, dataset))}
    if not tops:
        return dataset, ""
    high = max(tops.values())
    result = dataset.with_rule(replace(dataset.rule, value_range=(0.0, float(high))))
    if high == 65535:
        return result, ""
    said = (
        f"{len(tops)} of {len(looked_at)} images looked at have 16 bits and use 0 to {high} of them, such as "
        f"{next(iter(tops))}: all are read by that range, and so are those to predict; "
        f"--value-range 0,{high} says it, --value-range 0,65535 reads all 16 bits"
    )
    return result, said


def _top(path: Path, dataset: SegmentationDataset) -> int:
    guessed, said = GUESSED_BITS.copy(), SAID.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return stored_top(path, rule=dataset.rule)
        except (ValueError, OSError):
            return 0
        finally:  # nothing was said
            GUESSED_BITS.clear()
            GUESSED_BITS.update(guessed)
            SAID.intersection_update(said)
