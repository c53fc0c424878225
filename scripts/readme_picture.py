"""Write docs/objects.jpg, the picture of README.md: three photographs of the demo above their segmentations."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from atrous import Predictor
from atrous.prediction.demo import SCENES, bundled

HEIGHT, GAP = 300, 8


def main() -> None:
    predictor = Predictor.load("objects-mobilenetv2", flip=True)
    columns = []
    for scene in SCENES:
        if scene.model == "objects-mobilenetv2":
            result = predictor(bundled(scene.photograph))
            columns.append([_small(Image.fromarray(result.image)), _small(result.overlay())])
    width = sum(photo.width for photo, _ in columns) + GAP * (len(columns) - 1)
    page = Image.new("RGB", (width, 2 * HEIGHT + GAP), "white")
    left = 0
    for column in columns:
        for row, picture in enumerate(column):
            page.paste(picture, (left, row * (HEIGHT + GAP)))
        left += column[0].width + GAP
    page.save(Path(__file__).parent.parent / "docs" / "objects.jpg", quality=88)


def _small(picture: Image.Image) -> Image.Image:
    return picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
