"""The grids against the paper's tables, copied here by hand as they are printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from atrous.cli.parser import build_parser
from atrous.models.resnet import ResNet
from atrous.reproduction.plan import Options, plan
from atrous.reproduction.specs import GRIDS, PRESETS, recipe_of, scaled_crop
from atrous.training.config import Recipe, differences, override, settings_of
from atrous.training.recipes import RECIPES
from atrous.training.state import build_model

# A line a row: what places the cell, then its mIoU. T is a tick, - none.
PRINTED = {
    "table-1": "8 75.18\n16 73.88\n32 70.06\n64 59.99\n128 42.34\n256 20.29",
    "table-2": """
        ResNet-50 block4 64.81\nResNet-50 block5 72.14\nResNet-50 block6 74.29\nResNet-50 block7 73.88
        ResNet-101 block4 68.39\nResNet-101 block5 73.21\nResNet-101 block6 75.34\nResNet-101 block7 75.76""",
    "table-3": """
        (1,1,1) block4 68.39\n(1,1,1) block5 73.21\n(1,1,1) block6 75.34\n(1,1,1) block7 75.76
        (1,2,1) block4 70.23\n(1,2,1) block5 75.67\n(1,2,1) block6 76.09\n(1,2,1) block7 76.66
        (1,2,3) block4 73.14\n(1,2,3) block5 75.78\n(1,2,3) block6 75.96\n(1,2,3) block7 76.11
        (1,2,4) block4 73.45\n(1,2,4) block5 75.74\n(1,2,4) block6 75.85\n(1,2,4) block7 76.02
        (2,2,2) block4 71.45\n(2,2,2) block5 74.30\n(2,2,2) block6 74.70\n(2,2,2) block7 74.62""",
    "table-4": "16 - - 76.66\n8 - - 78.05\n8 T - 78.93\n8 T T 79.35",
    "table-5": """
        (1,1,1) (6,12,18) - 75.36\n(1,2,1) (6,12,18) - 75.93\n(1,2,4) (6,12,18) - 76.58
        (1,2,4) (6,12,18,24) - 76.46\n(1,2,4) (6,12,18) T 77.21""",
    "table-6": "16 - - - 77.21\n8 - - - 78.51\n8 T - - 79.45\n8 T T - 79.77\n8 T T T 82.70",
    "table-8": "513 T T 77.21\n513 T - 75.95\n513 - T 76.01\n321 - T 67.22",
    "table-9": "4 1 64.43\n8 1 75.76\n12 1 76.49\n16 1 77.21",
    "table-10": "8 16 74.45\n16 16 77.21\n32 16 75.90\n8 8 75.62\n16 8 78.51\n32 8 75.75",
    "table-11": "1 77.21\n2 77.15\n4 76.79\n8 77.02\n16 77.18\n32 76.69",
    "table-12": "16 - - 77.23\n8 - - 77.82\n8 T - 79.06\n8 T T 79.30",
}
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def paper_recipes(what: str) -> list[Recipe]:
    preset = PRESETS["paper"]
    return [recipe_of(cell, preset.base(GRIDS[what]), preset) for cell in GRIDS[what].cells]


@pytest.mark.parametrize("what", PRINTED)
def test_the_numbers_are_the_papers(what: str) -> None:
    lines = [line.split() for line in PRINTED[what].replace("\\n", "\n").split("\n") if line.strip()]
    cells = [cell for cell in GRIDS[what].cells if cell.paper is not None]
    told = [[*("".join((value or "-").split()).replace("✓", "T") for value in cell.place.values())] for cell in cells]
    assert told == [line[:-1] for line in lines]
    assert [cell.paper for cell in cells] == [float(line[-1]) for line in lines]


def test_the_page_of_results_has_every_number_of_the_paper_and_commands_that_parse() -> None:
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    for what, grid in GRIDS.items():
        if what.startswith("table"):
            section = page.split(f"## {what.replace('-', ' ').capitalize()}. ")[1].split("\n## ")[0]
            table = next(block for block in section.split("\n\n") if block.startswith("| "))
            rows = [line.strip("| ").split(" | ") for line in table.splitlines()][2:]
            papers = ["" if cell.paper is None else f"{cell.paper:.2f}" for cell in grid.cells]
            assert [row[len(grid.cells[0].place)].strip() for row in rows] == papers
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    commands = [line.split("  #")[0] for line in blocks.splitlines() if line.startswith("atrous")]
    assert len(commands) > 20
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)[1:]).run is not None


def test_every_table_and_figure_of_cells_is_there() -> None:
    assert set(GRIDS) == set(PRINTED) | {"figure-6", "figure-7", "figure-8", "ablation", "ablation-pseudo"}


@pytest.mark.parametrize(("what", "preset"), [("ablation", "streets"), ("ablation-pseudo", "objects")])
def test_an_ablation_changes_one_part_of_a_recipe_at_a_time(what: str, preset: str) -> None:
    base = PRESETS[preset].base(GRIDS[what])
    first, *others = (recipe_of(cell, base, PRESETS[preset]) for cell in GRIDS[what].cells)
    assert first == base and all(cell.paper is None for cell in GRIDS[what].cells)
    for recipe, cell in zip(others, GRIDS[what].cells[1:], strict=True):
        changed = {line.partition(":")[0] for line in differences(base, recipe)}
        assert changed and changed == set(cell.changes), f"{cell.label} changes nothing, or what it does not say"


def test_table_11_has_the_papers_times() -> None:
    assert [cell.relative_time for cell in GRIDS["table-11"].cells] == [1.00, 0.50, 0.25, 0.13, 0.06, 0.03]


# What a cell trains, beside section 4.1's protocol: by hand from the captions and the text.
TRAINED = {
    "table-1": [{"backbone": "resnet50", "head": "cascade", "last_block": 7, "output_stride": s}
                for s in (8, 16, 32, 64, 128, 256)],
    "table-2": [{"backbone": f"resnet{depth}", "head": "cascade", "last_block": block, "output_stride": 16}
                for depth in (50, 101) for block in (4, 5, 6, 7)],
    "table-3": [{"backbone": "resnet101", "head": "cascade", "last_block": block, "multi_grid": grid}
                for grid in ((1, 1, 1), (1, 2, 1), (1, 2, 3), (1, 2, 4), (2, 2, 2)) for block in (4, 5, 6, 7)],
    "table-4": [{"head": "cascade", "last_block": 7, "multi_grid": (1, 2, 1), "output_stride": 16}] * 4,
    "table-5": [{"head": "aspp", "multi_grid": grid, "aspp_rates": rates, "image_pooling": pooling}
                for grid, rates, pooling in (((1, 1, 1), (6, 12, 18), False), ((1, 2, 1), (6, 12, 18), False),
                                             ((1, 2, 4), (6, 12, 18), False), ((1, 2, 4), (6, 12, 18, 24), False),
                                             ((1, 2, 4), (6, 12, 18), True))],
    "table-6": [{"lr": 0.007}] * 4 + [{"lr": 0.0001}],
    "table-8": [{"crop": 513, "upsample_logits": True, "batch_norm": "train"},
                {"crop": 513, "upsample_logits": True, "batch_norm": "freeze"},
                {"crop": 513, "upsample_logits": False, "batch_norm": "train"},
                {"crop": 321, "upsample_logits": False, "batch_norm": "train"},
                {"crop": 321, "upsample_logits": True, "batch_norm": "train"}],
    "table-9": [{"batch_size": 4}, {"batch_size": 8}, {"batch_size": 12}, {"batch_size": 16},
                {"batch_size": 16, "grad_accum_steps": 4}],
    "table-10": [{"output_stride": 8, "batch_size": 6}, {"output_stride": 16, "batch_size": 16},
                 {"output_stride": 32, "batch_size": 24}] * 2,
    "table-11": [{}] * 6,
    "table-12": [{"crop": 769, "iterations": 90_000, "train_split": "train"}] * 4,
    "figure-6": [{}],
    "figure-7": [{"output_stride": 8, "batch_norm": "freeze", "lr": 0.001, "train_split": "train", "bootstrap": hard}
                 for hard in ((), ("bicycle", "chair", "diningtable", "pottedplant", "sofa"))],
    "figure-8": [{"crop": 769, "iterations": 90_000, "train_split": "train"}],
}  # fmt: skip
BEST = {
    "backbone": "resnet101",
    "head": "aspp",
    "multi_grid": (1, 2, 4),
    "aspp_rates": (6, 12, 18),
    "image_pooling": True,
}
PROTOCOL = {
    "batch_size": 16,
    "crop": 513,
    "iterations": 30_000,
    "lr": 0.007,
    "output_stride": 16,
    "train_split": "trainaug",
}


@pytest.mark.parametrize("what", TRAINED)
def test_the_recipes_are_the_papers(what: str) -> None:
    best = BEST if what in ("table-6", "table-8", "table-9", "table-10", "table-11", "table-12") else {}
    for recipe, expected in zip(paper_recipes(what), TRAINED[what], strict=True):
        assert {**PROTOCOL, **best, **expected}.items() <= settings_of(recipe).items()
        assert (recipe.model.weights, recipe.model.batch_norm_decay, recipe.optim.optimizer) == (
            "imagenet",
            0.9997,
            "sgd",
        )


def test_the_ladders_are_the_papers() -> None:
    for what, scales in (("table-4", SCALES), ("table-6", SCALES), ("table-12", (0.75, 1.0, 1.25))):
        settings = [cell.setting for cell in GRIDS[what].cells]
        told = [(row.output_stride, row.scales, row.flip) for row in settings if row]
        assert told[:4] == [(16, (1.0,), False), (8, (1.0,), False), (8, scales, False), (8, scales, True)]
    assert GRIDS["table-6"].cells[4].setting == GRIDS["table-6"].cells[3].setting


def test_the_tables_of_voc_evaluate_at_crop_513_and_those_of_cityscapes_whole_images() -> None:
    def paddings(what: str, preset: str) -> set[int | None]:
        planned = plan(what, Options(preset), dry=True)
        return {setting.pad_to for uses in planned.uses for _, setting in uses}

    assert paddings("table-1", "paper") == paddings("table-4", "paper") == paddings("figure-6", "paper") == {513}
    assert paddings("table-12", "paper") == paddings("table-1", "camvid") == {None}


@pytest.mark.parametrize("what", ["table-1", "table-2", "table-3", "table-4", "table-5"])
def test_the_networks_have_the_papers_rates_whatever_the_weights(what: str) -> None:
    for recipe in paper_recipes(what):
        with torch.device("meta"):
            network = build_model(recipe.model, 21, blank=True).backbone
        assert isinstance(network, ResNet)
        stride, grid = recipe.model.output_stride, recipe.model.multi_grid
        for block in range(4, (recipe.model.last_block or 4) + 1):
            # Section 3.2.1: at output stride 16 block4 has 2 times the grid; each block doubles, each stride halves.
            expected = [max(1, 2 ** (block - 3) * 16 // stride) * rate for rate in grid or (1, 1, 1)]
            assert [unit.rate for unit in network.block(block)] == expected


def test_table_10_evaluates_at_the_stride_of_its_row() -> None:
    assert [cell.setting.output_stride for cell in GRIDS["table-10"].cells if cell.setting] == [16] * 3 + [8] * 3


@pytest.mark.parametrize(
    ("base", "paper", "expected"),
    [(513, 513, 513), (513, 321, 321), (769, 769, 1153), (65, 321, 33), ((353, 353), 321, (225, 225)), (353, 513, 353)],
)
def test_crops_keep_the_papers_proportion_on_the_grid(base: object, paper: int, expected: object) -> None:
    assert scaled_crop(base, paper) == expected  # type: ignore[arg-type]


def test_batches_keep_the_papers_proportion() -> None:
    preset = PRESETS["camvid"]
    base = RECIPES["camvid-efficientnet_lite0"]
    sizes = {
        what: [recipe_of(cell, base, preset).optim.batch_size for cell in GRIDS[what].cells]
        for what in ("table-9", "table-10")
    }
    assert base.optim.batch_size == 8
    assert sizes == {"table-9": [2, 4, 6, 8, 8], "table-10": [3, 8, 12] * 2}
    small = override(base, {"batch_size": 2})
    assert [recipe_of(cell, small, preset).optim.batch_size for cell in GRIDS["table-9"].cells] == [1, 1, 2, 2, 4]


def test_hard_classes_on_other_data_are_those_of_lowest_iou() -> None:
    preset = PRESETS["camvid"]
    recipes = [recipe_of(cell, preset.base(GRIDS["figure-7"]), preset) for cell in GRIDS["figure-7"].cells]
    assert [recipe.data.bootstrap for recipe in recipes] == [(), "auto"]
