"""Log a run: progress, ``log.csv``, TensorBoard events, a picture of some predictions."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from atrous.atomic import write_text
from atrous.data.image_io import write_image
from atrous.data.overlay import overlay
from atrous.evaluation.evaluate import Evaluation, in_eval_mode, predict_classes
from atrous.models.deeplab import DeepLabV3
from atrous.platforms import peak_memory

if TYPE_CHECKING:
    from atrous.data.datasets.dataset import SegmentationDataset

COLUMNS = ("step", "loss", "lr", "images_per_second", "memory_mb", "miou", "mean_accuracy", "pixel_accuracy")
PLAIN_LINES = 60
"""Lines of progress over a whole run where standard error is no terminal."""
PICTURES = 4


class RunLogger:
    """The logger of one run; silent on all processes but the first.

    Args:
        run: the run's folder.
        iterations: steps in all.
        start: steps done before.
        batch_size: images in a step.
        silent: write and print nothing.
        log_every: steps between rows of ``log.csv``.
    """

    def __init__(
        self, run: Path, *, iterations: int, start: int, batch_size: int, silent: bool = False, log_every: int = 10
    ) -> None:
        self.run, self.iterations, self.start, self.batch_size = run, iterations, start, batch_size
        self.silent, self.log_every = silent, log_every
        self.console = Console(stderr=True, quiet=silent, markup=False, emoji=False)  # names of files hold anything
        self.live = self.console.is_terminal
        self.losses: list[float] = []
        self.clock = time.perf_counter()
        self.board: Any = None

    @contextmanager
    def running(self, message: str) -> Iterator[None]:
        """Open the files and the progress bar."""
        if self.silent:
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        self.console.print(message, soft_wrap=True)
        _keep_rows(self.run / "log.csv", self.start)
        self.board = SummaryWriter(str(self.run), purge_step=self.start)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=self.console, disable=not self.live) as self.progress:
            self.task = self.progress.add_task("starting", total=self.iterations, completed=self.start, rate="")
            self.clock = time.perf_counter()
            with _closing(self.board):
                yield

    def step(self, step: int, loss: float, lr: float) -> None:
        """After `step` steps."""
        if self.silent:
            return
        self.losses.append(loss)
        if step % self.log_every and step != self.iterations:
            self.progress.update(self.task, completed=step)
            return
        seconds = time.perf_counter() - self.clock
        speed = len(self.losses) * self.batch_size / seconds
        mean, memory = sum(self.losses) / len(self.losses), peak_memory_mb()
        self.losses, self.clock = [], time.perf_counter()
        row = {"step": step, "loss": mean, "lr": lr, "images_per_second": speed, "memory_mb": memory}
        self._write(step, row)
        text = f"loss {mean:.4f}  lr {lr:.2e}  {speed:.1f} images/s  {memory:.0f} MB"
        self.progress.update(self.task, completed=step, description=f"loss {mean:.4f}", rate=text)
        plain_every = max(self.log_every, self.iterations // PLAIN_LINES // self.log_every * self.log_every)
        if not self.live and step % plain_every == 0:
            left = (self.iterations - step) * self.batch_size / speed
            self.console.print(f"step {step}/{self.iterations}  {text}  {left / 60:.0f} min left", soft_wrap=True)

    def validated(self, step: int, found: Evaluation, best: bool) -> None:
        """After a validation."""
        if self.silent:
            return
        self._write(step, {"step": step, **dict(found.scores)})
        mark = "  (best so far)" if best else ""
        means = "  ".join(f"{name} {value:.4f}" for name, value in found.scores)
        self.console.print(f"step {step}  val  {means}  in {found.seconds:.0f} s{mark}", soft_wrap=True)
        self.clock, self.losses = time.perf_counter(), []

    def picture(self, step: int, model: DeepLabV3, dataset: SegmentationDataset) -> None:
        """Photo, truth and prediction of a few images, in ``predictions.png`` and TensorBoard."""
        if self.silent:
            return
        grid = predictions_picture(model, dataset)
        write_image(self.run / "predictions.png", grid)
        self.board.add_image("predictions", grid, step, dataformats="HWC")

    def _write(self, step: int, row: dict[str, Any]) -> None:
        path = self.run / "log.csv"
        new = not path.exists()
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
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


def predictions_picture(model: DeepLabV3, dataset: SegmentationDataset, count: int = PICTURES) -> Any:
    """Rows of photo, truth and prediction, spread over the data set: H,W,3 uint8."""
    network, rows = in_eval_mode(model), []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int):
        sample = dataset[int(index)]
        mask = predict_classes(network, sample.image[None])[0].cpu().numpy()
        photo = sample.image.permute(1, 2, 0).numpy()
        drawn = [overlay(photo, ids, dataset.labels, legend=False) for ids in (sample.mask.numpy(), mask)]
        rows.append(np.concatenate([photo, *map(np.asarray, drawn)], 1))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def peak_memory_mb() -> float:
    """Most memory held so far, in MB: on the GPU if it is used, of the process otherwise."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    return (peak_memory() or 0) / 1e6


def _keep_rows(path: Path, start: int) -> None:
    """Drop the rows of steps, and of the validation, that are about to be done again."""
    if not path.exists():
        return
    # A run killed while it wrote leaves a first or last row that is not whole.
    rows = [row.split(",") for row in path.read_text(encoding="utf-8").splitlines()]
    whole = [row for row in rows if len(row) == len(COLUMNS) and row[0].isdecimal()]
    validation = COLUMNS.index("miou")
    kept = [row for row in whole if int(row[0]) < start or (int(row[0]) == start and not row[validation])]
    write_text(path, "".join(",".join(row) + "\n" for row in [COLUMNS, *kept]))
