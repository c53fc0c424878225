"""A table as it came out beside the paper's: Markdown, CSV, a plot, and whether the paper's order holds."""

from __future__ import annotations

import csv
import io
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from atrous.reproduction.estimate import training_seconds
from atrous.reproduction.plan import Plan, Training, read_result
from atrous.reproduction.specs import Cell, recipe_of
from atrous.training.config import Recipe, differences, settings_of
from atrous.training.recipes import RECIPES


@dataclass(frozen=True)
class Row:
    """One cell with what came out.

    Attributes:
        cell: of the grid.
        values: mIoU in percent, one for each seed that is done.
        seconds: of the trainings behind them.
    """

    cell: Cell
    values: tuple[float, ...]
    seconds: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """Over the seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Order:
    """Every two cells that the paper has and that are done: do ours differ the way that the paper's do?

    Attributes:
        held: pairs in the paper's order.
        reversed: pairs in the other: higher in the paper, lower there, the paper's difference, ours.
        within: pairs that are equal, or whose difference is within the spread over seeds, whichever way.
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
    """What is done of a plan."""
    rows = []
    for cell, uses in zip(plan.grid.cells, plan.uses, strict=True):
        values, seconds = [], []
        for name, setting in uses:
            training = plan.trainings[name]
            found = read_result(training.result(setting))
            if found and found.get("miou") is not None:
                values.append(100 * found["miou"])
                seconds.append(
                    training_seconds(training.run, training.recipe.optim.batch_size) if training.recipe else 0.0
                )
        rows.append(Row(cell, tuple(values), tuple(seconds)))
    return rows


def order_of(rows: Sequence[Row]) -> Order:
    """Compare every two rows; see `Order`."""
    held, within, reversed_ = 0, 0, []
    known = [row for row in rows if row.cell.paper is not None and row.values]
    for one, other in combinations(known, 2):
        assert one.cell.paper is not None and other.cell.paper is not None
        if one.cell.paper == other.cell.paper:
            continue
        high, low = (one, other) if one.cell.paper > other.cell.paper else (other, one)
        assert high.cell.paper is not None and low.cell.paper is not None
        assert high.mean is not None and low.mean is not None
        gap = high.mean - low.mean
        spread = (high.spread**2 + low.spread**2) ** 0.5
        if abs(gap) <= spread:
            within += 1
        elif gap > 0:
            held += 1
        else:
            reversed_.append((high.cell.label, low.cell.label, high.cell.paper - low.cell.paper, gap))
    reversed_.sort(key=lambda pair: -pair[2])
    return Order(held, tuple(reversed_), within)


def order_line(plan: Plan, order: Order) -> str:
    """The order on one line."""
    if not plan.grid.ordered:
        return "The paper draws nothing from the order of these numbers: they are to be alike."
    if not order.pairs:
        return "Order: too little is done to compare."
    within = f", {order.within} equal within the spread" if order.within else ""
    verdict = f"{len(order.reversed)} the other way" if order.reversed else "it holds" if order.held else "none tells"
    return f"Order: {order.held} of {order.pairs} pairs as in the paper{within}; {verdict}."


