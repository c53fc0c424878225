"""The recipe that is chosen for a data set: what follows from what, and that it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atrous.engine.finetune import BASE, Survey, choose, class_weights, finetune
from atrous.engine.recipe import RECIPES
from atrous.engine.train import train

CAMVID = Path(__file__).parents[2] / "shared" / "data" / "camvid"


def survey(
    images: int = 367, side: int = 360, pixels: tuple[int, ...] = (500, 300), long_side: int | None = None
) -> Survey:
    names = tuple("abcdefgh"[: len(pixels)])
    return Survey(names, np.tile(np.array(pixels), (images, 1)), side, long_side or side * 4 // 3, ("train", "val"))


def test_on_camvid_it_is_the_tuned_recipe() -> None:
    if not CAMVID.is_dir():
        pytest.skip(f"CamVid is not at {CAMVID}")
    recipe, _ = finetune(CAMVID)
    tuned = RECIPES[BASE]
    np.testing.assert_allclose(recipe.class_weights or (), tuned.class_weights or (), rtol=0.16)
    assert replace(recipe, class_weights=tuned.class_weights) == tuned


@pytest.mark.parametrize(
    ("side", "crop", "scales"),
    [(360, 353, (0.43, 1.14)), (1024, 513, (0.5, 2.0)), (513, 513, (0.75, 2.0)), (512, 497, (0.75, 2.0)),
     (20, 65, (0.43, 1.14)), (3000, 513, (0.75, 2.0))],
)  # fmt: skip
def test_the_crop_fits_the_pictures(side: int, crop: int, scales: tuple[float, float]) -> None:
    recipe, _ = choose(survey(side=side))
    assert recipe.crop == (crop, crop) and recipe.scales == scales


@pytest.mark.parametrize(
    ("long_side", "seen", "why"),
    [(480, 840, "now 480 (median): thin things"), (100, 175, "thin things"), (600, None, "as they are"),
     (2000, None, "as they are"), (4000, 1280, "a crop would show too little")],
)  # fmt: skip
def test_small_pictures_are_enlarged_and_large_ones_made_smaller(long_side: int, seen: int | None, why: str) -> None:
    recipe, reasons = choose(survey(side=long_side * 3 // 4, long_side=long_side))
    assert recipe.longest_side == seen and why in reasons[0]
    wide, why_wide = choose(survey(side=1100, long_side=5000))
    assert wide.crop == (273, 273) and "1100 (median, 281 as seen)" in why_wide[1]
    strip, _ = choose(survey(side=100, long_side=3000))
    assert strip.longest_side is None and strip.crop == (97, 97), "made smaller, nothing of it would be left"


@pytest.mark.parametrize(
    ("images", "steps"), [(1, 400), (10, 400), (92, 1200), (367, 2400), (1468, 4800), (10**6, 30_000)]
)
def test_steps_grow_with_the_root_of_the_images(images: int, steps: int) -> None:
    recipe, _ = choose(survey(images=images))
    assert recipe.iterations == steps
    assert recipe.ema == pytest.approx(1 - 4.8 / steps, abs=1e-4) and recipe.warmup <= steps // 20
    assert recipe.lr == (5e-4 if images >= 100 else 3e-4)


def test_weights_are_the_root_of_median_frequency_balancing() -> None:
    # Shares 1/21, 4/21, 16/21: the median is 4.
    assert class_weights((100, 400, 1600)) == (2.0, 1.0, 0.5)
    assert class_weights((100, 399)) is None and class_weights((7, 0)) is None
    assert class_weights((1, 0, 10**6, 10**3)) == (4.0, 1.0, 0.3, 1.0)


def test_rare_classes_come_more_often() -> None:
    pixels = np.full((100, 2), 50)
    pixels[9:, 1] = 0
    rare, why = choose(Survey(("sky", "kite"), pixels, 360, 480, ("train",)))
    assert rare.balance == 0.1 and any("kite" in line for line in why)
    pixels[:10, 1] = 50
    assert choose(Survey(("sky", "kite"), pixels, 360, 480, ("train",)))[0].balance == 0
    assert rare.val_split is None and any("no split named val" in line for line in why)


def test_splits_it_can_train_on(make_data: Callable[..., Path], tmp_path: Path) -> None:
    only, _ = finetune(make_data(tmp_path / "only", {"everything": 3}))
    assert (only.train_split, only.val_split) == ("everything", None)
    with pytest.raises(ValueError, match=r"splits one, two; expected one named train"):
        finetune(make_data(tmp_path / "two", {"one": 3, "two": 3}))


def test_what_it_chooses_trains(make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 6, "val": 3}, sizes=[(70, 90), (90, 70)])
    recipe, _ = finetune(data)
    quick = replace(recipe, iterations=2, batch=2, val_every=2, warmup=0, ema=0.5)
    assert train(quick, data, tmp_path / "run", workers=0, device="cpu") is not None
