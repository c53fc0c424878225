"""`atrous demo`: segment the bundled photographs with the bundled weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from atrous.data.images.image_io import write_image, write_mask
from atrous.prediction.predictor import Predictor

NEXT = (
    "atrous predict YOUR-PHOTOGRAPH.jpg",
    "atrous train finetune --data YOUR-LABELLED-FOLDER",
)
"""Commands to try next."""


class Scene(NamedTuple):
    """A bundled photograph and how to segment it.

    Attributes:
        photograph: file name in the assets folder.
        model: name of the weights.
        output_stride: of the prediction.
        scales: of the inputs, whose probabilities are averaged.
    """

    photograph: str
    model: str
    output_stride: int
    scales: tuple[float, ...]


SCENES = (
    *(Scene(name, "objects-mobilenetv2", 16, (1.0,)) for name in ("cow.jpg", "aeroplane.jpg", "terrace.jpg")),
    # Larger than the pictures that the street weights were trained on: small scales bring it near to them.
    Scene("pavilion.jpg", "camvid-mobilenet_edgetpu_075", 8, (0.5, 0.75)),
)
"""Everyday objects first; the street weights know buildings, trees and sky, too."""


@dataclass(frozen=True)
class Demo:
    """Result for one photograph.

    Attributes:
        photograph: file name.
        model: name of the weights.
        overlay: PNG of the photograph with its classes in colour.
        mask: palette PNG of class ids.
        areas: class name to share of the pixels.
    """

    photograph: str
    model: str
    overlay: Path
    mask: Path
    areas: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def bundled(photograph: str) -> Path:
    """Path of a bundled photograph."""
    return Path(str(resources.files("atrous") / "prediction" / "assets" / photograph))


def demo(out: Path, *, device: str | None = None) -> list[Demo]:
    """Segment the bundled photographs, flips averaged in; write masks and overlays to `out`.

    Raises:
        ValueError: if the device is not available.
    """
    out.mkdir(parents=True, exist_ok=True)
    return [_shown(scene, out, device) for scene in SCENES]


def _shown(scene: Scene, out: Path, device: str | None) -> Demo:
    predictor = Predictor.load(
        scene.model, device=device, output_stride=scene.output_stride, scales=scene.scales, flip=True
    )
    result = predictor(bundled(scene.photograph))
    stem = Path(scene.photograph).stem
    written = Demo(
        scene.photograph, scene.model, out / f"{stem}-overlay.png", out / f"{stem}-mask.png",
        result.areas,
    )  # fmt: skip
    write_mask(written.mask, result.mask, predictor.labels)
    write_image(written.overlay, result.overlay())
    return written
