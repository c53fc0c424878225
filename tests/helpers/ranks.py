"""What `test_distributed` runs in one process and in each of two: steps of training, an evaluation, odd batches."""

from pathlib import Path
from typing import Any

import torch

from atrous.data.datasets.dataset import open_dataset
from atrous.evaluation.distributed import DistributedContext, SynchronisedBatchNorm, distributed_context
from atrous.evaluation.evaluate import evaluate
from atrous.training.config import Recipe, override
from atrous.training.state import State

RECIPE = override(
    Recipe(),
    {
        "backbone": "timm/lcnet_050",
        "weights": None,
        "multi_grid": None,
        "aspp_rates": (1,),
        "lr": 0.1,
        "weight_decay": 0.0,
        "batch_norm_decay": 0.5,
        "batch_size": 4,
        "ema_decay": 0.9,
    },
)


def main(data: Path, out: Path) -> None:
    """Write what was found to ``OUT-RANK``."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 3, 33, 33), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (4, 33, 33), dtype=torch.uint8, generator=generator)
    labels[0, :20] = 255
    labels[3] = 255  # uneven counts, and an image without any
    empty = torch.full_like(labels, 255)
    with distributed_context("cpu") as ctx:
        actual: dict[str, Any] = {}
        # In float64, for a rounding in float32 moves some rectifiers across their kink.
        torch.set_default_dtype(torch.float64)
        actual["plain"], state = step(ctx, RECIPE, images, labels)
        actual["kinds"] = {type(norm).__name__ for norm in state.model.batch_norms()} == {"SynchronisedBatchNorm"}
        actual["average"] = state.evaluated.state_dict()
        actual["frozen, in parts"], _ = step(ctx, override(RECIPE, {"batch_norm": "freeze"}), images, labels, parts=2)
        actual["one rank empty"], _ = step(ctx, RECIPE, images, torch.cat([labels[:2], empty[:2]]))
        actual["empty"], _ = step(ctx, RECIPE, images, empty)
        torch.set_default_dtype(torch.float32)
        actual["bf16"], _ = step(ctx, override(RECIPE, {"amp": "bf16"}), images, labels)
        model = State.build(RECIPE, 4, 255, ctx).model
        evaluation = evaluate(model, open_dataset(data, "val"), ctx=ctx)
        actual["scores"] = {**evaluation.scores.as_dict(), "images": evaluation.images}
        actual["offset"], actual["offset variance"] = far_from_zero(ctx, generator)
        actual["any"] = ctx.any(15 if ctx.rank else 0)
        torch.save(actual, f"{out}-{ctx.rank}")


def step(
    ctx: DistributedContext, recipe: Recipe, images: torch.Tensor, labels: torch.Tensor, parts: int = 1
) -> tuple[dict[str, Any], State]:
    """Loss, gradient and batch-norm statistics of one step on this process's share of the images."""
    state = State.build(recipe, 4, 255, ctx)
    gradient: dict[str, torch.Tensor] = {}

    def note(*_: Any) -> None:
        named = state.model.named_parameters()
        gradient.update({key: value.grad.clone() for key, value in named if value.grad is not None})

    state.optimizer.register_step_pre_hook(note)
    normalise = state.objective.normalise
    state.objective.normalise = lambda pixels: normalise(pixels).to(torch.get_default_dtype())
    share = len(images) // ctx.size
    mine = slice(ctx.rank * share, (ctx.rank + 1) * share)
    pairs = zip(images[mine].chunk(parts), labels[mine].chunk(parts), strict=True)
    loss = state.take_step([(part, truth, ["x"] * len(part)) for part, truth in pairs], recipe.optim.lr, ctx)
    statistics = {key: value for key, value in state.model.named_buffers() if "running" in key}
    return {"loss": loss, "gradient": gradient, "buffers": statistics}, state


def far_from_zero(ctx: DistributedContext, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch norm of a batch whose mean is far above its deviation."""
    x = torch.randn(4, 3, 9, 9, generator=generator) * 0.1 + 100
    norm = torch.nn.BatchNorm2d(3, momentum=1.0)
    if ctx.size > 1:
        norm = SynchronisedBatchNorm(norm)
        x = x.chunk(ctx.size)[ctx.rank]
    y = norm(x).detach()
    assert norm.running_var is not None
    return y, norm.running_var
