"""The run folder: its recipe, the description of its data, the model card, and the first line of output."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from atrous.atomic import write_text
from atrous.data.datasets.base import names_in
from atrous.data.datasets.dataset import SegmentationDataset
from atrous.evaluation.distributed import DistributedContext
from atrous.evaluation.evaluate import Evaluation
from atrous.messages import listed
from atrous.models.output_stride import Dial
from atrous.models.weights import MODEL_FILE, ModelCard
from atrous.ops.resize import grid_size
from atrous.training import checkpoint
from atrous.training.config import RESUMABLE, ModelConfig, Recipe, differences, override, settings_of
from atrous.training.recipes import load_recipe
from atrous.training.state import State, loses_scale

FINISHED = "finished.json"
SPLIT = "split.json"
_MARKS = ("recipe.yaml", FINISHED, f"best/{MODEL_FILE}")
"""Files that a folder of a run has, if not checkpoints."""
_LOGS = (".err", ".log", ".out", ".txt")
"""Of output that was sent into the folder of a run before it began."""


def describe(dataset: SegmentationDataset) -> dict[str, Any]:
    """What a checkpoint holds about its data, so that a resume on other data is refused."""
    names = hashlib.sha256("\n".join(dataset.names).encode("utf-8", "surrogateescape")).hexdigest()
    return {"classes": list(dataset.labels.names), "images": len(dataset), "names": names}


def saved_state(run: Path, dataset: SegmentationDataset) -> dict[str, Any] | None:
    """The newest checkpoint, if it is of this data."""
    saved = checkpoint.load_newest(run)
    if saved is None and checkpoint.steps(run):
        raise ValueError(f"{run} has checkpoints, but none is whole; start anew with another --out")
    description = describe(dataset)
    for key, expected in (saved or {}).get("data", {}).items():
        if expected != description[key]:
            what = "other images" if key == "names" else f"{key} {description[key]}, expected {expected}"
            raise ValueError(f"{run} was started on other data: {what}")
    return saved


def claim(run: Path, recipe: Recipe, ctx: DistributedContext) -> str:
    """Write the recipe into the run's folder, or refuse one that the run there cannot go on with.

    Returns:
        For the first line of output, the settings that change on the way.
    """
    written, note = run / "recipe.yaml", ""
    if checkpoint.steps(run) and written.exists():
        changed = check_resumable(run, load_recipe(written), recipe)
        note = f"; changed (before, now): {'; '.join(changed)}" if changed else ""
    if ctx.first:
        run.mkdir(parents=True, exist_ok=True)
        write_text(written, recipe.to_yaml())
    return note


def refuse_foreign(run: Path) -> None:
    """Raise ValueError for a folder that holds other files than a run's, such as photographs."""
    if not run.is_dir() or checkpoint.steps(run) or any((run / name).exists() for name in _MARKS):
        return
    names = [name for name in names_in(run) if Path(name).suffix.lower() not in _LOGS]
    if names:
        raise ValueError(
            f"{run} holds other files than a run ({listed(names)}); name an empty folder, or none, as --out"
        )


def refuse_taken(run: Path, resume: bool) -> None:
    """Raise ValueError for a folder with another run, or with its result."""
    check_no_result(run)
    if checkpoint.steps(run) and not resume:
        raise ValueError(f"{run} holds a run at step {checkpoint.steps(run)[-1]}; add --resume, or name another --out")


def write_split(run: Path, dataset: SegmentationDataset, held_out: SegmentationDataset) -> None:
    """Write down which images a run trains on and which it validates on, where it divided them itself."""
    names = {"train": list(dict.fromkeys(dataset.names)), "val": held_out.names}
    write_text(run / SPLIT, json.dumps(names, indent=1, ensure_ascii=False) + "\n")


def check_no_result(run: Path) -> None:
    """Refuse a folder with the result of a run that cannot be continued, for it has no checkpoints.

    Raises:
        ValueError: with what is there.
    """
    if checkpoint.steps(run):
        return
    for name in (FINISHED, f"best/{MODEL_FILE}"):
        if (run / name).exists():
            raise ValueError(
                f"{run} holds {name} of a run without checkpoints to go on from; name another --out, or delete it"
            )


