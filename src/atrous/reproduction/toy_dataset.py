"""A toy dataset of shapes on textured backgrounds, the same bytes every time; preset ``tiny`` trains on it.

Discs, squares and triangles are large and common. The wheel, a ring with thin spokes, is rare and finely annotated like
VOC's bicycle (section 4.3, Figure 7).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from atrous.atomic import written_folder
from atrous.data.images.image_io import Pixels

Mask = npt.NDArray[np.bool_]
Field = npt.NDArray[np.float64]

NAMES = ("background", "disc", "square", "triangle", "wheel")
PALETTE = ((0, 0, 0), (200, 60, 50), (60, 150, 70), (70, 90, 200), (220, 180, 60))
SIZE = (97, 129)
SPLITS = {"train": 48, "val": 16}
WHEEL_EVERY = 4
"""Every fourth image shows a wheel."""


def write_toy_dataset(folder: Path) -> Path:
    """Write the dataset in the folder layout, unless it is there; whole or not at all."""
    if (folder / "dataset.yaml").is_file():
        return folder
    with written_folder(folder) as partial:
        for number, (split, count) in enumerate(SPLITS.items()):
            for kind in ("images", "masks"):
                (partial / kind / split).mkdir(parents=True)
            for i in range(count):
                image, mask = draw((number, i))
                Image.fromarray(image).save(partial / "images" / split / f"{split}{i:03}.png")
                Image.fromarray(mask).save(partial / "masks" / split / f"{split}{i:03}.png")
        description = {"names": list(NAMES), "palette": [list(colour) for colour in PALETTE], "ignore": 255}
        (partial / "dataset.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    return folder


def draw(key: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """Image, uint8 H,W,3, and mask, uint8 H,W, of split and index `key`."""
    rng = np.random.default_rng(key)
    image, mask = _texture(rng, spread=18.0), np.zeros(SIZE, dtype=np.uint8)
    kinds = [int(kind) for kind in rng.choice([1, 2, 3], size=rng.integers(1, 4))]
    kinds += [4] if key[1] % WHEEL_EVERY == 0 else []
    for kind in kinds:
        inside = _inside(kind, rng)
        painted = _texture(rng, spread=18.0) / 4 + 0.75 * np.array(PALETTE[kind])
        image[inside], mask[inside] = painted[inside], kind
    noisy = image + rng.normal(0, 8, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), mask


def _texture(rng: np.random.Generator, spread: float) -> Field:
    """Coarse noise about a random colour, H,W,3."""
    coarse = rng.normal(0, 1, (SIZE[0] // 8 + 2, SIZE[1] // 8 + 2, 3)).repeat(8, 0).repeat(8, 1)
    top, left = rng.integers(0, 8, 2)
    field: Field = rng.uniform(70, 190, 3) + spread * coarse[top : top + SIZE[0], left : left + SIZE[1]]
    return field


def _inside(kind: int, rng: np.random.Generator) -> Mask:
    radius = rng.uniform(12, 26)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float64)
    y, x = rows - rng.uniform(radius / 2, SIZE[0] - radius / 2), columns - rng.uniform(radius / 2, SIZE[1] - radius / 2)
    turn = rng.uniform(0, np.pi / 2)
    y, x = y * np.cos(turn) - x * np.sin(turn), y * np.sin(turn) + x * np.cos(turn)
    return _SHAPES[kind](y, x, radius)


def _wheel(y: Field, x: Field, radius: float) -> Mask:
    distance, angle = np.hypot(y, x), np.arctan2(y, x) % (np.pi / 3)
    spoke = distance * np.minimum(np.sin(angle), np.sin(np.pi / 3 - angle)) < 1.0
    wheel: Mask = (np.abs(distance - radius) < 2.0) | ((distance < radius) & spoke)
    return wheel


_SHAPES: dict[int, Callable[[Field, Field, float], Mask]] = {
    1: lambda y, x, radius: np.hypot(y, x) < radius,
    2: lambda y, x, radius: np.maximum(abs(y), abs(x)) < 0.85 * radius,
    3: lambda y, x, radius: (y > -0.5 * radius) & (y + np.sqrt(3) * abs(x) < radius),
    4: _wheel,
}
