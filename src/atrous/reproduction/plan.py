"""From tables of the paper to the trainings that they need, each with a run folder.

A training is named by a digest of its recipe, its data and what it starts from. So tables share trainings (Table 9's
batch of 16 is Table 5's last row), a rerun finds what is finished, and other settings get other folders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atrous.data.sampling import open_splits
from atrous.evaluation.evaluate import Setting
from atrous.reproduction.specs import GRIDS, PRESETS, Cell, Grid, Preset, recipe_of
from atrous.reproduction.toy_dataset import write_toy_dataset
from atrous.training import checkpoint
from atrous.training.config import Recipe, override, settings_of
from atrous.training.recipes import RECIPES
from atrous.training.stages import finished

_CAMVID = (
    "--data PATH: CamVid in SegNet's split as a folder with dataset.yaml "
    "(http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/)"
)
PUBLISHED = {
    "voc-resnet101": "--data voc:PATH: PASCAL VOC 2012 (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/) with the "
    "masks of SBD (http://home.bharathh.info/pubs/codes/SBD/download.html)",
    "cityscapes-resnet101": "--data cityscapes:PATH: leftImg8bit and gtFine of https://www.cityscapes-dataset.com",
    "camvid-efficientnet_lite0": _CAMVID,
    "camvid-mobilenetv2": _CAMVID,
    "objects-mobilenetv2": "--data PATH: a folder with dataset.yaml, VOC's classes, masks in train and val, and the "
    "split pseudo that `atrous label` wrote; with --set weights=deeplabv3_mnv2_pascal_quant.tflite where it lies",
}  # fmt: skip
"""Where to find the data of a recipe."""


@dataclass(frozen=True)
class Options:
    """The flags of `atrous reproduce`; see its ``--help``."""

    preset: str = "paper"
    data: str | None = None
    pretraining: str | None = None
    model: str | None = None
    backbones: Sequence[str] = ()
    iterations: int | None = None
    seeds: int = 1
    out: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    parallel: int | None = None
    device: str | None = None

    @property
    def folder(self) -> Path:
        """Of the run folders and the tables."""
        return self.out or Path("reproduced") / self.preset


@dataclass(frozen=True)
class Training:
    """One run folder.

    Attributes:
        name: of the folder.
        recipe: None for a model that is given.
        data: as for `open_dataset`.
        run: folder.
        settings: of its evaluations.
        after: name of the training that it starts from.
        replicas: of asynchronous training; 0 for synchronous.
        model: that is given, in place of a training.
    """

    name: str
    recipe: Recipe | None
    data: str | None
    run: Path
    settings: tuple[Setting, ...] = ()
    after: str | None = None
    replicas: int = 0
    model: str | None = None

    def result(self, setting: Setting) -> Path:
        """The file of one evaluation."""
        return self.run / "results" / f"{setting.slug}.json"

    @property
    def missing(self) -> tuple[Setting, ...]:
        """Settings that have not been evaluated."""
        return tuple(setting for setting in self.settings if read_result(self.result(setting)) is None)

    @property
    def state(self) -> str:
        """``finished``, ``trained``, ``at step N`` or ``not begun``."""
        trained = self.recipe is None or finished(self.run, self.recipe) is not None
        if not self.missing and (self.settings or trained):
            return "finished"
        steps = checkpoint.steps(self.run)
        return "trained" if trained else f"at step {steps[-1]}" if steps else "not begun"


Use = tuple[str, Setting]
"""Name of a training, and the setting of its evaluation."""


@dataclass(frozen=True)
class Plan:
    """All that a table needs.

    Attributes:
        what: the word for it.
        grid: the table.
        preset: of its recipes.
        options: of the command.
        base: recipe that its cells change.
        trainings: by name, each after the one that it starts from.
        uses: for each cell one a seed; none for a cell that is left out.
        notes: what differs from the paper.
    """

    what: str
    grid: Grid
    preset: Preset
    options: Options
    base: Recipe
    trainings: dict[str, Training]
    uses: tuple[tuple[Use, ...], ...]
    notes: tuple[str, ...]

    @property
    def left(self) -> list[str]:
        """Names of the trainings that are not finished."""
        return [name for name, training in self.trainings.items() if training.state != "finished"]

    def cells_of(self, name: str) -> str:
        """The cells that a training serves, on one line; empty if it is not of this table."""
        labels = [
            f"{cell.label}{f', seed {i}' if self.options.seeds > 1 else ''}"
            for cell, uses in zip(self.grid.cells, self.uses, strict=True)
            for i, (training, _) in enumerate(uses)
            if training == name
        ]
        return "; ".join(labels) or ("first stage" if name in self.trainings else "")


def read_result(path: Path) -> dict[str, Any] | None:
    """An evaluation's result, or None where there is none."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result
    except (OSError, ValueError):
        return None