def check_resumable(run: Path, before: Recipe, recipe: Recipe) -> list[str]:
    """The settings that change on the way of a run, as `differences` names them.

    Raises:
        ValueError: with the settings that cannot; or if the run has already taken more steps than asked for.
    """
    kept = override(before, {key: value for key, value in settings_of(recipe).items() if key in RESUMABLE})
    if changed := differences(kept, recipe):
        raise ValueError(
            f"{run} was started with another recipe (before, now): {'; '.join(changed)}; a resumed run can change "
            f"{', '.join(RESUMABLE)}"
        )
    done = checkpoint.steps(run)[-1]
    if recipe.schedule.iterations < done:
        asked = recipe.schedule.iterations
        raise ValueError(f"{run} is at step {done}, expected iterations of at least that, not {asked}")
    return differences(before, kept)


_FOLDED = (
    "Warning: the batch norm of the weights that this starts from is folded into their convolutions; trained, it "
    "scales every map anew, and much of what they know may be lost (--set batch_norm=head keeps it)\n"
)


def _of_small_crop(config: ModelConfig, crop: tuple[int, int]) -> str:
    """A warning where no atrous branch of ASPP can learn more than its centre (section 3.3, Figure 4).

    Branches that a model's weights bring have learnt it already; they warn of a crop within one output stride.
    """
    if config.head != "aspp" or not config.aspp_rates:
        return ""
    stride, (height, width) = config.output_stride, crop
    rows, columns = (grid_size(side, stride) // stride + 1 for side in (height, width))
    rate = min(Dial(stride).aspp_rates(config.aspp_rates))
    if max(rows, columns) > (2 if config.from_model else rate):
        return ""
    return (
        f"Warning: crops of {height}x{width} pixels are maps of {rows}x{columns} at output stride {stride}, where the "
        f"least rate of ASPP is {rate}: its 3x3 convolutions see their centre alone (a larger crop shows them more)\n"
    )


def headline_of(
    recipe: Recipe,
    data: str | Path,
    run: Path,
    state: State,
    dataset: SegmentationDataset,
    held_out: SegmentationDataset | None,
) -> str:
    """One line about the network, the data and the steps; warnings before it."""
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    going = f"going on at step {state.step}" if state.step else "starting"
    schedule = recipe.schedule
    warnings = _FOLDED if loses_scale(recipe.model, state.model) else ""
    warnings += "" if state.step else _of_small_crop(recipe.model, recipe.data.crop_size)
    longer = f", of a schedule of {schedule.schedule_iterations}" if schedule.schedule_iterations else ""
    return (
        f"{warnings}"
        f"{recipe.model.backbone}, output stride {recipe.model.output_stride}, {parameters / 1e6:.1f} M parameters; "
        f"{len(dataset)} images to train on, {len(held_out) if held_out else 0} to validate on, from {data}; "
        f"{going}, {schedule.iterations} steps of {recipe.optim.batch_size}{longer}; run folder {run}"
    )


def card_of(
    recipe: Recipe, state: State, dataset: SegmentationDataset, data: str | Path, evaluation: Evaluation | None
) -> ModelCard:
    """The model card of a run's weights."""
    model, labels = state.evaluated, dataset.labels
    metrics: dict[str, Any] = {}
    if evaluation:
        kept = {key: value for key, value in evaluation.scores.as_dict().items() if key != "left_out"}
        measured = {"output_stride": evaluation.output_stride, "images": evaluation.images, "step": state.step}
        metrics["val"] = kept | measured
    return ModelCard(
        model.arguments, labels.names, labels.palette, model.mean, model.std, recipe.model.output_stride,
        recipe.data.longest_side, labels.ignore, dataset.rule.value_range, dataset.rule.bands, metrics,
        data=f"{Path(str(data)).name}, split {recipe.data.train_split}, {len(dataset)} images",
        recipe=settings_of(recipe),
    )  # fmt: skip
