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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atrous.data.datasets import Item, SegmentationDataset, open_dataset
from atrous.data.image import Normalization, read_size
from atrous.data.transforms import Augment
from atrous.engine import checkpoint
from atrous.engine.distributed import Place, Stream, World, generator, world
from atrous.engine.evaluate import Evaluation, evaluate
from atrous.engine.recipe import Recipe, differences, load_recipe
from atrous.engine.report import Report
from atrous.engine.schedule import poly
from atrous.engine.state import State
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import ModelCard
from atrous.ops.gemm import default_form
from atrous.ops.stride import check_reachable


class Stopped(Exception):
    """A run was asked to stop by a signal, and has saved.

    Attributes:
        status: of the process: 128 plus the signal's number.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


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
        ValueError: if recipe and data do not go together, or `run` holds a run already and `resume` is off.
        Stopped: after SIGINT or SIGTERM, once all is saved.
        FloatingPointError: if the loss is not finite; the step is not taken.
    """
    with world(device) as here, _Signals() as signals, default_form("model"):
        dataset, held_out = _open_data(recipe, data)
        check_masks(dataset)
        _claim(run, recipe, resume, here)
        saved = _saved(run, dataset) if resume else None
        state = State.build(recipe, len(dataset.labels), dataset.labels.ignore, here, saved)
        if held_out:
            check_masks(held_out, labelled=False)
            check_reachable(recipe.val_output_stride or recipe.output_stride, state.model.backbone.reachable, "val")
        crops = Crops(dataset, _augment(recipe, state.model, dataset.labels.ignore), recipe.seed)
        report = Report(run, iterations=recipe.iterations, start=state.step, batch=recipe.batch, silent=not here.first)
        batches = iter(_loader(crops, recipe, state.step, workers, here))
        with report.running(_headline(recipe, data, run, state, dataset, held_out)):
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
                        state.keep(run, _card(recipe, state, dataset, data, found), here)
                    report.validated(state.step, found, better)
                    report.picture(state.step, state.evaluated, held_out)
                    continue
                lr = recipe.lr * poly(state.step, recipe.iterations, power=recipe.power, warmup=recipe.warmup)
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
                state.keep(run, _card(recipe, state, dataset, data, None), here)
        return state.best


class Crops(Dataset[tuple[Tensor, Tensor, str] | Exception]):
    """Augmented crops, each a function of seed, epoch and index, whatever process makes it."""

    def __init__(self, dataset: SegmentationDataset, augment: Augment, seed: int) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor, str] | Exception:
        """Image uint8 3,h,w, mask uint8 h,w and name of one sample in one epoch; or what is wrong with its files."""
        epoch, index = place
        try:
            sample = self.dataset[index]
        except (ValueError, OSError) as error:  # raised in a worker it would come wrapped in a traceback
            return error
        image, mask = self.augment(sample.image, sample.mask, generator(self.seed, epoch, index))
        return image, mask, sample.name


def _open_data(recipe: Recipe, data: str | Path) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    dataset = open_dataset(data, recipe.train_split)
    classes = len(dataset.labels)
    if recipe.class_weights and len(recipe.class_weights) != classes:
        raise ValueError(f"class_weights has {len(recipe.class_weights)} values, the data {classes} classes")
    held_out = open_dataset(data, recipe.val_split) if recipe.val_split else None
    if held_out and held_out.labels != dataset.labels:
        raise ValueError(f"the splits {recipe.train_split} and {recipe.val_split} of {data} have different classes")
    return dataset, held_out


def check_masks(dataset: SegmentationDataset, *, labelled: bool = True) -> None:
    """Read every mask, and the size of its image, before the first step: a bad one is found now and not after hours.

    Args:
        dataset: of the run.
        labelled: refuse a data set in which no pixel has a class.

    Raises:
        ValueError: for an id out of range (file, value, count), sizes that differ, a file that cannot be read.
    """

    def has_class(item: Item) -> bool:
        ids = dataset.read_ids(item, read_size(item.image))
        return bool((ids != dataset.labels.ignore).any())

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(has_class, dataset.items))
    if labelled and not any(found):
        raise ValueError(
            f"none of the {len(found)} masks has a pixel that is not ignored; there is nothing to train on"
        )


def describe(dataset: SegmentationDataset) -> dict[str, Any]:
    """What a checkpoint keeps of its data, to tell other data from it."""
    names = hashlib.sha256("\n".join(dataset.names).encode()).hexdigest()
    return {"classes": list(dataset.labels.names), "images": len(dataset), "names": names}


def _saved(run: Path, dataset: SegmentationDataset) -> dict[str, Any] | None:
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


def _augment(recipe: Recipe, model: DeepLabV3, ignore: int) -> Augment:
    return Augment(
        crop=recipe.crop,
        scales=recipe.scales,
        flip=recipe.flip,
        fill=Normalization(model.mean, model.std).fill,
        ignore=ignore,
        photometric=recipe.photometric,
    )


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
        timeout=300 if workers else 0,
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
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        if here.size == 1:
            state.save(run, here, describe(dataset))
        raise Stopped(f"a process that loads data died at step {state.step}: {error}; --resume goes on", 1) from error
    if isinstance(part, Exception):
        raise part
    return part


def _ignore_interrupts(_: int) -> None:
    # A signal sent to the group is the training process's to act on. SIGTERM stays deadly: it is how that one ends us.
    torch.set_num_threads(1)
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _claim(run: Path, recipe: Recipe, resume: bool, here: World) -> None:
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


def _headline(
    recipe: Recipe,
    data: str | Path,
    run: Path,
    state: State,
    dataset: SegmentationDataset,
    held_out: SegmentationDataset | None,
) -> str:
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    going = f"going on at step {state.step}" if state.step else "starting"
    return (
        f"{recipe.backbone}, output stride {recipe.output_stride}, {parameters / 1e6:.1f} M parameters; "
        f"{len(dataset)} images to train on, {len(held_out) if held_out else 0} to validate on, from {data}; "
        f"{going}, {recipe.iterations} steps of {recipe.batch}; run folder {run}"
    )


def _card(
    recipe: Recipe, state: State, dataset: SegmentationDataset, data: str | Path, found: Evaluation | None
) -> ModelCard:
    model, labels = state.evaluated, dataset.labels
    metrics: dict[str, Any] = {}
    if found:
        scores = found.scores.as_dict()
        means = {name: scores[name] for name, _ in found.scores}
        metrics["val"] = {**means, "output_stride": found.output_stride, "images": found.images, "step": state.step}
    return ModelCard(
        arguments=model.arguments,
        names=labels.names,
        palette=labels.palette,
        mean=model.mean,
        std=model.std,
        output_stride=recipe.output_stride,
        ignore=labels.ignore,
        metrics=metrics,
        data=f"{Path(str(data)).name}, split {recipe.train_split}, {len(dataset)} images",
        recipe=asdict(recipe),
    )


class _Signals:
    """Notes SIGINT and SIGTERM, so that the loop can save and leave; a second one ends the process at once."""

    received = 0

    def __enter__(self) -> _Signals:
        self._before: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not in the main thread: whoever runs us handles signals
            pass
        return self

    def leave(self, step: int, received: int = 0) -> None:
        """Raise `Stopped` if a signal has come, here or (`received`) at another process; all has been saved before."""
        received = received or self.received
        if received:
            raise Stopped(f"stopped at step {step} and saved; the same command with --resume goes on", 128 + received)

    def _note(self, number: int, _: Any) -> None:
        self.received = number
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
