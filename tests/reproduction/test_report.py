"""Order, Markdown, CSV and plot of a table whose numbers are written by hand."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest

from atrous.cli.parser import build_parser
from atrous.reproduction.plan import Options, Plan, plan
from atrous.reproduction.report import (
    Row,
    commands_of,
    csv_text,
    markdown,
    order_line,
    order_of,
    plot,
    relative_time,
    rows_of,
)
from atrous.reproduction.specs import Cell
from atrous.training.config import override, parse_assignments
from atrous.training.recipes import load_recipe


def row(name: str, paper: float | None, *values: float, seconds: tuple[float, ...] = ()) -> Row:
    return Row(Cell({"x": name}, paper), values, seconds)


def test_the_order_holds_when_every_pair_goes_the_papers_way() -> None:
    order = order_of([row("a", 70.0, 50.0), row("b", 75.0, 60.0), row("c", 72.0, 55.0)])
    assert (order.pairs, order.held, order.reversed, order.within) == (3, 3, (), 0)
    assert order.as_dict()["holds"] is True


def test_a_pair_that_goes_the_other_way_is_named_with_both_differences() -> None:
    order = order_of([row("a", 70.0, 50.0), row("b", 75.0, 49.0), row("c", 90.0, 60.0)])
    assert order.held == 2 and order.reversed == (("x b", "x a", 5.0, -1.0),)
    assert order.as_dict()["holds"] is False


def test_a_difference_within_the_spread_says_nothing() -> None:
    # Deviations 1 and 1: the difference of 0.5 is within 1.41, in whichever direction; 3.0 is not.
    near = order_of([row("a", 70.0, 49.0, 50.0, 51.0), row("b", 75.0, 48.5, 49.5, 50.5)])
    far = order_of([row("a", 70.0, 49.0, 50.0, 51.0), row("b", 75.0, 46.0, 47.0, 48.0)])
    assert (near.within, near.reversed) == (1, ()) and (far.within, len(far.reversed)) == (0, 1)
    assert order_of([row("a", 70.0, 50.0), row("b", 75.0, 50.0)]).within == 1


def test_cells_that_the_paper_does_not_have_or_that_are_not_done_do_not_count() -> None:
    assert order_of([row("a", None, 50.0), row("b", 75.0), row("c", 70.0, 50.0)]).pairs == 0
    assert order_of([row("a", 70.0, 50.0), row("b", 70.0, 40.0)]).pairs == 0


def test_mean_and_deviation_are_the_usual_ones() -> None:
    three = row("a", 70.0, 1.0, 2.0, 4.0)
    assert three.mean == pytest.approx(7 / 3) and three.deviation == pytest.approx(1.5275, abs=1e-4)


def test_relative_time_is_beside_the_first_row() -> None:
    rows = [row("1", 77.0, 1.0, seconds=(10.0, 30.0)), row("2", 77.0, 1.0, seconds=(10.0,)), row("4", 77.0)]
    assert [relative_time(one, rows) for one in rows] == [1.0, 0.5, None]


@pytest.fixture
def planned(tiny_data: Path, tmp_path: Path) -> Plan:
    """Table 5 on four drawn classes, planned and not begun."""
    return plan("table-5", Options("tiny", data=str(tiny_data), out=tmp_path / "out"))


def fill(planned: Plan, values: list[float | None]) -> None:
    """Results as a cell writes them."""
    for value, uses in zip(values, planned.uses, strict=True):
        for name, setting in uses:
            path = planned.trainings[name].result(setting)
            path.parent.mkdir(parents=True, exist_ok=True)
            if value is not None:
                path.write_text(json.dumps({"miou": value / 100}))


def test_a_table_says_what_is_done_and_what_is_left(planned: Plan) -> None:
    fill(planned, [50.0, 51.0, 53.0, None, 52.0])
    rows = rows_of(planned)
    text = markdown(planned, rows, order_of(rows))
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert lines[0][:5] == ["Multi-Grid", "ASPP", "Image Pooling", "paper", "ours"]
    assert [line[3] for line in lines[2:]] == ["75.36", "75.93", "76.58", "76.46", "77.21"]
    assert [line[4] for line in lines[2:]] == ["50.00", "51.00", "53.00", "–", "52.00"]
    assert lines[2][5:7] == ["-1.85", "-2.00"]
    assert "Order: 5 of 6 pairs as in the paper, 1 reversed." in text
    assert (
        "Multi-Grid (1, 2, 4), ASPP (6, 12, 18), Image Pooling over Multi-Grid (1, 2, 4), ASPP (6, 12, 18): +0.63"
        in text
    )
    left = next(line for line in text.splitlines() if line.startswith("Left: "))
    assert "ASPP (6, 12, 18, 24)" in left


def test_the_csv_has_a_line_a_cell_and_a_column_a_seed(tiny_data: Path, tmp_path: Path) -> None:
    planned = plan("table-5", Options("tiny", data=str(tiny_data), out=tmp_path, seeds=2))
    fill(planned, [50.0, 51.0, 53.0, None, 52.0])
    lines = list(csv.DictReader(csv_text(planned, rows_of(planned)).splitlines()))
    assert [line["paper"] for line in lines] == ["75.36", "75.93", "76.58", "76.46", "77.21"]
    assert [line["seed 1"] for line in lines] == ["50.0000", "51.0000", "53.0000", "", "52.0000"]
    assert lines[3]["mean"] == "" and lines[0]["deviation"] == "0.0000"


def test_table_11_claims_no_order(tiny_data: Path, tmp_path: Path) -> None:
    planned = plan("table-11", Options("tiny", data=str(tiny_data), out=tmp_path))
    assert "concludes nothing from the order" in order_line(planned, order_of(rows_of(planned)))


def test_an_ablation_has_each_row_beside_the_first(tiny_data: Path, tmp_path: Path) -> None:
    planned = plan("ablation", Options("streets", data=str(tiny_data), out=tmp_path, seeds=2))
    # Weights of other classes than these are not taken, so that there are none to do without.
    fill(planned, [50.0, 49.0, 50.0, 51.0, 48.5, None, 50.0, 50.25, None, None])
    rows = rows_of(planned)
    text = markdown(planned, rows, order_of(rows))
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == ["", "ours, mean ± deviation of 2 seeds", "to the first"]
    told = [line[-1] for line in lines[2:10]]
    assert [*told[:2], *told[3:]] == ["", "-1.00", "+1.00", "-1.50", "", "+0.00", "+0.25"]
    assert told[2].startswith("the same training")
    assert "Order" not in text


def test_the_commands_of_vocs_tables_pad_to_513() -> None:
    planned = plan("table-4", Options("paper"), dry=True)
    (training,) = planned.trainings.values()
    _, *evaluations = commands_of(training)
    assert len(evaluations) == 4 and all("--pad-to 513" in command for command in evaluations)


@pytest.mark.parametrize("what", ["table-1", "table-3", "table-6", "table-8", "table-11", "figure-7", "ablation"])
def test_the_commands_by_hand_are_the_same_recipes(what: str, tiny_data: Path, tmp_path: Path) -> None:
    preset = "streets" if what == "ablation" else "tiny"
    planned = plan(what, Options(preset, data=str(tiny_data), out=tmp_path))
    for training in planned.trainings.values():
        train, *evaluations = [shlex.split(command)[1:] for command in commands_of(training)]
        args = build_parser().parse_args(train)
        recipe = override(load_recipe(args.recipes[0]), parse_assignments(args.assignments))
        assert recipe == training.recipe
        assert args.out == training.run and args.data == [str(tiny_data)]
        assert (args.asynchronous or 0) == training.replicas
        parsed = [build_parser().parse_args(line) for line in evaluations]
        told = [(one.output_stride, tuple(one.scales), one.flip, one.pad_to) for one in parsed]
        assert told == [(row.output_stride, row.scales, row.flip, row.pad_to) for row in training.settings]


def test_the_plot(planned: Plan, tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    fill(planned, [50.0, 51.0, 53.0, None, 52.0])
    plot(planned, rows_of(planned), tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 5_000
    ablation = plan("ablation", Options("streets", data=str(tiny_data), out=tmp_path))
    fill(ablation, [50.0, 51.0, 50.0, *[None] * (len(ablation.uses) - 3)])
    plot(ablation, rows_of(ablation), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000
    assert not list(tmp_path.glob("*.partial*"))
