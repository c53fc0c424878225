"""The real exports of ../shared/formats, with the masks that they should give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.datasets.dataset import open_dataset, splits

FORMATS = Path(__file__).parents[3] / "shared" / "formats"


def worst_iou(layout: str) -> float:
    """The lowest IoU of a class in a photograph between an export, read as it is, and the truth; skips without it."""
    if not (FORMATS / layout).is_dir():
        pytest.skip("no shared/formats beside the repository")
    names = json.loads((FORMATS / "classes.json").read_text())
    worst, photographs = 1.0, 0
    for split in splits(FORMATS / layout):
        dataset = open_dataset(FORMATS / layout, split)
        for name, _, mask in dataset:
            photographs += 1
            truth = np.array(Image.open(FORMATS / "truth" / f"{name[:12]}.png"))
            for value in np.unique(truth[truth != 255]):
                ours, theirs = mask.numpy() == dataset.labels.names.index(names[value]), truth == value
                worst = min(worst, float((ours & theirs).sum() / (ours | theirs).sum()))
    assert photographs == 5
    return worst
