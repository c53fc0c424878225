"""Training data: checked splits, sampling, augmented crops in batches.

Everything random is a function of seed, epoch and index, in whichever process it is drawn.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atrous.data.datasets.dataset import Sample, SegmentationDataset, splits
from atrous.data.datasets.mask_values import Drawn, class_counts, class_problems
from atrous.data.datasets.split import divide
from atrous.data.sampling import Presence, bootstrap_factors, id_histograms, open_splits, repeat_factors, repeated
from atrous.data.transforms import Augment, class_mix
from atrous.data.value_range import decided
from atrous.evaluation.distributed import DistributedContext, EpochIndex, ResumableBatchSampler, generator
from atrous.models.classifier import is_classifier
from atrous.models.deeplab import DeepLabV3
from atrous.models.tflite import is_tflite
from atrous.models.weights import read_card, resolve
from atrous.ops.normalization import Normalization
from atrous.platforms import leave_process_group, place_sockets
from atrous.training.config import DataConfig, LossConfig, OptimConfig
from atrous.training.interrupts import Signals, Stopped, dead_loader, is_dead_loader, is_out_of_memory

_STALLED, _PATIENCE = 5.0, 3
"""Among several ranks, seconds after which a loader says that a batch has not come, and how often after a signal."""


class Crops(Dataset[tuple[Tensor, Tensor, str] | Exception]):
    """Augmented crops, each a function of seed, epoch and index alone."""

    def __init__(self, dataset: SegmentationDataset, augment: Augment, seed: int, class_mix: float = 0.0) -> None:
        self.dataset, self.augment, self.seed, self.class_mix = dataset, augment, seed, class_mix

    def __getitem__(self, place: EpochIndex) -> tuple[Tensor, Tensor, str] | Exception:
        """Image uint8 3,h,w, mask uint8 h,w and name of one sample in one epoch; or the error of its files."""
        epoch, index = place
        try:
            sample = self.dataset[index]
            image, mask = self._drawn(sample, generator(self.seed, epoch, index))
        except (ValueError, OSError, MemoryError) as error:  # raised in a worker, it would arrive with a traceback
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


def open_data(
    data: str | Path, config: DataConfig, loss: LossConfig
) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """The datasets to train on and to validate on; None for no validation.

    Raises:
        ValueError: if a split is not there, or the classes do not go with the recipe or with each other.
    """
    dataset, said = decided(open_splits(data, config.train_split, config.options))
    if said:
        warnings.warn(f"{data}: {said}", stacklevel=2)
    classes = len(dataset.labels)
    if loss.class_weights and len(loss.class_weights) != classes:
        raise ValueError(f"class_weights has {len(loss.class_weights)} values, the data {classes} classes")
    if loss.teacher and (taught := read_card(resolve(loss.teacher)).names) != dataset.labels.names:
        raise ValueError(f"teacher {loss.teacher} knows the classes {', '.join(taught)}; the data has others")
    held_out = open_splits(data, config.val_split, config.options) if config.val_split else None
    if config.val_share and not config.val_split:
        dataset, held_out = divided(dataset, config.val_share)
    if held_out and held_out.labels != dataset.labels:
        raise ValueError(f"the splits {config.train_split} and {config.val_split} of {data} have different classes")
    return dataset, held_out.with_rule(dataset.rule) if held_out else None


def own_split(data: str | Path, config: DataConfig) -> bool:
    """Whether the data comes without the splits that a run has."""
    return not config.val_split or config.val_split not in splits(data)


def divided(dataset: SegmentationDataset, share: float) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The images to train on, and a share of them to validate on: the same whenever it is called.

    Args:
        dataset: in which an image may occur several times; all of them go to the same side.
        share: to validate on, 0 to 1.

    Raises:
        ValueError: if there are fewer than two images, or a mask cannot be read.
    """
    once = dataset.with_items(list(dict.fromkeys(dataset.items)))
    presence = id_histograms(once)[:, : len(dataset.labels)] > 0
    _, chosen = divide(once.names, [np.flatnonzero(row).tolist() for row in presence], share)
    val = {once.items[index] for index in chosen}
    return (
        dataset.with_items([item for item in dataset.items if item not in val]),
        once.with_items([item for item in once.items if item in val]),
    )


def sampled(
    dataset: SegmentationDataset, presence: Presence, config: DataConfig, weights: str | None, seed: int
) -> SegmentationDataset:
    """With the images of hard and of rare classes repeated."""
    factors = np.ones(len(dataset))
    if config.bootstrap:
        classes = hardest_classes(weights) if config.bootstrap == "auto" else config.bootstrap
        factors = bootstrap_factors(presence, dataset.labels, classes, config.bootstrap_times)
    if config.repeat_factor_threshold:
        factors = np.maximum(factors, repeat_factors(presence, config.repeat_factor_threshold))
    return repeated(dataset, factors, seed=seed)


def hardest_classes(weights: str | None, count: int = 5) -> tuple[str, ...]:
    """The classes of lowest IoU in the last validation of the model that a run starts from.

    Raises:
        ValueError: if it starts from none, or from one without IoU by class.
    """
    if weights in (None, "imagenet") or is_classifier(weights):
        raise ValueError("bootstrap is auto, expected weights of a run, whose hardest classes are taken")
    assert weights
    measured = {} if is_tflite(weights) else read_card(resolve(weights)).metrics
    by_class = measured.get("val", {}).get("iou")
    if not by_class:
        raise ValueError(f"bootstrap is auto, but {weights} has no IoU by class; name the classes")
    scored = {name: iou for name, iou in by_class.items() if iou is not None}
    return tuple(sorted(scored, key=scored.__getitem__)[:count])


