"""`atrous reproduce` as a user runs it: the tiny preset to the end, killed, resumed, failed, asked for what is not."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atrous.cli.parser import main
from atrous.models.weights import load, save
from atrous.reproduction import estimate
from atrous.reproduction import pool as pool_module
from atrous.reproduction.cell import do
from atrous.reproduction.plan import Training

SMALL = ["--backbone", "timm/lcnet_050", "--iterations", "8", "-j", "0", "--device", "cpu"]
SETTINGS = ["weights=null", "save_every=1", "aspp_rates=[1]", "crop=33", "batch_size=4"]


def command(what: str, out: Path, *more: str) -> list[str]:
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["reproduce", what, "--preset", "tiny", "--out", str(out), *SMALL, *sets, *more]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "atrous", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_midway(out: Path, process: subprocess.Popen[str], count: int = 1) -> Path:
    """The run folder of the `count`-th training, once it has a checkpoint and steps before it."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        runs = sorted((out / "runs").glob("*"), key=lambda run: run.stat().st_ctime) if (out / "runs").exists() else []
        whole = [run for run in runs if list(run.glob("checkpoints/step-[1-5]"))]
        if len(runs) >= count and whole:
            return whole[0]
        time.sleep(0.01)
    raise AssertionError("no training got to its first checkpoint")


def child_of(parent: int) -> int:
    """The one process that `parent` started."""
    (child,) = "".join(file.read_text() for file in Path("/proc").glob(f"{parent}/task/*/children")).split()
    return int(child)


