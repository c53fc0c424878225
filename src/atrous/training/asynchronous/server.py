"""Asynchronous training (appendix B): replicas that do not wait for each other, and a parameter server.

    train_asynchronously(load_recipe("voc-resnet101"), "data/voc", Path("runs/voc"), replicas=8)

Each replica pulls the parameters, computes the gradient of a whole batch at them, and pushes it; the server applies
every push as it comes, at the learning rate of its global step. Meanwhile other replicas have pushed: how many is the
push's *staleness*. `iterations` counts pushes, so N replicas do the work of one in down to 1/N of the time (Table 11).

The server is this process, each replica an actor of Ray (`atrous.training.asynchronous.replica`), and a run folder
that of a synchronous run; docs/asynchronous.md says what is exact and what is not. Read `train_asynchronously` from top
to bottom: it is the whole loop.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atrous.atomic import write_text
from atrous.evaluation.distributed import DistributedContext, pick_device
from atrous.evaluation.evaluate import Evaluation
from atrous.training import checkpoint
from atrous.training.asynchronous.replica import Death, Fleet, Push, Weights, as_arrays
from atrous.training.asynchronous.staleness import PushLog, Staleness
from atrous.training.config import Recipe
from atrous.training.interrupts import Signals, Stopped, explained
from atrous.training.loader import crops_of
from atrous.training.logger import RunLogger
from atrous.training.run_folder import card_of, describe
from atrous.training.start import Start, start
from atrous.training.state import State

DEATHS = 3
"""Replicas that may die in a row without a push in between; with more, something is wrong with all of them."""


def train_asynchronously(
    recipe: Recipe,
    data: str | Path,
    run: Path,
    *,
    replicas: int,
    resume: bool = False,
    workers: int = 1,
    device: str | None = None,
) -> Outcome:
    """Train a model with replicas that do not wait for each other; validate and save it along the way.

    Args:
        recipe: the whole run. `batch_size` is that of each push, and `iterations` the pushes of all replicas together.
        data: as for `open_dataset`.
        run: folder to write, as of a synchronous run; with ``staleness.json`` and ``staleness.csv``.
        replicas: processes; each takes a core, or a GPU, or a share of one where there are too few.
        resume: go on from the newest whole checkpoint in `run`, whatever kind of run wrote it.
        workers: threads that load data, for each replica.
        device: ``cpu``, or ``cuda`` for all GPUs; None for the GPUs where there are any.

    Returns:
        The best mIoU in validation and the staleness of the pushes.

    Raises:
        ValueError: as of `train`; if Ray is not installed.
        Stopped: after SIGINT or SIGTERM, or when replicas die again and again, once all is saved.
        FloatingPointError: if a loss or a gradient is not finite; there is no push.
        MemoryError: if a batch needs more memory than there is.
    """
    chosen = _check(replicas, device)
    ctx = DistributedContext(0, 1, torch.device("cpu"))
    with Signals() as signals, ExitStack() as stack:
        with signals.starting():
            begun = start(recipe, data, run, ctx, stack, resume=resume, workers=workers)
            recipe, state, dataset, held_out = begun.recipe, begun.state, begun.dataset, begun.held_out
            server = Server(state, (begun.saved or {}).get("asynchronous"))
            crops = crops_of(dataset, recipe.data, state.model, recipe.run.seed)
            given = {"recipe": recipe, "crops": crops, "held_out": held_out, "workers": workers}
            fleet = stack.enter_context(Fleet(replicas, state.model, given, chosen))
        begun.page.headline += f"; {replicas} asynchronous replicas"
        logger = RunLogger(begun.page, state.step)
        stack.enter_context(explained(recipe, run, lambda: state.step))
        stack.enter_context(logger.running())
        coordinator = Coordinator(server, fleet, logger, begun, data)
        for number in range(replicas):
            coordinator.hand_out(number)
        while fleet.busy:
            answered = fleet.wait()
            if signals.received:
                coordinator.save()
                logger.console.print(server.staleness.render())
                signals.leave(state.step)
            if answered:
                number, answer = answered
                coordinator.take(number, answer)
                coordinator.hand_out(number)
        logger.console.print(server.staleness.render())
        if not held_out:
            state.keep(run, card_of(recipe, state, dataset, data, None), ctx)
        logger.finished()
        return Outcome(state.best, server.staleness)


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        best: mIoU in validation, or None without a validation split.
        staleness: of all pushes, those before a resume included.
    """

    best: float | None
    staleness: Staleness


