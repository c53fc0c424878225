"""The picture of README.md: the demo's photograph beside its segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atrous.data.image import write_image
from atrous.jobs.demo import MODEL, SCALES, photograph
from atrous.jobs.predict import Predictor


def main() -> None:
    result = Predictor.load(MODEL, output_stride=8, scales=SCALES, flip=True)(photograph())
    beside = np.concatenate([result.image, np.asarray(result.overlay())], axis=1)
    write_image(Path(__file__).parent.parent / "docs" / "pavilion.png", beside)


if __name__ == "__main__":
    main()
