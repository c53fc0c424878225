"""Train recipes in sequence: each stage starts from the best weights on val of the stage before.

Where a stage has no val split, the next starts from its last weights. Section 4.1 trains in two stages; section 4.3 in
three: COCO, VOC, and VOC's trainval with the images of hard classes duplicated (bootstrapping).

    atrous train coco-resnet101 voc-resnet101-coco voc-resnet101-test --data coco:C --data voc:V --data voc:V

A finished stage has ``finished.json`` in its run folder, and is not trained again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atrous.atomic import write_text
from atrous.data.sampling import open_splits
from atrous.models.weights import resolve
from atrous.training import checkpoint
from atrous.training.config import RESUMABLE, Recipe, differences, override
from atrous.training.recipes import load_recipe
from atrous.training.run_folder import FINISHED, check_no_result


@dataclass(frozen=True)
class Stage:
    """One run of a sequence.

    Attributes:
        recipe: whole; its `weights` are the run folder of the stage before.
        data: as for `open_dataset`.
        run: folder.
    """

    recipe: Recipe
    data: str
    run: Path


def plan_stages(
    recipes: Sequence[str], data: Sequence[str], out: Path | None = None, values: Mapping[str, Any] | None = None
) -> list[Stage]:
    """The stages of a sequence.

    Args:
        recipes: names or files.
        data: one for all stages, or one each.
        out: folder of the run folders, which are named after the recipes; None for ``runs``.
        values: override every recipe; `weights` the first one alone.

    Raises:
        ValueError: for an unknown recipe or key, a recipe given twice, or as many data as neither one nor all stages.
    """
    names = [Path(source).stem for source in recipes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the recipe {twice[0]} is given {names.count(twice[0])} times; their run folder is the same")
    if len(data) not in (1, len(recipes)):
        raise ValueError(f"{len(recipes)} recipes have {len(data)} --data, expected 1, or one each")
    stages: list[Stage] = []
    for i, (source, name) in enumerate(zip(recipes, names, strict=True)):
        over = dict(values or {}) | ({"weights": str(stages[-1].run)} if stages else {})
        stages.append(Stage(override(load_recipe(source), over), data[i % len(data)], (out or Path("runs")) / name))
    return stages


def train_stages(
    stages: Sequence[Stage],
    *,
    resume: bool = False,
    workers: int = 1,
    device: str | None = None,
    said: Callable[[str], None] = lambda message: None,
) -> float | None:
    """Train one stage after the other.

    Args:
        stages: from `plan_stages`.
        resume: skip finished stages, and go on with the one that was stopped.
        workers: as for `train`.
        device: as for `train`.
        said: called with a line at the start of each stage.

    Returns:
        What `train` returns for the last.

    Raises:
        ValueError: before the first step, if a run folder is taken, data are missing, or their classes differ.
    """
    check_stages(stages, resume)
    best = None
    for i, stage in enumerate(stages, 1):
        last = i == len(stages)  # others start from the weights of those before
        done = finished(stage.run, stage.recipe, extend=last) if resume else None
        said(f"stage {i} of {len(stages)}, {stage.run}: {'finished before' if done else 'begins'}")
        best = done["miou"] if done else train_once(stage, workers=workers, device=device, extend=last)
    return best


def check_stages(stages: Sequence[Stage], resume: bool) -> None:
    """Check every stage before the first begins.

    Raises:
        ValueError: as `train_stages`.
    """
    first = stages[0].recipe.model.weights
    if first not in (None, "imagenet"):
        assert first is not None
        resolve(first)
    before = 0
    for stage in stages:
        if not resume and checkpoint.steps(stage.run):
            raise ValueError(f"{stage.run} holds a run; add --resume, or name another --out")
        if not (resume and finished(stage.run, stage.recipe, extend=stage is stages[-1])):
            check_no_result(stage.run)
        splits = [split for split in (stage.recipe.data.train_split, stage.recipe.data.val_split) if split]
        classes = [len(open_splits(stage.data, split, stage.recipe.data.options).labels) for split in splits][0]
        model = stage.recipe.model
        if before and classes != before and not (model.reset_head or model.classes_from):
            raise ValueError(
                f"{stage.run}: {stage.data} has {classes} classes, the stage before {before}; "
                "a recipe with reset_head: true starts the classifier anew, one with classes_from from that stage's"
            )
        before = classes


def train_once(
    stage: Stage, *, workers: int = 1, device: str | None = None, keep_checkpoints: bool = True, extend: bool = False
) -> float | None:
    """Train a run from where it is, unless it is finished, and mark it as finished."""
    from atrous.training.loop import train

    if done := finished(stage.run, stage.recipe, extend=extend):
        best: float | None = done["miou"]
        return best
    check_no_result(stage.run)
    (stage.run / FINISHED).unlink(missing_ok=True)
    best = train(stage.recipe, stage.data, stage.run, resume=True, workers=workers, device=device)
    best = None if best is not None and best != best else best  # JSON has no NaN
    mark_finished(stage.run, best, keep_checkpoints)
    return best


def mark_finished(run: Path, miou: float | None, keep_checkpoints: bool = True) -> None:
    """Write what `finished` finds."""
    write_text(run / FINISHED, json.dumps({"miou": miou}) + "\n")
    if not keep_checkpoints:
        (run / checkpoint.POINTER).unlink(missing_ok=True)
        shutil.rmtree(run / "checkpoints", ignore_errors=True)


def finished(run: Path, recipe: Recipe, *, extend: bool = False) -> dict[str, Any] | None:
    """What a finished run left behind, with its last ``miou``; None for one that is not finished.

    With `extend`, a run that can be resumed with the recipe's other steps or schedule is not finished.

    Raises:
        ValueError: if the run there is of another recipe.
    """
    try:
        done: dict[str, Any] = json.loads((run / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    before = override(load_recipe(run / "recipe.yaml"), {"weights": recipe.model.weights})
    changed = differences(before, recipe)
    if not changed:
        return done
    if extend and checkpoint.steps(run) and {line.partition(":")[0] for line in changed} <= {*RESUMABLE}:
        return None
    raise ValueError(f"{run} was finished with another recipe (before, now): {'; '.join(changed)}")
