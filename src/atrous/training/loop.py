"""The training loop (section 4.1), for one process or many.

    train(load_recipe("camvid-efficientnet_lite0"), "data/camvid", Path("runs/camvid"))

Read `train` from top to bottom: it is the whole loop. Everything random is a function of seed, epoch and index or is
saved, so a run that was stopped and resumed ends with the bytes of one that never stopped.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from atrous.evaluation.distributed import distributed_context
from atrous.evaluation.evaluate import evaluate
from atrous.ops.malloc import memory_kept
from atrous.training.config import Recipe
from atrous.training.interrupts import Signals, explained
from atrous.training.loader import crops_of, loader, next_part
from atrous.training.logger import RunLogger
from atrous.training.run_folder import card_of, describe
from atrous.training.run_page import SHOWN
from atrous.training.start import start


def train(
    recipe: Recipe,
    data: str | Path,
    run: Path,
    *,
    resume: bool = False,
    workers: int = 1,
    device: str | None = None,
    seconds: float | None = None,
) -> float | None:
    """Train a model, validate and save it along the way.

    Args:
        recipe: the whole run.
        data: as for `open_dataset`.
        run: folder to write; ``docs/training.md`` lists what is in it.
        resume: go on from the newest whole checkpoint in `run`; without one, start.
        workers: processes that load data, for each training process.
        device: None for a GPU where there is one.
        seconds: that it may take: the steps of `recipe` are then as many as fit, measured first (`pace.py`). A run that
            is resumed keeps its steps.

    Returns:
        The best mIoU in validation, or None without a validation split. The weights are in ``run/best``.

    Raises:
        ValueError: if recipe and data do not go together, another process writes to `run`, or it holds a run already
            and `resume` is off.
        Stopped: after SIGINT or SIGTERM, once all is saved, or when a process that loads data has died.
        FloatingPointError: if loss or gradients are not finite; the step is not taken.
        MemoryError: if a step needs more memory than there is.
    """
    with distributed_context(device) as ctx, Signals() as signals, ExitStack() as claimed:
        claimed.enter_context(memory_kept(ctx.device))
        with signals.starting():
            begun = start(recipe, data, run, ctx, claimed, resume=resume, workers=workers, seconds=seconds)
            recipe, state, dataset, held_out = begun.recipe, begun.state, begun.dataset, begun.held_out
            iterations = recipe.schedule.iterations
            ctx.agree(state.step, f"the processes find {run} at different steps; all must see the same folder")
            crops = crops_of(dataset, recipe.data, state.model, recipe.run.seed)
            batches = iter(loader(crops, recipe.optim, range(state.step, iterations), workers, ctx))
        alone, save = ctx.size == 1, partial(state.save, run, ctx, describe(dataset))
        logger = RunLogger(begun.page, state.step, begun.pace, silent=not ctx.first)
        with explained(recipe, run, lambda: state.step), logger.running():
            # A run that was stopped while it validated begins with that.
            while state.step < iterations or state.must_validate(held_out):
                if held_out and state.must_validate(held_out):
                    with signals.interrupting(alone, state.step):
                        evaluation = evaluate(
                            state.evaluated, held_out, output_stride=recipe.run.val_output_stride,
                            pad_to=recipe.run.val_pad_to, worst=SHOWN, ctx=ctx,
                            progress=lambda _: signals.leave(state.step),
                        )  # fmt: skip
                    better = state.note(evaluation.scores.miou)
                    if better:
                        state.keep(run, card_of(recipe, state, dataset, data, evaluation), ctx)
                    logger.validated(state.step, evaluation, better)
                    continue
                lr = recipe.lr_at(state.step)
                parts = [
                    next_part(batches, state.step, signals, alone, save) for _ in range(recipe.optim.grad_accum_steps)
                ]
                loss = state.take_step(parts, lr, ctx)
                state.step += 1
                logger.step(state.step, loss, lr)
                stop, last = ctx.any(signals.received), state.step == iterations
                if stop or last or state.step % recipe.run.save_every == 0 or state.must_validate(held_out):
                    save()
                    logger.saved()
                if stop and (not last or held_out):
                    signals.leave(state.step, stop)
            if not held_out:
                state.keep(run, card_of(recipe, state, dataset, data, None), ctx)
            logger.finished()
        return state.best
