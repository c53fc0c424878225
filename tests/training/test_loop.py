"""The loop: it learns, it can be stopped and resumed at any step without a trace, and it refuses what is wrong."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from atrous.data.datasets.dataset import open_dataset
from atrous.evaluation.evaluate import evaluate
from atrous.models.weights import load, read_card
from atrous.training import checkpoint, state
from atrous.training.config import Recipe, override
from atrous.training.interrupts import Stopped
from atrous.training.loader import Crops
from atrous.training.loop import train
from atrous.training.recipes import load_recipe
from atrous.training.run_folder import refuse_foreign
from atrous.training.state import State
from forks import Forked
from states import final_state, same


def run(recipe: Recipe, data: Path, folder: Path, **options: Any) -> float | None:
    return train(recipe, data, folder, **{"workers": 0, "device": "cpu", **options})


def losses(folder: Path) -> list[float]:
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def test_a_run_leaves_all_that_it_promises(trained: Path, tiny_data: Path) -> None:
    assert {path.name for path in trained.iterdir()} >= {
        "recipe.yaml",
        "log.csv",
        "last",
        "best",
        "predictions.jpg",
        "curves.png",
        "confusion.png",
        "index.html",
    }
    assert any(path.name.startswith("events.out") for path in trained.iterdir())
    assert {path.name for path in (trained / "best").iterdir()} == {"model.safetensors", "model.json"}
    assert checkpoint.steps(trained) == [30]
    model, card = load(trained)
    assert card.names == ("ground", "red", "green", "blue")
    assert (
        card.recipe["backbone"] == load_recipe(trained / "recipe.yaml").model.backbone == "timm/tf_efficientnet_lite0"
    )
    assert card.metrics["val"]["step"] == 30 and card.metrics["val"]["images"] == 4
    assert card.data == "shapes, split train, 8 images"
    actual = evaluate(model, open_dataset(tiny_data, "val"))
    assert actual.scores.miou == pytest.approx(card.metrics["val"]["miou"], abs=0.01)  # float16 moves a pixel or two


def test_a_tiny_data_set_is_overfitted(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    data = make_data(tmp_path / "data", {"train": 2}, sizes=[(48, 48)])
    recipe = override(
        Recipe(),
        {
            "backbone": "timm/lcnet_050",
            "multi_grid": None,
            "aspp_rates": (1,),
            "aspp_pointwise": False,
            "image_pooling": False,
            "weights": None,
            "crop": 48,
            "train_split": "train",
            "val_split": "train",
            "scales": (1.0, 1.0),
            "flip": 0.0,
            "output_stride": 4,
            "batch_size": 2,
            "iterations": 40,
            "optimizer": "adamw",
            "lr": 0.01,
            "weight_decay": 0.0,
            "batch_norm_decay": 0.8,
            "val_every": 1_000,
            "save_every": 1_000,
        },
    )
    best = run(recipe, data, tmp_path / "run")
    actual = losses(tmp_path / "run")
    assert actual[-1] < actual[0] / 3
    assert best is not None and best > 0.95


@pytest.fixture(scope="module")
def straight(tiny: Recipe, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, dict[str, Any]]:
    """A run that never stopped: with everything that has a state of its own."""
    recipe = override(
        tiny,
        {
            "iterations": 5,
            "batch_size": 6,
            "grad_accum_steps": 2,
            "ema_decay": 0.9,
            "color_jitter": 0.3,
            "val_every": 2,
            "warmup": 2,
        },
    )
    folder = tmp_path_factory.mktemp("straight")
    run(recipe, tiny_data, folder)
    return recipe, final_state(folder)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal while it takes the step after `step` steps."""
    real = State.take_step

    def take_step(state: State, *arguments: Any) -> float:
        if state.step == step - 1:
            os.kill(os.getpid(), number)
        return real(state, *arguments)

    monkeypatch.setattr(State, "take_step", take_step)


