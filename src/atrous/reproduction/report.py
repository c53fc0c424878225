"""A table beside the paper's: Markdown, CSV, a plot, and whether the paper's order holds."""

from __future__ import annotations

import csv
import io
import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from atrous.atomic import written_whole
from atrous.messages import markdown_table
from atrous.reproduction.estimate import training_seconds
from atrous.reproduction.plan import Plan, Training, read_result
from atrous.reproduction.specs import Cell, recipe_of
from atrous.training.config import Recipe, differences, settings_of
from atrous.training.recipes import RECIPES

_PAPER_RELATIVE, _OUR_RELATIVE, _TO_FIRST = "paper, to its best", "ours, to the same", "to the first"


@dataclass(frozen=True)
class Row:
    """One cell with its results.

    Attributes:
        cell: of the grid.
        values: mIoU in percent, one for each seed that is done.
        seconds: of the trainings, one for each seed that is done.
    """

    cell: Cell
    values: tuple[float, ...]
    seconds: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """Over the seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Order:
    """Every pair of cells that the paper has and that are done: do ours differ the way that the paper's do?

    Attributes:
        held: number of pairs in the paper's order.
        reversed: pairs in the opposite order: higher in the paper, lower in the paper, the paper's difference, ours.
        within: number of pairs whose difference is within the spread over seeds, or zero.
    """

    held: int
    reversed: tuple[tuple[str, str, float, float], ...]
    within: int

    @property
    def pairs(self) -> int:
        """All that were compared."""
        return self.held + len(self.reversed) + self.within

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pairs": self.pairs, "held": self.held, "within_spread": self.within,
            "holds": not self.reversed if self.pairs else None,
            "reversed": [dict(zip(("higher", "lower", "paper", "ours"), pair, strict=True)) for pair in self.reversed],
        }  # fmt: skip


def rows_of(plan: Plan) -> list[Row]:
    """The results of a plan so far."""
    rows = []
    for cell, uses in zip(plan.grid.cells, plan.uses, strict=True):
        values, seconds = [], []
        for name, setting in uses:
            training = plan.trainings[name]
            result = read_result(training.result(setting)) or {}
            if result.get("miou") is not None:
                values.append(100 * result["miou"])
                recipe = training.recipe
                seconds.append(training_seconds(training.run, recipe.optim.batch_size) if recipe else 0.0)
        rows.append(Row(cell, tuple(values), tuple(seconds)))
    return rows


def order_of(rows: Sequence[Row]) -> Order:
    """Compare every pair of rows; see `Order`."""
    held, within, reversed_ = 0, 0, []
    known = [(row.cell.paper, row.mean, row) for row in rows if row.cell.paper is not None and row.mean is not None]
    for pair in combinations(known, 2):
        (low, our_low, lower), (high, our_high, higher) = sorted(pair, key=lambda entry: entry[0])
        gap = our_high - our_low
        if low == high:
            continue
        if abs(gap) <= (higher.deviation**2 + lower.deviation**2) ** 0.5:
            within += 1
        elif gap > 0:
            held += 1
        else:
            reversed_.append((higher.cell.label, lower.cell.label, high - low, gap))
    reversed_.sort(key=lambda pair: -pair[2])
    return Order(held, tuple(reversed_), within)


def order_line(plan: Plan, order: Order) -> str:
    """The order on one line."""
    if not plan.grid.ordered:
        return "The paper concludes nothing from the order of these numbers: it wants them alike."
    if not order.pairs:
        return "Order: too little is done to compare."
    within = f", {order.within} within the spread" if order.within else ""
    return f"Order: {order.held} of {order.pairs} pairs as in the paper{within}, {len(order.reversed)} reversed."


def markdown(plan: Plan, rows: Sequence[Row], order: Order) -> str:
    """The whole page."""
    commands = "\n".join(command for training in plan.trainings.values() for command in commands_of(training))
    parts = [
        f"# {plan.what.replace('-', ' ').capitalize()}. {plan.grid.title}",
        "\n".join(f"- {note}" for note in (*plan.notes, _scale(plan))),
        markdown_table(table(plan, rows)),
        "mIoU in percent." + (f" {order_line(plan, order)}" if _has_paper(plan) else ""),
        *([_reversed(order)] if order.reversed and plan.grid.ordered else []),
        *([f"Left: {'; '.join(plan.cells_of(name) for name in plan.left)}."] if plan.left else []),
        f"The same by hand:\n\n```sh\n{commands}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def table(plan: Plan, rows: Sequence[Row]) -> list[list[str]]:
    """Head and rows; a column stands only where a row has something to say in it."""
    seeds = plan.options.seeds
    ours = f"ours, mean ± deviation of {seeds} seeds" if seeds > 1 else "ours"
    columns = {head: [row.cell.place.get(head, "") for row in rows] for head in plan.grid.cells[0].place}
    columns["here"] = [_scaled(plan, row.cell) for row in rows]
    columns["paper"] = [_number(row.cell.paper, "") for row in rows]
    columns[ours] = [_ours(row, seeds) for row in rows]
    if _has_paper(plan):
        best = max((row for row in rows if row.cell.paper is not None), key=lambda row: row.cell.paper or 0.0)
        columns[_PAPER_RELATIVE] = [_relative(row.cell.paper, best.cell.paper, row is best) for row in rows]
        columns[_OUR_RELATIVE] = [_relative(row.mean, best.mean, row is best) for row in rows]
    if plan.grid.preset:
        same = [i > 0 and uses == plan.uses[0] for i, uses in enumerate(plan.uses)]
        columns[_TO_FIRST] = [
            "the same training: the recipe has no such part" if same[i] else _relative(row.mean, rows[0].mean, i == 0)
            for i, row in enumerate(rows)
        ]
    if any(row.cell.relative_time for row in rows):
        columns["time, paper"] = [f"{row.cell.relative_time:.2f}x" for row in rows]
        columns["time, ours"] = [_number(relative_time(row, rows), "–", "x") for row in rows]
    optional = {"here", "paper"}
    shown = {head: column for head, column in columns.items() if head not in optional or any(column)}
    return [list(shown), *(list(line) for line in zip(*shown.values(), strict=True))]


def _number(value: float | None, missing: str, unit: str = "") -> str:
    return missing if value is None else f"{value:.2f}{unit}"


def _relative(value: float | None, other: float | None, same: bool) -> str:
    return "" if value is None or other is None or same else f"{value - other:+.2f}"


def _ours(row: Row, seeds: int) -> str:
    deviation = f" ± {row.deviation:.2f}" if len(row.values) > 1 else ""
    partly = f" ({len(row.values)} done)" if 0 < len(row.values) < seeds else ""
    return _number(row.mean, "–") + deviation + partly


def _has_paper(plan: Plan) -> bool:
    return any(cell.paper is not None for cell in plan.grid.cells)


def _scaled(plan: Plan, cell: Cell) -> str:
    """What stands for the paper's crop, batch or network in this preset."""
    if plan.options.model:
        return ""
    recipe = recipe_of(cell, plan.base, plan.preset)
    values, backbone = settings_of(recipe), recipe.model.backbone
    network = [backbone] if cell.depth and backbone != f"resnet{cell.depth}" else []
    scaled = [
        f"{key} {values[key]}"
        for key in ("crop", "batch_size")
        if key in cell.changes and cell.changes[key] != values[key]
    ]
    return ", ".join(network + scaled)


