"""Log a run: progress, ``log.csv``, TensorBoard events, and the page that shows it all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from atrous.evaluation.evaluate import Evaluation
from atrous.platforms import peak_memory
from atrous.training.log_file import IOU, append_row, columns_for, keep_rows
from atrous.training.pace import Forecast, Pace, told
from atrous.training.run_page import RunPage

PLAIN_LINES = 60
"""Lines of progress over a whole run where standard error is no terminal."""


class RunLogger:
    """The logger of one run; silent on all processes but the first.

    Args:
        page: shows the run, too.
        start: steps done before.
        pace: that was measured before, or None.
        silent: write and print nothing.
        log_every: steps between rows of ``log.csv``.
    """

    def __init__(
        self, page: RunPage, start: int, pace: Pace | None = None, *, silent: bool = False, log_every: int = 10
    ) -> None:
        self.page, self.run, self.start, self.silent, self.log_every = page, page.run, start, silent, log_every
        self.iterations, self.batch_size = page.recipe.schedule.iterations, page.recipe.optim.batch_size
        val_every = page.recipe.run.val_every if page.held_out else 0
        self.forecast = Forecast(self.iterations, start, val_every, pace)
        self.console = Console(stderr=True, quiet=silent, markup=False, emoji=False)  # names of files hold anything
        self.live = self.console.is_terminal
        self.columns = columns_for(page.labels.names)
        self.losses: list[float] = []
        self.clock = time.perf_counter()
        page.warn = self._say

    @contextmanager
    def running(self) -> Iterator[None]:
        """Say the run's headline; open the files and the progress bar."""
        if self.silent:
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        self._say(self.page.headline)
        keep_rows(self.run / "log.csv", self.columns, self.start)
        self.board: Any = SummaryWriter(str(self.run), purge_step=self.start)
        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        with Progress(*columns, console=self.console, disable=not self.live) as self.progress:
            self.task = self.progress.add_task("starting", total=self.iterations, completed=self.start, rate="")
            self.clock = time.perf_counter()
            with _closing(self.board):
                self._say(self.forecast.opening())
                self._show()
                try:
                    yield
                except BaseException:
                    self._show("stopped", ended=True)
                    raise

    def step(self, step: int, loss: float, lr: float) -> None:
        """After `step` steps."""
        if self.silent:
            return
        self._say(self.forecast.after_step(step))
        self.losses.append(loss)
        if step % self.log_every and step != self.iterations:
            self.progress.update(self.task, completed=step)
            return
        seconds = time.perf_counter() - self.clock
        speed = len(self.losses) * self.batch_size / seconds
        self.forecast.note_step(seconds / len(self.losses))
        mean, memory = sum(self.losses) / len(self.losses), peak_memory_mb()
        self.losses, self.clock = [], time.perf_counter()
        row = {"step": step, "loss": mean, "lr": lr, "images_per_second": speed, "memory_mb": memory}
        self._write(step, row, {})
        text = f"loss {mean:.4f}  lr {lr:.2e}  {speed:.1f} images/s  {memory:.0f} MB"
        self.progress.update(self.task, completed=step, description=f"loss {mean:.4f}", rate=text)
        plain_every = max(self.log_every, self.iterations // PLAIN_LINES // self.log_every * self.log_every)
        if not self.live and step % plain_every == 0:
            self._say(f"step {step}/{self.iterations}  {text}  {self.forecast.left / 60:.0f} min left")

    def validated(self, step: int, evaluation: Evaluation, best: bool) -> None:
        """After a validation; of the best so far, whose weights are kept, the pictures are drawn."""
        if self.silent:
            return
        scores = evaluation.scores
        self.forecast.note_validation(evaluation.seconds)
        by_class = {IOU + name: iou for name, iou in zip(scores.names, scores.iou, strict=True) if iou == iou}
        self._write(step, {"step": step, **dict(scores)}, by_class)
        mark = "  (best so far)" if best else ""
        means = "  ".join(f"{name} {value:.4f}" for name, value in scores)
        self._say(f"step {step}  val  {means}  in {evaluation.seconds:.0f} s{mark}")
        sheet = self.page.show(evaluation) if best else None
        if sheet is not None:
            self.board.add_image("predictions", np.asarray(sheet), step, dataformats="HWC")
        self._show()
        self.clock, self.losses = time.perf_counter(), []

    def saved(self) -> None:
        """After a checkpoint."""
        self._show()

    def finished(self) -> None:
        """At the end: the verdict, and what comes next."""
        if self.silent:
            return
        for line in self.page.closing_words():
            self._say(line)
        self._show("done", ended=True)

    def _show(self, state: str = "training", *, ended: bool = False) -> None:
        if self.silent:
            return
        left = f", about {told(self.forecast.left)} left" if self.forecast.left and not ended else ""
        self.page.update(f"{state}: step {self.forecast.done} of {self.iterations}{left}", refresh=not ended)

    def _say(self, line: str) -> None:
        if line:
            self.console.print(line, soft_wrap=True)

    def _write(self, step: int, row: dict[str, Any], by_class: dict[str, float]) -> None:
        append_row(self.run / "log.csv", self.columns, row | by_class)
        for key, value in row.items():
            if key != "step":
                self.board.add_scalar(key, value, step)


@contextmanager
def _closing(board: Any) -> Iterator[None]:
    """Close TensorBoard's writer; the next call to it raises an error of its thread, which is not printed as well."""
    before = threading.excepthook

    def elsewhere(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            before(args)

    threading.excepthook = elsewhere
    try:
        yield
    except BaseException:
        with suppress(OSError):  # tell what ended the run, not what followed from it
            board.close()
        raise
    else:
        board.close()
    finally:
        threading.excepthook = before


def peak_memory_mb() -> float:
    """Most memory held so far, in MB: on the GPU if it is used, of the process otherwise."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    return (peak_memory() or 0) / 1e6
