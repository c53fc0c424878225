"""Distributed runs: process context, sums over ranks, the order of samples, synchronised batch norm.

One process runs the same code with a world size of one. ``torchrun`` starts several and sets the environment.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from atrous.models.mobilenet import ActivatedBatchNorm


@dataclass(frozen=True)
class DistributedContext:
    """This process among all.

    Attributes:
        rank: 0 to size - 1; 0 is the one that prints and writes.
        size: processes in all.
        device: of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: int) -> int:
        """The largest of a number over all processes."""
        if self.size == 1:
            return flag
        value = torch.tensor(flag, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def agree(self, value: int, otherwise: str) -> None:
        """Make sure that a number is the same at all processes.

        Raises:
            ValueError: with `otherwise` and the numbers, if it is not.
        """
        lowest, highest = -self.any(-value), self.any(value)
        if lowest != highest:
            raise ValueError(f"{otherwise}: {lowest} to {highest}")

    def gather(self, names: list[str]) -> list[str]:
        """The lists of all processes, one after another."""
        if self.size == 1:
            return names
        parts: list[list[str]] = [[]] * self.size
        dist.all_gather_object(parts, names)
        return [name for part in parts for name in part]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def distributed_context(device: str | None = None) -> Iterator[DistributedContext]:
    """Join the processes that ``torchrun`` started; alone without it.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None for a CUDA GPU where there is one.

    Raises:
        ValueError: if the device is not to be had.
    """
    rank, size, local = (int(os.environ.get(key, default)) for key, default in _ENVIRONMENT.items())
    chosen = pick_device(device, local if size > 1 else None)
    if size == 1:
        yield DistributedContext(0, 1, chosen)
        return
    if chosen.type == "mps":
        raise ValueError("device is mps, expected cpu or cuda for several processes: their sums do not run on it")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    _meet("nccl" if chosen.type == "cuda" else "gloo", rank, size)
    try:
        yield DistributedContext(rank, size, chosen)
    finally:
        dist.destroy_process_group()


def _meet(backend: str, rank: int, size: int) -> None:
    """Join the others; those that torchrun started again, apart from the dead, whose addresses are still noted.

    On one machine only, for several count their restarts each for itself (pytorch issue 135712); there torchrun wants
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if attempt is None or os.environ.get("LOCAL_WORLD_SIZE") != str(size):
        dist.init_process_group(backend)
        return
    store, *_ = next(rendezvous("env://"))
    apart = PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=apart, rank=rank, world_size=size)


_ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def pick_device(device: str | None, local_rank: int | None = None) -> torch.device:
    """The device asked for, or a CUDA GPU where there is one, or the CPU.

    Raises:
        ValueError: if it is not to be had.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"there is no device {device!r}; expected cpu, cuda, cuda:NUMBER or mps") from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {device!r} is not supported; expected cpu, cuda, cuda:NUMBER or mps")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r} was asked for, but PyTorch finds no GPU of Apple's")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device!r} was asked for, but PyTorch finds no usable GPU")
        if local_rank is not None and chosen.index is None:
            chosen = torch.device("cuda", local_rank)
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"there is no device {str(chosen)!r}; there are {torch.cuda.device_count()} GPUs")
    return chosen


EpochIndex = tuple[int, int]
"""Epoch and index of one sample."""


