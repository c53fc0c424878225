"""The result for one photograph: `Segmentation` with its mask, class names, areas, overlay, polygons and run lengths.

What other tools take (COCO, GeoJSON, Label Studio, supervision, FiftyOne, CVAT) is a function each in
`atrous.integrations`.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from atrous.atomic import write_text
from atrous.data.images.image_io import write_image, write_mask
from atrous.data.labels import Labels
from atrous.data.overlay import overlay
from atrous.data.palette import drawn_palette, is_background
from atrous.data.polygons import Polygon, polygons, run_lengths
from atrous.messages import did_you_mean, listed

SHOWN_SIDE = 1024
"""Longest side, in pixels, of the picture that a notebook shows."""

_COUNTED = 1 << 16
"""Pixels that are counted at a time."""


@dataclass(frozen=True, repr=False, eq=False)
class Segmentation:
    """The classes of one photograph's pixels. A result is equal to itself alone: compare masks by NumPy.

    Attributes:
        mask: uint8 H,W (int32 for more than 256 classes), a class id for every pixel, at the size of the photograph as
            a person sees it.
        image: uint8 H,W,3, that photograph.
        labels: names and colours of all classes.
        confidence: float32 H,W, the probability of the class that the mask has, 0 to 1; None unless it was asked for:
            ``predictor(photo, confidence=True)``.
        source: name of the file that it was read from, without its folder; empty for what was no file.
    """

    mask: npt.NDArray[Any]
    image: npt.NDArray[np.uint8]
    labels: Labels
    confidence: npt.NDArray[np.float32] | None = None
    source: str = ""

    @cached_property
    def shares(self) -> dict[int, float]:
        """Share of the pixels, 0 to 1, of each class in the mask, by id; the largest first."""
        return {i: share for i, share in areas_of(pixel_counts(self.mask, self.labels)).items() if i < len(self.labels)}

    @property
    def areas(self) -> dict[str, float]:
        """Share of the pixels, 0 to 1, of each class in the mask, by name; the largest first."""
        return {self.labels.names[i]: share for i, share in self.shares.items()}

    @property
    def names(self) -> dict[int, str]:
        """Name of each class in the mask, by id; the largest first."""
        return {i: self.labels.names[i] for i in self.shares}

    @cached_property
    def confidences(self) -> dict[str, float]:
        """Mean of `confidence` over the pixels of each class in the mask, by name; the largest class first.

        Raises:
            ValueError: if the confidence was not asked for.
        """
        if self.confidence is None:
            raise ValueError("the confidence was not asked for; expected predictor(photo, confidence=True)")
        return {name: float(self.confidence[self.mask == i].mean(dtype=np.float64)) for i, name in self.names.items()}

    def ids(self, classes: Iterable[str | int]) -> list[int]:
        """Ids of classes, given by name or id.

        Raises:
            ValueError: for one that the model does not have; names the nearest.
        """
        return [self._id(name) for name in ([classes] if isinstance(classes, str) else classes)]

    def _id(self, name: str | int) -> int:
        if name in self.labels.names:
            return self.labels.names.index(str(name))
        if isinstance(name, (int, np.integer)) and not isinstance(name, bool) and 0 <= name < len(self.labels):
            return int(name)
        near = did_you_mean(name, self.labels.names, otherwise="the classes are")
        raise ValueError(f"there is no class {name!r}{near}")

    def overlay(
        self, alpha: float = 0.5, classes: Iterable[str | int] | None = None, legend: bool = True
    ) -> Image.Image:
        """The photograph with the classes' colours laid over it.

        Args:
            alpha: opacity of the colours, 0 to 1.
            classes: names or ids of those to draw; None for all but background.
            legend: draw the names with their shares, where there is room.

        Raises:
            ValueError: if `alpha` is out of range, or there is no such class.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; expected 0 to 1")
        drawn = None if classes is None else self.ids(classes)
        return overlay(self.image, self.mask, self.labels, alpha=alpha, legend=legend, classes=drawn)

    def cutout(self, *classes: str | int) -> Image.Image:
        """The photograph, transparent but for some classes: PIL, RGBA.

        Args:
            classes: names or ids; none for all but background.

        Raises:
            ValueError: if there is no such class.
        """
        kept = (
            self.ids(classes) if classes else [i for i, name in enumerate(self.labels.names) if not is_background(name)]
        )
        opaque = np.zeros(self.labels.largest_id + 1, dtype=np.uint8)
        opaque[kept] = 255
        picture = Image.fromarray(self.image)
        picture.putalpha(Image.fromarray(opaque[self.mask]))
        return picture

    def polygons(self, tolerance: float = 1.0) -> dict[str, list[Polygon]]:
        """Polygons of each class, by name, the largest class first; see `atrous.data.polygons.polygons`.

        Args:
            tolerance: how far, in pixels, the outline may lie from the mask's; 0 for the exact outline.

        Raises:
            ValueError: if it is negative.
        """
        shapes = polygons(self.mask, tolerance)
        return {name: shapes[i] for i, name in self.names.items()}

    def rle(self, *, compressed: bool = True) -> dict[str, dict[str, Any]]:
        """COCO's run lengths of each class, by name: ``{"size": [H, W], "counts": ...}``, as pycocotools has them.

        Args:
            compressed: `counts` as a string; False for a list of numbers.
        """
        return {name: run_lengths(self.mask == i, compressed=compressed) for i, name in self.names.items()}

    def to_dict(self, masks: Literal["rle", "polygons"] | None = "rle", tolerance: float = 1.0) -> dict[str, Any]:
        """For JSON: width, height, and for each class its id, label, color, area, pixels, box, confidence and mask.

        Args:
            masks: ``"rle"`` for COCO's compressed run lengths; ``"polygons"`` for lists of rings x, y, the outer one
                first; None for no masks.
            tolerance: of the polygons.

        Raises:
            ValueError: for another word.
        """
        if masks not in ("rle", "polygons", None):
            raise ValueError(f"masks is {masks!r}; expected 'rle', 'polygons' or None")
        shapes = self.polygons(tolerance) if masks == "polygons" else {}
        segments = []
        for i, name in self.names.items():
            segment = self._described(i)
            if masks == "rle":
                segment["rle"] = run_lengths(self.mask == i)
            elif masks == "polygons":
                segment["polygons"] = [[ring.tolist() for ring in (outer, *holes)] for outer, holes in shapes[name]]
            segments.append(segment)
        height, width = self.mask.shape
        return {"source": self.source, "width": width, "height": height, "segments": segments}

    def _described(self, i: int) -> dict[str, Any]:
        region, name = self.mask == i, self.labels.names[i]
        return {
            "id": i,
            "label": name,
            "color": list(drawn_palette(self.labels)[i]),
            "area": self.shares[i],
            "pixels": int(region.sum()),
            "box": box_of(region),
            "confidence": None if self.confidence is None else self.confidences[name],
        }

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each class: source, id, label, area, pixels, confidence; largest first.

        Raises:
            ValueError: if pandas is not installed.
        """
        try:
            frames = importlib.import_module("pandas")
        except ImportError:
            raise ValueError("a data frame needs pandas; pip install 'atrous[dataframe]'") from None
        columns = ["source", "id", "label", "area", "pixels", "confidence"]
        rows = [{"source": self.source, **self._described(i)} for i in self.shares]
        return frames.DataFrame(rows, columns=columns)

    def segments(self) -> list[dict[str, Any]]:
        """In the form of Hugging Face's segmentation pipeline: ``[{"label", "score", "mask": PIL "L"}]``.

        The score is the mean confidence of the class; None, as in their pipeline, where it was not asked for.
        """
        scores: dict[str, float] = {} if self.confidence is None else self.confidences
        return [
            {
                "label": name,
                "score": scores.get(name),
                "mask": Image.fromarray(np.where(self.mask == i, 255, 0).astype(np.uint8)),
            }
            for i, name in self.names.items()
        ]

    def save(self, folder: str | Path, name: str = "") -> dict[str, Path]:
        """Write ``masks/NAME.png``, ``overlays/NAME.png`` and ``results/NAME.json`` (`to_dict`), each one atomically.

        Args:
            folder: made if there is none.
            name: without suffix; by default that of the source, or ``image``.

        Returns:
            The paths, by ``mask``, ``overlay`` and ``result``.
        """
        name, folder = name or Path(self.source).stem or "image", Path(folder)
        paths = {
            "mask": folder / "masks" / f"{name}.png",
            "overlay": folder / "overlays" / f"{name}.png",
            "result": folder / "results" / f"{name}.json",
        }
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(paths["mask"], self.mask, self.labels)
        write_image(paths["overlay"], self.overlay())
        write_text(paths["result"], json.dumps(self.to_dict()) + "\n")
        return paths

    def __repr__(self) -> str:
        height, width = self.mask.shape
        classes = [f"{name} {share:.1%}" for name, share in self.areas.items()]
        return f"Segmentation({width}x{height}, {listed(classes, 4)})"

    def _repr_png_(self) -> bytes:
        """The overlay, for notebooks; made smaller where it is large."""
        picture, buffer = self.overlay(), io.BytesIO()
        picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        picture.save(buffer, "PNG")
        return buffer.getvalue()


def box_of(region: npt.NDArray[np.bool_]) -> list[int]:
    """The smallest box around what is set: x, y, width, height in pixels; zeros for nothing."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    (top, bottom), (left, right) = ((int(line[0]), int(line[-1]) + 1) for line in (rows, columns))
    return [left, top, right - left, bottom - top]


def pixel_counts(mask: npt.NDArray[Any], labels: Labels | None = None) -> npt.NDArray[np.int64]:
    """Number of pixels of each id, 256, or 65,536 for more classes; in parts, as counting takes 8 bytes a pixel."""
    counts, ids = np.zeros(labels.largest_id + 1 if labels else 256, dtype=np.int64), mask.reshape(-1)
    for start in range(0, ids.size, _COUNTED):
        counts += np.bincount(ids[start : start + _COUNTED], minlength=len(counts))
    return counts


def areas_of(counts: npt.NDArray[np.int64]) -> dict[int, float]:
    """Share of the pixels, 0 to 1, of each class that has any, by id; the largest first."""
    return {int(i): float(counts[i] / counts.sum()) for i in np.argsort(-counts, kind="stable") if counts[i]}
