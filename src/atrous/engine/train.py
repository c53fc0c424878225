"""The training loop (section 4.1), for one process or many.

    train(load_recipe("camvid-efficientnet_lite0"), "data/camvid", Path("runs/camvid"))

Read `train` from top to bottom: it is the whole loop. Everything random is a function of seed, epoch and index or is
saved, so a run that was stopped and resumed ends with the bytes of one that never stopped.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atrous.data.datasets import Sample, SegmentationDataset
from atrous.data.image import Normalization
from atrous.data.sampling import Presence, bootstrap_factors, open_splits, pixel_counts, repeat_factors, repeated
from atrous.data.transforms import Augment, class_mix
from atrous.engine import checkpoint
from atrous.engine.distributed import Place, Stream, World, generator, world
from atrous.engine.evaluate import Evaluation, evaluate
from atrous.engine.memory import memory_kept
from atrous.engine.recipe import Recipe, differences, load_recipe
from atrous.engine.report import Report
from atrous.engine.state import State, loses_scale
from atrous.engine.stopping import Signals, dead_loader, explained, is_dead_loader, is_out_of_memory
from atrous.models.deeplab import DeepLabV3
from atrous.models.tflite import is_tflite
from atrous.models.weights import ModelCard, read_card, resolve
from atrous.ops.gemm import default_form
from atrous.ops.resize import grid_size
from atrous.ops.stride import Dial, check_reachable


def train(
    recipe: Recipe,
    data: str | Path,
    run: Path,
    *,
    resume: bool = False,
    workers: int = 1,
    device: str | None = None,
) -> float | None:
    """Train a model, validate and save it along the way.

    Args:
        recipe: the whole run.
        data: as for `open_dataset`.
        run: folder to write; see ARCHITECTURE's "A run folder".
        resume: go on from the newest whole checkpoint in `run`; without one, start.
        workers: processes that load data, for each training process.
        device: None for a GPU where there is one.

    Returns:
        The best mIoU in validation, or None without a validation split. The weights are in ``run/best``.

    Raises:
        ValueError: if recipe and data do not go together, another process writes to `run`, or it holds a run already
            and `resume` is off.
        Stopped: after SIGINT or SIGTERM, once all is saved, or when a process that loads data has died.
        FloatingPointError: if loss or gradients are not finite; the step is not taken.
        MemoryError: if a step needs more memory than there is.
    """
    with world(device) as here, Signals() as signals, default_form("model"), ExitStack() as claimed:
        claimed.enter_context(memory_kept(here.device))
        with signals.starting():
            dataset, held_out = open_data(recipe, data)
            dataset = sampled(dataset, check_masks(dataset), recipe)
            claimed.enter_context(checkpoint.lock(run) if here.first else nullcontext())
            claim(run, recipe, resume, here)
            saved = saved_state(run, dataset) if resume else None
            state = State.build(recipe, len(dataset.labels), dataset.labels.ignore, here, saved)
            here.agree(state.step, f"the processes find {run} at different steps; all must see the same folder")
            if held_out:
                check_masks(held_out, labelled=False)
                stride = recipe.val_output_stride or recipe.output_stride
                check_reachable(stride, state.model.backbone.reachable, "val")
            crops = crops_of(dataset, recipe, state.model)
            batches = iter(_loader(crops, recipe, state.step, workers, here))
        report = Report(run, iterations=recipe.iterations, start=state.step, batch=recipe.batch, silent=not here.first)
        headline = headline_of(recipe, data, run, state, dataset, held_out)
        with explained(recipe, run, lambda: state.step), report.running(headline):
            # A run that was stopped while it validated begins with that.
            while state.step < recipe.iterations or state.must_validate(held_out):
                if held_out and state.must_validate(held_out):
                    found = evaluate(
                        state.evaluated,
                        held_out,
                        output_stride=recipe.val_output_stride,
                        world=here,
                        progress=lambda _: signals.leave(state.step),
                    )
                    better = state.note(found.scores.miou)
                    if better:
                        state.keep(run, card_of(recipe, state, dataset, data, found), here)
                    report.validated(state.step, found, better)
                    report.picture(state.step, state.evaluated, held_out)
                    continue
                lr = recipe.lr_at(state.step)
                parts = [_next_part(batches, state, run, dataset, here) for _ in range(recipe.accumulate)]
                loss = state.take_step(parts, lr, here)
                state.step += 1
                report.step(state.step, loss, lr)
                stop, last = here.any(signals.received), state.step == recipe.iterations
                if stop or last or state.step % recipe.save_every == 0 or state.must_validate(held_out):
                    state.save(run, here, describe(dataset))
                if stop and (not last or held_out):
                    signals.leave(state.step, stop)
            if not held_out:
                state.keep(run, card_of(recipe, state, dataset, data, None), here)
        return state.best


class Crops(Dataset[tuple[Tensor, Tensor, str] | Exception]):
    """Augmented crops, each a function of seed, epoch and index, whatever process makes it."""

    def __init__(self, dataset: SegmentationDataset, augment: Augment, seed: int, class_mix: float = 0.0) -> None:
        self.dataset, self.augment, self.seed, self.class_mix = dataset, augment, seed, class_mix

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor, str] | Exception:
        """Image uint8 3,h,w, mask uint8 h,w and name of one sample in one epoch; or what is wrong with its files."""
        epoch, index = place
        try:
            sample = self.dataset[index]
            image, mask = self._drawn(sample, generator(self.seed, epoch, index))
        except (ValueError, OSError, MemoryError) as error:  # raised in a worker it would come wrapped in a traceback
            return error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return MemoryError(str(error).splitlines()[0])
        return image, mask, sample.name

    def _drawn(self, sample: Sample, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        pair = self.augment(sample.image, sample.mask, draws)
        if not self.class_mix or torch.rand((), generator=draws) >= self.class_mix:
            return pair
        other = self.dataset[int(torch.randint(len(self.dataset), (), generator=draws))]
        over = self.augment(other.image, other.mask, draws)
        return class_mix(pair, over, draws, self.augment.ignore)


def open_data(recipe: Recipe, data: str | Path) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """What a recipe trains on, and what it validates on, if anything.

    Raises:
        ValueError: if a split is not there, or the classes do not go with the recipe or with each other.
    """
    dataset = open_splits(data, recipe.train_split)
    classes = len(dataset.labels)
    if recipe.class_weights and len(recipe.class_weights) != classes:
        raise ValueError(f"class_weights has {len(recipe.class_weights)} values, the data {classes} classes")
    if recipe.teacher and (taught := read_card(resolve(recipe.teacher)).names) != dataset.labels.names:
        raise ValueError(f"teacher {recipe.teacher} knows the classes {', '.join(taught)}; the data has others")
    held_out = open_splits(data, recipe.val_split) if recipe.val_split else None
    if held_out and held_out.labels != dataset.labels:
        raise ValueError(f"the splits {recipe.train_split} and {recipe.val_split} of {data} have different classes")
    return dataset, held_out


def sampled(dataset: SegmentationDataset, presence: Presence, recipe: Recipe) -> SegmentationDataset:
    """With the images of hard and of rare classes as often as the recipe asks for."""
    factors = np.ones(len(dataset))
    if recipe.bootstrap:
        classes = hardest_classes(recipe) if recipe.bootstrap == "auto" else recipe.bootstrap
        factors = bootstrap_factors(presence, dataset.labels, classes, recipe.bootstrap_times)
    if recipe.balance:
        factors = np.maximum(factors, repeat_factors(presence, recipe.balance))
    return repeated(dataset, factors, seed=recipe.seed)


def hardest_classes(recipe: Recipe, count: int = 5) -> tuple[str, ...]:
    """The classes of lowest IoU in the last validation of the model that a recipe starts from.

    Raises:
        ValueError: if it starts from none, or from one without IoU by class.
    """
    if recipe.weights in (None, "imagenet"):
        raise ValueError("bootstrap is auto, expected weights of a run, whose hardest classes are taken")
    assert recipe.weights
    measured = {} if is_tflite(recipe.weights) else read_card(resolve(recipe.weights)).metrics
    by_class = measured.get("val", {}).get("iou")
    if not by_class:
        raise ValueError(f"bootstrap is auto, but {recipe.weights} has no IoU by class; name the classes")
    scored = {name: iou for name, iou in by_class.items() if iou is not None}
    return tuple(sorted(scored, key=scored.__getitem__)[:count])


def check_masks(dataset: SegmentationDataset, *, labelled: bool = True) -> Presence:
    """Read every mask, and the size of its image, before the first step: a bad one is found now and not after hours.

    Args:
        dataset: of the run.
        labelled: refuse a data set in which no pixel has a class.

    Returns:
        Which image holds which class, N,K.

    Raises:
        ValueError: for an id out of range (file, value, count), sizes that differ, a file that cannot be read.
    """
    presence = pixel_counts(dataset) > 0
    if labelled and not presence.any():
        raise ValueError(
            f"none of the {len(set(dataset.items))} masks has a pixel that is not ignored; there is nothing to train on"
        )
    return presence


def describe(dataset: SegmentationDataset) -> dict[str, Any]:
    """What a checkpoint keeps of its data, to tell other data from it."""
    names = hashlib.sha256("\n".join(dataset.names).encode()).hexdigest()
    return {"classes": list(dataset.labels.names), "images": len(dataset), "names": names}


def saved_state(run: Path, dataset: SegmentationDataset) -> dict[str, Any] | None:
    """The newest checkpoint, if it is of this data."""
    saved = checkpoint.load_newest(run)
    if saved is None and checkpoint.steps(run):
        raise ValueError(f"{run} has checkpoints, but none is whole; start anew with another --out")
    here = describe(dataset)
    for key, there in (saved or {}).get("data", {}).items():
        if there != here[key]:
            what = "other images" if key == "names" else f"{key} {here[key]}, expected {there}"
            raise ValueError(f"{run} was started on other data: {what}")
    return saved


def crops_of(dataset: SegmentationDataset, recipe: Recipe, model: DeepLabV3) -> Crops:
    """A data set as crops for a model, augmented as the recipe asks for."""
    augment = Augment(
        crop=recipe.crop,
        scales=recipe.scales,
        flip=recipe.flip,
        fill=Normalization(model.mean, model.std).fill,
        ignore=dataset.labels.ignore,
        photometric=recipe.photometric,
        longest_side=recipe.longest_side,
    )
    return Crops(dataset, augment, recipe.seed, recipe.class_mix)


def _loader(crops: Crops, recipe: Recipe, start: int, workers: int, here: World) -> DataLoader[Any]:
    stream = Stream(
        len(crops.dataset),
        seed=recipe.seed,
        batch=recipe.batch,
        parts=recipe.accumulate,
        start=start,
        stop=recipe.iterations,
        rank=here.rank,
        size=here.size,
    )
    return DataLoader(
        crops,
        batch_sampler=stream,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupts,
        pin_memory=here.device.type == "cuda",
        generator=torch.Generator(),  # leaves the global random state, which checkpoints hold, alone
        timeout=0,  # any other, and PyTorch looks for dead workers only when it is over, not every 5 s
    )


Part = tuple[Tensor, Tensor, list[str]]
"""Images uint8 B,3,h,w, masks uint8 B,h,w and names."""


def _collate(samples: list[tuple[Tensor, Tensor, str] | Exception]) -> Part | Exception:
    whole = [sample for sample in samples if not isinstance(sample, Exception)]
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    images, masks, names = zip(*whole, strict=True)
    return torch.stack(images), torch.stack(masks), list(names)


def _next_part(
    batches: Iterator[Part | Exception], state: State, run: Path, dataset: SegmentationDataset, here: World
) -> Part:
    try:
        part = next(batches)
    except (RuntimeError, OSError, EOFError) as error:  # what is wrong with a file is returned, not raised
        if isinstance(error, RuntimeError) and not is_dead_loader(error):
            raise
        if here.size == 1:
            state.save(run, here, describe(dataset))
        raise dead_loader(error, state.step, "--resume goes on") from error
    if isinstance(part, Exception):
        raise part
    return part


def _ignore_interrupts(_: int) -> None:
    # A signal sent to the group is the training process's to act on. SIGTERM stays deadly: it is how that one ends us.
    torch.set_num_threads(1)
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def claim(run: Path, recipe: Recipe, resume: bool, here: World) -> None:
    """Make the run's folder ours, or refuse to write over another run."""
    written = run / "recipe.yaml"
    if checkpoint.steps(run):
        if not resume:
            raise ValueError(
                f"{run} holds a run at step {checkpoint.steps(run)[-1]}; add --resume, or name another --out"
            )
        changed = differences(load_recipe(written), recipe) if written.exists() else []
        if changed:
            raise ValueError(f"{run} was started with another recipe (there, here): {'; '.join(changed)}")
    if here.first:
        run.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(written, recipe.to_yaml())


