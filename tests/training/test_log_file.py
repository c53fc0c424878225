"""log.csv: rows of steps and of validations, read back; a log cut short or of an older version is gone on with."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from atrous.training.log_file import COLUMNS, Log, append_row, columns_for, keep_rows, read_log

NAMES = ('a, "b"', "été", "no")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, columns = tmp_path / "log.csv", columns_for(NAMES)
    append_row(path, columns, {"step": 10, "loss": 2.5, "lr": 0.1})
    append_row(path, columns, {"step": 10, "miou": 0.5, 'iou_a, "b"': 0.25, "iou_no": 0.75})
    append_row(path, columns, {"step": 20, "miou": 0.4, "iou_été": 0.4})
    log = read_log(path)
    assert (log.loss, log.lr, log.miou) == (((10, 2.5),), ((10, 0.1),), ((10, 0.5), (20, 0.4)))
    assert log.iou[0][1][0] == 0.25 and math.isnan(log.iou[0][1][1]) and log.iou[1][1][1] == 0.4
    assert log.best == (10, 0.5)
    with open(path, newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == [*COLUMNS, 'iou_a, "b"', "iou_été", "iou_no"]


def test_a_resume_keeps_what_is_not_done_again(tmp_path: Path) -> None:
    path, columns = tmp_path / "log.csv", columns_for(NAMES)
    for step in (10, 20, 30):
        append_row(path, columns, {"step": step, "loss": 1.0, "lr": 0.1})
        append_row(path, columns, {"step": step, "miou": 0.5, "iou_no": 0.5})
    keep_rows(path, columns, 20)
    log = read_log(path)
    assert [step for step, _ in log.loss] == [10, 20] and [step for step, _ in log.miou] == [10]
    keep_rows(path, columns, 20)
    assert repr(read_log(path)) == repr(log)  # which has classes without a number


def test_a_log_from_before_the_columns_of_classes_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(",".join(COLUMNS) + "\n10,2.5,0.1,1,1,,,\n10,,,,,0.5,0.5,0.5\n20,1,0.1,1", encoding="utf-8")
    keep_rows(path, columns_for(NAMES), 15)
    append_row(path, columns_for(NAMES), {"step": 20, "miou": 0.6, "iou_no": 0.6})
    log = read_log(path)
    assert log.loss == ((10, 2.5),) and log.miou == ((10, 0.5), (20, 0.6))


def test_no_log_and_no_number(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.csv") == Log() and Log().best is None
    assert Log(miou=((1, math.nan),)).best is None