def relative_time(row: Row, rows: Sequence[Row]) -> float | None:
    """Training time over that of the first row."""
    if not row.seconds or not sum(rows[0].seconds):
        return None
    return statistics.fmean(row.seconds) / statistics.fmean(rows[0].seconds)


def _scale(plan: Plan) -> str:
    first = next(iter(plan.trainings.values()))
    if first.recipe is None:
        return "no training: a model that is given"
    seeds = f"{plan.options.seeds} seeds" if plan.options.seeds > 1 else f"seed {first.recipe.run.seed}"
    iterations = first.recipe.schedule.iterations
    return f"data {first.data}, {iterations} iterations, {seeds}; the last weights, not the best on val"


def _reversed(order: Order, most: int = 10) -> str:
    lines = [
        f"- {high} over {low}: {paper:+.2f} in the paper, {ours:+.2f} here" for high, low, paper, ours in order.reversed
    ]
    more = [f"- and {len(lines) - most} more"] if len(lines) > most else []
    return "Reversed:\n\n" + "\n".join(lines[:most] + more)


def commands_of(training: Training) -> list[str]:
    """The `atrous train` and `atrous eval` commands of a training."""
    data, commands = shlex.quote(str(training.data or "DATA")), []
    source = training.model
    if training.recipe:
        name, changed = _nearest(training.recipe)
        sets = " ".join(f"--set {shlex.quote(f'{key}={_yaml(value)}')}" for key, value in changed.items())
        replicas = f" --asynchronous {training.replicas}" if training.replicas else ""
        commands.append(f"atrous train {name} --data {data} --out {training.run}{replicas} {sets}".rstrip())
        source = str(training.run)
    for setting in training.settings:
        scales = "" if len(setting.scales) == 1 else " --scales " + " ".join(f"{s:g}" for s in setting.scales)
        options = scales + (" --flip" if setting.flip else "") + (" --longest-side 0" if training.model else "")
        options += f" --pad-to {setting.pad_to}" if setting.pad_to else ""
        commands.append(f"atrous eval {source} --data {data} --output-stride {setting.output_stride}{options}")
    return commands


