"""The training loop (section 4.1), for one process or many.

    train(load_recipe("camvid-efficientnet_lite0"), "data/camvid", Path("runs/camvid"))

Read `train` from top to bottom: it is the whole loop. Everything random is a function of seed, epoch and index or is saved,
so a run that was stopped and resumed ends with the bytes of one that never stopped.
"""

from __future__ import annotations

import signal
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ContextManager

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from atrous.data.datasets import SegmentationDataset, open_dataset
from atrous.data.image import Normalization
from atrous.data.transforms import Augment
from atrous.engine import checkpoint
from atrous.engine.average import MovingAverage
from atrous.engine.distributed import Place, Stream, World, generator, synchronise_batch_norm, world
from atrous.engine.evaluate import Evaluation, evaluate
from atrous.engine.recipe import Recipe, differences, load_recipe
from atrous.engine.report import Report
from atrous.engine.schedule import poly
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import MODEL_FILE, ModelCard, load_into, read_card, resolve, save
from atrous.ops.resize import cross_entropy_sum, label_weight

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
) -> Evaluation | None:
    """Train a model, validate and save it along the way.

    Args:
        recipe: the whole run.
        data: as for `open_dataset`.
        run: folder to write; see ARCHITECTURE's "A run folder".
        resume: go on from the newest whole checkpoint in `run`; without one, start.
        workers: processes that load data, for each training process.
        device: None for a GPU where there is one.

    Returns:
        The best validation, or None without a validation split. The weights are in ``run/best``.

    Raises:
        ValueError: if recipe and data do not go together, or `run` holds a run already and `resume` is off.
        Stopped: after SIGINT or SIGTERM, once all is saved.
        FloatingPointError: if the loss is not finite; the step is not taken.
    """
    with world(device) as here, _Signals() as signals:
        crops, held_out = _open_data(recipe, data)
        state = _State.build(recipe, crops.dataset, run, resume, here)
        report = Report(run, iterations=recipe.iterations, start=state.step, batch=recipe.batch, silent=not here.first)
        batches = iter(_loader(crops, recipe, state.step, workers, here))
        with report.running(_headline(recipe, data, run, state, crops, held_out)):
            while state.step < recipe.iterations:
                lr = recipe.lr * poly(state.step, recipe.iterations, power=recipe.power, warmup=recipe.warmup)
                parts = [next(batches) for _ in range(recipe.accumulate)]
                loss = state.take_step(parts, lr, here)
                state.step += 1
                report.step(state.step, loss, lr)
                if held_out and (state.step % recipe.val_every == 0 or state.step == recipe.iterations):
                    found = evaluate(
                        state.evaluated, held_out, output_stride=recipe.val_output_stride, world=here
                    )
                    better = state.note(found, run, _card(recipe, state, crops.dataset, data, found), here)
                    report.validated(state.step, found, better)
                    report.picture(state.step, state.evaluated, held_out)
                stop = here.any(signals.received)
                if stop or state.step % recipe.save_every == 0 or state.step == recipe.iterations:
                    state.save(run, here)
                if stop:
                    raise Stopped(f"stopped at step {state.step} and saved; the same command with --resume goes on", 128 + stop)
            if state.best is None:
                state.note(None, run, _card(recipe, state, crops.dataset, data, None), here)
        return state.best_evaluation


class Crops(Dataset[tuple[Tensor, Tensor, str]]):
    """Augmented crops, each a function of seed, epoch and index, whatever process makes it."""

    def __init__(self, dataset: SegmentationDataset, augment: Augment, seed: int) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor, str]:
        """Image uint8 3,h,w, mask uint8 h,w and name of one sample in one epoch."""
        epoch, index = place
        sample = self.dataset[index]
        image, mask = self.augment(sample.image, sample.mask, generator(self.seed, epoch, index))
        return image, mask, sample.name


