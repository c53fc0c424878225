"""The result for one photograph: `Segmentation` with its mask, class names, areas and overlay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from atrous.data.labels import Labels
from atrous.data.overlay import overlay


@dataclass(frozen=True)
class Segmentation:
    """The classes of one photograph's pixels.

    Attributes:
        mask: uint8 H,W (int32 for more than 256 classes), a class id for every pixel, at the size of the photograph as
            a person sees it.
        image: uint8 H,W,3, that photograph.
        labels: names and colours of all classes.
    """

    mask: npt.NDArray[Any]
    image: npt.NDArray[np.uint8]
    labels: Labels

    @cached_property
    def areas(self) -> dict[int, float]:
        """Share of the pixels, 0 to 1, of each class in the mask, by id; the largest first."""
        return areas_of(pixel_counts(self.mask, self.labels))

    @property
    def names(self) -> dict[int, str]:
        """Name of each class in the mask, by id; the largest first."""
        return {i: self.labels.names[i] for i in self.areas}

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The photograph with the classes' colours laid over it, and a legend where there is room."""
        return overlay(self.image, self.mask, self.labels, alpha=alpha)

    def segments(self) -> list[dict[str, Any]]:
        """In the form of Hugging Face's segmentation pipeline: ``[{"label", "score": None, "mask": PIL "L"}]``."""
        return [
            {"label": name, "score": None, "mask": Image.fromarray(np.where(self.mask == i, 255, 0).astype(np.uint8))}
            for i, name in self.names.items()
        ]


def pixel_counts(mask: npt.NDArray[Any], labels: Labels | None = None) -> npt.NDArray[np.int64]:
    """Number of pixels of each id, 256, or 65,536 for more classes; row by row, as counting takes 8 bytes a pixel."""
    counts = np.zeros(labels.largest_id + 1 if labels else 256, dtype=np.int64)
    for row in mask:
        counts += np.bincount(row, minlength=len(counts))
    return counts


def areas_of(counts: npt.NDArray[np.int64]) -> dict[int, float]:
    """Share of the pixels, 0 to 1, of each class that has any, by id; the largest first."""
    return {int(i): float(counts[i] / counts.sum()) for i in np.argsort(-counts, kind="stable") if counts[i]}
