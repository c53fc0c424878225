"""log.csv, TensorBoard and the picture: what a run says of itself, and nothing twice after a resume."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atrous.data.datasets.dataset import open_dataset
from atrous.evaluation.evaluate import Evaluation
from atrous.evaluation.metrics import Scores
from atrous.models.deeplab import DeepLabV3
from atrous.training.logger import COLUMNS, RunLogger, peak_memory_mb, predictions_picture

SCORES = Scores(("a", "b"), (0.5, 0.7), (0.6, 0.8), 0.6, 0.7, 0.75)
FOUND = Evaluation(SCORES, 4, 2.0, 16, (1.0,), False)


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def report(run: Path, start: int = 0, **options) -> RunLogger:
    return RunLogger(run, **{"iterations": 40, "start": start, "batch_size": 4, "log_every": 10, **options})


def test_rows_hold_the_mean_loss_since_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = report(tmp_path)
    with one.running("hello [/there] :car:"):
        for step in range(1, 41):
            one.step(step, float(step), 0.5)
            if step == 20:
                one.validated(step, FOUND, True)
    found = rows(tmp_path)
    assert tuple(found[0]) == COLUMNS
    assert [(row["step"], row["loss"]) for row in found] == [
        ("10", "5.5"), ("20", "15.5"), ("20", ""), ("30", "25.5"), ("40", "35.5"),
    ]  # fmt: skip
    assert found[2]["miou"] == "0.6" and found[2]["pixel_accuracy"] == "0.75" and found[0]["miou"] == ""
    assert all(float(row["images_per_second"]) > 0 and float(row["memory_mb"]) > 10 for row in found if row["loss"])
    out, err = capsys.readouterr()
    assert out == "" and "hello [/there] :car:" in err
    assert "miou 0.6000" in err and "best so far" in err and "step 40/40  loss 35.5" in err


def test_the_last_step_has_a_row_even_off_the_beat(tmp_path: Path) -> None:
    one = report(tmp_path, iterations=13)
    with one.running(""):
        for step in range(1, 14):
            one.step(step, 1.0, 0.1)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "13"]


def test_resuming_drops_the_rows_that_will_be_written_again(tmp_path: Path) -> None:
    for start, stop in ((0, 40), (20, 40)):
        one = report(tmp_path, start)
        with one.running(""):
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
    with one.running(""):
        for step in range(21, 31):
            one.step(step, 1.0, 0.1)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [*kept, "30"] and tuple(found[0]) == COLUMNS


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = report(tmp_path)
    with one.running(""):
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
    with one.running("hello"):
        one.step(40, 1.0, 0.1)
        one.validated(40, FOUND, True)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


def test_the_picture_has_photo_truth_and_prediction_side_by_side(tiny_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DeepLabV3("timm/lcnet_050", 4, aspp_rates=(1,)).train()
    dataset = open_dataset(tiny_data, "val")
    grid = predictions_picture(model, dataset)
    sizes = [tuple(dataset[i].mask.shape) for i in range(4)]
    assert grid.dtype == np.uint8
    assert grid.shape == (sum(height for height, _ in sizes), 3 * max(width for _, width in sizes), 3)
    first = dataset[0].image.permute(1, 2, 0).numpy()
    assert (grid[: sizes[0][0], : sizes[0][1]] == first).all()
    assert model.training
    one = report(tmp_path)
    with one.running(""):
        one.picture(1, model, dataset)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "predictions.png")), grid)


def test_the_picture_of_one_image(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data, "val")
    dataset.items = dataset.items[:1]
    height, width = dataset[0].mask.shape
    assert predictions_picture(DeepLabV3("timm/lcnet_050", 4), dataset).shape == (height, 3 * width, 3)


def test_memory_is_in_megabytes() -> None:
    assert 50 < peak_memory_mb() < 1e6