class Objective(nn.Module):
    """The loss as a module, so that data-parallel training wraps all of it: uint8 images and labels to a scalar."""

    def __init__(self, model: DeepLabV3, recipe: Recipe, ignore: int) -> None:
        super().__init__()
        self.model = model
        self.normalise = Normalization(model.mean, model.std)
        self.amp = PRECISIONS.get(recipe.amp)
        self.setting: dict[str, Any] = {"upsampled": recipe.upsample_logits, "ignore": ignore}
        weights = torch.tensor(recipe.class_weights) if recipe.class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the valid pixels of B,3,H,W uint8 images with B,H,W uint8 labels."""
        model = self.model
        inputs = self.normalise(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self.amp, enabled=self.amp is not None):
            logits = model.grid_logits(inputs)
        return cross_entropy_sum(
            logits, labels, model.output_stride, class_weights=self.class_weights, **self.setting
        )

    def weight(self, labels: Tensor) -> Tensor:
        """What the sum is to be divided by."""
        return label_weight(labels, self.model.output_stride, class_weights=self.class_weights, **self.setting)


@dataclass
class _State:
    """All that changes during a run, and so all that a checkpoint holds."""

    recipe: Recipe
    model: DeepLabV3
    objective: Objective
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    step: int = 0
    best: float | None = None
    best_evaluation: Evaluation | None = None

    @classmethod
    def build(cls, recipe: Recipe, dataset: SegmentationDataset, run: Path, resume: bool, here: World) -> _State:
        saved = checkpoint.load_newest(run) if resume else None
        _claim(run, recipe, resume, here)
        torch.manual_seed(recipe.seed)
        model: nn.Module = build_model(recipe, len(dataset.labels), blank=saved is not None)
        model = model.to(here.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = MovingAverage(model, recipe.ema) if recipe.ema else None
        if here.size > 1:
            model = synchronise_batch_norm(model, here.device)
        assert isinstance(model, DeepLabV3)
        model.train()
        objective = Objective(model, recipe, dataset.labels.ignore).to(here.device)
        parallel = DistributedDataParallel(objective, broadcast_buffers=False) if here.size > 1 else objective
        optimizer = build_optimizer(recipe, model)
        scaler = torch.amp.GradScaler(here.device.type, enabled=recipe.amp == "fp16")
        state = cls(recipe, model, objective, parallel, optimizer, scaler, average)
        if saved:
            state.restore(saved)
        return state

    @property
    def evaluated(self) -> DeepLabV3:
        """The model that is validated and kept: the average, where there is one."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.model, DeepLabV3)
        return self.average.model

    def take_step(self, parts: list[tuple[Tensor, Tensor, list[str]]], lr: float, here: World) -> float:
        """One step of the optimizer over the batch of all processes; its mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        weight = here.sum(sum((self.objective.weight(labels) for _, labels, _ in parts), _zero()).to(here.device))
        total = torch.zeros((), dtype=torch.float64, device=here.device)
        for i, (images, labels, _) in enumerate(parts):
            with self._last_part_syncs(i == len(parts) - 1):
                images, labels = images.to(here.device, non_blocking=True), labels.to(here.device, non_blocking=True)
                loss = self.parallel(images, labels)
                # Data-parallel training takes the mean of the processes' gradients; the sum is wanted.
                self.scaler.scale(loss * (here.size / weight.clamp(min=1)).float()).backward()
            total += loss.detach().double()
        mean = float(here.sum(total) / weight.clamp(min=1))
        if mean != mean or mean in (float("inf"), float("-inf")):
            names = ", ".join(name for *_, part in parts for name in part)
            self.optimizer.zero_grad()
            raise FloatingPointError(f"the loss is {mean} at step {self.step}; the step is not taken. The batch: {names}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.model, self.step + 1)
        return mean

    def _last_part_syncs(self, last: bool) -> ContextManager[Any]:
        if isinstance(self.parallel, DistributedDataParallel) and not last:
            return self.parallel.no_sync()
        return nullcontext()

    def note(self, found: Evaluation | None, run: Path, card: ModelCard, here: World) -> bool:
        """Keep the model if it is the best so far; whether it is."""
        score = found.scores.miou if found else 0.0
        if self.best is not None and not score > self.best:
            return False
        self.best, self.best_evaluation = score, found
        if here.first:
            folder = run / "best"
            folder.mkdir(parents=True, exist_ok=True)
            save(self.evaluated, folder / MODEL_FILE, card)
            checkpoint.write_text(folder / "model.json", card.to_json() + "\n")
        return True

    def save(self, run: Path, here: World) -> None:
        """Write a checkpoint."""
        if here.first:
            checkpoint.save(run, self.step, self._to_save())
        here.wait()

    def _to_save(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take everything from a checkpoint."""
        self.step, self.best = saved["step"], saved["best"]
        self.model.load_state_dict(saved["model"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        torch.set_rng_state(saved["random"])
        if torch.cuda.is_available() and len(saved["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(saved["random_cuda"])


def build_model(recipe: Recipe, num_classes: int, *, blank: bool = False) -> DeepLabV3:
    """The recipe's model, with the weights that it starts from.

    Args:
        recipe: of the run.
        num_classes: of the data.
        blank: leave the weights out, for they are about to be loaded from a checkpoint.
    """
    source = recipe.weights if recipe.weights not in (None, "imagenet") else None
    stride_in = recipe.stride_in or ("first" if recipe.weights == "imagenet" else None)
    if source and not stride_in:
        stride_in = read_card(resolve(source)).arguments.get("stride_in")
    model = DeepLabV3(
        recipe.backbone,
        num_classes,
        head=recipe.head,
        last_block=recipe.last_block,
        multi_grid=recipe.multi_grid,
        aspp_rates=recipe.aspp_rates,
        aspp_pointwise=recipe.aspp_pointwise,
        image_pooling=recipe.image_pooling,
        output_stride=recipe.output_stride,
        weights="imagenet" if recipe.weights == "imagenet" and not blank else None,
        stride_in=stride_in,
    )
    if source and not blank:
        load_into(model, source, reset_head=recipe.reset_head)
    model.set_batch_norm_decay(recipe.batch_norm_decay)
    if recipe.batch_norm != "train":
        model.freeze_batch_norm(affine=recipe.batch_norm == "freeze")
    return model


def build_optimizer(recipe: Recipe, model: DeepLabV3) -> torch.optim.Optimizer:
    """SGD with momentum (section 4.1) or AdamW, with the new layers' larger rate where the recipe has one."""
    new = {id(parameter) for parameter in model.head_parameters()}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in new, parameter.ndim > 1 or recipe.decay_all), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "factor": recipe.head_lr_factor if in_head else 1.0,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (in_head, decayed), parameters in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(settings, lr=recipe.lr, fused=True)
    return torch.optim.SGD(settings, lr=recipe.lr, momentum=recipe.momentum, fused=True)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def _open_data(recipe: Recipe, data: str | Path) -> tuple[Crops, SegmentationDataset | None]:
    dataset = open_dataset(data, recipe.train_split)
    classes = len(dataset.labels)
    if recipe.class_weights and len(recipe.class_weights) != classes:
        raise ValueError(f"class_weights has {len(recipe.class_weights)} values, the data {classes} classes")
    augment = Augment(
        crop=recipe.crop, scales=recipe.scales, flip=recipe.flip, photometric=recipe.photometric, ignore=dataset.labels.ignore
    )
    held_out = open_dataset(data, recipe.val_split) if recipe.val_split else None
    if held_out and held_out.labels != dataset.labels:
        raise ValueError(f"the splits {recipe.train_split} and {recipe.val_split} of {data} have different classes")
    return Crops(dataset, augment, recipe.seed), held_out


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


def _collate(samples: list[tuple[Tensor, Tensor, str]]) -> tuple[Tensor, Tensor, list[str]]:
    images, masks, names = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(masks), list(names)


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; the training process decides what to do.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _claim(run: Path, recipe: Recipe, resume: bool, here: World) -> None:
    """Make the run's folder ours, or refuse to write over another run."""
    written = run / "recipe.yaml"
    if checkpoint.steps(run):
        if not resume:
            raise ValueError(f"{run} holds a run at step {checkpoint.steps(run)[-1]}; add --resume, or name another --out")
        changed = differences(load_recipe(written), recipe) if written.exists() else []
        if changed:
            raise ValueError(f"{run} was started with another recipe (there, here): {'; '.join(changed)}")
    if here.first:
        run.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(written, recipe.to_yaml())


def _headline(
    recipe: Recipe, data: str | Path, run: Path, state: _State, crops: Crops, held_out: SegmentationDataset | None
) -> str:
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    going = f"going on at step {state.step}" if state.step else "starting"
    return (
        f"{recipe.backbone}, output stride {recipe.output_stride}, {parameters / 1e6:.1f} M parameters; "
        f"{len(crops.dataset)} images to train on, {len(held_out) if held_out else 0} to validate on, from {data}; "
        f"{going}, {recipe.iterations} steps of {recipe.batch}; run folder {run}"
    )


def _card(
    recipe: Recipe, state: _State, dataset: SegmentationDataset, data: str | Path, found: Evaluation | None
) -> ModelCard:
    model, labels = state.evaluated, dataset.labels
    metrics = {} if found is None else {
        "val": {**dict(found.scores), "output_stride": found.output_stride, "images": found.images, "step": state.step}
    }  # fmt: skip
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
        self._before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not in the main thread: whoever runs us handles signals
            pass
        return self

    def _note(self, number: int, _: Any) -> None:
        self.received = number
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