@pytest.mark.parametrize(("stops", "workers"), [([1], 0), ([2, 4], 0), ([3], 1)])
def test_stopped_and_resumed_ends_byte_equal_to_the_run_that_never_stopped(
    stops: list[int],
    workers: int,
    straight: tuple[Recipe, dict[str, Any]],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, expected = straight
    for stop in stops:
        with monkeypatch.context() as patch:
            stop_at(patch, stop)
            with pytest.raises(Stopped, match=f"stopped at step {stop} and saved; .*--resume") as caught:
                run(recipe, tiny_data, tmp_path, resume=stop != stops[0], workers=workers)
        assert caught.value.status == 143 and checkpoint.steps(tmp_path)[-1] == stop
    torch.manual_seed(12345)  # whatever another process would start with
    run(recipe, tiny_data, tmp_path, resume=True, workers=workers)
    assert same(final_state(tmp_path), expected)


def test_killed_before_the_last_save_the_run_goes_on_from_the_one_before(
    straight: tuple[Recipe, dict[str, Any]], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, expected = straight
    recipe = override(recipe, {"save_every": 2})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(state: State, *arguments: Any) -> float:
            if state.step == 4:
                raise KeyboardInterrupt  # after step-2 and step-4 were saved
            return real(state, *arguments)

        real = State.take_step
        patch.setattr(State, "take_step", killed)
        run(recipe, tiny_data, tmp_path)
    assert checkpoint.steps(tmp_path) == [2, 4]
    os.truncate(tmp_path / "checkpoints" / "step-4" / checkpoint.STATE, 1000)
    run(recipe, tiny_data, tmp_path, resume=True)
    assert same(final_state(tmp_path), expected)


def test_a_finished_run_resumed_changes_nothing(trained: Path, longer: Recipe, tiny_data: Path) -> None:
    before = (trained / "best" / "model.safetensors").read_bytes()
    best = run(longer, tiny_data, trained, resume=True)
    assert best == read_card(trained / "best" / "model.safetensors").metrics["val"]["miou"]
    assert (trained / "best" / "model.safetensors").read_bytes() == before


def test_the_best_weights_are_kept_and_not_the_last(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, 0.2, 0.9, 0.3)
    assert run(override(tiny, {"iterations": 3, "val_every": 1}), tiny_data, tmp_path) == 0.9
    assert load(tmp_path)[1].metrics["val"]["step"] == 2


def test_without_a_validation_split_the_last_weights_are_kept(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    assert run(override(tiny, {"iterations": 2, "val_split": None}), tiny_data, tmp_path) is None
    model, card = load(tmp_path)
    saved = final_state(tmp_path)["model"]
    assert card.metrics == {} and torch.equal(model.classifier.weight, saved["classifier.weight"].half().float())


def test_the_average_is_what_is_kept(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    run(override(tiny, {"iterations": 3, "ema_decay": 0.9}), tiny_data, tmp_path)
    saved = final_state(tmp_path)
    kept = load(tmp_path)[0].classifier.weight
    assert torch.equal(kept, saved["average"]["classifier.weight"].half().float())
    assert not torch.equal(saved["average"]["classifier.weight"], saved["model"]["classifier.weight"])


def test_training_starts_from_a_runs_weights(trained: Path, longer: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    recipe = override(
        longer, {"weights": str(trained), "iterations": 1, "lr": 0.0, "batch_norm": "freeze", "weight_decay": 0.0}
    )
    run(recipe, tiny_data, tmp_path)
    one, other = load(trained)[0].state_dict(), load(tmp_path)[0].state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_start_whose_batch_norm_is_folded_warns_once(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        override(tiny, {"iterations": 1, "lr": 0.0, "batch_norm": "freeze"}), tiny_data, tmp_path / "first"
    )  # as it is built
    recipe = override(tiny, {"iterations": 2, "weights": str(tmp_path / "first"), "batch_norm": "train"})
    told = "batch norm of the weights that this starts from is folded"
    capsys.readouterr()
    run(override(recipe, {"batch_norm": "head"}), tiny_data, tmp_path / "head")
    assert told not in " ".join(capsys.readouterr().err.split())
    run(recipe, tiny_data, tmp_path / "second")
    assert told in " ".join(capsys.readouterr().err.split())
    run(recipe, tiny_data, tmp_path / "second", resume=True)
    assert told not in " ".join(capsys.readouterr().err.split())


def test_a_run_that_ends_early_is_the_beginning_of_the_longer_one(
    tiny: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    longer = override(tiny, {"iterations": 4, "save_every": 2, "ema_decay": 0.9, "warmup": 2, "val_split": None})
    run(longer, tiny_data, tmp_path / "longer")
    newest = tmp_path / "longer" / "checkpoints" / "step-4"
    run(override(longer, {"iterations": 2, "schedule_iterations": 4}), tiny_data, tmp_path / "early")
    run(override(longer, {"iterations": 2}), tiny_data, tmp_path / "short")
    early, short = (final_state(tmp_path / name) for name in ("early", "short"))
    newest.rename(tmp_path / "step-4")
    assert early["step"] == 2 and same(early, final_state(tmp_path / "longer"))
    assert not same(early["model"], short["model"])  # whose rate has fallen to 0
    lasting = load(tmp_path / "early")[0].state_dict()["classifier.weight"]
    assert torch.equal(lasting, early["average"]["classifier.weight"].half().float())


def test_a_compiled_run_is_resumed_and_ends_as_one_that_never_stopped(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    real = state.compiled

    def noted(run: object, compile: bool) -> object:
        asked.append(compile)
        return real(run, "eager")  # PyTorch's own takes a minute

    monkeypatch.setattr(state, "compiled", noted)
    recipe = override(tiny, {"iterations": 2, "save_every": 1, "val_split": None, "ema_decay": 0.9, "compile": True})
    run(recipe, tiny_data, tmp_path / "straight")
    stop_at(monkeypatch, 1)
    with pytest.raises(Stopped):
        run(recipe, tiny_data, tmp_path / "stopped")
    monkeypatch.undo()
    monkeypatch.setattr(state, "compiled", noted)
    run(recipe, tiny_data, tmp_path / "stopped", resume=True)
    assert asked == [True] * 3
    straight, stopped = (final_state(tmp_path / name) for name in ("straight", "stopped"))
    assert same(straight, stopped)


def test_crops_in_which_no_atrous_branch_leaves_its_centre_warn(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = override(tiny, {"iterations": 1, "val_split": None, "crop": 33, "aspp_pointwise": True})  # a map of 3×3
    start = override(recipe, {"aspp_rates": (3, 6), "weights": str(tmp_path / "0")})
    cases: list[tuple[Recipe, str]] = [
        (
            override(recipe, {"aspp_rates": (3, 6)}),
            "maps of 3x3 at output stride 16, where the least rate of ASPP is 3:",
        ),
        (override(recipe, {"aspp_rates": (2, 6)}), ""),
        (override(recipe, {"aspp_rates": ()}), ""),
        (override(recipe, {"aspp_rates": (3,), "crop": (33, 49)}), ""),
        (
            override(recipe, {"aspp_rates": (3,), "output_stride": 8}),
            "maps of 5x5 at output stride 8, where the least rate of ASPP is 6:",
        ),
        (start, ""),  # which knows more than its centre
        (override(start, {"crop": 5}), "maps of 2x2 at output stride 16"),
    ]
    for number, (case, warning) in enumerate(cases):
        run(case, tiny_data, tmp_path / f"{number}")
        said = " ".join(capsys.readouterr().err.split())
        assert warning in said and ("see their centre alone" in said) == bool(warning), said
    run(cases[-1][0], tiny_data, tmp_path / "6", resume=True)
    assert "see their centre alone" not in " ".join(capsys.readouterr().err.split())


def test_other_classes_need_reset_head(trained: Path, longer: Recipe, tmp_path: Path, make_data) -> None:
    data = make_data(tmp_path / "data", {"train": 2})
    described = yaml.safe_load((data / "dataset.yaml").read_text())
    described["names"].append("more")
    described["palette"].append([1, 2, 3])
    (data / "dataset.yaml").write_text(yaml.safe_dump(described))
    changes = {
        "weights": str(trained),
        "val_split": None,
        "iterations": 1,
        "batch_size": 2,
        "allow_empty_classes": True,
    }
    recipe = override(longer, changes)
    with pytest.raises(ValueError, match="has 4 classes, expected 5"):
        run(recipe, data, tmp_path / "run")
    run(override(recipe, {"reset_head": True}), data, tmp_path / "run")
    assert load(tmp_path / "run")[0].num_classes == 5


def test_a_run_is_not_written_over(trained: Path, longer: Recipe, tiny_data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with pytest.raises(ValueError, match=r"longer holds a run at step 30; add --resume, or name another --out"):
        run(longer, tiny_data, trained)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("left", ["best/model.safetensors", "finished.json"])
def test_a_run_without_its_checkpoints_is_not_written_over(
    left: str, resume: bool, tiny: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / left).write_bytes(b"the result")
    with pytest.raises(ValueError, match=f"holds {left} of a run without checkpoints.*; name another --out, or delete"):
        run(tiny, tiny_data, tmp_path, resume=resume)
    assert (tmp_path / left).read_bytes() == b"the result" and not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_files_is_not_written_into(resume: bool, tiny: Recipe, tiny_data: Path) -> None:
    photos = tiny_data / "images" / "train"
    before = sorted(photos.iterdir())
    with pytest.raises(
        ValueError, match=r"train holds other files than a run \(.* more\); name an empty folder, or none"
    ):
        run(tiny, tiny_data, photos, resume=resume)
    assert sorted(photos.iterdir()) == before


def test_the_output_of_a_run_may_be_in_its_folder(tmp_path: Path) -> None:
    for name in ("train.log", "nohup.out", ".lock"):
        (tmp_path / name).touch()
    refuse_foreign(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "photo.jpg").touch()
    refuse_foreign(tmp_path)
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match=r"other files than a run \(photo\.jpg\)"):
        refuse_foreign(tmp_path)


def test_another_recipe_does_not_resume_and_the_difference_is_named(trained: Path, longer: Recipe, tiny_data) -> None:
    with pytest.raises(ValueError, match=r"another recipe \(before, now\): momentum: 0.9, 0.5; a resumed run can "):
        run(override(longer, {"lr": 0.5, "momentum": 0.5}), tiny_data, trained, resume=True)


def test_resume_without_a_checkpoint_starts(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    run(override(tiny, {"iterations": 1}), tiny_data, tmp_path, resume=True)
    assert checkpoint.steps(tmp_path) == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weights": (1.0, 2.0)}, "class_weights has 2 values, the data 4 classes"),
        ({"train_split": "training"}, "no split 'training'"),
        ({"output_stride": 12}, "12"),
        ({"backbone": "resnet19"}, "no backbone 'resnet19'"),
        ({"crop": 0}, "crop is 0"),
        ({"scales": (2.0, 1.0)}, "scales is"),
        ({"weights": "no-such-model"}, "named model 'no-such-model'"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_the_first_step(
    changes: dict, message: str, tiny: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(override(tiny, changes), tiny_data, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == []


@pytest.fixture
def spoiled(tiny_data: Path, tmp_path: Path, make_data: Callable[..., Path]) -> Path:
    """A data set with an id that is no class."""
    data = make_data(tmp_path / "data", {"train": 1})
    path = data / "masks" / "train" / "train0.png"
    mask = Image.open(path).copy()
    mask.putpixel((5, 5), 77)
    mask.save(path)
    return data


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_file_is_one_line_from_any_process(
    workers: int, spoiled: Path, tiny: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"train0\.png: mask has id 77 \(1 pixels\); expected 0\.\.3 or 255") as caught:
        run(override(tiny, {"val_split": None}), spoiled, tmp_path / "run", workers=workers)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_turns_out_truncated_is_named_by_any_process(
    workers: int, tiny: Recipe, tmp_path: Path, make_data: Callable[..., Path]
) -> None:
    data = make_data(tmp_path / "data", {"train": 1})
    path = data / "images" / "train" / "train0.png"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"train0\.png: ") as caught:
        run(override(tiny, {"val_split": None}), data, tmp_path / "run", workers=workers)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert checkpoint.steps(tmp_path / "run") == []


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(tiny, {"save_every": 1})
    real = State.take_step

    def poisoned(state: State, parts: Any, lr: float, here: Any) -> float:
        if state.step == 2:
            with torch.no_grad():
                state.model.classifier.bias[0] = float("nan")
        return real(state, parts, lr, here)

    monkeypatch.setattr(State, "take_step", poisoned)
    with pytest.raises(FloatingPointError, match="loss is nan at step 2; the step is not taken. The batch: train"):
        run(recipe, tiny_data, tmp_path)
    saved = final_state(tmp_path)
    assert saved["step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["model"].values() if value.is_floating_point())


def test_the_crops_are_the_same_whatever_process_makes_them(tiny_data: Path) -> None:
    from atrous.data.transforms import Augment

    crops = Crops(open_dataset(tiny_data, "train"), Augment(crop=33), seed=4)
    one, again, later = crops[0, 3], crops[0, 3], crops[1, 3]
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1]) and one[2] == "train3"
    assert not torch.equal(one[0], later[0])


def test_class_mix_comes_as_often_as_asked_and_leaves_the_other_crops_alone(tiny_data: Path) -> None:
    from atrous.data.transforms import Augment

    plain, mixed = (Crops(open_dataset(tiny_data, "train"), Augment(crop=33), 4, share) for share in (0.0, 0.4))
    places = [(epoch, index) for epoch in range(10) for index in range(8)]
    changed = [not torch.equal(plain[place][0], mixed[place][0]) for place in places]
    assert 0.2 < sum(changed) / len(places) < 0.6
    assert all(torch.equal(mixed[place][0], mixed[place][0]) for place in places[:8])


def test_a_finished_run_goes_on_to_more_steps(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    longer = override(tiny, {"iterations": 4, "val_every": 2, "schedule_iterations": 4})
    run(longer, tiny_data, tmp_path / "straight")
    run(override(longer, {"iterations": 2}), tiny_data, tmp_path / "run")
    run(longer, tiny_data, tmp_path / "run", resume=True)
    assert same(final_state(tmp_path / "run"), final_state(tmp_path / "straight"))
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == longer
    # Another schedule holds from the step on that it is given at.
    run(
        override(longer, {"iterations": 6, "schedule_iterations": None, "lr": 0.01}),
        tiny_data,
        tmp_path / "run",
        resume=True,
    )
    assert final_state(tmp_path / "run")["step"] == 6


def scores(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Have the validations to come find these, one after the other."""
    from atrous.training import loop as module

    left = iter(values)

    def scored(*arguments: Any, **options: Any) -> Any:
        actual = evaluate(*arguments, **options)
        return replace(actual, scores=replace(actual.scores, miou=next(left)))

    monkeypatch.setattr(module, "evaluate", scored)


def test_more_steps_do_not_write_worse_weights_over_the_best(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(tiny, {"val_every": 2})
    scores(monkeypatch, 0.5, 0.8, 0.6, 0.7, 0.9)
    assert run(override(recipe, {"iterations": 3}), tiny_data, tmp_path) == 0.8
    best = (tmp_path / "best" / "model.safetensors").read_bytes()
    assert run(override(recipe, {"iterations": 5}), tiny_data, tmp_path, resume=True) == 0.8  # 0.6 at 4, 0.7 at 5
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == best
    assert final_state(tmp_path)["best"] == 0.8
    assert run(override(recipe, {"iterations": 6}), tiny_data, tmp_path, resume=True) == 0.9
    assert load(tmp_path)[1].metrics["val"]["step"] == 6


def test_a_step_that_is_validated_again_and_a_later_one_do_not_count_as_the_best_before(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(tiny, {"iterations": 4, "val_every": 2})
    scores(monkeypatch, 0.5, 0.8, 0.5, 0.8)
    run(recipe, tiny_data, tmp_path)
    best = (tmp_path / "best" / "model.safetensors").read_bytes()
    (tmp_path / "best" / "model.json").unlink()
    os.truncate(tmp_path / "checkpoints" / "step-4" / checkpoint.STATE, 1000)  # step 2 is gone on from
    assert run(recipe, tiny_data, tmp_path, resume=True) == 0.8
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == best
    assert (tmp_path / "best" / "model.json").is_file()


@pytest.mark.parametrize("gone", [True, False])
def test_without_readable_best_weights_a_resumed_run_has_its_checkpoints_score(
    gone: bool, tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(tiny, {"val_every": 2})
    scores(monkeypatch, 0.5, 0.8, 0.6)
    run(override(recipe, {"iterations": 3}), tiny_data, tmp_path)
    if gone:
        (tmp_path / "best" / "model.safetensors").unlink()
    else:
        os.truncate(tmp_path / "best" / "model.safetensors", 100)
    assert run(override(recipe, {"iterations": 4}), tiny_data, tmp_path, resume=True) == 0.6
    assert load(tmp_path)[1].metrics["val"]["step"] == 4


def test_what_cannot_change_on_the_way_is_refused(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    run(override(tiny, {"iterations": 2, "val_split": None}), tiny_data, tmp_path / "run")
    for changes, message in (
        (
            {"iterations": 3, "batch_size": 2},
            "another recipe .*: batch_size: 4, 2; a resumed run can change itera",
        ),
        ({"iterations": 1}, "is at step 2, expected iterations of at least that, not 1"),
    ):
        with pytest.raises(ValueError, match=message):
            run(override(tiny, {"val_split": None, **changes}), tiny_data, tmp_path / "run", resume=True)


def test_signals_are_handled_as_before_afterwards(trained: Path, longer: Recipe, tiny_data: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(longer, tiny_data, trained, resume=True)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.integration
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_run_that_fails_ends_at_once_with_its_loaders(
    workers: str, tiny: Recipe, tmp_path: Path, make_data: Callable[..., Path]
) -> None:
    data = make_data(tmp_path / "data", {"train": 1})
    path = data / "images" / "train" / "train0.png"
    os.truncate(path, path.stat().st_size // 2)
    (tmp_path / "recipe.yaml").write_text(override(tiny, {"val_split": None}).to_yaml())
    line = ["train", str(tmp_path / "recipe.yaml"), "--data", str(data), "--out", str(tmp_path / "run")]
    process = Forked([*line, "--device", "cpu", "-j", workers], tmp_path / "said")
    assert process.status(100) == 2, process.output
    assert "train0.png: " in process.output.splitlines()[-1] and "Traceback" not in process.output


@pytest.fixture
def long_run(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Starts a run of many steps as a process of its own, and waits until it trains."""
    (tmp_path / "recipe.yaml").write_text(
        override(tiny, {"iterations": 1000, "batch_size": 2, "val_split": None}).to_yaml()
    )  # which tells of every tenth step
    line = ["train", str(tmp_path / "recipe.yaml"), "--data", str(tiny_data), "--out", str(tmp_path / "run")]
    started: list[Forked] = []

    def start(*flags: str) -> Forked:
        process = Forked([*line, "--device", "cpu", *flags], tmp_path / f"said{len(started)}")
        started.append(process)
        deadline = time.monotonic() + 100
        while "\nstep " not in process.output:
            assert process.process.is_alive() and time.monotonic() < deadline, process.output
            time.sleep(0.02)
        return process

    yield start
    for process in started:
        if process.process.is_alive():
            process.send(signal.SIGKILL, group=True)
        process.status()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "to_group", "status"),
    # Ctrl-C and service managers reach the loaders' processes, too.
    [
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, True, 143),
        (signal.SIGTERM, False, 143),
    ],
    ids=["SIGINT", "SIGTERM to all", "SIGTERM"],
)
def test_a_signal_saves_and_leaves_and_resume_goes_on(
    number: int, to_group: bool, status: int, long_run: Callable[..., Forked], tmp_path: Path
) -> None:
    process = long_run("--workers", "1")
    process.send(number, group=to_group)
    assert process.status(25) == status, process.output
    assert "Traceback" not in process.output and "--resume goes on" in process.output.splitlines()[-1]
    stopped = checkpoint.steps(tmp_path / "run")[-1]
    assert stopped > 0 and final_state(tmp_path / "run")["step"] == stopped
    if to_group:
        return
    again = long_run("--workers", "0", "--resume")
    again.send(signal.SIGINT)
    assert again.status(25) == 130, again.output
    assert checkpoint.steps(tmp_path / "run")[-1] > stopped


def leaves(pid: int) -> list[int]:
    """The processes below one that have none below them."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [leaf for child in children for leaf in leaves(child) or [child]]


@pytest.mark.integration
def test_a_signal_while_a_worker_stalls_saves_and_leaves(long_run: Callable[..., Forked], tmp_path: Path) -> None:
    process = long_run("--workers", "1")
    workers = [
        pid for pid in leaves(process.process.pid) if b"tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    process.send(signal.SIGTERM)
    assert process.status(25) == 143, process.output
    assert "Traceback" not in process.output and "--resume goes on" in process.output.splitlines()[-1]
    assert final_state(tmp_path / "run")["step"] == checkpoint.steps(tmp_path / "run")[-1]


def test_names_that_are_no_utf8_are_trained_on_and_resumed(tiny: Recipe, make_data: Any, tmp_path: Path) -> None:
    data = make_data(tmp_path / os.fsdecode(b"donn\xe9es"), {"train": 4, "val": 1})
    for path in [path for path in data.rglob("*.png")]:
        path.rename(path.with_name(os.fsdecode(b"caf\xe9" + path.name.encode())))
    recipe, folder = override(tiny, {"iterations": 2, "save_every": 1}), tmp_path / "run"
    assert run(recipe, data, folder) is not None
    assert run(override(recipe, {"iterations": 3}), data, folder, resume=True, workers=1) is not None
    assert run(override(tiny, {"iterations": 1, "weights": str(folder)}), data, tmp_path / "from it") is not None
    with pytest.raises(ValueError, match="is not UTF-8; name another --out"):
        run(recipe, data, tmp_path / os.fsdecode(b"r\xe9sultat"))


def test_the_whole_split_is_looked_at_before_the_first_step(tiny: Recipe, make_data: Any, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 2, "val": 2})
    path = sorted((data / "masks" / "val").iterdir())[-1]
    with Image.open(path) as mask:
        ids = np.array(mask)
    ids[0, :3] = 77
    Image.fromarray(ids).save(path)
    with pytest.raises(ValueError, match=rf"{path.name}: mask has id 77 \(3 pixels\)"):
        run(tiny, data, tmp_path / "run")
    Image.fromarray(np.full_like(ids, 255)).save(path)
    with pytest.raises(ValueError, match="val cannot reach output_stride 64"):
        run(override(tiny, {"val_output_stride": 64}), data, tmp_path / "run")
    assert not checkpoint.steps(tmp_path / "run")


def test_data_without_a_class_is_refused(tiny: Recipe, make_data: Any, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 2, "val": 1})
    for path in (data / "masks" / "train").iterdir():
        with Image.open(path) as mask:
            Image.fromarray(np.full_like(np.array(mask), 255)).save(path)
    for allowed in (False, True):
        with pytest.raises(ValueError, match="every pixel is ignored; expected some of the 4 classes"):
            run(override(tiny, {"allow_empty_classes": allowed}), data, tmp_path / "run")


def test_a_class_without_a_pixel_is_refused_unless_allowed(tiny: Recipe, make_data: Any, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 2, "val": 1})
    for path in (data / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            ids = np.array(mask)
        Image.fromarray(np.where(ids == 3, 0, ids).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match="^train: no pixel of blue; expected every.*--set allow_empty_classes=true"):
        run(tiny, data, tmp_path / "run")
    assert not checkpoint.steps(tmp_path / "run")
    run(override(tiny, {"iterations": 1, "allow_empty_classes": True}), data, tmp_path / "run")


def test_other_data_is_not_gone_on_with(trained: Path, longer: Recipe, make_data: Any, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 3, "val": 2})
    with pytest.raises(ValueError, match="was started on other data: images 3, expected"):
        run(longer, data, trained, resume=True)


def test_checkpoints_that_are_all_spoiled_are_said_so(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-3").mkdir(parents=True)
    with pytest.raises(ValueError, match="has checkpoints, but none is whole"):
        run(tiny, tiny_data, tmp_path / "run", resume=True)


def test_a_run_stopped_while_it_validates_goes_on_with_that(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atrous.training import loop as module

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    recipe = override(tiny, {"iterations": 2, "val_every": 1})
    whole = run(recipe, tiny_data, tmp_path / "whole")
    monkeypatch.setattr(module, "evaluate", interrupted)
    with pytest.raises(Stopped, match="stopped at step 1 and saved") as stopped:
        run(recipe, tiny_data, tmp_path / "run")
    assert stopped.value.status == 143 and checkpoint.steps(tmp_path / "run") == [1]
    monkeypatch.undo()
    assert run(recipe, tiny_data, tmp_path / "run", resume=True) == whole
    weights = [(tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]
    rows = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "run")]
    assert [row.split(",")[0] for row in rows[0]] == [row.split(",")[0] for row in rows[1]]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_the_loss_does_not_depend_on_the_scale_of_class_weights(
    scale: float, tiny: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    recipe = override(
        tiny, {"iterations": 1, "val_split": None, "class_weights": tuple(scale * w for w in (1.0, 2.0, 3.0, 0.5))}
    )
    run(recipe, tiny_data, tmp_path / "run")
    loss = float((tmp_path / "run" / "log.csv").read_text().splitlines()[1].split(",")[1])
    run(override(recipe, {"class_weights": (1.0, 2.0, 3.0, 0.5)}), tiny_data, tmp_path / "plain")
    plain = float((tmp_path / "plain" / "log.csv").read_text().splitlines()[1].split(",")[1])
    assert loss == pytest.approx(plain, rel=1e-4) and loss > 0.5


def test_a_disk_that_is_full_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(OSError, match="state.pt could not be written; is the disk full?"):
        checkpoint.save(tmp_path, 1, {})
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_loader_that_dies_is_said_so_and_nothing_is_lost(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atrous.training import loop as module

    whole_loader = module.loader

    def dying(*arguments: Any) -> Iterator[Any]:
        yield from itertools.islice(whole_loader(*arguments), 2)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(module, "loader", dying)
    with pytest.raises(Stopped, match="a process that loads data died at step 2: .*pid 7.*--resume goes on") as stopped:
        run(override(tiny, {"val_split": None}), tiny_data, tmp_path / "run")
    assert stopped.value.status == 1 and checkpoint.steps(tmp_path / "run")[-1] == 2


def test_a_score_that_is_no_number_is_null_on_the_card(tiny: Recipe, make_data: Any, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 2, "val": 1})
    for path in (data / "masks" / "val").iterdir():
        with Image.open(path) as mask:
            Image.fromarray(np.full_like(np.array(mask), 255)).save(path)
    run(override(tiny, {"iterations": 1}), data, tmp_path / "run")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    card = json.loads((tmp_path / "run" / "best" / "model.json").read_text(), parse_constant=refuse)
    assert card["metrics"]["val"]["miou"] is None
