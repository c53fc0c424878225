"""Recipes in sequence: what each starts from, what a rerun does, what is refused before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atrous.cli.parser import main
from atrous.training import checkpoint
from atrous.training.config import Recipe, override
from atrous.training.recipes import load_recipe
from atrous.training.stages import Stage, finished, mark_finished, plan_stages, train_once, train_stages

CPU = {"workers": 0, "device": "cpu"}


@pytest.fixture
def recipes(tiny: Recipe, tmp_path: Path) -> list[str]:
    """Two stages of the paper's form: output stride 16, then 8 with batch norm frozen."""
    first = override(tiny, {"iterations": 2, "val_split": None})
    second = override(first, {"output_stride": 8, "batch_norm": "freeze", "weights": "runs/nowhere"})
    for name, recipe in (("one", first), ("two", second)):
        (tmp_path / f"{name}.yaml").write_text(recipe.to_yaml())
    return [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]


def test_each_stage_starts_from_the_one_before(recipes: list[str], tmp_path: Path) -> None:
    stages = plan_stages(recipes, ["D"], tmp_path / "runs")
    assert [stage.run for stage in stages] == [tmp_path / "runs" / "one", tmp_path / "runs" / "two"]
    assert [stage.recipe.model.weights for stage in stages] == [None, str(tmp_path / "runs" / "one")]
    assert stages[1].recipe == override(load_recipe(recipes[1]), {"weights": str(stages[0].run)})
    named = plan_stages(["coco-resnet101", "voc-resnet101-coco"], ["coco:C", "voc:V"])
    assert [stage.data for stage in named] == ["coco:C", "voc:V"]
    assert named[1].recipe.model.weights == "runs/coco-resnet101" and named[1].run == Path("runs/voc-resnet101-coco")


def test_flags_stand_over_every_stage_and_weights_over_the_first(recipes: list[str], tmp_path: Path) -> None:
    stages = plan_stages(recipes, ["D"], tmp_path, {"iterations": 7, "weights": "runs/before"})
    assert [stage.recipe.schedule.iterations for stage in stages] == [7, 7]
    assert [stage.recipe.model.weights for stage in stages] == ["runs/before", str(tmp_path / "one")]


def test_counts_that_do_not_go_together(recipes: list[str]) -> None:
    with pytest.raises(ValueError, match="2 recipes have 3 --data, expected 1, or one each"):
        plan_stages(recipes, ["a", "b", "c"])
    with pytest.raises(ValueError, match="the recipe one is given 2 times"):
        plan_stages([recipes[0], recipes[0]], ["a"])
    with pytest.raises(ValueError, match="did you mean voc-resnet101"):
        plan_stages(["voc-resnet10"], ["a"])


