"""Which trainings a table needs, which of them tables share, and what is refused before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atrous.evaluation.evaluate import Setting
from atrous.reproduction.plan import Options, plan, pooled
from atrous.training.config import override
from atrous.training.stages import mark_finished


@pytest.fixture
def options(tiny_data: Path, tmp_path: Path) -> Options:
    return Options("tiny", data=str(tiny_data), out=tmp_path / "out", iterations=4)


def test_a_training_is_done_once_for_all_cells_and_settings(options: Options) -> None:
    ten = plan("table-10", options)
    assert len(ten.trainings) == 3 and len(ten.uses) == 6
    assert [sorted(row.output_stride for row in training.settings) for training in ten.trainings.values()] == [
        [8, 16]
    ] * 3
    six = plan("table-6", options)
    assert len(six.trainings) == 1 and len(next(iter(six.trainings.values())).settings) == 4


def test_tables_share_what_they_have_in_common(options: Options) -> None:
    eight, nine, ten = (plan(what, options).trainings for what in ("table-8", "table-9", "table-10"))
    shared = eight.keys() & nine.keys() & ten.keys()
    assert len(shared) == 1
    (name,) = shared
    assert (nine[name].recipe, nine[name].run) == (ten[name].recipe, ten[name].run)


def test_seeds_data_and_recipe_each_give_another_folder(options: Options, tiny_data: Path) -> None:
    def folders(changed: Options) -> set[Path]:
        return {training.run for training in plan("table-9", changed).trainings.values()}

    plain = folders(options)
    assert len(folders(replace(options, seeds=3))) == 3 * len(plain) and plain < folders(replace(options, seeds=3))
    assert plain == folders(replace(options, workers=5, device="cpu"))
    others = [
        replace(options, iterations=5),
        replace(options, values={"lr": 0.5}),
        replace(options, data=f"folder:{tiny_data}"),
    ]
    assert all(not plain & folders(other) for other in others)


def test_bootstrapping_goes_on_from_one_training(options: Options) -> None:
    first, without, with_ = plan("figure-7", options).trainings.values()
    assert first.after is None and without.after == with_.after == first.name
    assert without.recipe and with_.recipe and first.recipe
    assert without.recipe.model.weights == str(first.run)
    assert with_.recipe == override(without.recipe, {"bootstrap": "auto"})
    assert first.recipe.data.val_split == "val"  # its scores by class are what auto goes by


def test_hard_classes_are_the_presets_where_the_data_have_them(options: Options, tmp_path: Path) -> None:
    def chosen(options: Options) -> object:
        last = list(plan("figure-7", options, dry=True).trainings.values())[-1]
        return last.recipe and last.recipe.data.bootstrap

    assert chosen(replace(options, data=None, out=tmp_path)) == ("wheel",)
    assert chosen(options) == "auto" and chosen(replace(options, preset="camvid")) == "auto"
    assert chosen(Options("paper")) == ("bicycle", "chair", "diningtable", "pottedplant", "sofa")


def test_coco_is_left_out_or_comes_first(options: Options, make_data, tmp_path: Path) -> None:
    without = plan("table-6", options)
    assert without.uses[4] == () and any("--pretraining" in note for note in without.notes)
    assert options.data
    six = plan("table-6", replace(options, pretraining=f"folder:{options.data}"))
    _, pretraining, after = six.trainings.values()
    assert (
        after.after == pretraining.name and pretraining.settings == () and pretraining.data == f"folder:{options.data}"
    )
    assert after.recipe and pretraining.recipe and not after.recipe.model.reset_head
    assert after.recipe.optim.lr == pytest.approx(pretraining.recipe.optim.lr / 70)
    assert six.uses[4] == ((after.name, Setting(8, (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True)),)


@pytest.mark.parametrize(("cores", "replicas"), [(2, [1, 2, 4]), (5, [1, 2, 4, 8]), (16, [1, 2, 4, 8, 16, 32])])
def test_at_most_two_replicas_share_a_core(
    options: Options, monkeypatch: pytest.MonkeyPatch, cores: int, replicas: list[int]
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    planned = plan("table-11", options)
    assert [training.replicas for training in planned.trainings.values()] == replicas
    assert [len(uses) for uses in planned.uses] == [1] * len(replicas) + [0] * (6 - len(replicas))
    [note] = [note for note in planned.notes if f"{cores} cores" in note]
    assert ("left out" in note) == (len(replicas) < 6)


def test_what_is_kept_is_the_last_weights(options: Options) -> None:
    for training in plan("table-9", options).trainings.values():
        assert training.recipe and training.recipe.run.val_every == training.recipe.schedule.iterations == 4


def test_class_weights_of_other_classes_are_left_out(tiny_data: Path, tmp_path: Path) -> None:
    planned = plan("table-9", Options("camvid", data=str(tiny_data), out=tmp_path))
    assert planned.base.loss.class_weights is None and any("class weights" in note for note in planned.notes)


def test_backbones(options: Options) -> None:
    one = plan("table-1", replace(options, backbones=("timm/lcnet_050",), values={"weights": None}))
    assert {training.recipe.model.backbone for training in one.trainings.values() if training.recipe} == {
        "timm/lcnet_050"
    }
    two = plan("table-2", replace(options, backbones=("resnet18", "resnet34"))).trainings.values()
    assert [training.recipe.model.backbone for training in two if training.recipe] == ["resnet18"] * 4 + [
        "resnet34"
    ] * 4
    with pytest.raises(ValueError, match="compares two networks"):
        plan("table-2", replace(options, backbones=("resnet18",)))
    with pytest.raises(ValueError, match="takes 1 or 2 networks, found 3"):
        plan("table-2", replace(options, backbones=("a", "b", "c")))


def test_a_model_in_place_of_a_training(options: Options) -> None:
    planned = plan("table-4", replace(options, model="runs/x", seeds=3))
    (training,) = planned.trainings.values()
    assert training.recipe is None and len(training.settings) == 4 and len(planned.uses[0]) == 1
    with pytest.raises(
        ValueError, match="table-5 compares trainings.*it goes with table-4, table-6, table-12, figure-6"
    ):
        plan("table-5", replace(options, model="runs/x"))


def test_evaluations_are_padded_as_the_recipe_says(options: Options, tmp_path: Path) -> None:
    (training,) = plan("table-4", Options("paper", out=tmp_path), dry=True).trainings.values()
    assert [setting.pad_to for setting in training.settings] == [513] * 4
    (training,) = plan("table-4", options).trainings.values()
    assert [setting.pad_to for setting in training.settings] == [None] * 4


def test_without_data_there_is_a_plan_but_no_run(tmp_path: Path) -> None:
    options = Options("paper", out=tmp_path)
    assert len(plan("table-5", options, dry=True).trainings) == 5
    with pytest.raises(ValueError, match="no data of its own; --data voc:PATH: PASCAL VOC 2012 .*SBD"):
        plan("table-5", options)
    with pytest.raises(ValueError, match="cityscapes:PATH.*cityscapes-dataset.com"):
        plan("table-12", options)


def test_a_split_that_is_not_there_says_how_to_choose_another(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'trainaug'.*--set train_split=NAME"):
        plan("table-5", Options("paper", data=str(tiny_data), out=tmp_path))


def test_a_training_knows_how_far_it_is(options: Options) -> None:
    training = next(iter(plan("table-9", options).trainings.values()))
    assert training.recipe and training.state == "not begun"
    (training.run / "checkpoints" / "step-3").mkdir(parents=True)
    assert training.state == "at step 3"
    (training.run / "recipe.yaml").write_text(training.recipe.to_yaml())
    mark_finished(training.run, 0.5, keep_checkpoints=False)
    assert training.state == "trained" and not (training.run / "checkpoints").exists()
    path = training.result(training.settings[0])
    path.parent.mkdir()
    path.write_text("{ half a file")
    assert training.state == "trained"
    path.write_text('{"miou": 0.5}')
    assert training.state == "finished"


def test_several_tables_share_one_pool_and_its_first_seed_comes_first(options: Options) -> None:
    plans = [plan(what, replace(options, seeds=2)) for what in ("table-9", "table-10")]
    pool = pooled(plans)
    assert len(pool) == 2 * (5 + 3 - 1)
    seeds = [training.recipe.run.seed for training in pool.values() if training.recipe]
    assert seeds == [0] * 7 + [1] * 7
    (shared, _) = plans[0].trainings.keys() & plans[1].trainings.keys()
    assert {setting.output_stride for setting in pool[shared].settings} == {8, 16}


def test_in_the_pool_a_training_comes_after_its_first_stage(options: Options) -> None:
    order = list(pooled([plan("figure-7", replace(options, seeds=2))]).values())
    names = [training.name for training in order]
    assert len(order) == 6
    assert all(training.after is None or names.index(training.after) < i for i, training in enumerate(order))
