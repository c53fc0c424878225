"""The measurements of a GPU: what a rerun leaves out, what a failure and the end of the time leave behind."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import OutOfTime, Report

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def first(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    report.add("one", value=1.0)


def second(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    report.add("two", value=2.0)
    if args.fails:
        raise args.fails


def rows(path: Path) -> list[str]:
    return [row["name"] for row in json.loads(path.read_text())["rows"]]


def test_a_rerun_leaves_out_what_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "fast.json"
    with pytest.raises(OutOfTime):
        Report(path).run((first, second), argparse.Namespace(fails=OutOfTime()), CPU)
    assert rows(path) == ["one", "two"], "each row is written as it comes"
    Report(path).run((first, second), argparse.Namespace(fails=None), CPU)
    assert rows(path) == ["one", "two"], "the unfinished step was done again, the finished one not"
    assert list(json.loads(path.read_text())["finished_seconds"]) == ["first", "second"]


def test_a_failure_is_a_row_and_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fast.json"
    Report(path).run((second, first), argparse.Namespace(fails=ValueError("why")), CPU)
    assert rows(path) == ["two", "second", "one"]
    assert json.loads(path.read_text())["rows"][1]["failed"] == "ValueError: why"


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_and_the_time_ends_it(tmp_path: Path) -> None:
    command = [ROOT / "scripts" / "gpu", tmp_path, "--device", "cpu", "--quick"]
    ended = subprocess.run([*command, "--minutes", "0.05"], capture_output=True, text=True, check=False)
    assert ended.returncode == 3 and "the same command goes on" in ended.stdout
    whole = subprocess.run([*command, "--minutes", "9"], capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stdout[-2_000:] + whole.stderr[-2_000:]
    names = sorted(path.stem for path in tmp_path.glob("*.json"))
    assert names == ["fast", "repeat", "right", "tables", "tests"]
