"""Replicas of asynchronous training (appendix B), and the Ray actors that run them.

A `Replica` computes the gradient of one batch at the parameters that it was sent; what becomes of it is the server's
affair (`atrous.training.asynchronous.server`). It knows nothing of Ray. A `Fleet` starts replicas as Ray's actors on
this machine, one a process, without a network, a dashboard or a cluster, and clears all of it away at the end.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from atrous.data.datasets.dataset import SegmentationDataset
from atrous.evaluation.distributed import DistributedContext, generator
from atrous.evaluation.evaluate import Evaluation, evaluate
from atrous.models.deeplab import DeepLabV3
from atrous.training.config import Recipe
from atrous.training.loader import Crops, Part, collate, order_of
from atrous.training.loss import Objective
from atrous.training.run_page import SHOWN
from atrous.training.state import State

Weights = dict[str, NDArray[Any]]
"""A model's state dict as arrays: those travel between processes without a copy."""


@dataclass(frozen=True)
class Push:
    """What a replica sends for one batch.

    Attributes:
        batch: number of the batch in the order of the run (`ResumableBatchSampler`).
        step: global step of the parameters that the gradient was computed at.
        gradients: one for each trainable parameter, in the model's order; None where there is none. All are None if
            the loss scale of ``fp16`` was too large, as a synchronous step is then not taken either.
        statistics: for each buffer of batch norm that the batch moved, a factor and an array: ``factor * buffer +
            array`` is that buffer after one more update by this batch.
        loss: mean over the batch.
        names: of the batch's samples.
        scaler: state of the loss scale.
    """

    batch: int
    step: int
    gradients: list[NDArray[Any] | None]
    statistics: dict[str, tuple[float, NDArray[Any]]]
    loss: float
    names: list[str]
    scaler: dict[str, Any]


@dataclass(frozen=True)
class Death:
    """A replica's process that died, and Ray's reason."""

    reason: str


