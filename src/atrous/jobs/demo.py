"""`atrous demo`: the bundled photograph through the bundled weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from atrous.data.image import write_image, write_mask
from atrous.jobs.predict import Predictor

MODEL = "camvid-efficientnet_lite0"
PHOTOGRAPH = "pavilion.jpg"
SCALES = (0.5, 0.75)
"""The photograph is larger than those that the weights were trained on: at these scales its parts have their size."""


@dataclass(frozen=True)
class Demo:
    """What the demo wrote.

    Attributes:
        photograph: its name.
        model: the name of the weights.
        overlay: the picture with the classes laid over it.
        mask: the class ids.
        areas: share of the pixels of each class found, by name.
    """

    photograph: str
    model: str
    overlay: Path
    mask: Path
    areas: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def photograph() -> Path:
    """The file of the bundled photograph."""
    return Path(str(resources.files("atrous") / "jobs" / "assets" / PHOTOGRAPH))


def demo(out: Path, *, device: str | None = None) -> Demo:
    """Segment the bundled photograph at output stride 8, over scales and flips; write mask and overlay into `out`.

    Raises:
        ValueError: if the device is not to be had.
    """
    predictor = Predictor.load(MODEL, device=device, output_stride=8, scales=SCALES, flip=True)
    result = predictor(photograph())
    out.mkdir(parents=True, exist_ok=True)
    stem = Path(PHOTOGRAPH).stem
    written = Demo(
        PHOTOGRAPH, MODEL, out / f"{stem}-overlay.png", out / f"{stem}-mask.png",
        {result.names[i]: share for i, share in result.areas.items()},
    )  # fmt: skip
    write_mask(written.mask, result.mask, predictor.labels)
    write_image(written.overlay, result.overlay())
    return written