_FOLDED = (
    "Warning: the batch norm of the weights that this starts from is folded into their convolutions; trained, it "
    "scales every map anew, and much of what they know may be lost (--set batch_norm=head keeps it)\n"
)


def _of_small_crop(recipe: Recipe) -> str:
    """A warning where no atrous branch of ASPP can learn more than its centre (section 3.3, Figure 4).

    Branches that a model's weights bring have learnt it already; they warn of a crop within one output stride.
    """
    if recipe.head != "aspp" or not recipe.aspp_rates:
        return ""
    stride, (height, width) = recipe.output_stride, recipe.crop_size
    rows, columns = (grid_size(side, stride) // stride + 1 for side in (height, width))
    rate = min(Dial(stride).aspp_rates(recipe.aspp_rates))
    if max(rows, columns) > (rate if recipe.weights in (None, "imagenet") else 2):
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
    """What is about to be trained, on what, as one line; a warning before it, where there is one."""
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    going = f"going on at step {state.step}" if state.step else "starting"
    schedule = f", of a schedule of {recipe.poly_iterations}" if recipe.poly_iterations else ""
    return (
        f"{_FOLDED if loses_scale(recipe, state.model) else ''}{'' if state.step else _of_small_crop(recipe)}"
        f"{recipe.backbone}, output stride {recipe.output_stride}, {parameters / 1e6:.1f} M parameters; "
        f"{len(dataset)} images to train on, {len(held_out) if held_out else 0} to validate on, from {data}; "
        f"{going}, {recipe.iterations} steps of {recipe.batch}{schedule}; run folder {run}"
    )


def card_of(
    recipe: Recipe, state: State, dataset: SegmentationDataset, data: str | Path, found: Evaluation | None
) -> ModelCard:
    """What the weights of a run say of themselves."""
    model, labels = state.evaluated, dataset.labels
    metrics: dict[str, Any] = {}
    if found:
        scores = found.scores.as_dict()
        means = {name: scores[name] for name, _ in found.scores}
        metrics["val"] = {
            **means,
            "iou": scores["iou"],
            "output_stride": found.output_stride,
            "images": found.images,
            "step": state.step,
        }
    return ModelCard(
        arguments=model.arguments,
        names=labels.names,
        palette=labels.palette,
        mean=model.mean,
        std=model.std,
        output_stride=recipe.output_stride,
        longest_side=recipe.longest_side,
        ignore=labels.ignore,
        metrics=metrics,
        data=f"{Path(str(data)).name}, split {recipe.train_split}, {len(dataset)} images",
        recipe=asdict(recipe),
    )
