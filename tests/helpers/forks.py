"""Processes of their own for tests that kill, starve or stop them; forked from a server that has imported PyTorch.

    process = Forked(["train", ...], tmp_path / "said", hooks=[("stop_at", 3, signal.SIGTERM)])
    process.status(25)

A hook is a function of this module by name, with its arguments; it changes the process before the command runs. What
a process tells by `tell` comes out of `Forked.events`.
"""

import faulthandler
import functools
import io
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from atrous.cli.parser import main
from atrous.training import checkpoint, pace
from atrous.training.loss import Objective
from atrous.training.state import State

_server = multiprocessing.get_context("forkserver")


@functools.cache
def _start_server() -> None:
    # Python's own way to hand over the path to what is loaded beforehand does nothing before 3.13.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    _server.set_forkserver_preload(["warmed"])
    forkserver.ensure_running()
    os.environ.pop("PYTHONPATH")
    os.environ.update({"PYTHONPATH": before} if before is not None else {})


class Forked:
    """One ``atrous`` command line, or several one after another, in a process of its own.

    Args:
        arguments: of the command line, or a list of such; none where a hook does it all.
        said: file for what it prints.
        hooks: names of functions here, with their arguments.
        rank: of how many processes, and the port they meet at.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        said: Path,
        hooks: Sequence[tuple[Any, ...]] = (),
        rank: tuple[int, int, int] | None = None,
    ) -> None:
        _start_server()
        self.said = said
        self.events: list[tuple[Any, ...]] = []
        self.store: dist.TCPStore | None = None
        self._ear, mouth = _server.Pipe(duplex=False)
        several = bool(arguments) and not isinstance(arguments[0], str)
        lines = [list(line) for line in (arguments if several else [arguments]) if line]
        self.process = _server.Process(target=_run, args=(lines, str(said), list(hooks), rank, mouth))
        self.process.start()
        mouth.close()

    def listen(self, seconds: float = 0) -> tuple[Any, ...] | None:
        """The next thing it tells, or None if it tells nothing within that time, or has ended."""
        try:
            if not self._ear.poll(seconds):
                return None
            self.events.append(self._ear.recv())
            return self.events[-1]
        except EOFError:
            return None

    def wait_for(self, *event: Any, seconds: float = 120) -> tuple[Any, ...]:
        """The next event that begins with these words."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told = self.listen(1)
            if told is not None and told[: len(event)] == event:
                return told
            assert told is not None or self.process.is_alive(), f"ended before {event}: {self.output}"
        raise AssertionError(f"no {event} within {seconds} s: {self.output}")

    def send(self, number: int, *, group: bool = False) -> None:
        """Send it, or all that it started besides, a signal; nothing where it has ended."""
        assert self.process.pid
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def status(self, seconds: float = 120) -> int | None:
        """Its exit status, negative for a signal; killed after that time, and then None."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.send(signal.SIGUSR1)  # where it is goes to its output
            time.sleep(1)
            self.process.kill()
            self.process.join()
        while self.listen() is not None:
            pass
        return code

    @property
    def output(self) -> str:
        """What it printed."""
        return self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""


def together(arguments: Sequence[str], folder: Path, size: int, hooks: Sequence[Sequence[tuple]] = ()) -> list[Forked]:
    """The same command line in several ranks; a list of hooks for each."""
    of = list(hooks) or [()] * size
    if size == 1:
        return [Forked(arguments, folder / "said0", of[0])]
    # As torchrun's agent, this process holds the store that the ranks meet at: nobody else can take its port.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    jobs = [Forked(arguments, folder / f"said{rank}", of[rank], (rank, size, store.port)) for rank in range(size)]
    for job in jobs:
        job.store = store
    return jobs


_mouth: Connection | None = None


def tell(*event: Any) -> None:
    """Let the test know."""
    assert _mouth is not None
    _mouth.send(event)


def _run(lines: list[list[str]], said: str, hooks: list, rank: tuple[int, int, int] | None, mouth: Connection) -> None:
    global _mouth
    _mouth = mouth
    os.setsid()
    file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)
    faulthandler.register(signal.SIGUSR1, file=2)
    torch.set_num_threads(1)
    if rank:
        place = {"RANK": rank[0], "LOCAL_RANK": rank[0], "WORLD_SIZE": rank[1], "MASTER_PORT": rank[2]}
        os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for name, *arguments in hooks:
        globals()[name](*arguments)
    for line in lines:
        sys.argv = ["atrous", *line]
        status = main()
        if status:
            sys.exit(status)


def tell_steps() -> None:
    """Tell ``("step", done)`` before each step of the run, not of a trial, with the processes that load data."""
    real, real_measure, trials = State.take_step, pace.measure, []

    def measure(*arguments: Any, **options: Any) -> Any:
        trials.append(None)
        try:
            return real_measure(*arguments, **options)
        finally:
            trials.pop()

    def take_step(state: State, *arguments: Any) -> float:
        if trials:
            return real(state, *arguments)
        tell("step", state.step, [child.pid for child in multiprocessing.active_children()])
        return real(state, *arguments)

    State.take_step, pace.measure = take_step, measure  # type: ignore[method-assign]


def tell_saves() -> None:
    """Tell ``("saving", step)`` and ``("saved", step)`` around each save."""
    real = checkpoint.save

    def save(run: Path, step: int, state: dict[str, Any], **options: Any) -> Path:
        tell("saving", step)
        path = real(run, step, state, **options)
        tell("saved", step)
        return path

    checkpoint.save = save


def stop_at(call: int, number: int) -> None:
    """Send ourselves a signal in the forward pass of that number, counted from 1 in this process."""
    real, calls = Objective.forward, [0]

    def forward(objective: Objective, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), number)
        return real(objective, *arguments)

    Objective.forward = forward  # type: ignore[method-assign]


def full_disk_at(step: int, size: int) -> None:
    """From that step on no file can grow beyond `size` bytes; what is printed is told."""
    real = State.take_step

    class Told(io.TextIOBase):
        def write(self, text: str) -> int:
            tell("said", text)
            return len(text)

    sys.stderr = Told()

    def take_step(state: State, *arguments: Any) -> float:
        if state.step == step - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return real(state, *arguments)

    State.take_step = take_step  # type: ignore[method-assign]


def little_memory(more: int) -> None:
    """No more than `more` bytes of address space beyond what is used now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


