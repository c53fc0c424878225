"""The state of a run: model, optimizer, moving average; how a step is taken, saved and restored."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from atrous.atomic import write_text
from atrous.evaluation.distributed import DistributedContext, synchronise_batch_norm
from atrous.messages import listed
from atrous.models.activation_checkpointing import set_checkpointing
from atrous.models.batch_norm import batch_norms_of
from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import compiled
from atrous.models.initialize import initialize
from atrous.models.tflite import is_tflite, layout_of_graph
from atrous.models.weights import MODEL_FILE, ModelCard, layout_of, read_card, resolve, save
from atrous.training import checkpoint
from atrous.training.config import ModelConfig, OptimConfig, Recipe
from atrous.training.ema import ExponentialMovingAverage
from atrous.training.loss import Objective

_LEAST_SCALE = 2.0**-14
"""Of the loss in fp16: after 30 steps in a row without a finite gradient, none is to be expected."""


@dataclass
class State:
    """All that changes during a run; a checkpoint holds the same."""

    recipe: Recipe
    model: DeepLabV3
    objective: Objective
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: ExponentialMovingAverage | None
    step: int = 0
    best: float | None = None
    validated: int = 0

    @classmethod
    def build(
        cls, recipe: Recipe, num_classes: int, ignore: int, ctx: DistributedContext, saved: dict[str, Any] | None = None
    ) -> State:
        """The state at the start of a run, or as it was `saved`."""
        torch.manual_seed(recipe.run.seed)
        layout = layout_of({"backbone": recipe.model.backbone, **saved}) if saved else None
        built = build_model(recipe.model, num_classes, blank=saved is not None, layout=layout)
        built.longest_side = recipe.data.longest_side
        if saved and "normalization" in saved:
            # Not the backbone's own, where the weights that the run began with had another.
            built.backbone.mean, built.backbone.std = saved["normalization"]
        model: nn.Module = built.to(ctx.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = ExponentialMovingAverage(model, recipe.optim.ema_decay) if recipe.optim.ema_decay else None
        if ctx.size > 1:
            model = synchronise_batch_norm(model, ctx.device)
        assert isinstance(model, DeepLabV3)
        model.train()
        objective = Objective(model, recipe.loss, recipe.optim.amp, ignore).to(ctx.device)
        if recipe.model.compile:
            objective.logits = compiled(model.low_resolution_logits, True)
        parallel = _data_parallel(objective) if ctx.size > 1 else objective
        optimizer = build_optimizer(recipe.optim, model)
        scaler = torch.amp.GradScaler(ctx.device.type, enabled=recipe.optim.amp == "fp16")
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

    def take_step(self, parts: list[tuple[Tensor, Tensor, list[str]]], lr: float, ctx: DistributedContext) -> float:
        """One step of the optimizer over the batch of all processes; its mean loss.

        Raises:
            FloatingPointError: if loss or gradient are not finite; nothing has changed but batch norm's statistics.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        parts = [
            (images.to(ctx.device, non_blocking=True), labels.to(ctx.device, non_blocking=True), names)
            for images, labels, names in parts
        ]
        weight = ctx.sum(torch.stack([self.objective.weight(labels) for _, labels, _ in parts]).sum())
        weight = torch.where(weight > 0, weight, 1.0)  # without a valid pixel in the whole batch the sum is 0 as well
        losses = []
        for i, (images, labels, _) in enumerate(parts):
            with self._last_part_syncs(i == len(parts) - 1):
                loss = self.parallel(images, labels)
                # Data-parallel training takes the mean of the processes' gradients; the sum is wanted.
                self.scaler.scale(loss * (ctx.size / weight).float()).backward()
            losses.append(loss.detach().to(weight.dtype))
        mean = float(ctx.sum(torch.stack(losses).sum()) / weight)
        if not math.isfinite(mean):
            culprits = [names for loss, (*_, names) in zip(losses, parts, strict=True) if not loss.isfinite()]
            self._refuse(f"the loss is {mean}", culprits, ctx)
        if why := self._bad_gradient():
            self._refuse(why, [names for *_, names in parts], ctx)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.model, self.step + 1)
        return mean

    def _bad_gradient(self) -> str:
        """Why the step cannot be taken, or an empty string."""
        if self.scaler.is_enabled():  # it skips such a step, and scales the next loss by less
            scale = self.scaler.get_scale()
            return f"no gradient was finite at any scale of the loss down to {scale:g}" if scale < _LEAST_SCALE else ""
        named = {key: p.grad for key, p in self.model.named_parameters() if p.grad is not None}
        bad = _not_finite(named)
        return f"the loss is finite, but not the gradient of {listed(bad)}" if bad else ""

    def _refuse(self, why: str, culprits: list[list[str]], ctx: DistributedContext) -> NoReturn:
        self.optimizer.zero_grad()
        names = ", ".join(ctx.gather([name for part in culprits for name in part]))
        raise FloatingPointError(f"{why} at step {self.step}; the step is not taken. The batch: {names}")

    def _last_part_syncs(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self.parallel, DistributedDataParallel) and not last:
            return self.parallel.no_sync()
        return nullcontext()

    def keep(self, run: Path, card: ModelCard, ctx: DistributedContext) -> None:
        """Write the model's weights, for use, to ``run/best``."""
        if ctx.first:
            folder = run / "best"
            folder.mkdir(parents=True, exist_ok=True)
            save(self.evaluated, folder / MODEL_FILE, card)
            write_text(folder / "model.json", card.to_json() + "\n")

    def must_validate(self, held_out: object) -> bool:
        """Whether there is something to validate on, this step asks for it, and it has not been done."""
        asked = self.step % self.recipe.run.val_every == 0 or self.step == self.recipe.schedule.iterations
        return bool(held_out) and asked and self.step > 0 and self.validated != self.step

    def take_best(self, run: Path, held_out: object) -> None:
        """Take the score of ``run/best`` after a resume: a checkpoint is older than the validation of its step.

        Where that step is about to be validated, only the scores of those before count; those of later ones, which a
        run leaves behind whose newest checkpoint is not whole, never do.
        """
        try:
            metrics = read_card(run / "best" / MODEL_FILE).metrics["val"]
            score, step = metrics["miou"], metrics["step"]
        except (ValueError, LookupError, TypeError):  # there is none, or it cannot be used
            return
        if isinstance(score, float) and step <= self.step - self.must_validate(held_out) and self._is_better(score):
            self.best = score

    def note(self, score: float) -> bool:
        """Note a validation; whether it is the best so far."""
        self.validated = self.step
        better = self._is_better(score)
        self.best = score if better else self.best
        return better

    def _is_better(self, score: float) -> bool:
        """Anything is better than none, and than no number."""
        return self.best is None or self.best != self.best or score > self.best

    def save(self, run: Path, ctx: DistributedContext, data: dict[str, Any]) -> None:
        """Write a checkpoint, with a description of the data that the run is on.

        Raises:
            FloatingPointError: if anything that it would hold is not finite; the one before stays the newest.
        """
        self.check_finite()
        if ctx.first:
            checkpoint.save(run, self.step, {**self.to_save(), "data": data})
        ctx.wait()

    def check_finite(self) -> None:
        """Raise FloatingPointError if anything that a checkpoint would hold is not finite."""
        held = {**self.model.state_dict()}
        if self.average:
            held |= {f"average.{key}": value for key, value in self.average.model.state_dict().items()}
        for entry, moments in self.optimizer.state_dict()["state"].items():
            held |= {f"optimizer.{entry}.{key}": value for key, value in moments.items() if torch.is_tensor(value)}
        if bad := _not_finite(held):
            raise FloatingPointError(
                f"after step {self.step} there is NaN or infinity in {listed(bad)}; "
                "nothing is saved, and the checkpoint before is as it was"
            )

    def to_save(self) -> dict[str, Any]:
        """What a checkpoint holds, and `restore` takes."""
        return {
            "step": self.step,
            **layout_of(self.model.arguments),
            "normalization": (self.model.mean, self.model.std),
            "best": self.best,
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take everything from a checkpoint.

        Raises:
            ValueError: if it is not of this recipe's model and optimizer.
        """
        try:
            self.step, self.best = saved["step"], saved["best"]
            self.model.load_state_dict(saved["model"])
            if self.average:
                self.average.model.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            torch.set_rng_state(saved["random"])
            if torch.cuda.is_available() and len(saved["random_cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(saved["random_cuda"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"the checkpoint does not go with this recipe and this version: {what}") from error


def build_model(
    config: ModelConfig, num_classes: int, *, blank: bool = False, layout: dict[str, Any] | None = None
) -> DeepLabV3:
    """The network, with the weights that it starts from.

    Args:
        config: of the network.
        num_classes: of the data.
        blank: leave the weights out, for they are about to be loaded from a checkpoint.
        layout: where that checkpoint has its strides and rates (`layout_of`), so that the weights it started from need
            not be there any more.
    """
    source = config.weights if config.from_model else None
    if layout is None and source and is_tflite(source):
        layout = layout_of_graph(source)
    elif layout is None and source and not config.stride_in:
        layout = layout_of(read_card(resolve(source)).arguments)
    classifies = config.weights is not None and not config.from_model  # whose stride sits in the first unit
    layout = {"stride_in": config.stride_in or ("first" if classifies else None), **(layout or {})}
    model = DeepLabV3(
        config.backbone, num_classes, head=config.head, last_block=config.last_block, multi_grid=config.multi_grid,
        aspp_rates=config.aspp_rates, aspp_pointwise=config.aspp_pointwise, image_pooling=config.image_pooling,
        output_stride=config.output_stride,
        weights="imagenet" if config.weights == "imagenet" and not blank else None, **layout,
    )  # fmt: skip
    if config.weights not in (None, "imagenet") and not blank:
        initialize(model, config.weights, reset_head=config.reset_head, classes_from=config.classes_from)
    model.set_batch_norm_decay(config.batch_norm_decay)
    set_checkpointing(model.backbone, config.activation_checkpointing)
    if config.batch_norm != "train":
        model.freeze_batch_norm(affine=config.batch_norm == "freeze", head=config.batch_norm != "head")
    return model


def loses_scale(config: ModelConfig, model: DeepLabV3) -> bool:
    """Whether training the backbone's batch norm takes from weights the scale of their maps.

    Where it has been folded away, its statistics are 0 and 1 and say nothing of the maps. With a batch's own in their
    place the first step is that of another network (``docs/results.md``, the ablation).
    """
    if not config.from_model or config.batch_norm != "train":
        return False
    norms = list(batch_norms_of(model.backbone))
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    variances = [norm.running_var for norm in norms if norm.running_var is not None]
    return bool(means) and not any(bool(mean.any()) for mean in means) and all(bool(v.eq(1).all()) for v in variances)


def build_optimizer(config: OptimConfig, model: DeepLabV3) -> torch.optim.Optimizer:
    """SGD with momentum (section 4.1) or AdamW, with the new layers' larger learning rate."""
    new = {id(parameter) for parameter in model.head_parameters()}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in new, parameter.ndim > 1 or config.decay_all), []).append(parameter)
    factors = {True: config.head_lr_factor, False: 1.0}
    settings: list[dict[str, Any]] = [
        {"params": group, "factor": factors[in_head], "weight_decay": config.weight_decay if decayed else 0.0}
        for (in_head, decayed), group in groups.items()
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(settings, lr=config.lr, fused=True)
    return torch.optim.SGD(settings, lr=config.lr, momentum=config.momentum, fused=True)


def _data_parallel(objective: Objective) -> DistributedDataParallel:
    # PyTorch is renaming the option, and warns of the old name where it knows the new one.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False}
    return DistributedDataParallel(objective, **options)


def _not_finite(named: Mapping[str, Tensor]) -> list[str]:
    floats = {key: value for key, value in named.items() if value.is_floating_point() and value.numel()}
    if not floats:
        return []
    # A sum is quick, and finite only if all of its terms are; but it overflows before they do. On a GPU, where each
    # call costs more than its work, the norms of all are one call.
    on_gpu = all(value.is_cuda for value in floats.values())
    sums = torch._foreach_norm(list(floats.values())) if on_gpu else [value.sum() for value in floats.values()]
    if bool(torch.stack([total.float() for total in sums]).isfinite().all()):
        return []
    return [key for key, value in floats.items() if not bool(value.isfinite().all())]
