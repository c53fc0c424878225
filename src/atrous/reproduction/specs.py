"""The paper's tables and figures as data: the recipe of each cell, its evaluation, the paper's mIoU.

Cells change a base recipe, in the paper's numbers. A preset chooses the base and the backbones that stand for ResNet-50
and ResNet-101; crops and batches are scaled from the paper's 513 and 16 to its own.

    GRIDS["table-5"].cells[0].changes, GRIDS["table-5"].cells[0].paper
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from atrous.evaluation.evaluate import PAPER_SCALES, Setting
from atrous.training.config import Recipe, override
from atrous.training.recipes import RECIPES, VOC_HARD_CLASSES

PAPER_CROP, PAPER_BATCH = 513, 16
HARD = "hard"
"""As a cell's `bootstrap`: the preset's hard classes."""


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        place: column heads of the table to values.
        paper: mIoU in percent, or None for a cell that the paper does not have.
        changes: keys of the recipe, in the paper's numbers.
        setting: of the evaluation, or None for the output stride of training.
        depth: 50 or 101, or 0 for the preset's own backbone.
        replicas: of asynchronous training (appendix B).
        relative_time: the paper's training time, 1 for one replica.
        first_stage: changes of the training that this one starts from (Figure 7), or None.
        pretrained: starts from a training on other data, COCO (Table 6's last row).
    """

    place: Mapping[str, str]
    paper: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    setting: Setting | None = None
    depth: int = 0
    replicas: int = 0
    relative_time: float | None = None
    first_stage: Mapping[str, Any] | None = None
    pretrained: bool = False

    @property
    def label(self) -> str:
        """Its place on one line."""
        return ", ".join(
            head if value == "✓" else f"{head} {value}".strip() for head, value in self.place.items() if value
        )


@dataclass(frozen=True)
class Grid:
    """One table, or a figure of pictures.

    Attributes:
        title: as in the paper, shortened.
        cells: in the order of the table.
        paper_recipe: base of preset ``paper``.
        ordered: whether the paper draws conclusions from the order of its numbers.
        preset: for an ablation, the only preset that it goes with; its rows are compared with the first.
    """

    title: str
    cells: tuple[Cell, ...]
    paper_recipe: str = "voc-resnet101"
    ordered: bool = True
    preset: str | None = None

    @property
    def of_one_model(self) -> bool:
        """Whether all cells, but the pretrained one, evaluate the same training."""
        return all(
            cell.setting and cell.first_stage is None and cell.changes == self.cells[0].changes
            for cell in self.cells
            if not cell.pretrained
        )


@dataclass(frozen=True)
class Preset:
    """What the cells change.

    Attributes:
        recipe: named; None for the grid's own.
        changes: keys of the recipe.
        backbones: in place of ResNet-50 and ResNet-101.
        about: one line for the tables.
        hard: classes to bootstrap on; ``auto`` takes those of lowest IoU.
    """

    recipe: str | None
    changes: Mapping[str, Any]
    backbones: tuple[str, str]
    about: str
    hard: tuple[str, ...] | Literal["auto"] = "auto"

    def base(self, grid: Grid) -> Recipe:
        """The recipe that a grid's cells change."""
        return override(RECIPES[self.recipe or grid.paper_recipe], self.changes)


_LITE = ("timm/tf_efficientnet_lite0", "timm/tf_efficientnet_lite2")
_LAST_STAGE = (
    "EfficientNet-Lite0 and Lite2 in place of ResNet-50 and 101, with three units of their last stage as block4"
)