class ResumableBatchSampler:
    """The order of training: an endless sequence of permutations of the data set, each a function of seed and epoch.

    Step ``s`` takes positions ``s * batch_size`` to ``(s + 1) * batch_size``; a process takes its share of them. So
    every sample comes once an epoch, for any batch size, number of processes and step at which a run was stopped.
    Iterating gives one list of `EpochIndex` for each part of each step.

    Args:
        samples: in the data set.
        steps: to be taken.
        seed: of the run.
        batch_size: of one step over all processes.
        parts: that a process cuts its share into.
        rank: of this process.
        size: processes in all.

    Raises:
        ValueError: if the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        samples: int,
        steps: range,
        *,
        seed: int,
        batch_size: int,
        parts: int = 1,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        if batch_size % (size * parts):
            raise ValueError(
                f"batch_size is {batch_size}, expected a multiple of {size} processes times {parts} accumulated parts"
            )
        self.samples, self.steps, self.seed, self.batch_size = samples, steps, seed, batch_size
        self.parts, self.share, self.rank = parts, batch_size // size // parts, rank

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        epoch, order = -1, torch.empty(0)
        for step in self.steps:
            for part in range(self.parts):
                first = step * self.batch_size + (self.rank * self.parts + part) * self.share
                places = []
                for position in range(first, first + self.share):
                    if position // self.samples != epoch:
                        epoch = position // self.samples
                        order = torch.randperm(self.samples, generator=generator(self.seed, epoch))
                    places.append((epoch, int(order[position % self.samples])))
                yield places


def generator(*words: int) -> torch.Generator:
    """A random generator that is a function of some numbers, such as seed, epoch and index."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Batch norm over the batch of all processes: section 4.1 computes its statistics over all 16 images.

    PyTorch's own where it runs (it needs a GPU), the same arithmetic in plain sums elsewhere.
    """
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        activations = {path: m.act for path, m in model.named_modules() if isinstance(m, ActivatedBatchNorm)}
        converted: nn.Module = convert_sync_batchnorm(model)
        for path, activation in activations.items():
            norm = converted.get_submodule(path)
            norm.__class__, norm.act = ActivatedSyncBatchNorm, activation
        return converted
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, SynchronisedBatchNorm(module))
    return model


class ActivatedSyncBatchNorm(nn.SyncBatchNorm):
    """`ActivatedBatchNorm`, synchronised by PyTorch."""

    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """B,C,h,w float to the same."""
        y: Tensor = self.act(super().forward(x))
        return y


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all processes together, for devices that PyTorch's own does not serve.

    Args:
        native: the layer to stand in for; parameters, statistics and what timm attaches to it (`drop`, `act`) become
            this one's.
    """

    def __init__(self, native: nn.BatchNorm2d) -> None:
        super().__init__(native.num_features, native.eps, native.momentum, native.affine, native.track_running_stats)
        self.weight, self.bias = native.weight, native.bias
        self.running_mean, self.running_var = native.running_mean, native.running_var
        self.num_batches_tracked = native.num_batches_tracked
        self.drop, self.act = getattr(native, "drop", nn.Identity()), getattr(native, "act", nn.Identity())
        self.train(native.training)

    def forward(self, x: Tensor) -> Tensor:
        """B,C,H,W float to the same."""
        y: Tensor = self.act(self.drop(self._normalised(x)))
        return y

    def _normalised(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        if self.training:
            exact = torch.promote_types(x.dtype, torch.float32)
            local_variance, local_mean = torch.var_mean(x.to(exact), (0, 2, 3), correction=0)
            # The squares are added up in float64: their difference is small beside them where the mean is large.
            local = local_mean.double()
            moments = torch.cat([local, local.square() + local_variance, local.new_ones(1)])
            sums = _Sum.apply(moments * (x.numel() / x.shape[1]))
            total = sums[-1].detach()
            mean, square = (sums[:-1] / total).chunk(2)
            variance = (square - mean.square()).clamp(min=0).to(exact)
            mean = mean.to(exact)
            if float(total) > 1:
                with torch.no_grad():
                    self.running_mean.lerp_(mean, self.momentum)
                    self.running_var.lerp_(variance * float(total / (total - 1)), self.momentum)
                scale = self.weight * (variance + self.eps).rsqrt()
                shifted: Tensor = x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
                return shifted.to(x.dtype)
        y: Tensor = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return y


class _Sum(torch.autograd.Function):
    """The sum over all processes, and so of their gradients."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
