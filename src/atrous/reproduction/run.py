"""`atrous reproduce`: the paper's tables and figures again, each a grid of recipes with the paper's column beside ours.

    atrous reproduce list
    atrous reproduce table-5 --preset camvid --data camvid --seeds 3
    atrous reproduce table-6 --model camvid-efficientnet_lite0 --data camvid

The plan comes first, with an estimate of the time; then its trainings run one by one, or one on each GPU. All is
written below one folder: a run folder for each training, and for each table Markdown, CSV, JSON and a plot. A rerun
leaves out what is finished and goes on in the middle of what is not. `atrous.reproduction.specs` holds the tables.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atrous.atomic import write_text
from atrous.data.image_io import write_image
from atrous.data.sampling import open_splits
from atrous.reproduction import figures, report
from atrous.reproduction.estimate import measured_rate, seconds_left
from atrous.reproduction.plan import Options, Plan, Training, plan
from atrous.reproduction.scheduler import Queue, gpus
from atrous.reproduction.specs import GRIDS, PRESETS
from atrous.reproduction.worker import OUTPUT, Worker
from atrous.training.interrupts import Stopped

SERVER = {
    "table-7": "PASCAL VOC's test server",
    "table-13": "Cityscapes' test server",
}
"""Tables that nobody can make again alone."""

Say = Callable[[str], None]


@dataclass
class Reproduced:
    """What `reproduce` leaves behind.

    Attributes:
        plan: that was followed.
        files: written, by kind.
        rows: of the table; empty for a dry run.
        order: see `tables.Order`.
        failed: training to why.
        seconds: estimate for what was left before.
    """

    plan: Plan
    files: dict[str, str] = field(default_factory=dict)
    rows: list[report.Row] = field(default_factory=list)
    order: report.Order | None = None
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.plan.what,
            "preset": self.plan.options.preset,
            "notes": list(self.plan.notes),
            "trainings": {
                name: {"cells": self.plan.cells_of(name), "state": training.state, "run": str(training.run)}
                for name, training in self.plan.trainings.items()
            },
            "estimated_seconds": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
            "rows": [
                {**row.cell.at, "paper": row.cell.paper, "ours": row.mean, "deviation": row.spread, "seeds": row.values}
                for row in self.rows
            ],
            "order": self.order.as_dict() if self.order else None,
            "left": [self.plan.cells_of(name) for name in self.plan.left],
            "failed": self.failed,
            "files": self.files,
        }


def check_what(what: str, options: Options) -> None:
    """Refuse what there is not.

    Raises:
        ValueError: for a word or preset that there is not, with the nearest; for a count below 1.
    """
    if what in SERVER:
        raise ValueError(f"{what} is the result of {SERVER[what]}; docs/results.md has its values and how to submit")
    known = [*GRIDS, "figure-4", "list"]
    for word, words, kind in ((what, known, "table or figure"), (options.preset, list(PRESETS), "preset")):
        if word not in words:
            # Another number is near to every table.
            near = [] if re.fullmatch(r"(table|figure)-\d+", word) else difflib.get_close_matches(word, words, 1, 0.5)
            raise ValueError(
                f"there is no {kind} {word!r}"
                + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(words)}")
            )
    needed = GRIDS[what].preset if what in GRIDS else None
    special = {grid.preset for grid in GRIDS.values() if grid.preset}
    if needed and options.preset != needed:
        raise ValueError(f"{what} is about one recipe: --preset {needed}")
    if what in GRIDS and not needed and options.preset in special:
        raise ValueError(f"preset {options.preset} is for the ablations alone, not for {what}")
    if options.seeds < 1 or options.workers < 0 or (options.iterations is not None and options.iterations < 1):
        raise ValueError("--seeds and --iterations are at least 1, --workers at least 0")


def reproduce(
    what: str, options: Options, *, dry_run: bool = False, say: Say = print, tick: Say = lambda line: None
) -> Reproduced:
    """Make a table or a figure with cells again, or go on with it.

    Args:
        what: a key of `GRIDS`.
        options: see `Options`.
        dry_run: stop after the plan.
        say: takes lines for people.
        tick: takes a line now and then that says how far each training is.

    Returns:
        What was done, with what is left.

    Raises:
        ValueError: for what does not go together, before anything runs.
        FileNotFoundError: for data that are not there.
        Stopped: after a signal; the table is written as far as it is done.
    """
    check_what(what, options)
    planned = plan(what, options, dry=dry_run)
    devices = [None] if any(t.replicas for t in planned.trainings.values()) else gpus(options.device)
    workers = [Worker(gpu, options.device, options.workers) for gpu in devices]
    found = Reproduced(planned, seconds=_estimate(planned, workers[0], say))
    _say_plan(found, len(workers), say)
    if dry_run:
        workers[0].close()
        return found
    left = {name: planned.trainings[name] for name in planned.left}
    queue = Queue(left, workers, _Teller(found, say).event, tick)
    if left:
        queue.run()
    else:
        workers[0].close()
    found.failed = queue.failed
    write(found, say)
    if queue.stopped:
        raise Stopped(f"stopped; the same command goes on. {_left(planned)}", 128 + queue.stopped)
    return found


def _estimate(planned: Plan, worker: Worker, say: Say) -> dict[str, float]:
    """Seconds left by training."""
    left = [planned.trainings[name] for name in planned.left]
    recipes = [training.recipe for training in left if training.recipe]
    if not recipes:
        return {}
    rate = measured_rate(planned.trainings.values())
    if rate is None:
        try:
            rate = worker.probe(recipes[0])
        except RuntimeError as error:
            say(f"no estimate of the time: {error}")
            return {}
    return seconds_left(left, rate)


def _say_plan(found: Reproduced, workers: int, say: Say) -> None:
    planned = found.plan
    say(f"{planned.what}: {planned.grid.title}")
    for note in planned.notes:
        say(f"  {note}")
    for name, training in planned.trainings.items():
        spent = f", about {duration(found.seconds[name])}" if name in found.seconds else ""
        say(f"  {planned.cells_of(name)}: {training.state}{spent}")
    total = sum(found.seconds.values()) / workers
    shared = f" on {workers} GPUs" if workers > 1 else ""
    about = f", about {duration(total)}{shared}" if found.seconds else ""
    say(f"{len(planned.left)} of {len(planned.trainings)} trainings left{about}; all is below {planned.options.folder}")


def duration(seconds: float) -> str:
    """For people: ``40 s``, ``12 min``, ``5.5 h``, ``3.2 days``."""
    for unit, length, digits in (("days", 86_400, 1), ("h", 3_600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


class _Teller:
    """Says what becomes of each training."""

    def __init__(self, found: Reproduced, say: Say) -> None:
        self.plan, self.say, self.total = found.plan, say, len(found.plan.left)
        self.done, self.began = 0, dict[str, float]()

    def event(self, kind: str, training: Training, why: str) -> None:
        """See `Queue`."""
        cells = self.plan.cells_of(training.name)
        if kind == "begins":
            self.began[training.name] = time.monotonic()
            going = "goes on" if training.state.startswith("at step") else "begins"
            self.say(f"{cells}: {going} in {training.run}")
            return
        self.done += kind in ("finished", "failed")
        spent = time.monotonic() - self.began.get(training.name, time.monotonic())
        self.say(f"[{self.done}/{self.total}] {cells}: {kind}{f', {why}' if why else ''} after {duration(spent)}")
        if kind == "failed":
            self.say(f"  its account: {training.run / OUTPUT}")


def _left(planned: Plan) -> str:
    left = [planned.cells_of(name) for name in planned.left]
    return f"Left, {len(left)} of {len(planned.trainings)}: {'; '.join(left)}" if left else "Nothing is left"


def write(found: Reproduced, say: Say) -> None:
    """Markdown, CSV, JSON and the plot or the pictures, from what is done."""
    planned = found.plan
    folder = planned.options.folder
    folder.mkdir(parents=True, exist_ok=True)
    found.rows = report.rows_of(planned)
    found.order = report.order_of(found.rows)
    stem = planned.what if not planned.options.model else f"{planned.what}-{Path(planned.options.model).name}"
    texts = {
        "markdown": (folder / f"{stem}.md", report.markdown(planned, found.rows, found.order)),
        "csv": (folder / f"{stem}.csv", report.csv_text(planned, found.rows)),
    }
    for kind, (path, text) in texts.items():
        write_text(path, text)
        found.files[kind] = str(path)
    picture = folder / f"{stem}.png"
    if planned.what.startswith("figure"):
        if not planned.left:
            write_image(picture, _pictures(planned))
            found.files["picture"] = str(picture)
    elif any(row.values for row in found.rows):
        _plotted(found, lambda path: report.plot(planned, found.rows, path), picture, say)
    path = folder / f"{stem}.json"
    found.files["json"] = str(path)
    write_text(path, json.dumps(found.as_dict(), indent=1) + "\n")
    if found.failed:
        say(f"failed: {'; '.join(f'{planned.cells_of(name)}: {why}' for name, why in found.failed.items())}")


def _plotted(found: Reproduced, draw: Callable[[Path], None], path: Path, say: Say) -> None:
    try:
        draw(path)
        found.files["plot"] = str(path)
    except ImportError:
        say("no plot: it needs matplotlib, pip install 'atrous[plots]'")


def _pictures(planned: Plan) -> Any:
    from atrous.evaluation.distributed import pick_device
    from atrous.models.weights import load

    models, setting, training = {}, None, None
    for cell, uses in zip(planned.grid.cells, planned.uses, strict=True):
        name, setting = uses[0]
        training = planned.trainings[name]
        model, card = load(training.model or training.run)
        caption = "prediction" if len(planned.grid.cells) == 1 else cell.label
        models[caption] = model.to(pick_device(planned.options.device)).for_inference()
    assert training and training.data and setting
    split = (training.recipe.data.val_split if training.recipe else None) or "val"
    dataset = open_splits(training.data, split)
    if planned.what == "figure-7":
        assert training.recipe
        indices = figures.holding(dataset, _bootstrapped(training))
    else:
        indices = figures.spread_with_failure(next(iter(models.values())), dataset, setting.output_stride)
    return figures.picture_grid(models, dataset, indices, setting.output_stride)


def _bootstrapped(training: Training) -> tuple[str, ...]:
    from atrous.training.loader import hardest_classes

    assert training.recipe
    chosen = training.recipe.data.bootstrap
    return hardest_classes(training.recipe.model.weights) if chosen == "auto" else tuple(chosen)


def figure_4(folder: Path, say: Say) -> dict[str, str]:
    """Figure 4's files, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"markdown": folder / "figure-4.md", "csv": folder / "figure-4.csv", "plot": folder / "figure-4.png"}
    write_text(files["markdown"], figures.figure_4_markdown())
    write_text(files["csv"], figures.figure_4_csv())
    try:
        figures.figure_4_plot(files["plot"])
    except ImportError:
        say("no plot: it needs matplotlib, pip install 'atrous[plots]'")
        del files["plot"]
    return {kind: str(path) for kind, path in files.items()}


def listed(options: Options) -> list[dict[str, Any]]:
    """Every table and figure, with what of it is done below the folder."""
    folder = options.folder
    rows: list[dict[str, Any]] = [{"what": "figure-4", "title": "Valid weights of an atrous filter", "cells": 0}]
    rows += [{"what": what, "title": grid.title, "cells": len(grid.cells)} for what, grid in GRIDS.items()]
    for row in rows:
        row["written"] = str(folder / f"{row['what']}.md") if (folder / f"{row['what']}.md").exists() else None
    return rows
