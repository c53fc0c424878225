"""The recipe that is chosen for a data set: what follows from what, and that it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atrous.cli.parser import main
from atrous.data.datasets.dataset import splits
from atrous.data.sampling import open_splits
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import ModelCard, cards, save
from atrous.training.autoconfig import ANYTHING, BASE, BASE_IMAGENET, STREETS, Survey, choose, class_weights, finetune
from atrous.training.config import Recipe, override
from atrous.training.loader import divided
from atrous.training.loop import train
from atrous.training.recipes import RECIPES
from atrous.training.state import build_model

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"


QUICK: dict[str, Any] = {
    "backbone": "timm/lcnet_050", "weights": None, "aspp_rates": (1,), "iterations": 1, "batch_size": 2, "warmup": 0,
    "crop": 33, "amp": "off",
}  # fmt: skip
"""What makes a step cheap where the step is not the point."""


def survey(
    images: int = 367, side: int = 360, pixels: tuple[int, ...] = (500, 300), long_side: int | None = None
) -> Survey:
    names = tuple("abcdefgh"[: len(pixels)])
    return Survey(names, np.tile(np.array(pixels), (images, 1)), side, long_side or side * 4 // 3, ("train", "val"))


def test_on_camvid_it_is_the_tuned_recipe() -> None:
    if not CAMVID.is_dir():
        pytest.skip(f"CamVid is not at {CAMVID}")
    for weights, base in (("imagenet", BASE_IMAGENET), (ANYTHING, BASE)):
        recipe, _ = finetune(CAMVID, weights)
        tuned = RECIPES[base]
        np.testing.assert_allclose(recipe.loss.class_weights or (), tuned.loss.class_weights or (), rtol=0.16)
        same = {"class_weights": tuned.loss.class_weights, "val_every": tuned.run.val_every, "amp": tuned.optim.amp}
        assert override(recipe, same) == tuned
    assert finetune(CAMVID)[0].model.weights == STREETS


@pytest.mark.parametrize(
    ("names", "start"),
    [
        (("background", "leaf", "stem"), ANYTHING),
        (("unlabeled", "Road", "sidewalk", "Traffic_Signs", "vegetation"), STREETS),
        (("asphaltRoad", "otherVehicle", "TrafficLights"), STREETS),
        (("person", "car", "bicycle", "sofa"), ANYTHING),  # nothing that is driven on: not of a street
        (("road", "house", "field", "water", "forest"), ANYTHING),  # from the air
        (("building", "road", "tree", "water"), ANYTHING),
    ],
)
def test_it_starts_from_the_weights_that_know_the_classes(names: tuple[str, ...], start: str) -> None:
    pixels = np.full((50, len(names)), 100)
    recipe, reasons = choose(Survey(names, pixels, 360, 480, ("train", "val")))
    _, card = cards()[start]
    assert (
        recipe.model.weights == start
        and recipe.model.backbone == card.arguments["backbone"]
        and recipe.model.reset_head
    )
    # Atrous branches, whether the start has them or not; but not behind 1,280 channels, where they cost too much.
    assert recipe.model.aspp_rates == (() if card.arguments.get("last_conv") else (6, 12, 18))
    assert reasons[0].startswith(f"starts from {start}") and card.licence in reasons[0]
    build_model(recipe.model, len(names))


def test_it_starts_from_what_is_asked_for() -> None:
    assert choose(survey(), weights="imagenet")[0].model.backbone == RECIPES[BASE_IMAGENET].model.backbone
    recipe, reasons = choose(survey(), weights="camvid-efficientnet_lite0")
    assert (recipe.model.backbone, recipe.model.weights) == ("timm/tf_efficientnet_lite0", "camvid-efficientnet_lite0")
    assert reasons[0] == "starts from camvid-efficientnet_lite0, as asked for"
    nothing, reasons = choose(survey(), weights="none")
    assert nothing.model.weights is None and reasons[0] == "starts from nothing, as asked for"
    with pytest.raises(ValueError, match="named model 'camvid-efficientnet_lite'; did you mean"):
        choose(survey(), weights="camvid-efficientnet_lite")
    with pytest.raises(ValueError, match=r"finetune cannot start from x\.tflite: .*: objects-mobilenetv2 and"):
        choose(survey(), weights="x.tflite")


def test_it_takes_the_shape_of_a_run_that_it_starts_from(tmp_path: Path) -> None:
    shapes: list[dict[str, Any]] = [
        {"last_block": 5, "aspp_rates": (3, 6)}, {"head": "cascade"}, {"multi_grid": (1, 2), "image_pooling": False},
    ]  # fmt: skip
    for i, shape in enumerate(shapes):
        model = DeepLabV3("resnet18", 3, **shape)
        card = ModelCard(model.arguments, ("a", "b", "c"), ((0, 0, 0),) * 3, model.mean, model.std)
        save(model, path := tmp_path / f"{i}.safetensors", card)
        recipe, _ = choose(survey(), weights=str(path))
        build_model(recipe.model, 2)
        assert recipe.model.backbone == "resnet18" and recipe.model.aspp_rates == shape.get("aspp_rates", (6, 12, 18))


@pytest.mark.parametrize(
    ("flags", "weights", "backbone"),
    [
        ("", ANYTHING, "timm/mobilenetv2_100"),
        ("--weights imagenet", "imagenet", "timm/tf_efficientnet_lite0"),
        ("--weights none", None, "timm/tf_efficientnet_lite0"),
        ("--set weights=null", None, "timm/tf_efficientnet_lite0"),
        ("--set backbone=resnet101", "imagenet", "resnet101"),
        ("--set backbone=resnet101 --weights none", None, "resnet101"),
        ("--set backbone=timm/mobilenet_edgetpu_075", STREETS, "timm/mobilenet_edgetpu_075"),
        ("--set head=cascade", "imagenet", "timm/tf_efficientnet_lite0"),
        (f"--weights {STREETS}", STREETS, "timm/mobilenet_edgetpu_075"),
    ],
)
def test_the_flags_stand_over_what_it_starts_from(
    flags: str, weights: str | None, backbone: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Recipe] = []
    monkeypatch.setattr("atrous.training.loop.train", lambda recipe, *_, **__: seen.append(recipe))
    assert main(["train", "finetune", "--data", str(tiny_data), "--out", str(tmp_path), *flags.split()]) == 0
    assert (seen[0].model.weights, seen[0].model.backbone) == (weights, backbone)


def test_a_run_goes_on_with_what_was_chosen_for_it(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Recipe] = []
    monkeypatch.setattr("atrous.training.loop.train", lambda recipe, *_, **__: seen.append(recipe))
    before = override(RECIPES["folder-efficientnet_lite0"], {"weights": "runs/gone", "iterations": 7})
    (tmp_path / "recipe.yaml").write_text(before.to_yaml())
    assert main(["train", "finetune", "--data", str(tiny_data), "--out", str(tmp_path), "--resume"]) == 0
    assert seen == [before] and "what was chosen before, in" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("side", "crop", "scales"),
    [(360, 353, (0.43, 1.14)), (1024, 513, (0.5, 2.0)), (513, 513, (0.75, 2.0)), (512, 497, (0.75, 2.0)),
     (20, 65, (0.43, 1.14)), (3000, 513, (0.75, 2.0)), (640, 353, (0.43, 1.14)), (514, 273, (0.43, 1.14)),
     (916, 497, (0.43, 1.14)), (917, 513, (0.5, 2.0))],
)  # fmt: skip
def test_the_crop_fits_the_pictures(side: int, crop: int, scales: tuple[float, float]) -> None:
    recipe, _ = choose(survey(side=side))
    assert recipe.data.crop == (crop, crop) and recipe.data.scales == scales


@pytest.mark.parametrize(
    ("long_side", "seen", "why"),
    [(480, 840, "now 480 (median): thin things"), (100, 175, "thin things"), (600, None, "as they are"),
     (2000, None, "as they are"), (4000, 1280, "a crop would show too little")],
)  # fmt: skip
def test_small_pictures_are_enlarged_and_large_ones_made_smaller(long_side: int, seen: int | None, why: str) -> None:
    recipe, reasons = choose(survey(side=long_side * 3 // 4, long_side=long_side))
    assert recipe.data.longest_side == seen and why in reasons[1]
    wide, why_wide = choose(survey(side=1100, long_side=5000))
    assert wide.data.crop == (273, 273) and "1100 (median, 281 as seen)" in why_wide[2]
    strip, _ = choose(survey(side=100, long_side=3000))
    assert strip.data.longest_side is None and strip.data.crop == (97, 97), "made smaller, nothing of it would be left"


def test_smaller_crops_than_the_largest_are_taken_more_often() -> None:
    recipe, reasons = choose(survey(images=220, side=640, long_side=640))
    assert recipe.schedule.iterations == 1600 and "there are more" in reasons[2]
    whole, _ = choose(survey(images=220, side=513, long_side=640))
    assert whole.schedule.iterations == 800


@pytest.mark.parametrize(
    ("images", "steps"), [(1, 400), (10, 400), (92, 1200), (367, 2400), (1468, 4800), (10**6, 30_000)]
)
def test_steps_grow_with_the_root_of_the_images(images: int, steps: int) -> None:
    recipe, _ = choose(survey(images=images), weights="imagenet")
    assert recipe.schedule.iterations == steps
    assert recipe.optim.ema_decay == pytest.approx(1 - 4.8 / steps, abs=1e-4) and recipe.schedule.warmup <= steps // 20
    assert recipe.optim.lr == pytest.approx(5e-4 if images >= 100 else 3e-4)


def test_weights_are_the_root_of_median_frequency_balancing() -> None:
    # Shares 1/21, 4/21, 16/21: the median is 4.
    assert class_weights((100, 400, 1600)) == (2.0, 1.0, 0.5)
    assert class_weights((100, 399)) is None and class_weights((7, 0)) is None
    assert class_weights((1, 0, 10**6, 10**3)) == (4.0, 1.0, 0.3, 1.0)


def test_rare_classes_come_more_often() -> None:
    pixels = np.full((100, 2), 50)
    pixels[9:, 1] = 0
    rare, why = choose(Survey(("sky", "kite"), pixels, 360, 480, ("train",)))
    assert rare.data.repeat_factor_threshold == 0.1 and any("kite" in line for line in why)
    pixels[:10, 1] = 50
    assert choose(Survey(("sky", "kite"), pixels, 360, 480, ("train",)))[0].data.repeat_factor_threshold == 0
    assert rare.data.val_split is None and any("no split named val" in line for line in why)


def test_classes_that_are_probably_one_are_named() -> None:
    names = ("ground", "Leaf", "leaf ")
    of = Survey(names, np.array([[5, 3, 0], [5, 0, 2], [5, 0, 1]]), 100, 100, ("train", "val"))
    _, reasons = choose(of)
    (line,) = (reason for reason in reasons if "differ in case or spaces alone" in reason)
    assert line.startswith("'Leaf' (1 image) and 'leaf ' (2 images) are trained as different classes")
    assert not any("differ in case" in reason for reason in choose(survey())[1])


def test_it_trains_in_bfloat16_where_that_is_faster(
    make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data", {"train": 3, "val": 1})
    for dtype, amp in ((torch.bfloat16, "bf16"), (torch.float32, "off"), (torch.float16, "off")):
        monkeypatch.setattr("atrous.training.autoconfig.native_dtype", lambda _, dtype=dtype: dtype)
        recipe, reasons = finetune(data, device="cpu")
        assert recipe.optim.amp == amp and any("bfloat16" in line for line in reasons) == (amp == "bf16")


def test_images_are_held_back_where_there_is_no_val(
    make_data: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(tmp_path / "data", {"train": 12, "test": 3})
    recipe, reasons = finetune(data)
    assert (recipe.data.train_split, recipe.data.val_split, recipe.data.val_share) == ("train", None, 0.2)
    assert any("20% of train are held back" in line and "split.json" in line for line in reasons)
    few, _ = finetune(make_data(tmp_path / "few", {"train": 9}))
    assert few.data.val_share == 0, "too few to hold some back"
    with_val, _ = finetune(make_data(tmp_path / "val", {"train": 12, "val": 3}))
    assert with_val.data.val_share == 0 and with_val.data.val_split == "val"

    quick = override(recipe, QUICK)
    for seed in (0, 1):
        assert train(override(quick, {"seed": seed}), data, tmp_path / f"{seed}", workers=0, device="cpu") is not None
    split = json.loads((tmp_path / "0" / "split.json").read_text(encoding="utf-8"))
    assert split == json.loads((tmp_path / "1" / "split.json").read_text(encoding="utf-8")), "the seed is the run's"
    assert len(split["val"]) >= 2 and {*split["train"], *split["val"]} == {f"train{i}" for i in range(12)}
    assert not {*split["train"]} & {*split["val"]}
    assert "10 images to train on, 2 to validate on" in capsys.readouterr().err


def test_data_without_any_split_is_divided_and_the_run_says_how(make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 12})
    for kind in ("images", "masks"):
        for file in (data / kind / "train").iterdir():
            file.rename(data / kind / file.name)
        (data / kind / "train").rmdir()
    assert splits(data) == ["all"]
    recipe, _ = finetune(data, device="cpu")
    assert (recipe.data.train_split, recipe.data.val_split, recipe.data.val_share) == ("train", "val", 0)
    quick = override(recipe, QUICK)
    assert train(quick, data, tmp_path / "run", workers=0, device="cpu") is not None
    split = json.loads((tmp_path / "run" / "split.json").read_text(encoding="utf-8"))
    assert split["val"] == open_splits(data, "val").names and len(split["train"]) + len(split["val"]) == 12


def test_an_image_that_is_repeated_is_on_one_side(make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = open_splits(make_data(tmp_path / "data", {"train": 10}), "train*3")
    to_train, held_back = divided(data, 0.3)
    assert len(to_train) == 3 * (10 - len(held_back)) and not {*to_train.names} & {*held_back.names}


def test_splits_it_can_train_on(make_data: Callable[..., Path], tmp_path: Path) -> None:
    only, _ = finetune(make_data(tmp_path / "only", {"everything": 3}))
    assert (only.data.train_split, only.data.val_split) == ("everything", None)
    with pytest.raises(ValueError, match=r"splits one, two; expected one named train"):
        finetune(make_data(tmp_path / "two", {"one": 3, "two": 3}))


def test_what_it_chooses_trains(make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 6, "val": 3}, sizes=[(70, 90), (90, 70)])
    recipe, _ = finetune(data)
    quick = override(recipe, {"iterations": 2, "batch_size": 2, "val_every": 2, "warmup": 0, "ema_decay": 0.5})
    assert train(quick, data, tmp_path / "run", workers=0, device="cpu") is not None