PRESETS = {
    "paper": Preset(None, {}, ("resnet50", "resnet101"), "the paper's setting", VOC_HARD_CLASSES),
    # The paper's networks see images at their own size, and so must those that are compared with them.
    "camvid": Preset(
        "camvid-efficientnet_lite0", {"longest_side": None, "scales": (0.75, 2.0)}, _LITE,
        f"the CamVid recipe, images at their own size; {_LAST_STAGE}",
    ),
    "streets": Preset("camvid-mobilenetv2", {}, _LITE, "the recipe that finetune uses, on CamVid"),
    "objects": Preset(
        "objects-mobilenetv2", {}, _LITE, "VOC's classes from few labelled and many pseudo-labelled photographs"
    ),
    "tiny": Preset(
        "folder-efficientnet_lite0",
        {
            "crop": 65, "batch_size": 8, "iterations": 150, "warmup": 5, "lr": 2e-3, "ema_decay": 0.0,
            "batch_norm_decay": 0.9, "color_jitter": 0.0, "scales": (0.8, 1.6),
        },
        _LITE,
        f"a generated toy dataset, crops of 65: a test of the machinery, not of the paper; {_LAST_STAGE}",
        ("wheel",),
    ),
}  # fmt: skip

_CASCADE: dict[str, Any] = {"head": "cascade", "last_block": 7, "multi_grid": (1, 1, 1)}
_ASPP: dict[str, Any] = {"head": "aspp", "multi_grid": (1, 2, 4), "aspp_rates": (6, 12, 18), "image_pooling": False}
_THREE_SCALES = (0.75, 1.0, 1.25)
_TICK = {True: "✓", False: ""}


def _ladder(
    paper: Sequence[float], changes: Mapping[str, Any] = {}, scales: tuple[float, ...] = PAPER_SCALES
) -> tuple[Cell, ...]:
    """The four rows that Tables 4, 6 and 12 share."""
    rows = (Setting(16), Setting(8), Setting(8, scales), Setting(8, scales, True))
    return tuple(
        Cell({"OS": str(row.output_stride), **row.ticks}, value, changes, row)
        for value, row in zip(paper, rows, strict=True)
    )


