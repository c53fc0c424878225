"""Recipes: the paper's numbers, YAML and back, and one clear line for whatever is wrong with a file."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atrous.training.config import (
    PART_OF,
    PARTS,
    RENAMED,
    Recipe,
    differences,
    override,
    parse_assignments,
    settings_of,
)
from atrous.training.recipes import MAX_RECIPE_BYTES, RECIPES, load_recipe

# Section 4.1 and Appendix C, by hand.
PAPER = {
    "voc-resnet101": {
        "backbone": "resnet101", "head": "aspp", "multi_grid": (1, 2, 4), "aspp_rates": (6, 12, 18),
        "image_pooling": True, "weights": "imagenet", "train_split": "trainaug", "crop": 513, "scales": (0.5, 2.0),
        "output_stride": 16, "batch_size": 16, "iterations": 30_000, "lr": 0.007, "power": 0.9, "batch_norm": "train",
        "batch_norm_decay": 0.9997, "upsample_logits": True, "optimizer": "sgd", "flip": 0.5,
        # "crop size to be 513 during both training and test"
        "val_pad_to": 513,
    },
    "voc-resnet101-trainval": {
        "train_split": "trainval", "crop": 513, "output_stride": 8, "batch_size": 16, "iterations": 30_000, "lr": 0.001,
        "power": 0.9, "batch_norm": "freeze", "weights": "runs/voc-resnet101", "val_split": None, "bootstrap": (),
    },
    # "MS-COCO trainval_minus_minival", the protocol of section 4.1.
    "coco-resnet101": {
        "train_split": "train", "crop": 513, "output_stride": 16, "batch_size": 16, "lr": 0.007, "power": 0.9,
        "batch_norm": "train", "batch_norm_decay": 0.9997, "weights": "imagenet",
    },
    # "smaller initial learning rate = 0.0001 and same training protocol as in Sec. 4.1"
    "voc-resnet101-coco": {
        "train_split": "trainaug", "crop": 513, "output_stride": 16, "batch_size": 16, "iterations": 30_000,
        "lr": 0.0001, "power": 0.9, "batch_norm": "train", "batch_norm_decay": 0.9997, "weights": "runs/coco-resnet101",
    },
    # "output_stride = 8 ... batch normalization parameters are frozen ... we duplicate the images that contain hard
    # classes (namely bicycle, chair, table, potted-plant, and sofa)"
    "voc-resnet101-test": {
        "train_split": "trainval", "output_stride": 8, "batch_size": 16, "iterations": 30_000, "lr": 0.0001,
        "batch_norm": "freeze", "weights": "runs/voc-resnet101-coco", "bootstrap_times": 2, "val_split": None,
        "bootstrap": ("bicycle", "chair", "diningtable", "pottedplant", "sofa"),
    },
    "cityscapes-resnet101": {
        "train_split": "train", "crop": 769, "output_stride": 16, "batch_size": 16, "iterations": 90_000, "lr": 0.007,
        "power": 0.9, "batch_norm": "train", "batch_norm_decay": 0.9997,
        # "evaluated on the whole image"
        "val_pad_to": None,
    },
    # "the trainval_coarse set (i.e., the 3475 finely annotated images and the extra 20000 coarsely annotated images)"
    "cityscapes-resnet101-coarse": {
        "train_split": "train+val+train_extra", "val_split": None, "crop": 769, "output_stride": 16, "batch_size": 16,
        "iterations": 90_000, "lr": 0.007, "batch_norm": "train", "weights": "runs/cityscapes-resnet101",
    },
}  # fmt: skip
OURS_ONLY = {
    "warmup": 0,
    "color_jitter": 0.0,
    "ema_decay": 0.0,
    "class_weights": None,
    "head_lr_factor": 1.0,
    "amp": "off",
}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PAPER)
def test_a_named_recipe_carries_the_papers_numbers(name: str) -> None:
    assert PAPER[name].items() <= settings_of(load_recipe(name)).items()


@pytest.mark.parametrize("name", PAPER)
def test_what_the_paper_does_not_have_is_off(name: str) -> None:
    assert OURS_ONLY.items() <= settings_of(load_recipe(name)).items()


def test_the_defaults_are_the_papers_first_stage() -> None:
    assert override(Recipe(), {"val_pad_to": 513}) == load_recipe("voc-resnet101")


def test_the_shipped_weights_have_a_recipe() -> None:
    recipe = load_recipe("camvid-efficientnet_lite0")
    assert recipe.model.backbone == "timm/tf_efficientnet_lite0" and recipe.data.train_split == "train"


def test_every_recipe_of_the_papers_data_is_in_the_table() -> None:
    assert set(PAPER) == {name for name in RECIPES if name.partition("-")[0] in ("voc", "coco", "cityscapes")}


@pytest.mark.parametrize("data", ["camvid", "folder"])
def test_the_second_stage_on_other_data_is_the_papers(data: str) -> None:
    first, second = RECIPES[f"{data}-efficientnet_lite0"], RECIPES[f"{data}-efficientnet_lite0-trainval"]
    assert (second.model.output_stride, second.model.batch_norm, second.data.train_split) == (8, "freeze", "train+val")
    assert second.model.weights == f"runs/{data}-efficientnet_lite0" and second.model.backbone == first.model.backbone
    # The paper goes from 0.007 to 0.001.
    assert second.optim.lr / first.optim.lr == pytest.approx(0.001 / 0.007, rel=0.03)


def test_a_folder_with_any_classes_has_a_recipe() -> None:
    recipe = RECIPES["folder-efficientnet_lite0-pretrained"]
    assert (
        recipe.model.reset_head
        and recipe.loss.class_weights is None
        and recipe.optim.lr < RECIPES["folder-efficientnet_lite0"].optim.lr
    )


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    assert load_recipe(written(tmp_path / "r.yaml", recipe.to_yaml())) == recipe


def test_yaml_round_trip_of_every_kind_of_value(tmp_path: Path) -> None:
    recipe = override(
        Recipe(),
        {
            "multi_grid": None,
            "crop": (97, 129),
            "weights": None,
            "val_split": None,
            "class_weights": (1.0, 0.5),
            "amp": "bf16",
            "stride_in": "last",
            "last_block": 5,
            "head": "cascade",
            "val_output_stride": 8,
            "lr": 1e-7,
            "reset_head": True,
        },
    )
    assert load_recipe(written(tmp_path / "r.yaml", recipe.to_yaml())) == recipe
    nested = yaml.safe_load(recipe.to_yaml())
    assert set(nested) == set(PARTS) and {key for part in nested.values() for key in part} == set(PART_OF)


def test_keys_stand_over_the_defaults_and_over_a_base(tmp_path: Path) -> None:
    over = load_recipe(written(tmp_path / "a.yaml", "batch_size: 8\nlr: 1e-3\n"))
    assert over == override(Recipe(), {"batch_size": 8, "lr": 0.001})
    based = load_recipe(written(tmp_path / "b.yaml", "base: cityscapes-resnet101\ncrop: [513, 1025]\n"))
    assert based == override(RECIPES["cityscapes-resnet101"], {"crop": (513, 1025)})


def test_the_name_of_a_setting_is_in_one_part_alone() -> None:
    names = [field.name for kind in PARTS.values() for field in fields(kind)]
    assert len(names) == len(set(names)) == len(PART_OF) and not set(names) & set(PARTS)


def test_a_setting_is_named_alone_with_its_part_or_under_it(tmp_path: Path) -> None:
    expected = override(Recipe(), {"crop": 65, "lr": 0.1})
    texts = [
        "crop: 65\nlr: 0.1",
        "data.crop: 65\noptim.lr: 0.1",
        "data: {crop: 65}\noptim:\n  lr: 1e-1",
        "data: {crop: 65}\nlr: 0.1",
    ]
    for text in texts:
        assert load_recipe(written(tmp_path / "r.yaml", text)) == expected
    assert override(Recipe(), parse_assignments(["data.crop=65", "lr=1e-1"])) == expected


@pytest.mark.parametrize("old", RENAMED)
def test_a_key_of_before_is_told_its_new_name(old: str) -> None:
    for key in (old, f"optim.{old}"):
        with pytest.raises(ValueError, match=f"^{old} is called {RENAMED[old]}$"):
            override(Recipe(), {key: 1})
    assert RENAMED[old] in PART_OF


def test_a_card_of_today_holds_what_override_takes() -> None:
    options = {"classes": ["cat"], "map": {"3": "cat"}, "value_range": [0, 4095], "ignore": [255, [1, 2, 3]]}
    recipe = override(RECIPES["objects-mobilenetv2"], {"options": options})
    assert override(Recipe(), json.loads(json.dumps(settings_of(recipe)))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {crp: 5}", "no key 'data.crp'; did you mean crop"),
        ("model: {crop: 5}", "no key 'model.crop'; did you mean data.crop"),
        ("modle.backbone: x", "no key 'modle.backbone'; did you mean model.backbone"),
        ("modle: {backbone: x}", "no key 'modle'; did you mean model"),
        ("data: 5", "data is 5, expected settings: train_split, "),
        ("crop: 5\ndata: {crop: 6}", "crop is given twice"),
        ("lr: 0.1\ncrop: 5\nlr: 0.2", "line 3: the key 'lr' is there twice"),
        ("optim:\n  lr: 0.1\n  lr: 0.2", "line 3: the key 'lr' is there twice"),
        ("iteration: 5", "no key 'iteration'; did you mean iterations"),
        ("output_strid: 8", "did you mean output_stride"),
        ("1: 2", "no key 1"),
        ("base: voc-resnet11", "no recipe 'voc-resnet11'; did you mean voc-resnet101"),
        ("base: [voc-resnet101]", "base: there is no recipe"),
        ("base: {a: 1}", "base: there is no recipe"),
        ("iterations: many", "iterations is 'many', expected a whole number"),
        ("iterations: 5.0", "iterations is 5.0, expected a whole number"),
        ("iterations: true", "iterations is True, expected a whole number"),
        ("iterations: 0", "iterations is 0, expected at least 1"),
        ("seed: -1", "seed is -1, expected at least 0"),
        ("lr: fast", "lr is 'fast', expected a number"),
        ("lr: .nan", "lr is nan, expected a number"),
        ("lr: .inf", "lr is inf, expected a number"),
        ("lr: -0.1", "lr is -0.1, expected at least 0"),
        ("lr: null", "lr is None, expected a number"),
        ("flip: 1.5", "flip is 1.5, expected 0 to 1"),
        ("reset_head: 1", "reset_head is 1, expected true or false"),
        ("backbone: 18", "backbone is 18, expected text"),
        ("head: fcn", "head is 'fcn', expected 'aspp' or 'cascade'"),
        ("crop: [1, 2, 3]", "crop is .*, expected a whole number or a list of 2 of a whole number"),
        ("crop: wide", "crop is 'wide', expected a whole number or a list of 2"),
        ("longest_side: 70000", "longest_side is 70000, expected 1 to 65536 pixels, or null"),
        ("longest_side: 0", "longest_side is 0, expected 1 to"),
        ("class_mix: 2", "class_mix is 2.0, expected 0 to 1"),
        (
            "iterations: 9\nschedule_iterations: 8",
            "schedule_iterations is 8, expected at least the 9 iterations, or null",
        ),
        ("scales: [0.5]", "scales is .*, expected a list of 2 of a number"),
        ("aspp_rates: [6, x]", "aspp_rates is .*, expected a list of a whole number"),
        ("multi_grid: 2", "multi_grid is 2, expected a list of a whole number or null"),
        ("batch_size: 6\ngrad_accum_steps: 4", "batch_size is 6, expected a multiple of grad_accum_steps, 4"),
        ("- a\n- b", "holds list, expected keys and values"),
        ("", "holds NoneType, expected keys and values"),
        ("a: [", "is not YAML"),
        ("? [a, b]\n: 1", "no key|is not YAML"),
        ("crop: &a [*a]", "crop is"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_the_file_on_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.yaml", text)
    with pytest.raises(ValueError, match=f"(?s){message}") as caught:
        load_recipe(path)
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_there_is_not_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="no recipe 'voc-resnet100'; did you mean voc-resnet101"):
        load_recipe("voc-resnet100")
    with pytest.raises(ValueError, match="there are: voc-resnet101, "):
        load_recipe("qqqq")


def test_a_name_too_long_for_a_file_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="there is no recipe"):
        load_recipe("x" * 10_000)


def test_a_file_too_large_to_be_a_recipe_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected a recipe of at most {MAX_RECIPE_BYTES}"):
        load_recipe(written(tmp_path / "r.yaml", " " * (MAX_RECIPE_BYTES + 1)))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=r"r\.yaml is not YAML"):
        load_recipe(path)


def test_a_whole_number_stands_for_a_number() -> None:
    changed = override(Recipe(), {"lr": 1, "scales": [1, 2]})
    assert changed.optim.lr == 1.0 and changed.data.scales == (1.0, 2.0) and type(changed.optim.lr) is float


@pytest.mark.parametrize("word", ["amp=off", "amp='off'", "amp=false"])
def test_a_bare_off_is_the_word(word: str) -> None:
    assert override(override(Recipe(), {"amp": "bf16"}), parse_assignments([word])).optim.amp == "off"


def test_assignments_are_read_as_yaml() -> None:
    actual = parse_assignments(["lr=0.01", "scales=[0.75, 2]", "multi_grid=null", " crop = 33", "weights=a=b"])
    assert actual == {"lr": 0.01, "scales": [0.75, 2], "multi_grid": None, "crop": 33, "weights": "a=b"}


def test_an_assignment_is_known_and_the_last_counts() -> None:
    assert parse_assignments(["model.backbone=resnet50", "optim={lr: 1}"]) == {"backbone": "resnet50", "lr": 1}
    assert parse_assignments(["lr=1", "optim.lr=2"]) == {"lr": 2}
    with pytest.raises(ValueError, match="no key 'optim.momentun'; did you mean momentum"):
        parse_assignments(["optim.momentun=1"])


@pytest.mark.parametrize("word", ["lr", "lr=[", "lr=!!int ''", "lr=2020-99-99"])
def test_an_assignment_that_is_none(word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{word!r}") if word == "lr" else "--set lr"):
        parse_assignments([word])


def test_differences_name_key_and_both_values() -> None:
    actual = differences(Recipe(), override(Recipe(), {"lr": 0.1, "head": "cascade"}))
    assert actual == ["head: aspp, cascade", "lr: 0.007, 0.1"]
    assert differences(Recipe(), Recipe()) == []


def test_a_schedule_as_long_as_the_training_is_no_difference() -> None:
    plain = override(Recipe(), {"iterations": 9})
    said = override(plain, {"schedule_iterations": 9})
    assert differences(plain, said) == differences(said, plain) == []
    assert differences(said, override(plain, {"schedule_iterations": 10})) == ["schedule_iterations: 9, 10"]
    assert differences(said, override(plain, {"iterations": 8})) == ["iterations: 9, 8", "schedule_iterations: 9, None"]


def test_a_recipe_cannot_be_changed_and_override_leaves_the_old_one() -> None:
    recipe = Recipe()
    with pytest.raises(AttributeError):
        recipe.lr = 1.0  # type: ignore[misc]
    assert override(recipe, {"lr": 1.0}).optim.lr == 1.0 and recipe.optim.lr == 0.007


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*PART_OF, *PARTS, "base"])
FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
WORDS = st.sampled_from(
    ["!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "2020-99-99", "0b_", "1:99", "&a", "*a", "<<: ", "? ",
     "- ", "{", "}", "[", "]", ": ", "\n", "\t", "'", '"', "|", "%", "!!binary x", "!!set ", "!!omap ", "9" * 5000]
)  # fmt: skip


def read(path: Path, content: bytes) -> Recipe | None:
    path.write_bytes(content)
    try:
        return load_recipe(path)
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error)
        return None


@settings(max_examples=200, **FUZZ)
@given(values=st.dictionaries(KEYS, YAML_VALUES, max_size=3))
def test_any_values_are_a_recipe_or_one_clear_line(values: dict, tmp_path: Path) -> None:
    actual = read(tmp_path / "fuzzed.yaml", yaml.safe_dump(values).encode())
    if actual is not None:
        assert load_recipe(written(tmp_path / "again.yaml", actual.to_yaml())) == actual


@settings(max_examples=200, **FUZZ)
@given(key=st.sampled_from(["lr: ", "base: ", "crop: ", ""]), words=st.lists(WORDS | st.text(max_size=5), max_size=4))
def test_any_text_is_a_recipe_or_one_clear_line(key: str, words: list[str], tmp_path: Path) -> None:
    read(tmp_path / "fuzzed.yaml", (key + "".join(words)).encode("utf-8", "surrogatepass"))


@settings(max_examples=100, **FUZZ)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_a_recipe_or_one_clear_line(content: bytes, tmp_path: Path) -> None:
    read(tmp_path / "fuzzed.yaml", content)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 1.0), ()])
def test_class_weights_that_weigh_nothing_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="class_weights is .*, expected none below 0 and one above it"):
        override(Recipe(), {"class_weights": weights})


def test_a_seed_fits_into_a_generator() -> None:
    with pytest.raises(ValueError, match="seed is .*, expected less than 2"):
        override(Recipe(), {"seed": 2**63})


def test_the_page_on_training_has_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert [key for key in settings_of(Recipe()) if f"| `{key}` |" not in page] == []


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_no_class_starts_from_weights_without_classes(weights: str | None) -> None:
    with pytest.raises(ValueError, match=r"classes_from is \[0, 1\], but weights is"):
        override(Recipe(), {"weights": weights, "classes_from": [0, 1]})
