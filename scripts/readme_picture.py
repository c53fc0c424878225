"""The picture of README.md: the demo's photograph beside its segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atrous.data.image_io import write_image
from atrous.prediction.demo import SCENES, bundled
from atrous.prediction.predictor import Predictor


def main() -> None:
    scene = SCENES[0]
    predictor = Predictor.load(scene.model, output_stride=scene.output_stride, scales=scene.scales, flip=True)
    result = predictor(bundled(scene.photograph))
    beside = np.concatenate([result.image, np.asarray(result.overlay())], axis=1)
    write_image(Path(__file__).parent.parent / "docs" / "pavilion.png", beside)


if __name__ == "__main__":
    main()