def check_masks(
    dataset: SegmentationDataset,
    *,
    split: str = "",
    to_train: bool = True,
    allow_empty_classes: bool = False,
    drawn: list[Drawn] | None = None,
) -> Presence:
    """Read every mask, and the size of its image, so that a bad one is found before the first step.

    Args:
        dataset: of the run.
        split: its name, for messages.
        to_train: refuse a dataset that cannot be learnt from: one class alone, a class without a pixel, ids 0 and 255
            alone.
        allow_empty_classes: do not.
        drawn: as for `id_histograms`.

    Returns:
        Which image holds which class, N,K.

    Raises:
        ValueError: for an id out of range (file, value, count), sizes that differ, a file that cannot be read.
    """
    histograms = id_histograms(dataset, drawn)
    problems = class_problems(class_counts(histograms, dataset.labels), dataset.labels)
    presence: Presence = histograms[:, : len(dataset.labels)] > 0
    if to_train and problems and not (allow_empty_classes and presence.any()):
        raise ValueError("; ".join(f"{split}: {line}" if split else line for line in problems))
    return presence


def crops_of(dataset: SegmentationDataset, config: DataConfig, model: DeepLabV3, seed: int) -> Crops:
    """Augmented crops of a dataset, for a model."""
    augment = Augment(
        crop=config.crop, scales=config.scales, flip=config.flip, fill=Normalization(model.mean, model.std).fill,
        ignore=dataset.labels.ignore, color_jitter=config.color_jitter, longest_side=config.longest_side,
    )  # fmt: skip
    return Crops(dataset, augment, seed, config.class_mix)


def order_of(crops: Crops, config: OptimConfig, steps: range, ctx: DistributedContext) -> ResumableBatchSampler:
    """Which samples are in each part of each step."""
    return ResumableBatchSampler(
        len(crops.dataset), steps, seed=crops.seed, batch_size=config.batch_size, parts=config.grad_accum_steps,
        rank=ctx.rank, size=ctx.size,
    )  # fmt: skip


def loader(crops: Crops, config: OptimConfig, steps: range, workers: int, ctx: DistributedContext) -> DataLoader[Any]:
    """This process's share of the crops, part by part, for some steps."""
    stream = order_of(crops, config, steps, ctx)
    if workers:
        place_sockets()
    return DataLoader(
        crops,
        batch_sampler=stream,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_init_worker,
        pin_memory=ctx.device.type == "cuda",
        generator=torch.Generator(),  # the global random state, which checkpoints hold, stays as it is
        timeout=_STALLED if workers and ctx.size > 1 else 0,
    )


Part = tuple[Tensor, Tensor, list[str]]
"""Images uint8 B,3,h,w, masks uint8 B,h,w and names."""


def collate(samples: list[tuple[Tensor, Tensor, str] | Exception]) -> Part | Exception:
    """Samples as one part of a batch; or the first error among them."""
    crops = [sample for sample in samples if not isinstance(sample, Exception)]
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    images, masks, names = zip(*crops, strict=True)
    return torch.stack(images), torch.stack(masks), list(names)


def next_part(
    batches: Iterator[Part | Exception], step: int, signals: Signals, alone: bool, save: Callable[[], None]
) -> Part:
    """The next part of a batch; a signal does not wait for a loader that stalls.

    Raises:
        Exception: what is wrong with a file.
        Stopped: for a signal, or if a worker has died; all is saved where this process is alone.
    """
    left = _PATIENCE
    while True:
        try:
            with signals.interrupting(alone, step, save):
                part = next(batches)
        except Stopped:
            _end_workers(batches)
            raise
        except (RuntimeError, OSError, EOFError) as error:  # those of a file are returned, not raised
            if "DataLoader timed out" in str(error):
                left -= bool(signals.received)
                if left:
                    continue
                _end_workers(batches)
                what = "--resume goes on from the newest checkpoint"
                raise Stopped(f"stopped at step {step}, waiting for data; {what}", 128 + signals.received) from error
            if isinstance(error, RuntimeError) and not is_dead_loader(error):
                raise
            if alone:
                save()
            raise dead_loader(error, step, "--resume goes on") from error
        if isinstance(part, Exception):
            raise part
        return part


def _end_workers(batches: Iterator[Any]) -> None:
    """Kill the workers of a loader: the end of the process waits for them, and a stalled one never ends by itself."""
    workers = getattr(batches, "_workers", ())
    child_ended = getattr(signal, "SIGCHLD", None)
    # PyTorch's handler would raise an error for each of them, wherever this process is.
    before = signal.signal(child_ended, signal.SIG_DFL) if workers and child_ended else None
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(5)
    if child_ended and before:
        signal.signal(child_ended, before)


def _init_worker(_: int) -> None:
    # The training process acts on a signal to the group. SIGTERM still ends a worker: that is how it is stopped.
    torch.set_num_threads(1)
    # multiprocessing's thread here would print a traceback where the training process stops in the middle of a batch.
    sys.excepthook = lambda *_: None
    leave_process_group()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
