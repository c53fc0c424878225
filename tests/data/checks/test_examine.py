"""How a picture looks, and which look alike."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from atrous.data.checks.examine import Look, alike, examine
from atrous.data.datasets.dataset import Item, SegmentationDataset
from atrous.data.labels import Labels, voc_palette

LABELS = Labels(("a", "b"), voc_palette(2))


def scene(seed: int) -> Image.Image:
    """A few large areas, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)


def looked(picture: Image.Image, path: Path, **options) -> Look:
    picture.save(path, **options)
    return examine(SegmentationDataset([], LABELS), Item("x", path, None)).look


def test_versions_of_a_picture_are_alike_and_others_are_not(tmp_path: Path) -> None:
    one = scene(0)
    again = io.BytesIO()
    one.save(again, "JPEG", quality=30)
    versions = (one.resize((80, 60)), Image.open(again), one.point(lambda value: value * 0.8 + 10),
                one.filter(ImageFilter.GaussianBlur(2)))  # fmt: skip
    prints = [looked(one, tmp_path / "one.png").fingerprint]
    others = [looked(version, tmp_path / f"{index}.png").fingerprint for index, version in enumerate(versions)]
    strangers = [looked(scene(seed), tmp_path / f"s{seed}.png").fingerprint for seed in range(1, 40)]
    assert alike(prints, others) == [(0, index) for index in range(len(versions))]
    assert alike(prints + others, strangers) == []
    assert alike(prints, [b""]) == alike([b""], prints) == alike([], prints) == []


@pytest.mark.parametrize(
    ("picture", "look"),
    [
        (Image.new("RGB", (64, 64), (90, 90, 90)), {"flat": True}),
        (scene(1).point(lambda value: value // 40), {"dark": True}),
        (scene(1), {}),
        (scene(1).convert("CMYK"), {"mode": "CMYK"}),
    ],
)
def test_odd_pictures(picture: Image.Image, look: dict, tmp_path: Path) -> None:
    path = tmp_path / ("x.tif" if picture.mode == "CMYK" else "x.png")
    seen = looked(picture, path)
    assert {key: value for key, value in vars(seen).items() if value and key != "fingerprint"} == look


def test_a_picture_that_exif_turns(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert looked(scene(1), tmp_path / "x.jpg", exif=exif).turned and not looked(scene(1), tmp_path / "y.jpg").turned
