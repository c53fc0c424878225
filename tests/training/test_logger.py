"""log.csv, TensorBoard and what is said: a run tells of itself, and nothing twice after a resume."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from atrous.colours import voc_palette
from atrous.data.labels import Labels
from atrous.evaluation.evaluate import Evaluation
from atrous.evaluation.metrics import Scores
from atrous.training.config import Recipe, override
from atrous.training.log_file import COLUMNS, columns_for
from atrous.training.logger import RunLogger, peak_memory_mb
from atrous.training.pace import Pace
from atrous.training.run_page import RunPage

SCORES = Scores(("a", "b"), (0.5, 0.7), (0.6, 0.8), 0.6, 0.7, 0.75)
LABELS = Labels(("a", "b"), voc_palette(2))
FOUND = Evaluation(SCORES, 4, 2.0, 16, (1.0,), False)


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def report(run: Path, start: int = 0, *, iterations: int = 40, headline: str = "hello", **options) -> RunLogger:
    recipe = override(Recipe(), {"iterations": iterations, "batch_size": 4})
    page = RunPage(run, recipe, "data", LABELS, np.ones((3, 2), dtype=bool), None, headline)
    return RunLogger(page, start, **options)


def test_rows_hold_the_mean_loss_since_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = report(tmp_path, headline="hello [/there] :car:")
    with one.running():
        for step in range(1, 41):
            one.step(step, float(step), 0.5)
            if step == 20:
                one.validated(step, FOUND, True)
    actual = rows(tmp_path)
    assert tuple(actual[0]) == columns_for(LABELS.names)
    assert [(row["step"], row["loss"]) for row in actual] == [
        ("10", "5.5"), ("20", "15.5"), ("20", ""), ("30", "25.5"), ("40", "35.5"),
    ]  # fmt: skip
    assert actual[2]["miou"] == "0.6" and actual[2]["pixel_accuracy"] == "0.75" and actual[0]["miou"] == ""
    assert all(float(row["images_per_second"]) > 0 and float(row["memory_mb"]) > 10 for row in actual if row["loss"])
    out, err = capsys.readouterr()
    assert out == "" and "hello [/there] :car:" in err
    assert "miou 0.6000" in err and "best so far" in err and "step 40/40  loss 35.5" in err


def test_the_last_step_has_a_row_even_off_the_beat(tmp_path: Path) -> None:
    one = report(tmp_path, iterations=13)
    with one.running():
        for step in range(1, 14):
            one.step(step, 1.0, 0.1)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "13"]


def test_resuming_drops_the_rows_that_will_be_written_again(tmp_path: Path) -> None:
    for start, stop in ((0, 40), (20, 40)):
        one = report(tmp_path, start)
        with one.running():
            for step in range(start + 1, stop + 1):
                one.step(step, float(start), 0.1)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        ("10", "0"), ("20", "0"), ("30", "20"), ("40", "20"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ("", []),  # killed before the first line
        (",".join(COLUMNS)[:12], []),  # within the first line
        (",".join(COLUMNS) + "\n10,1,1,1,1,,,\n20,1,1", ["10"]),  # within a row
    ],
)
def test_a_log_cut_short_by_a_kill_does_not_stop_the_next_run(tmp_path: Path, left: str, kept: list[str]) -> None:
    (tmp_path / "log.csv").write_text(left, encoding="utf-8")
    one = report(tmp_path, 20, iterations=30)
    with one.running():
        for step in range(21, 31):
            one.step(step, 1.0, 0.1)
    actual = rows(tmp_path)
    assert [row["step"] for row in actual] == [*kept, "30"] and tuple(actual[0]) == columns_for(LABELS.names)


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = report(tmp_path)
    with one.running():
        for step in range(1, 41):
            one.step(step, float(step), 0.5)
        one.validated(40, FOUND, False)
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (10, 5.5), (20, 15.5), (30, 25.5), (40, 35.5),
    ]  # fmt: skip
    assert board.Scalars("miou")[0].value == pytest.approx(0.6)


def test_all_processes_but_the_first_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = report(tmp_path, silent=True)
    with one.running():
        one.step(40, 1.0, 0.1)
        one.validated(40, FOUND, True)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


def test_how_long_it_takes_is_said_before_the_first_step_and_corrected_after_a_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = report(tmp_path, iterations=1000, pace=Pace(6.0, 0.0, 3))
    with one.running():
        assert "about 1h40m: 6 s a step, measured on 3 trial steps" in " ".join(capsys.readouterr().err.split())
        for step in range(1, 5):
            one.step(step, 1.0, 0.1)
        assert "corrected: about" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    other = report(tmp_path / "b", iterations=1000)
    with other.running():
        for step in range(1, 5):
            other.step(step, 1.0, 0.1)
    said = capsys.readouterr().err
    assert "to go" in said and "corrected" not in said


def test_memory_is_in_megabytes() -> None:
    assert 50 < peak_memory_mb() < 1e6