def test_the_command_line_trains_both_skips_what_is_finished_and_goes_on(
    recipes: list[str], tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    command = ["train", *recipes, "--data", str(tiny_data), "--out", str(out), "-j", "0", "--device", "cpu", "--json"]
    assert main(command) == 0
    printed, said = capsys.readouterr()
    assert json.loads(printed) == {"runs": [str(out / "one"), str(out / "two")], "weights": str(out / "two" / "best"),
                                   "miou": None}  # fmt: skip
    assert f"stage 1 of 2, {out / 'one'}: begins" in said
    card = json.loads((out / "two" / "best" / "model.json").read_text())
    assert card["recipe"]["weights"] == str(out / "one") and card["output_stride"] == 8

    assert main(command) == 2
    assert "holds a run; add --resume" in capsys.readouterr().err
    first = (out / "one" / "best" / "model.safetensors").stat().st_mtime_ns
    (out / "two" / "finished.json").unlink()  # as if it had been stopped after its last checkpoint
    assert main([*command, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "stage 1 of 2" in said and "finished before" in said and "going on at step 2" in said
    assert (out / "one" / "best" / "model.safetensors").stat().st_mtime_ns == first

    # A stage may follow a finished run.
    alone = ["train", recipes[1], "--data", str(tiny_data), "--weights", str(out / "one"), "--out", str(tmp_path / "x")]
    assert main([*alone, "-j", "0", "--device", "cpu"]) == 0
    same = (tmp_path / "x" / "best" / "model.safetensors", out / "two" / "best" / "model.safetensors")
    assert _tensors(same[0]) == _tensors(same[1])


def _tensors(path: Path) -> bytes:
    """The file without its header, in which the cards differ."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_what_would_stop_a_later_stage_is_found_before_the_first(
    recipes: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train_stages(plan_stages(recipes, [str(tiny_data), str(tmp_path / "nowhere")], out), **CPU)
    with pytest.raises(ValueError, match="no weight file, run folder or named model 'runs/before'"):
        train_stages(plan_stages(recipes, [str(tiny_data)], out, {"weights": "runs/before"}), **CPU)
    other = tmp_path / "other"
    (other / "images" / "train").mkdir(parents=True)
    (other / "masks" / "train").mkdir(parents=True)
    for kind in ("images", "masks"):
        source = next((tiny_data / kind / "train").iterdir())
        (other / kind / "train" / source.name).write_bytes(source.read_bytes())
    (other / "dataset.yaml").write_text("names: [a, b]\npalette: [[0, 0, 0], [9, 9, 9]]\n")
    with pytest.raises(ValueError, match="has 2 classes, the stage before 4; a recipe with reset_head: true"):
        train_stages(plan_stages(recipes, [str(tiny_data), str(other)], out), **CPU)
    assert not out.exists()


def test_a_finished_run_of_another_recipe_is_no_finished_run_of_this_one(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(tiny.to_yaml())
    assert finished(tmp_path, tiny) is None
    mark_finished(tmp_path, 0.25)
    assert finished(tmp_path, tiny) == {"miou": 0.25}
    assert train_once(Stage(tiny, "no such data", tmp_path)) == 0.25
    with pytest.raises(ValueError, match="finished with another recipe .*lr: 0.02, 0.5"):
        finished(tmp_path, override(tiny, {"lr": 0.5}))


def test_the_last_stage_goes_on_to_more_steps_and_no_other(recipes: list[str], tiny_data: Path, tmp_path: Path) -> None:
    train_stages(plan_stages(recipes, [str(tiny_data)], tmp_path / "runs"), **CPU)
    longer = plan_stages(recipes, [str(tiny_data)], tmp_path / "runs", {"iterations": 3})
    with pytest.raises(ValueError, match="one was finished with another recipe .*iterations: 2, 3"):
        train_stages(longer, resume=True, **CPU)
    last = [*plan_stages(recipes, [str(tiny_data)], tmp_path / "runs")[:1], longer[1]]
    train_stages(last, resume=True, **CPU)
    assert [checkpoint.steps(stage.run)[-1] for stage in last] == [2, 3]
    assert finished(last[1].run, last[1].recipe) is not None


def test_stages_without_their_checkpoints_are_not_written_over(
    recipes: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    stages = plan_stages(recipes, [str(tiny_data)], tmp_path / "runs")
    train_stages(stages, **CPU)
    for stage in stages:
        mark_finished(stage.run, 0.25, keep_checkpoints=False)
    with pytest.raises(ValueError, match="one holds finished.json of a run without checkpoints.* another --out"):
        train_stages(stages, **CPU)
    assert train_stages(stages, resume=True, **CPU) == 0.25  # all are finished
    (stages[1].run / "finished.json").unlink()
    said: list[str] = []
    with pytest.raises(ValueError, match="two holds best/model.safetensors of a run without checkpoints"):
        train_stages(stages, resume=True, said=said.append, **CPU)
    assert said == []
    (stages[1].run / "finished.json").write_text("{")
    for again in (train_stages, lambda stages, **options: train_once(stages[1])):
        with pytest.raises(ValueError, match="two holds finished.json of a run without checkpoints"):
            again(stages, resume=True, **CPU)
    assert (stages[1].run / "finished.json").read_text() == "{"


def test_several_data_for_one_recipe_are_refused(
    recipes: list[str], tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tiny_data), "--data", str(tiny_data)]
    assert main(["train", recipes[0], *data, "--out", str(tmp_path / "r")]) == 2
    assert "1 recipe has 2 --data, expected 1" in capsys.readouterr().err