_TABLE_1 = tuple(
    Cell({"output_stride": str(stride)}, value, {**_CASCADE, "output_stride": stride}, depth=50)
    for stride, value in {8: 75.18, 16: 73.88, 32: 70.06, 64: 59.99, 128: 42.34, 256: 20.29}.items()
)
_TABLE_2 = tuple(
    Cell({"Network": f"ResNet-{depth}", "last block": f"block{i}"}, value, {**_CASCADE, "last_block": i}, depth=depth)
    for depth, values in {50: (64.81, 72.14, 74.29, 73.88), 101: (68.39, 73.21, 75.34, 75.76)}.items()
    for i, value in enumerate(values, 4)
)
_TABLE_3 = tuple(
    Cell({"Multi-Grid": str(grid), "last block": f"block{i}"}, value, {**_CASCADE, "last_block": i, "multi_grid": grid})
    for grid, values in {
        (1, 1, 1): (68.39, 73.21, 75.34, 75.76),
        (1, 2, 1): (70.23, 75.67, 76.09, 76.66),
        (1, 2, 3): (73.14, 75.78, 75.96, 76.11),
        (1, 2, 4): (73.45, 75.74, 75.85, 76.02),
        (2, 2, 2): (71.45, 74.30, 74.70, 74.62),
    }.items()
    for i, value in enumerate(values, 4)
)
_TABLE_5 = tuple(
    Cell(
        {"Multi-Grid": str(grid), "ASPP": str(rates), "Image Pooling": _TICK[pooling]}, value,
        {**_ASPP, "multi_grid": grid, "aspp_rates": rates, "image_pooling": pooling},
    )
    for grid, rates, pooling, value in (
        ((1, 1, 1), (6, 12, 18), False, 75.36),
        ((1, 2, 1), (6, 12, 18), False, 75.93),
        ((1, 2, 4), (6, 12, 18), False, 76.58),
        ((1, 2, 4), (6, 12, 18, 24), False, 76.46),
        ((1, 2, 4), (6, 12, 18), True, 77.21),
    )
)  # fmt: skip
_TABLE_6 = tuple(replace(cell, place={**cell.place, "COCO": ""}) for cell in _ladder((77.21, 78.51, 79.45, 79.77)))
_COCO = replace(
    _TABLE_6[-1], place={**_TABLE_6[-1].place, "COCO": "✓"}, paper=82.70, changes={"lr": 0.0001}, pretrained=True
)
# The paper's last row has a small crop and no upsampled logits, while its text speaks of the crop alone: the row
# without a number of the paper's changes the crop alone.
_TABLE_8 = tuple(
    Cell(
        {"Crop Size": str(crop), "UL": _TICK[upsampled], "BN": _TICK[trained]}, value,
        {"crop": crop, "upsample_logits": upsampled, "batch_norm": "train" if trained else "freeze"},
    )
    for crop, upsampled, trained, value in (
        (513, True, True, 77.21), (513, True, False, 75.95), (513, False, True, 76.01), (321, False, True, 67.22),
        (321, True, True, None),
    )
)  # fmt: skip
# The last row: the gradient of a batch of 16, batch norm's statistics of 4.
_TABLE_9 = (
    *(
        Cell({"batch size": str(size), "in parts": "1"}, value, {"batch_size": size})
        for size, value in {4: 64.43, 8: 75.76, 12: 76.49, 16: 77.21}.items()
    ),
    Cell({"batch size": "16", "in parts": "4"}, None, {"batch_size": 16, "grad_accum_steps": 4}),
)
_TABLE_10 = tuple(
    Cell(
        {"train output_stride": str(train), "eval output_stride": str(tested)}, value,
        {"output_stride": train, "batch_size": batch_size}, Setting(tested),
    )
    for tested, values in {16: (74.45, 77.21, 75.90), 8: (75.62, 78.51, 75.75)}.items()
    for (train, batch_size), value in zip({8: 6, 16: 16, 32: 24}.items(), values, strict=True)
)  # fmt: skip
_TABLE_11 = tuple(
    Cell({"num replicas": str(count)}, value, replicas=count, relative_time=time)
    for count, value, time in (
        (1, 77.21, 1.0), (2, 77.15, 0.5), (4, 76.79, 0.25), (8, 77.02, 0.13), (16, 77.18, 0.06), (32, 76.69, 0.03),
    )
)  # fmt: skip

# Section 4.3's bootstrapping, on the official train set alone, so that val is held out.
_SECOND_STAGE: dict[str, Any] = {"train_split": "train", "output_stride": 8, "batch_norm": "freeze", "lr": 0.001}

# Not the paper's: ablations of the recipes for few images.
_PARTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "no EMA of the weights": {"ema_decay": 0.0},
    "no class weights": {"class_weights": None},
    "no color jitter": {"color_jitter": 0.0},
    "new layers at the learning rate of the old": {"head_lr_factor": 1.0},
    "images at their own size": {"longest_side": None, "scales": (0.75, 2.0)},
    "batch norm of the backbone trained": {"batch_norm": "train"},
    "ClassMix on half of the crops": {"class_mix": 0.5},
    "repeat-factor sampling below 30% of the images": {"repeat_factor_threshold": 0.3},
    "from random weights": {"weights": None, "reset_head": False, "batch_norm": "train"},
}
_PSEUDO: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "the labelled images alone": {"train_split": "train"},
    "the pseudo-labelled images alone": {"train_split": "pseudo"},
    "no repeat-factor sampling": {"repeat_factor_threshold": 0.0},
    "no EMA of the weights": {"ema_decay": 0.0},
    "no color jitter": {"color_jitter": 0.0},
    "all batch norm trained": {"batch_norm": "train"},
    "ClassMix on half of the crops": {"class_mix": 0.5},
}


def _ablation(parts: Mapping[str, Mapping[str, Any]]) -> tuple[Cell, ...]:
    return tuple(Cell({"": name}, changes=changes) for name, changes in parts.items())