def _nearest(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The named recipe that differs in the fewest keys, and the values of those keys."""
    name = min(RECIPES, key=lambda known: len(differences(RECIPES[known], recipe)))
    keys = [line.partition(":")[0] for line in differences(RECIPES[name], recipe)]
    return name, {key: settings_of(recipe)[key] for key in keys}


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def csv_text(plan: Plan, rows: Sequence[Row]) -> str:
    """One line a cell, the seeds in columns."""
    text = io.StringIO()
    writer = csv.writer(text)
    seeds = range(plan.options.seeds)
    writer.writerow([*plan.grid.cells[0].place, "paper", "mean", "deviation", *(f"seed {i}" for i in seeds), "seconds"])
    for row in rows:
        values = [f"{value:.4f}" for value in row.values] + [""] * (len(seeds) - len(row.values))
        mean = "" if row.mean is None else f"{row.mean:.4f}"
        seconds = f"{statistics.fmean(row.seconds):.1f}" if row.seconds else ""
        paper = "" if row.cell.paper is None else row.cell.paper
        writer.writerow([*row.cell.place.values(), paper, mean, f"{row.deviation:.4f}", *values, seconds])
    return text.getvalue()


def plot(plan: Plan, rows: Sequence[Row], path: Path) -> None:
    """The paper's numbers and ours side by side, each on its own scale, since their order is compared.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.3 + 0.3 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2 if _has_paper(plan) else 1, sharey=True, squeeze=False)[0]
    for y, row in enumerate(rows):
        if row.cell.paper is not None:
            panels[0].plot(row.cell.paper, y, "o", color="#555555")
        if row.mean is not None:
            panels[-1].errorbar(row.mean, y, xerr=row.deviation or None, fmt="o", color="#c0392b", capsize=3)
    panels[0].set_yticks(range(len(rows)), [row.cell.label for row in rows], fontsize=8)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    seeds = f", {plan.options.seeds} seeds" if plan.options.seeds > 1 else ""
    titles = ("paper", f"ours, {plan.options.preset}{seeds}")
    for axes, title in zip(panels, titles[-len(panels) :], strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("mIoU, %", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """A grid behind the curves, no frame; written whole or not at all."""
    for axes in figure.axes:
        axes.grid(color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=150)