def pooled(plans: Iterable[Plan]) -> dict[str, Training]:
    """The trainings of several tables, each once with the settings of all; the first seed of all cells comes first."""
    pool: dict[str, Training] = {}
    for planned in plans:
        for name, training in planned.trainings.items():
            there = pool.get(name, training)
            pool[name] = replace(there, settings=tuple(dict.fromkeys((*there.settings, *training.settings))))
    return dict(sorted(pool.items(), key=lambda item: item[1].recipe.run.seed if item[1].recipe else 0))


def plan(what: str, options: Options, *, dry: bool = False) -> Plan:
    """What a table needs.

    Raises:
        ValueError: if an option does not go with the table or the data.
        FileNotFoundError: if the data are not there.
    """
    grid, preset = GRIDS[what], PRESETS[options.preset]
    base, preset = _base(grid, preset, options)
    data = _data(options, preset, grid, dry)
    notes = [f"preset {options.preset}: {preset.about}"]
    classes: tuple[str, ...] = ()
    if data:
        splits = {cell.changes["train_split"] for cell in grid.cells if grid.preset and "train_split" in cell.changes}
        base, classes = _fitted(base, data, sorted(splits), notes)
        preset = preset if set(preset.hard) <= set(classes) else replace(preset, hard="auto")
    if options.model:
        return _plan_model(what, grid, preset, options, base, data, notes)
    planner = _Planner(options, base, preset, data, len(classes))
    cells = _possible(grid, options, notes)
    uses = tuple(tuple(planner.use(cell, seed) for seed in range(options.seeds)) for cell in cells)
    uses += ((),) * (len(grid.cells) - len(uses))
    return Plan(what, grid, preset, options, base, planner.trainings, uses, tuple(notes))


def _possible(grid: Grid, options: Options, notes: list[str]) -> list[Cell]:
    """The cells that can be run here; those that cannot are the last of their table."""
    cells = [cell for cell in grid.cells if options.pretraining or not cell.pretrained]
    if len(cells) < len(grid.cells):
        notes.append("the row pretrained on COCO needs --pretraining coco:PATH and is left out")
    cores = os.cpu_count() or 1
    most = max((cell.replicas for cell in cells), default=0)
    if most > cores:
        rest = "; rows of more than twice as many replicas are left out" if most > 2 * cores else ""
        notes.append(f"this machine has {cores} cores; more replicas share them and are no faster{rest}")
    return [cell for cell in cells if cell.replicas <= 2 * cores]


def _base(grid: Grid, preset: Preset, options: Options) -> tuple[Recipe, Preset]:
    base = override(preset.base(grid), options.values)
    named = tuple(options.backbones)
    if len(named) > 2:
        raise ValueError(f"--backbone takes 1 or 2 networks, found {len(named)}: {', '.join(named)}")
    if named:
        depths = {cell.depth for cell in grid.cells}
        if len(named) == 1 and {50, 101} <= depths:
            raise ValueError("this table compares two networks: --backbone SHALLOW DEEP")
        preset = replace(preset, backbones=(named[0], named[-1]))
        base = override(base, {"backbone": named[-1]})
    if options.iterations:
        base = override(base, {"iterations": options.iterations})
    # One validation, after the last step: the last weights are kept, not the best on the images that are scored.
    return override(base, {"val_every": base.schedule.iterations}), preset


def _data(options: Options, preset: Preset, grid: Grid, dry: bool) -> str | None:
    if options.data:
        return options.data
    if options.preset == "tiny":
        return str(write_toy_dataset(options.folder / "shapes"))
    if dry:
        return None
    source = PUBLISHED[preset.recipe or grid.paper_recipe]
    raise ValueError(f"preset {options.preset} has no data of its own; {source}")


def _fitted(base: Recipe, data: str, more: list[str], notes: list[str]) -> tuple[Recipe, tuple[str, ...]]:
    """The base without class weights of other data, and the classes; ValueError if a split is missing."""
    try:
        splits = (base.data.train_split, base.data.val_split, *more)
        names = [open_splits(data, split).labels.names for split in splits if split][0]
    except ValueError as error:
        if "no split" in str(error):
            raise ValueError(f"{error}; --set train_split=NAME and val_split=NAME choose others") from error
        raise
    count = len(base.loss.class_weights or names)
    if count != len(names):
        notes.append(f"no class weights: the preset's are for {count} classes, the data have {len(names)}")
        base = override(base, {"class_weights": None})
    return base, names


