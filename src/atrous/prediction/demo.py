"""`atrous demo`: the bundled photographs through the bundled weights, a street's and everyday ones'."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from atrous.data.image_io import write_image, write_mask
from atrous.prediction.predictor import Predictor

NEXT = (
    "atrous predict objects-mobilenetv2 YOUR-PHOTOGRAPHS/ --out found",
    "atrous train finetune --data YOUR-LABELLED-FOLDER",
)
"""Where to go from here."""


class Scene(NamedTuple):
    """A photograph, the weights that know what it shows, and how they see it best.

    Attributes:
        photograph: file beside the demo.
        model: the name of the weights.
        output_stride: of the prediction.
        scales: averaged over; a photograph larger than those that the weights were trained on wants small ones.
    """

    photograph: str
    model: str
    output_stride: int
    scales: tuple[float, ...]


SCENES = (
    Scene("pavilion.jpg", "camvid-mobilenet_edgetpu_075", 8, (0.5, 0.75)),
    Scene("astronaut.jpg", "objects-mobilenetv2", 16, (1.0,)),
    Scene("cat.jpg", "objects-mobilenetv2", 16, (1.0,)),
)


@dataclass(frozen=True)
class Demo:
    """What the demo wrote of one photograph.

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


def bundled(photograph: str) -> Path:
    """The file of a bundled photograph."""
    return Path(str(resources.files("atrous") / "prediction" / "assets" / photograph))


def demo(out: Path, *, device: str | None = None) -> list[Demo]:
    """Segment the bundled photographs, each with its flip; write masks and overlays into `out`.

    Raises:
        ValueError: if the device is not to be had.
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
        {result.names[i]: share for i, share in result.areas.items()},
    )  # fmt: skip
    write_mask(written.mask, result.mask, predictor.labels)
    write_image(written.overlay, result.overlay())
    return written
