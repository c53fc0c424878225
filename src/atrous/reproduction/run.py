"""`atrous reproduce`: the paper's tables and figures, its numbers beside ours.

    atrous reproduce list
    atrous reproduce table-5 table-1 --preset camvid --data camvid --seeds 3 --parallel 4
    atrous reproduce table-6 --model camvid-efficientnet_lite0 --data camvid

The plan comes first, with an estimate of the time; then the trainings of all tables run in one pool, one on each GPU or
`--parallel` at once. A rerun leaves out what is finished and goes on in the middle of what is not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atrous.atomic import write_text
from atrous.messages import did_you_mean
from atrous.reproduction import figures, report
from atrous.reproduction.cell import OUTPUT
from atrous.reproduction.estimate import seconds_left
from atrous.reproduction.plan import Options, Plan, Training, plan, pooled
from atrous.reproduction.pool import Pool, environments, gpus
from atrous.reproduction.specs import GRIDS, PRESETS
from atrous.training.interrupts import Stopped

FIGURE_4 = "figure-4"
TEST_SERVERS = {"table-7": "PASCAL VOC's test server", "table-13": "Cityscapes' test server"}

Say = Callable[[str], None]


def check_words(words: Sequence[str], options: Options) -> None:
    """Refuse words and options that do not go together.

    Raises:
        ValueError: for an unknown word or preset, with the nearest; for a count below 1.
    """
    _check_known(options.preset, list(PRESETS), "preset")
    for what in words:
        if what in TEST_SERVERS:
            raise ValueError(
                f"{what} is the result of {TEST_SERVERS[what]}; docs/results.md has its values and how to submit"
            )
        _check_known(what, [*GRIDS, FIGURE_4, "list"], "table or figure")
        needed = GRIDS[what].preset if what in GRIDS else None
        if needed and options.preset != needed:
            raise ValueError(f"{what} is about one recipe: --preset {needed}")
        if what in GRIDS and not needed and options.preset in {grid.preset for grid in GRIDS.values()}:
            raise ValueError(f"preset {options.preset} is for the ablations alone, not for {what}")
    if "list" in words and len(words) > 1:
        raise ValueError(f"list stands alone, found {' '.join(words)}")
    if options.seeds < 1 or options.workers < 0 or (options.iterations is not None and options.iterations < 1):
        raise ValueError("--seeds and --iterations are at least 1, --workers at least 0")
    if options.parallel is not None and options.parallel < 1:
        raise ValueError(f"--parallel is {options.parallel}, expected at least 1")


def _check_known(word: str, known: list[str], kind: str) -> None:
    if word not in known:
        # Another number is near to every table.
        near = "" if re.fullmatch(r"(table|figure)-\d+", word) else did_you_mean(word, known, otherwise="")
        near = near or f"; there are: {', '.join(known)}"
        raise ValueError(f"there is no {kind} {word!r}{near}")


def reproduce(
    words: Sequence[str], options: Options, *, dry_run: bool = False, say: Say = print, tick: Say = lambda line: None
) -> dict[str, dict[str, Any]]:
    """Reproduce tables and figures of cells, or go on with them.

    Args:
        words: keys of `GRIDS`.
        options: of the command.
        dry_run: stop after the plan.
        say: takes lines for people.
        tick: takes a line on the progress now and then.

    Returns:
        For each word, what its JSON file says: plan, estimate, rows, order, what is left or failed, files.

    Raises:
        ValueError: for what does not go together, before anything runs.
        FileNotFoundError: for data that are not there.
        Stopped: after a signal; the tables are written as far as they are done.
    """
    check_words(words, options)
    plans = [plan(what, options, dry=dry_run) for what in dict.fromkeys(words)]
    trainings = pooled(plans)
    seconds = _estimate(trainings, options, say)
    for planned in plans:
        say(f"{planned.what}: {planned.grid.title}")
        for note in planned.notes:
            say(f"  {note}")
        for name, training in planned.trainings.items():
            about = f", about {duration(seconds[name])}" if name in seconds else ""
            say(f"  {planned.cells_of(name)}: {training.state}{about}")
    left = {name: training for name, training in trainings.items() if training.state != "finished"}
    devices = len(gpus(options.device))
    about = f", about {duration(sum(seconds.values()) / devices)}" if seconds else ""
    about += f" on {devices} GPUs" if seconds and devices > 1 else ""
    say(f"{len(left)} of {len(trainings)} trainings left{about}; all is below {options.folder}")
    if dry_run:
        return {planned.what: _summary(planned, seconds) for planned in plans}
    pool = Pool(left, environments(options, trainings), options, _teller(plans, len(left), say), tick)
    pool.run()
    results = {planned.what: write(planned, seconds, pool.failed, say) for planned in plans}
    if pool.stopped:
        cells = [_cells(plans, name) for name, training in trainings.items() if training.state != "finished"]
        what = f"Left, {len(cells)} of {len(trainings)}: {'; '.join(cells)}" if cells else "Nothing is left"
        raise Stopped(f"stopped; the same command goes on. {what}", 128 + pool.stopped)
    return results


def _estimate(trainings: Mapping[str, Training], options: Options, say: Say) -> dict[str, float]:
    try:
        return seconds_left(trainings.values(), options.device)
    except RuntimeError as error:
        say(f"no estimate of the time: {error}")
        return {}


def duration(seconds: float) -> str:
    """For people: ``40 s``, ``12 min``, ``5.5 h``, ``3.2 days``."""
    for unit, length, digits in (("days", 86_400, 1), ("h", 3_600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def _cells(plans: Sequence[Plan], name: str) -> str:
    """The cells of a training in all tables, named where there are several."""
    cells = {planned.what: planned.cells_of(name) for planned in plans if name in planned.trainings}
    return "; ".join(f"{what}: {told}" if len(plans) > 1 else told for what, told in cells.items())


def _teller(plans: Sequence[Plan], total: int, say: Say) -> Callable[[str, Training, str], None]:
    """Says what becomes of each training."""
    began: dict[str, float] = {}
    done: list[str] = []

    def tell(event: str, training: Training, why: str) -> None:
        cells = _cells(plans, training.name)
        if event == "begins":
            began[training.name] = time.monotonic()
            how = "goes on" if training.state.startswith("at step") else "begins"
            say(f"{cells}: {how} in {training.run}")
            return
        done.extend([training.name] if event != "stopped" else [])
        seconds = time.monotonic() - began.get(training.name, time.monotonic())
        say(f"[{len(done)}/{total}] {cells}: {event}{f', {why}' if why else ''} after {duration(seconds)}")
        if event == "failed":
            say(f"  its output: {training.run / OUTPUT}")

    return tell


def write(planned: Plan, seconds: Mapping[str, float], failed: Mapping[str, str], say: Say) -> dict[str, Any]:
    """Markdown, CSV, JSON and the plot or the pictures, from what is done; the content of the JSON."""
    folder = planned.options.folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = report.rows_of(planned)
    order = report.order_of(rows)
    stem = planned.what if not planned.options.model else f"{planned.what}-{Path(planned.options.model).name}"
    files = {kind: folder / f"{stem}{suffix}" for kind, suffix in (("markdown", ".md"), ("csv", ".csv"))}
    write_text(files["markdown"], report.markdown(planned, rows, order))
    write_text(files["csv"], report.csv_text(planned, rows))
    picture = folder / f"{stem}.png"
    if planned.what.startswith("figure"):
        if not planned.left:
            figures.write_pictures(planned, picture)
            files["picture"] = picture
    elif any(row.values for row in rows) and plotted(lambda: report.plot(planned, rows, picture), say):
        files["plot"] = picture
    files["json"] = folder / f"{stem}.json"
    reasons = {name: why for name, why in failed.items() if name in planned.trainings}
    summary = {
        **_summary(planned, seconds),
        "rows": [
            {
                **row.cell.place, "paper": row.cell.paper, "ours": row.mean, "deviation": row.deviation,
                "seeds": row.values,
            }
            for row in rows
        ],
        "order": order.as_dict(), "failed": reasons, "files": {kind: str(path) for kind, path in files.items()},
    }  # fmt: skip
    write_text(files["json"], json.dumps(summary, indent=1) + "\n")
    if reasons:
        say(f"failed: {'; '.join(f'{planned.cells_of(name)}: {why}' for name, why in reasons.items())}")
    return summary


def _summary(planned: Plan, seconds: Mapping[str, float]) -> dict[str, Any]:
    trainings = planned.trainings.items()
    return {
        "what": planned.what,
        "preset": planned.options.preset,
        "notes": list(planned.notes),
        "trainings": {
            name: {"cells": planned.cells_of(name), "state": training.state, "run": str(training.run)}
            for name, training in trainings
        },
        "estimated_seconds": {name: round(seconds[name], 1) for name, _ in trainings if name in seconds},
        "left": [planned.cells_of(name) for name in planned.left],
        "rows": [], "order": None, "failed": {}, "files": {},
    }  # fmt: skip


def plotted(draw: Callable[[], None], say: Say) -> bool:
    """Draw a plot, or say what it needs."""
    try:
        draw()
        return True
    except ImportError:
        say("no plot: it needs matplotlib, pip install 'atrous[plots]'")
        return False


def figure_4(folder: Path, say: Say) -> dict[str, str]:
    """Figure 4's files, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"markdown": folder / "figure-4.md", "csv": folder / "figure-4.csv", "plot": folder / "figure-4.png"}
    write_text(files["markdown"], figures.figure_4_markdown())
    write_text(files["csv"], figures.figure_4_csv())
    if not plotted(lambda: figures.figure_4_plot(files["plot"]), say):
        del files["plot"]
    return {kind: str(path) for kind, path in files.items()}


def listed(options: Options) -> list[dict[str, Any]]:
    """Every table and figure, and whether it is written below the folder."""
    rows: list[dict[str, Any]] = [{"what": FIGURE_4, "title": "Valid weights of an atrous filter", "cells": 0}]
    rows += [{"what": what, "title": grid.title, "cells": len(grid.cells)} for what, grid in GRIDS.items()]
    for row in rows:
        path = options.folder / f"{row['what']}.md"
        row["written"] = str(path) if path.exists() else None
    return rows
