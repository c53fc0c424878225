"""``log.csv`` of a run: a row every few steps, and a row for each validation with the IoU of each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atrous.atomic import write_text

COLUMNS = ("step", "loss", "lr", "images_per_second", "memory_mb", "miou", "mean_accuracy", "pixel_accuracy")
IOU = "iou_"
"""Begins the name of the column that has a class's IoU; the class's name follows."""


@dataclass(frozen=True)
class Log:
    """What a log holds.

    Attributes:
        loss: (step, mean loss since the row before).
        lr: (step, learning rate).
        miou: (step, mIoU), of each validation.
        iou: (step, IoU of each class in the order of the columns), of each validation.
    """

    loss: tuple[tuple[int, float], ...] = ()
    lr: tuple[tuple[int, float], ...] = ()
    miou: tuple[tuple[int, float], ...] = ()
    iou: tuple[tuple[int, tuple[float, ...]], ...] = ()

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and mIoU of the best validation, the first of equals; None without one."""
        real = [point for point in self.miou if point[1] == point[1]]
        return max(real, key=lambda point: point[1], default=None)


def columns_for(names: Sequence[str]) -> tuple[str, ...]:
    """The columns of a run on these classes."""
    return (*COLUMNS, *(IOU + name for name in names))


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Add a row, after the header if the file is new."""
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def keep_rows(path: Path, columns: Sequence[str], start: int) -> None:
    """Drop the rows of steps, and of the validation, that are about to be done again after a resume at `start`."""
    if not path.exists():
        return
    kept = [
        row
        for row in _whole_rows(path)
        if int(row["step"]) < start or (int(row["step"]) == start and not row.get("miou"))
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(kept)
    write_text(path, text.getvalue())


def _whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows by column; a run killed while it wrote leaves a first or last row that is not whole."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    if tuple(header[: len(COLUMNS)]) != COLUMNS:
        return []
    whole = [row for row in rows if len(row) == len(header) and row[0].isdecimal()]
    return [dict(zip(header, row, strict=True)) for row in whole]


def read_log(path: Path) -> Log:
    """The curves of a log; empty where there is none."""
    rows = _whole_rows(path) if path.exists() else []

    def curve(column: str) -> tuple[tuple[int, float], ...]:
        return tuple((int(row["step"]), float(row[column])) for row in rows if row[column])

    classes = [column for column in (rows[0] if rows else ()) if column.startswith(IOU)]
    iou = tuple(
        (int(row["step"]), tuple(float(row[column] or "nan") for column in classes)) for row in rows if row["miou"]
    )
    return Log(curve("loss"), curve("lr"), curve("miou"), iou)