class Gradients(torch.optim.Optimizer):
    """Takes the optimizer's place in a replica's `State`: a step keeps the gradients and changes no weight."""

    def __init__(self, model: nn.Module) -> None:
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(self.trained, {"factor": 1.0})
        self.kept: list[NDArray[Any] | None] = [None] * len(self.trained)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep the gradients until the next one."""
        self.kept = [None if p.grad is None else p.grad.cpu().contiguous().numpy() for p in self.trained]

    def take(self) -> list[NDArray[Any] | None]:
        """The gradients of the last step, once; None where it was not taken."""
        kept, self.kept = self.kept, [None] * len(self.trained)
        return kept


class Replica:
    """A model of its own that turns parameters and a batch into a gradient.

    Args:
        number: among the replicas.
        model: its own from now on.
        recipe: of the run.
        crops: the data, which any replica can make any batch of.
        held_out: to validate on.
        device: ``cpu`` or ``cuda``.
        workers: threads that load the next batch during this one; 0 loads each in its turn.
        folder: to work in, for paths that are relative; None leaves the process as it is.
    """

    def __init__(
        self,
        number: int,
        model: DeepLabV3,
        recipe: Recipe,
        crops: Crops,
        held_out: SegmentationDataset | None,
        device: str = "cpu",
        workers: int = 0,
        folder: Path | None = None,
    ) -> None:
        if folder:  # in a process of its own
            os.chdir(folder)
            torch.set_num_threads(1)
        self.recipe, self.crops, self.held_out, self.workers = recipe, crops, held_out, workers
        self.ctx = DistributedContext(0, 1, torch.device(device))
        torch.manual_seed(generator(recipe.run.seed, number).initial_seed())  # dropout is to differ between replicas
        model = model.to(self.ctx.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.train()
        self.optimizer = Gradients(model)
        objective = Objective(model, recipe.loss, recipe.optim.amp, crops.dataset.labels.ignore).to(self.ctx.device)
        scaler = torch.amp.GradScaler(self.ctx.device.type, enabled=recipe.optim.amp == "fp16")
        self.state = State(recipe, model, objective, objective, self.optimizer, scaler, None)
        self.pool = ThreadPoolExecutor(max(1, workers))
        self.ahead: dict[int, list[list[Future[Any]]]] = {}

    def process(self) -> int:
        """Its process's id."""
        return os.getpid()

    def gradient(self, weights: Weights, step: int, batch: int, following: int | None = None) -> Push:
        """The gradient of one batch.

        Args:
            weights: of the server, after `step` steps.
            step: see `weights`.
            batch: number of the batch.
            following: the batch that will be asked for next, to be loaded meanwhile; None if that is not known.

        Raises:
            FloatingPointError: if the loss is not finite.
            ValueError: if a file of the batch cannot be read.
        """
        self._load(weights)
        before = _statistics(self.state.model)
        parts = self._parts(batch)
        if following is not None and self.workers:
            self._request(following)
        self.state.step = step
        loss = self.state.take_step(parts, 0.0, self.ctx)
        return Push(
            batch=batch, step=step, gradients=self.optimizer.take(), statistics=_updates(self.state.model, before),
            loss=loss, names=[name for *_, names in parts for name in names], scaler=self.state.scaler.state_dict(),
        )  # fmt: skip

    def validate(self, weights: Weights) -> Evaluation:
        """Scores of the weights on the data held out."""
        assert self.held_out is not None
        self._load(weights)
        run = self.recipe.run
        return evaluate(
            self.state.model, self.held_out, output_stride=run.val_output_stride, pad_to=run.val_pad_to, worst=SHOWN
        )

    def _load(self, weights: Weights) -> None:
        # Ray's arrays are read-only, which PyTorch warns of.
        self.state.model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})

    def _request(self, batch: int) -> None:
        stream = order_of(self.crops, self.recipe.optim, range(batch, batch + 1), self.ctx)
        self.ahead[batch] = [[self.pool.submit(self.crops.__getitem__, place) for place in part] for part in stream]

    def _parts(self, batch: int) -> list[Part]:
        if batch not in self.ahead:
            self._request(batch)
        parts = []
        for part in self.ahead.pop(batch):
            samples = collate([sample.result() for sample in part])
            if isinstance(samples, Exception):
                raise samples
            parts.append(samples)
        return parts


def as_arrays(model: nn.Module) -> Weights:
    """A copy of a model's state dict, for a replica."""
    return {name: np.array(value.detach().cpu().numpy()) for name, value in model.state_dict().items()}


def _statistics(model: DeepLabV3) -> list[tuple[int, NDArray[Any], NDArray[Any]]]:
    """Updates, mean and variance of every batch norm."""
    return [
        (int(_array(n.num_batches_tracked)), _array(n.running_mean), _array(n.running_var)) for n in model.batch_norms()
    ]


def _array(value: Any) -> NDArray[Any]:
    return np.array(value.cpu().numpy())


def _updates(
    model: DeepLabV3, before: list[tuple[int, NDArray[Any], NDArray[Any]]]
) -> dict[str, tuple[float, NDArray[Any]]]:
    """See `Push.statistics`: a running statistic r became (1 - m)^k r + a by k updates of momentum m; a is sent."""
    names = {id(module): name for name, module in model.named_modules()}
    updates: dict[str, tuple[float, NDArray[Any]]] = {}
    for norm, old, new in zip(model.batch_norms(), before, _statistics(model), strict=True):
        count = new[0] - old[0]
        if count:  # none where batch norm is frozen, or had one value a channel
            assert norm.momentum is not None
            keep = (1 - norm.momentum) ** count
            updates[f"{names[id(norm)]}.running_mean"] = keep, new[1] - np.float32(keep) * old[1]
            updates[f"{names[id(norm)]}.running_var"] = keep, new[2] - np.float32(keep) * old[2]
            updates[f"{names[id(norm)]}.num_batches_tracked"] = 1, np.array(count)
    return updates