def markdown(plan: Plan, rows: Sequence[Row], order: Order) -> str:
    """The whole page."""
    timed = ["time, paper", "time, ours"] if _timed(rows) else []
    beside = ["paper", _ours(plan), *_BESIDE] if _has_paper(plan) else [_ours(plan)]
    beside += ["beside the first"] if plan.grid.preset else []
    heads = [*plan.grid.heads, *_here_head(plan), *beside, *timed]
    lines = [heads, ["---"] * len(heads), *(_line(plan, row, rows) for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    commands = "\n".join(command for training in plan.trainings.values() for command in commands_of(training))
    parts = [
        f"# {plan.what.replace('-', ' ').capitalize()}. {plan.grid.title}",
        "\n".join(f"- {note}" for note in (*plan.notes, _scale(plan))),
        table,
        "mIoU in percent." + (f" {order_line(plan, order)}" if _has_paper(plan) else ""),
        *([_reversed(order)] if order.reversed and plan.grid.ordered else []),
        *([f"Left: {'; '.join(plan.cells_of(name) for name in plan.left)}."] if plan.left else []),
        f"The same by hand:\n\n```sh\n{commands}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _ours(plan: Plan) -> str:
    return f"ours, mean ± deviation of {plan.options.seeds} seeds" if plan.options.seeds > 1 else "ours"


def _has_paper(plan: Plan) -> bool:
    return any(cell.paper is not None for cell in plan.grid.cells)


def _timed(rows: Sequence[Row]) -> bool:
    return any(row.cell.relative_time for row in rows)


def _line(plan: Plan, row: Row, rows: Sequence[Row]) -> list[str]:
    mean, paper = row.mean, row.cell.paper
    spread = f" ± {row.spread:.2f}" if len(row.values) > 1 else ""
    partly = f" ({len(row.values)} done)" if 0 < len(row.values) < plan.options.seeds else ""
    ours = "–" if mean is None else f"{mean:.2f}{spread}{partly}"
    place = [*row.cell.at.values(), *([_here(plan, row.cell)] if _here_head(plan) else [])]
    if not _has_paper(plan):
        first = rows[0].mean
        told = "" if row is rows[0] or mean is None or first is None else f"{mean - first:+.2f}"
        if row is not rows[0] and plan.uses[rows.index(row)] == plan.uses[0]:
            told = "the same training: the recipe has no such part on these data"
        return [*place, ours, *([told] if plan.grid.preset else [])]
    line = [*place, "" if paper is None else f"{paper:.2f}", ours, *_beside_best(row, rows)]
    if _timed(rows):
        mine = relative_time(row, rows)
        line += [f"{row.cell.relative_time:.2f}x", "–" if mine is None else f"{mine:.2f}x"]
    return line


_BESIDE = ("paper, beside its best", "ours, beside the same")


def _beside_best(row: Row, rows: Sequence[Row]) -> list[str]:
    """How far a row is from the row that is the paper's best, there and here."""
    known = [other for other in rows if other.cell.paper is not None]
    if not known:
        return ["", ""]
    best = max(known, key=lambda other: other.cell.paper or 0.0)
    assert best.cell.paper is not None
    there = "" if row.cell.paper is None or row is best else f"{row.cell.paper - best.cell.paper:+.2f}"
    here = "" if row.mean is None or best.mean is None or row is best else f"{row.mean - best.mean:+.2f}"
    return [there, here]


def _here_head(plan: Plan) -> list[str]:
    """A column for what stands for the paper's crop, batch or network, where something else does."""
    return ["here"] if any(_here(plan, cell) for cell in plan.grid.cells) else []


def _here(plan: Plan, cell: Cell) -> str:
    if plan.options.model:
        return ""
    recipe = recipe_of(cell, plan.base, plan.preset)
    values, backbone = settings_of(recipe), recipe.model.backbone
    found = [
        f"{key} {values[key]}" for key in ("crop", "batch_size") if cell.changes.get(key, values[key]) != values[key]
    ]
    network = [backbone] if cell.depth and backbone != f"resnet{cell.depth}" else []
    return ", ".join(network + found)


def relative_time(row: Row, rows: Sequence[Row]) -> float | None:
    """Training time beside that of the first row."""
    if not row.seconds or not rows[0].seconds or not sum(rows[0].seconds):
        return None
    return statistics.fmean(row.seconds) / statistics.fmean(rows[0].seconds)


def _scale(plan: Plan) -> str:
    recipe = next((t.recipe for t in plan.trainings.values() if t.recipe), None)
    data = plan.options.data or (recipe and next(iter(plan.trainings.values())).data)
    if recipe is None:
        return "no training: a model that is given"
    seeds = f"{plan.options.seeds} seeds" if plan.options.seeds > 1 else f"seed {recipe.run.seed}"
    return f"data {data}, {recipe.schedule.iterations} iterations, {seeds}; the last weights, not the best on val"


def _reversed(order: Order, most: int = 10) -> str:
    lines = [
        f"- {high} over {low}: {paper:+.2f} in the paper, {ours:+.2f} here" for high, low, paper, ours in order.reversed
    ]
    more = [f"- and {len(lines) - most} more, in the CSV's order"] if len(lines) > most else []
    return "Otherwise than in the paper:\n\n" + "\n".join(lines[:most] + more)


def commands_of(training: Training) -> list[str]:
    """The commands that do without `reproduce` what it does for a training."""
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
        commands.append(f"atrous eval {source} --data {data} --output-stride {setting.output_stride}{options}")
    return commands


def _nearest(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The named recipe that differs in the fewest keys, and those keys."""
    name = min(RECIPES, key=lambda known: len(differences(RECIPES[known], recipe)))
    keys = [line.partition(":")[0] for line in differences(RECIPES[name], recipe)]
    return name, {key: settings_of(recipe)[key] for key in keys}


def _yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(list(value)).replace("'", "") if isinstance(value, tuple) else str(value)


def csv_text(plan: Plan, rows: Sequence[Row]) -> str:
    """One line a cell, the seeds in columns."""
    text = io.StringIO()
    writer = csv.writer(text)
    seeds = range(plan.options.seeds)
    writer.writerow([*plan.grid.heads, "paper", "mean", "deviation", *(f"seed {i}" for i in seeds), "seconds"])
    for row in rows:
        values = [f"{value:.4f}" for value in row.values] + [""] * (len(seeds) - len(row.values))
        mean = "" if row.mean is None else f"{row.mean:.4f}"
        paper = "" if row.cell.paper is None else row.cell.paper
        spent = f"{statistics.fmean(row.seconds):.1f}" if row.seconds else ""
        writer.writerow([*row.cell.at.values(), paper, mean, f"{row.spread:.4f}", *values, spent])
    return text.getvalue()


def plot(plan: Plan, rows: Sequence[Row], path: Path) -> None:
    """The paper's numbers and ours side by side, each on a scale of its own, for it is their order that is compared.

    Raises:
        ImportError: where there is no matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.3 + 0.3 * len(rows)), layout="constrained")
    both = figure.subplots(1, 2 if _has_paper(plan) else 1, sharey=True, squeeze=False)[0]
    left, right = both[0], both[-1]
    for y, row in enumerate(rows):
        if row.cell.paper is not None:
            left.plot(row.cell.paper, y, "o", color="#555555")
        if row.mean is not None:
            right.errorbar(row.mean, y, xerr=row.spread or None, fmt="o", color="#c0392b", capsize=3)
    left.set_yticks(range(len(rows)), [row.cell.label for row in rows], fontsize=8)
    left.set_ylim(len(rows) - 0.5, -0.5)
    seeds = f", {plan.options.seeds} seeds" if plan.options.seeds > 1 else ""
    for axes, title in zip(both, ("paper", f"ours, {plan.options.preset}{seeds}")[-len(both) :], strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("mIoU, %", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    with written_whole(path) as file:
        figure.savefig(file, dpi=150, format="png")