class Server:
    """The parameters, and all else that a push changes: optimizer, batch norm's statistics, moving average, step.

    It also gives out the batches of the run's one order of samples (`ResumableBatchSampler`), each to be pushed
    once, so that every sample comes once an epoch, however fast each replica is.

    The paper does not say how batch norm's statistics join. Here each push's are one more update of the server's: if
    the server's are r, and the batch's b, then r becomes (1 - m) r + m b, whatever the replica had pulled. So they
    are what a synchronous run of the same batches in the same order would have, but for the parameters.

    Args:
        state: at the start, or as it was saved; on the CPU.
        saved: what `to_save` gave; None at the start, and after a synchronous run.
    """

    def __init__(self, state: State, saved: dict[str, Any] | None = None) -> None:
        saved = saved or {"next": state.step, "out": [], "staleness": {}}
        self.state, self.recipe = state, state.recipe
        self.trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        self.staleness = Staleness(Counter(saved["staleness"]))
        self.next: int = saved["next"]
        self.out: set[int] = set(saved["out"])
        self.again = sorted(self.out)

    def draw(self) -> int | None:
        """The next batch to work on; None if all are done or given out."""
        if self.again:
            return self.again.pop(0)
        if self.next >= self.recipe.schedule.iterations:
            return None
        self.out.add(self.next)
        self.next += 1
        return self.next - 1

    def give_back(self, batch: int) -> None:
        """Draw a batch again whose replica died."""
        assert batch in self.out
        self.again.append(batch)

    def pull(self) -> tuple[Weights, int]:
        """A copy of parameters and statistics, and the global step that they are of."""
        return as_arrays(self.state.model), self.state.step

    def push(self, push: Push) -> tuple[float, int]:
        """Apply a replica's push, at once and as it is: one global step.

        Returns:
            The learning rate, and the push's staleness.
        """
        state, recipe = self.state, self.recipe
        staleness = state.step - push.step
        assert staleness >= 0 and push.batch in self.out
        lr = recipe.lr_at(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        for parameter, gradient in zip(self.trained, push.gradients, strict=True):
            parameter.grad = None if gradient is None else _like(parameter, gradient)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.scaler.load_state_dict(push.scaler)
        self._take_statistics(push)
        if state.average:
            state.average.update(state.model, state.step + 1)
        state.step += 1
        self.staleness.counts[staleness] += 1
        self.out.remove(push.batch)
        return lr, staleness

    @torch.no_grad()
    def _take_statistics(self, push: Push) -> None:
        buffers = dict(self.state.model.named_buffers())
        for name, (factor, array) in push.statistics.items():
            buffers[name].mul_(factor).add_(torch.from_numpy(np.array(array)))

    def snapshot(self) -> State:
        """The state as it is, with a copy of the model that is validated and kept."""
        return replace(self.state, model=copy.deepcopy(self.state.evaluated), average=None)

    def to_save(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state: which batches are done, and the staleness so far."""
        return {"next": self.next, "out": sorted(self.out), "staleness": dict(self.staleness.counts)}


def _like(parameter: Tensor, gradient: Any) -> Tensor:
    # In the parameter's own memory order: the fused optimizers walk through both side by side.
    gradient_copy = torch.empty_like(parameter)
    np.copyto(gradient_copy.detach().numpy(), gradient)
    return gradient_copy


class Coordinator:
    """Hands out batches and validations to replicas, and acts on their answers.

    A validation goes, with a copy of the weights, to the next replica that is free; the others go on pushing.
    """

    def __init__(self, server: Server, fleet: Fleet, logger: RunLogger, begun: Start, data: str | Path) -> None:
        self.server, self.state, self.fleet, self.logger = server, server.state, fleet, logger
        self.run, self.data, self.dataset, self.held_out = logger.run, data, begun.dataset, begun.held_out
        self.log = PushLog(self.run, self.state.step)
        self.jobs: dict[int, int | State] = {}
        """By replica: the number of a batch, or what it validates."""
        self.following: dict[int, int] = {}
        self.snapshots: deque[State] = deque()
        self.deaths = 0
        if self.state.must_validate(self.held_out):  # the run was stopped before it could
            self.snapshots.append(server.snapshot())

    def hand_out(self, replica: int) -> None:
        """Give a replica that is free its next work, if there is any, and name the batch that it will get then."""
        if self.snapshots:
            snapshot = self.jobs[replica] = self.snapshots.popleft()
            self.fleet.send(replica, "validate", as_arrays(snapshot.evaluated))
            return
        batch = self.following.pop(replica) if replica in self.following else self.server.draw()
        if batch is None:
            return
        self.jobs[replica] = batch
        following = self.server.draw()
        if following is not None:
            self.following[replica] = following
        weights, step = self.server.pull()
        self.fleet.send(replica, "gradient", weights, step, batch, following)

    def take(self, replica: int, answer: Any) -> None:
        """Act on a replica's answer.

        Raises:
            Stopped: if too many replicas have died; all has been saved.
        """
        job = self.jobs.pop(replica)
        if isinstance(answer, Push):
            self._pushed(replica, answer)
        elif isinstance(answer, Evaluation):
            assert isinstance(job, State)
            self._validated(job, answer)
        else:
            assert isinstance(answer, Death)
            self._died(replica, job, answer)

    def _pushed(self, replica: int, push: Push) -> None:
        lr, staleness = self.server.push(push)
        state, recipe = self.state, self.state.recipe
        self.deaths = 0
        self.log.write(state.step, replica, staleness)
        self.logger.step(state.step, push.loss, lr)
        validate = state.must_validate(self.held_out)
        if validate:
            self.snapshots.append(self.server.snapshot())
        if validate or state.step % recipe.run.save_every == 0 or state.step == recipe.schedule.iterations:
            self.save()

    def _validated(self, snapshot: State, evaluation: Evaluation) -> None:
        assert self.held_out
        better = self.state.note(evaluation.scores.miou)
        if better:
            card = card_of(snapshot.recipe, snapshot, self.dataset, self.data, evaluation)
            snapshot.keep(self.run, card, DistributedContext(0, 1, torch.device("cpu")))
        self.logger.validated(snapshot.step, evaluation, better)

    def _died(self, replica: int, job: int | State, death: Death) -> None:
        """Give the work of a replica that died out again, and have another take its place."""
        self.logger.console.print(f"replica {replica} died, another takes its place: {death.reason}", soft_wrap=True)
        if isinstance(job, State):
            self.snapshots.appendleft(job)
        else:
            self.server.give_back(job)
        if replica in self.following:
            self.server.give_back(self.following.pop(replica))
        self.deaths += 1
        if self.deaths > DEATHS:
            self.save()
            raise Stopped(
                f"{self.deaths} replicas died one after another at step {self.state.step}, the last because: "
                f"{death.reason}; all is saved, --resume goes on",
                1,
            )
        self.fleet.replace(replica)

    def save(self) -> None:
        """Write a checkpoint, and the staleness so far."""
        self.state.check_finite()
        state = {**self.state.to_save(), "data": describe(self.dataset), "asynchronous": self.server.to_save()}
        checkpoint.save(self.run, self.state.step, state)
        summary = {"replicas": self.fleet.size, **self.server.staleness.as_dict()}
        write_text(self.run / "staleness.json", json.dumps(summary, indent=1) + "\n")


def _check(replicas: int, device: str | None) -> torch.device:
    if replicas < 1:
        raise ValueError(f"there are {replicas} asynchronous replicas, expected at least 1")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("asynchronous training starts its replicas itself; run it without torchrun")
    chosen = pick_device(device)
    if chosen.index is not None:
        raise ValueError(f"device is {device}, expected cpu or cuda: replicas take all GPUs of CUDA_VISIBLE_DEVICES")
    return chosen