class Fleet:
    """Replicas as Ray's actors on this machine; a context that leaves no process and no file.

    Raises:
        ValueError: if Ray is not installed, or runs in this process already.
        OSError: if a replica could not be started.
    """

    def __init__(self, size: int, model: DeepLabV3, arguments: dict[str, Any], device: torch.device) -> None:
        self.size, self.model, self.device = size, model, device
        self.arguments = {**arguments, "device": device.type, "folder": Path.cwd()}
        self.pending: dict[Any, int] = {}

    def __enter__(self) -> Fleet:
        with ExitStack() as stack:
            stack.enter_context(_environment())
            self.ray = _import_ray()
            stack.enter_context(redirect_stdout(sys.stderr))  # where Ray tells of a worker that died
            # Ray's sockets lie in it, three folders down.
            folder = tempfile.mkdtemp(prefix="atrous-", dir="/tmp" if os.path.isdir("/tmp") else None)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(self.ray.shutdown)
            gpus = torch.cuda.device_count() if self.device.type == "cuda" else 0
            with _own_signals():
                self._start(folder, gpus)
            share = 1 / -(-self.size // gpus) if gpus else 0
            self.kind = self.ray.remote(num_cpus=1, num_gpus=share)(Replica)
            self.shared = self.ray.put(self.model)
            self.actors = {number: self._actor(number) for number in range(self.size)}
            try:
                self.ray.get([actor.process.remote() for actor in self.actors.values()])
            except self.ray.exceptions.RayActorError as error:
                raise OSError(f"a replica could not be started: {_last_line(error)}") from error
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.actors.values():
            self.ray.kill(actor)
        self.stack.close()

    def _start(self, folder: str, gpus: int) -> None:
        # In the store lie, at most, parameters and gradients of every replica, and weights being validated.
        size = sum(value.nbytes for value in self.model.state_dict().values())
        self.ray.init(
            address="local",  # whatever cluster the environment names
            num_cpus=self.size,
            num_gpus=gpus,
            object_store_memory=max(80 << 20, (3 * self.size + 2) * size),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )

    def _actor(self, number: int) -> Any:
        return self.kind.remote(number, self.shared, **self.arguments)

    @property
    def busy(self) -> bool:
        """Whether a replica has work."""
        return bool(self.pending)

    def send(self, number: int, method: str, *arguments: Any) -> None:
        """Have a replica run one of its methods; `wait` brings the answer."""
        self.pending[getattr(self.actors[number], method).remote(*arguments)] = number

    def wait(self, seconds: float = 0.2) -> tuple[int, Any] | None:
        """The number of a replica that is done and its answer, a `Death` if it died; None after so many seconds.

        Raises:
            Exception: what the replica raised.
        """
        ready, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=seconds)  # the longest at work first
        if not ready:
            return None
        number = self.pending.pop(ready[0])
        try:
            return number, self.ray.get(ready[0])
        except self.ray.exceptions.RayActorError as error:
            return number, Death(_last_line(error))
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None  # one line in place of a traceback from another process

    def replace(self, number: int) -> None:
        """Start a new process for a replica that died."""
        self.actors[number] = self._actor(number)


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ValueError("asynchronous training runs on Ray; pip install 'atrous[async]'") from error
    if ray.is_initialized():
        raise ValueError("Ray runs in this process already; asynchronous training starts its own: ray.shutdown() first")
    return ray


_ENVIRONMENT = {
    # Ray listens to the whole network otherwise, and runs what it is sent. Read when it is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray reports its use over the network otherwise
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # and warns of a change to come
}


@contextmanager
def _environment() -> Iterator[None]:
    """Ray's processes inherit the variables that they are started with; afterwards all is as before."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _own_signals() -> Iterator[None]:
    """Signals are this process's to act on, as before, while Ray starts within.

    Ray takes SIGTERM to itself; that is undone. And a signal to the process group would reach Ray's processes, which
    take this one along when they end: they get groups of their own, for which Ray has no option.
    """
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    start = subprocess.Popen.__init__

    def start_in_own_group(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **{"process_group": 0, **options})

    subprocess.Popen.__init__ = start_in_own_group  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]
        if threading.current_thread() is threading.main_thread():
            for number, handler in ours.items():
                signal.signal(number, handler)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Some common causes")[0] if lines else type(error).__name__