def _plan_model(
    what: str, grid: Grid, preset: Preset, options: Options, base: Recipe, data: str | None, notes: list[str]
) -> Plan:
    """Evaluations of a model that is given, for the tables that need one model alone."""
    assert options.model
    cells = [cell for cell in grid.cells if not cell.pretrained]
    if not grid.of_one_model:
        fitting = ", ".join(name for name, other in GRIDS.items() if other.of_one_model)
        raise ValueError(f"{what} compares trainings, and --model is one model; it goes with {fitting}")
    name = f"{Path(options.model).name}-{_digest({'model': options.model, 'data': data})}"
    settings = tuple(replace(cell.setting, pad_to=base.run.val_pad_to) for cell in cells if cell.setting)
    given = Training(name, None, data, options.folder / "models" / name, settings, model=options.model)
    uses: tuple[tuple[Use, ...], ...] = tuple(((name, setting),) for setting in settings)
    uses += ((),) * (len(grid.cells) - len(cells))
    notes = [*notes[1:], f"the model {options.model} as it is, on {data}"]
    return Plan(what, grid, preset, replace(options, seeds=1), base, {name: given}, uses, tuple(notes))


class _Planner:
    """Collects the trainings of cells, each once, with the settings that all cells need."""

    def __init__(self, options: Options, base: Recipe, preset: Preset, data: str | None, classes: int) -> None:
        self.options, self.base, self.preset, self.data, self.classes = options, base, preset, data, classes
        self.trainings: dict[str, Training] = {}

    def use(self, cell: Cell, seed: int) -> Use:
        """The training of a cell with a seed, and the setting of its evaluation."""
        base = override(self.base, {"seed": self.base.run.seed + seed})
        after = ""
        if cell.pretrained:
            after = self._add(self._pretraining(base), self.options.pretraining)
        elif cell.first_stage is not None:
            first = replace(cell, changes=cell.first_stage)
            after = self._add(recipe_of(first, base, self.preset), self.data)
        recipe = recipe_of(cell, base, self.preset)
        setting = replace(cell.setting or Setting(recipe.model.output_stride), pad_to=recipe.run.val_pad_to)
        return self._add(recipe, self.data, after, setting, cell.replicas), setting

    def _pretraining(self, base: Recipe) -> Recipe:
        if self.preset.recipe is not None:
            return override(base, {"class_weights": None})
        coco = RECIPES["coco-resnet101"].data
        return override(base, {"train_split": coco.train_split, "val_split": coco.val_split})

    def _add(
        self, recipe: Recipe, data: str | None, after: str = "", setting: Setting | None = None, replicas: int = 0
    ) -> str:
        if after:
            reset = self.options.pretraining is not None and self._has_other_classes(self.trainings[after])
            recipe = override(recipe, {"weights": str(self._folder(after)), "reset_head": reset})
        name = _name(recipe, data, after or None, replicas)
        training = self.trainings.get(name) or Training(
            name, recipe, data, self._folder(name), (), after or None, replicas
        )
        if setting and setting not in training.settings:
            training = replace(training, settings=(*training.settings, setting))
        self.trainings[name] = training
        return name

    def _has_other_classes(self, first: Training) -> bool:
        if not first.data or first.data == self.data or first.recipe is None:
            return False
        return len(open_splits(first.data, first.recipe.data.train_split).labels) != self.classes

    def _folder(self, name: str) -> Path:
        return self.options.folder / "runs" / name


def _name(recipe: Recipe, data: str | None, after: str | None, replicas: int) -> str:
    # A digest of what differs from the defaults, so that a key that is added one day renames nothing.
    defaults = settings_of(Recipe())
    values = settings_of(recipe) | ({"weights": None} if after else {})
    changed = {key: value for key, value in values.items() if value != defaults[key]}
    digest = _digest({"recipe": changed, "data": data, "after": after, "replicas": replicas})
    model, batch_size = recipe.model, recipe.optim.batch_size
    backbone = model.backbone.rpartition("/")[2].removeprefix("tf_")
    return f"{backbone}-{model.head}-os{model.output_stride}-b{batch_size}-s{recipe.run.seed}-{digest}"


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