def no_network() -> None:
    """Tell, and refuse, whatever asks for another machine."""

    def audit(event: str, arguments: tuple) -> None:
        local = event == "socket.connect" and arguments[0].family == getattr(socket, "AF_UNIX", None)
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") and not local:
            tell("network", event, str(arguments[1:]))
            raise PermissionError(f"{event} {arguments[1:]}")

    sys.addaudithook(audit)


def ask_the_network() -> None:
    """What `no_network` is there to find."""
    socket.getaddrinfo("localhost", 80)


def save_all_states(folder: str) -> None:
    """Keep a copy of the state after every step."""
    real = State.take_step

    def take_step(state: State, *arguments: Any) -> float:
        loss = real(state, *arguments)
        state.step += 1
        torch.save(state.to_save(), Path(folder) / f"{state.step}.pt")
        state.step -= 1
        return loss

    State.take_step = take_step  # type: ignore[method-assign]


def steps_with_empty(out: str, steps: int) -> None:
    """Train on batches of which a fifth of the images, now and then all of a rank's, have no valid pixel."""
    from atrous.evaluation.distributed import distributed_context
    from atrous.training.config import Recipe, override

    torch.set_default_dtype(torch.float64)
    recipe = override(
        Recipe(),
        {
            "backbone": "timm/lcnet_050",
            "multi_grid": None,
            "aspp_rates": (1,),
            "weights": None,
            "batch_norm_decay": 0.9,
        },
    )
    generator = torch.Generator().manual_seed(5)
    with distributed_context("cpu") as ctx:
        state = State.build(recipe, 4, 255, ctx)
        normalise = state.objective.normalise
        state.objective.normalise = lambda pixels: normalise(pixels).double()  # type: ignore[assignment]
        losses = []
        for step in range(steps):
            images = torch.randint(0, 256, (4, 3, 33, 33), dtype=torch.uint8, generator=generator)
            labels = torch.randint(0, 4, (4, 33, 33), dtype=torch.uint8, generator=generator)
            labels[torch.rand(4, generator=generator) < 0.2] = 255
            labels[2:] = 255 if step % 10 == 3 else labels[2:]
            labels = torch.full_like(labels, 255) if step % 50 == 7 else labels
            mine = slice(ctx.rank * 4 // ctx.size, (ctx.rank + 1) * 4 // ctx.size)
            parts = [(images[mine], labels[mine], [f"{step}"] * 4)]
            losses.append(state.take_step(parts, 0.001, ctx))
            state.step += 1
        torch.save({"losses": losses, "model": state.model.state_dict()}, f"{out}-{ctx.size}-{ctx.rank}")
    torch.set_default_dtype(torch.float32)


def steps_of_ranks(data: str, out: str) -> None:
    """What `ranks` does, as one of several."""
    import ranks

    ranks.main(Path(data), Path(out))


def close_stream(name: str) -> None:
    """Standard output or error is closed, and None, as in a process whose caller closed it."""
    os.close(getattr(sys, name).fileno())
    setattr(sys, name, None)


def temporary_folder(path: str) -> None:
    """As if the process had started with this folder for temporary files."""
    os.environ["TMPDIR"] = path
    tempfile.tempdir = None
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]


def user(number: int) -> None:
    """Go on as another user of the system."""
    os.setgid(number)
    os.setuid(number)


def slow_start(seconds: float) -> None:
    """Wait in the middle of setting up."""
    from atrous.training import start as module

    real = module.saved_state

    def saved(*arguments: Any) -> Any:
        tell("starting")
        time.sleep(seconds)
        return real(*arguments)

    module.saved_state = saved


def clock_backwards() -> None:
    """A system clock that goes back by a minute whenever it is looked at."""
    real = time.time
    looks = [0]

    def earlier() -> float:
        looks[0] += 1
        return real() - 60 * looks[0]

    time.time = earlier
