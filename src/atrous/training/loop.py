"""The training loop (section 4.1), for one process or many.

    train(load_recipe("camvid-efficientnet_lite0"), "data/camvid", Path("runs/camvid"))

Read `train` from top to bottom: it is the whole loop. Everything random is a function of seed, epoch and index or is
saved, so a run that was stopped and resumed ends with the bytes of one that never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

from atrous.data.datasets.dataset import SegmentationDataset
from atrous.evaluation.distributed import DistributedContext, distributed_context
from atrous.evaluation.evaluate import evaluate
from atrous.models.output_stride import check_reachable
from atrous.ops.conv_kernels.dispatch import default_form
from atrous.ops.malloc import memory_kept
from atrous.training import checkpoint
from atrous.training.config import Recipe
from atrous.training.interrupts import Signals, dead_loader, explained, is_dead_loader
from atrous.training.loader import Part, check_masks, crops_of, loader, open_data, sampled
from atrous.training.logger import RunLogger
from atrous.training.run_folder import card_of, claim, describe, headline_of, saved_state
from atrous.training.state import State


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
    iterations = recipe.schedule.iterations
    with distributed_context(device) as ctx, Signals() as signals, default_form("model"), ExitStack() as claimed:
        claimed.enter_context(memory_kept(ctx.device))
        with signals.starting():
            dataset, held_out = open_data(data, recipe.data, recipe.loss)
            dataset = sampled(dataset, check_masks(dataset), recipe.data, recipe.model.weights, recipe.run.seed)
            claimed.enter_context(checkpoint.lock(run) if ctx.first else nullcontext())
            claim(run, recipe, resume, ctx)
            saved = saved_state(run, dataset) if resume else None
            state = State.build(recipe, len(dataset.labels), dataset.labels.ignore, ctx, saved)
            ctx.agree(state.step, f"the processes find {run} at different steps; all must see the same folder")
            if held_out:
                check_masks(held_out, labelled=False)
                check_reachable(recipe.val_output_stride, state.model.backbone.reachable, "val")
            crops = crops_of(dataset, recipe.data, state.model, recipe.run.seed)
            batches = iter(loader(crops, recipe.optim, range(state.step, iterations), workers, ctx))
        logger = RunLogger(
            run, iterations=iterations, start=state.step, batch_size=recipe.optim.batch_size, silent=not ctx.first
        )
        headline = headline_of(recipe, data, run, state, dataset, held_out)
        with explained(recipe, run, lambda: state.step), logger.running(headline):
            # A run that was stopped while it validated begins with that.
            while state.step < iterations or state.must_validate(held_out):
                if held_out and state.must_validate(held_out):
                    evaluation = evaluate(
                        state.evaluated,
                        held_out,
                        output_stride=recipe.run.val_output_stride,
                        ctx=ctx,
                        progress=lambda _: signals.leave(state.step),
                    )
                    better = state.note(evaluation.scores.miou)
                    if better:
                        state.keep(run, card_of(recipe, state, dataset, data, evaluation), ctx)
                    logger.validated(state.step, evaluation, better)
                    logger.picture(state.step, state.evaluated, held_out)
                    continue
                lr = recipe.lr_at(state.step)
                parts = [_next_part(batches, state, run, dataset, ctx) for _ in range(recipe.optim.grad_accum_steps)]
                loss = state.take_step(parts, lr, ctx)
                state.step += 1
                logger.step(state.step, loss, lr)
                stop, last = ctx.any(signals.received), state.step == iterations
                if stop or last or state.step % recipe.run.save_every == 0 or state.must_validate(held_out):
                    state.save(run, ctx, describe(dataset))
                if stop and (not last or held_out):
                    signals.leave(state.step, stop)
            if not held_out:
                state.keep(run, card_of(recipe, state, dataset, data, None), ctx)
        return state.best


def _next_part(
    batches: Iterator[Part | Exception], state: State, run: Path, dataset: SegmentationDataset, ctx: DistributedContext
) -> Part:
    try:
        part = next(batches)
    except (RuntimeError, OSError, EOFError) as error:  # what is wrong with a file is returned, not raised
        if isinstance(error, RuntimeError) and not is_dead_loader(error):
            raise
        if ctx.size == 1:
            state.save(run, ctx, describe(dataset))
        raise dead_loader(error, state.step, "--resume goes on") from error
    if isinstance(part, Exception):
        raise part
    return part