@pytest.mark.integration
def test_tiny_is_killed_in_the_middle_goes_on_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    process = started(command("table-10", out))
    run = until_midway(out, process)
    cells = child_of(process.pid)
    for victim in (process.pid, cells):  # as when the machine goes: a slower death lets a short training end
        os.kill(victim, signal.SIGKILL)
    process.communicate()
    reached = max(int(path.name[5:]) for path in run.glob("checkpoints/step-*"))
    assert reached < 8 and not (run / "finished.json").exists()

    assert main(command("table-10", out, "--json")) == 0
    printed, said = capsys.readouterr()
    result = json.loads(printed)
    assert f"goes on in {run}" in said and "3 of 3 trainings left" in said
    assert f"going on at step {reached}" in (run / "output.txt").read_text()
    assert result["left"] == [] and result["failed"] == {} and len(result["rows"]) == 6
    assert all(0 <= row["ours"] <= 100 for row in result["rows"])
    assert [row["paper"] for row in result["rows"]] == [74.45, 77.21, 75.90, 75.62, 78.51, 75.75]
    assert result["order"]["pairs"] == 15
    files = {kind: Path(path) for kind, path in result["files"].items()}
    assert "train output_stride 16" not in files["markdown"].read_text().split("## ")[0].splitlines()[0]
    lines = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [float(line["mean"]) for line in lines] == [pytest.approx(row["ours"], abs=1e-4) for row in result["rows"]]

    # Each step once, whatever was done twice; no checkpoint is kept of what is finished.
    steps = [row["step"] for row in csv.DictReader((run / "log.csv").read_text().splitlines()) if row["loss"]]
    assert steps == ["8"] and not (run / "checkpoints").exists()

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/results/*.json")}
    assert len(before) == 6
    assert main(command("table-10", out, "--json")) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == result["rows"] and before == {path: path.stat().st_mtime_ns for path in before}
    assert main(command("table-9", out, "--dry-run", "--json")) == 0
    shared = json.loads(capsys.readouterr().out)
    assert [training["state"] for training in shared["trainings"].values()].count("finished") == 1
    assert len(shared["estimated_seconds"]) == 4 and not shared["rows"]


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_says_what_is_left_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started(command("table-10", out))
    run = until_midway(out, process, 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    last = said.splitlines()[-1]
    assert "the same command goes on. Left, " in last and "train output_stride" in last
    assert (out / "table-10.md").exists() and "Left: " in (out / "table-10.md").read_text()
    process = started(command("table-10", out, "--json"))
    printed, said = process.communicate(timeout=240)
    assert process.returncode == 0 and json.loads(printed)["left"] == []
    assert "going on at step" in (run / "output.txt").read_text()


def in_this_process(monkeypatch: pytest.MonkeyPatch, cell: Callable[[Training, str | None, int], None]) -> None:
    """A cell is a call here, and its process only prints its error."""

    def start(training: Training, device: str | None, workers: int, _: Any) -> subprocess.Popen[bytes]:
        training.run.mkdir(parents=True, exist_ok=True)
        try:
            cell(training, device, workers)
        except Exception as error:
            (training.run / "output.txt").write_text(f"error: {type(error).__name__}: {error}\n")
            return subprocess.Popen(["false"])
        return subprocess.Popen(["true"])

    monkeypatch.setattr(pool_module, "start", start)
    monkeypatch.setattr(estimate, "probed_speed", lambda recipe, device: 1e9)


def pretended(training: Training, *_: Any) -> None:
    assert training.recipe
    if training.recipe.model.output_stride == 16:
        raise FloatingPointError("the loss is nan at step 3")
    for setting in training.settings:
        training.result(setting).parent.mkdir(parents=True, exist_ok=True)
        training.result(setting).write_text(json.dumps({"miou": 0.4 + setting.output_stride / 100}))


def test_a_cell_that_fails_is_survived_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process(monkeypatch, pretended)
    out = tmp_path / "out"
    assert main(command("table-10", out, "--json")) == 1
    printed, said = capsys.readouterr()
    result = json.loads(printed)
    ours = [row["ours"] and round(row["ours"], 6) for row in result["rows"]]
    assert ours == [56.0, None, 56.0, 48.0, None, 48.0]
    assert list(result["failed"].values()) == ["FloatingPointError: the loss is nan at step 3"]
    label = "train output_stride 16, eval output_stride 16; train output_stride 16, eval output_stride 8"
    assert result["left"] == [label] and f"failed: {label}: FloatingPointError" in said
    assert f"Left: {label}." in Path(result["files"]["markdown"]).read_text()


def test_several_tables_train_what_they_share_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def noted(training: Training, *_: Any) -> None:
        ran.append(training.name)
        for setting in training.settings:
            training.result(setting).parent.mkdir(parents=True, exist_ok=True)
            training.result(setting).write_text(json.dumps({"miou": 0.5}))

    in_this_process(monkeypatch, noted)
    words = command("table-9", tmp_path, "--json", "--parallel", "3")
    assert main(["reproduce", "table-10", "figure-4", *words[1:]]) == 0
    printed, said = capsys.readouterr()
    results = json.loads(printed)
    assert list(results) == ["figure-4", "table-10", "table-9"] and "7 of 7 trainings left" in said
    assert len(ran) == len(set(ran)) == 7
    assert all(results[what]["left"] == [] and (tmp_path / f"{what}.md").exists() for what in ("table-9", "table-10"))


def test_figure_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "figure-4", "--out", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert Path(result["csv"]).read_text().startswith("rate,1 valid")


def test_the_list_says_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table-5.md").write_text("x")
    assert main(["reproduce", "list", "--out", str(tmp_path), "--json"]) == 0
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 17 and rows["table-5"]["written"] and not rows["table-6"]["written"]
    assert rows["table-3"]["cells"] == 20


def test_a_model_that_is_given_goes_up_the_ladder(
    trained: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process(monkeypatch, do)
    model, card = load(trained)
    save(model, tmp_path / "sized.safetensors", replace(card, longest_side=200))
    given = str(tmp_path / "sized.safetensors")
    options = ["--preset", "tiny", "--model", given, "--data", str(tiny_data), "--out", str(tmp_path / "o")]
    assert main(["reproduce", "table-12", *options, "--device", "cpu", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    flags = ["--data", str(tiny_data), "--device", "cpu", "--json", "--ladder", "--scales", "0.75", "1", "1.25"]
    assert main(["eval", given, *flags, "--longest-side", "0"]) == 0, "the tables' pictures are as they are"
    ladder = json.loads(capsys.readouterr().out)
    assert [100 * row["miou"] for row in ladder["rows"]] == [pytest.approx(row["ours"]) for row in rows]
    assert len(rows) == 4 and ladder["markdown"].startswith("| OS=16 | OS=8 | MS | Flip | mIOU |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel-5"], "there is no table or figure 'tabel-5'; did you mean table-5?"),
        (["figure-5"], "there is no table or figure 'figure-5'; there are: table-1, table-2,"),
        (["table-99"], "there is no table or figure 'table-99'; there are: table-1, table-2,"),
        (["Table-7"], "the result of PASCAL VOC's test server; docs/results.md"),
        (["table-13"], "the result of Cityscapes' test server; docs/results.md"),
        (["table-5", "--preset", "tinny"], "there is no preset 'tinny'; did you mean tiny?"),
        (["table-5", "--seeds", "0"], "--seeds and --iterations are at least 1"),
        (["table-5", "--parallel", "0"], "--parallel is 0, expected at least 1"),
        (["list", "table-5"], "list stands alone, found list table-5"),
        (["table-5", "tabel-1"], "there is no table or figure 'tabel-1'; did you mean table-1?"),
        (["ablation", "--preset", "tiny"], "ablation is about one recipe: --preset streets"),
        (["table-5", "--preset", "streets"], "preset streets is for the ablations alone, not for table-5"),
        (["table-5", "--preset", "camvid"], "no data of its own; --data PATH: CamVid"),
        (["table-5", "--data", "voc:/no/such/place"], "/no/such/place: no such folder"),
        (["table-5", "--preset", "tiny", "--set", "iteratons=3"], "no key 'iteratons'; did you mean iterations"),
        (["table-5", "--preset", "tiny", "--presett", "x"], "did you mean --preset?"),
    ],
)
def test_one_line_for_whatever_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["reproduce", *arguments, "--out", str(tmp_path / "o")])
    except SystemExit as error:
        status = int(error.code or 0)
    said: Any = capsys.readouterr().err.splitlines()
    assert status == 2 and len(said) == 1 and message in said[0]