GRIDS = {
    "table-1": Grid("Going deeper with atrous convolution: ResNet-50 with block7, several output strides", _TABLE_1),
    "table-2": Grid("ResNet-50 and ResNet-101 with more blocks in cascade, output stride 16", _TABLE_2),
    "table-3": Grid("Multi-grid in ResNet-101 with more blocks in cascade, output stride 16", _TABLE_3),
    "table-4": Grid(
        "Inference strategy on val: block7, MG (1, 2, 1)",
        _ladder((76.66, 78.05, 78.93, 79.35), {**_CASCADE, "multi_grid": (1, 2, 1)}),
    ),
    "table-5": Grid("ASPP with multi-grid and image-level features, output stride 16", _TABLE_5),
    "table-6": Grid("Inference strategy on val: MG (1, 2, 4), ASPP (6, 12, 18), image pooling", (*_TABLE_6, _COCO)),
    "table-8": Grid("Hyper-parameters of training, output stride 16", _TABLE_8),
    "table-9": Grid("Batch size, output stride 16", _TABLE_9),
    "table-10": Grid("Output stride in training and in evaluation", _TABLE_10),
    "table-11": Grid("Asynchronous training", _TABLE_11, ordered=False),
    "table-12": Grid(
        "Inference strategy on Cityscapes val, trained on train_fine",
        _ladder((77.23, 77.82, 79.06, 79.30), scales=_THREE_SCALES),
        "cityscapes-resnet101",
    ),
    "figure-6": Grid("Photo, ground truth, prediction, a failure last", (Cell({"model": "best"}, setting=Setting(8)),)),
    "figure-7": Grid(
        "Before and after bootstrapping on the images of hard classes",
        (
            Cell({"bootstrapping": "without"}, None, _SECOND_STAGE, first_stage={}),
            Cell({"bootstrapping": "with"}, None, {**_SECOND_STAGE, "bootstrap": HARD}, first_stage={}),
        ),
    ),
    "figure-8": Grid(
        "Photo, ground truth and prediction on Cityscapes val",
        (Cell({"model": "best"}, setting=Setting(8)),),
        "cityscapes-resnet101",
    ),
    "ablation": Grid(
        "What each part of the recipe for few images brings", _ablation(_PARTS), ordered=False, preset="streets"
    ),
    "ablation-pseudo": Grid(
        "What pseudo-labels and the other parts of their recipe bring", _ablation(_PSEUDO), ordered=False,
        preset="objects",
    ),
}  # fmt: skip
"""By the word that `atrous reproduce` takes."""


def recipe_of(cell: Cell, base: Recipe, preset: Preset) -> Recipe:
    """A cell's recipe: its changes over the base; crop, batch and learning rate scaled from the paper to the base."""
    changes = dict(cell.changes)
    if "crop" in changes:
        changes["crop"] = scaled_crop(base.data.crop, changes["crop"])
    if "batch_size" in changes:
        parts, size = changes.get("grad_accum_steps", 1), changes["batch_size"]
        changes["batch_size"] = max(1, round(size * base.optim.batch_size / PAPER_BATCH / parts)) * parts
    if "lr" in changes:
        changes["lr"] = changes["lr"] * (base.optim.lr / Recipe().optim.lr)
    if changes.get("bootstrap") == HARD:
        changes["bootstrap"] = preset.hard
    if cell.depth:
        changes["backbone"] = preset.backbones[cell.depth == 101]
    return override(base, changes)


def scaled_crop(base: int | tuple[int, int], paper: int) -> int | tuple[int, int]:
    """The base's crop in the paper's proportion to 513, on the grid of output stride 16."""
    if isinstance(base, int):
        return round((base * paper / PAPER_CROP - 1) / 16) * 16 + 1
    return tuple(round((side * paper / PAPER_CROP - 1) / 16) * 16 + 1 for side in base)  # type: ignore[return-value]
