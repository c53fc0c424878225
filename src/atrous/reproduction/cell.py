"""One cell of a table, trained from where it is and evaluated, in a process of its own that `start` begins.

Everything that it prints goes to ``output.txt`` in the run folder; the reason of a failure is its last line.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from atrous.atomic import write_text
from atrous.data.datasets.options import DatasetOptions
from atrous.data.sampling import open_splits
from atrous.evaluation.distributed import pick_device
from atrous.evaluation.evaluate import Setting
from atrous.evaluation.inference_settings import ladder
from atrous.models.weights import load
from atrous.reproduction.plan import Training
from atrous.training.config import Recipe, override
from atrous.training.interrupts import Stopped
from atrous.training.stages import Stage, finished, mark_finished, train_once
from atrous.yaml_io import parse_yaml

OUTPUT, ERROR = "output.txt", "error: "


def start(
    training: Training, device: str | None, workers: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """A process for `do`, in a process group of its own, so that Ctrl-C reaches it once, by way of the pool."""
    training.run.mkdir(parents=True, exist_ok=True)
    with open(training.run / OUTPUT, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "atrous.reproduction.cell"],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **environment}, process_group=0,
        )  # fmt: skip
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):  # it died before it read
        process.stdin.write(_to_json(training, device, workers).encode() + b"\n")
        process.stdin.flush()  # stays open: its end tells the process that we are gone
    return process


def _to_json(training: Training, device: str | None, workers: int) -> str:
    """The arguments of `do` as one line, for `_from_json`."""
    recipe = training.recipe.to_yaml() if training.recipe else None
    settings = [asdict(setting) for setting in training.settings]
    fields = {**vars(training), "recipe": recipe, "run": str(training.run), "settings": settings}
    return json.dumps([fields, device, workers])


def _from_json(line: str) -> tuple[Training, str | None, int]:
    fields, device, workers = json.loads(line)
    recipe = override(Recipe(), parse_yaml(fields["recipe"])) if fields["recipe"] else None
    settings = tuple(Setting(**{**row, "scales": tuple(row["scales"])}) for row in fields["settings"])
    return Training(**{**fields, "recipe": recipe, "run": Path(fields["run"]), "settings": settings}), device, workers


def do(training: Training, device: str | None, workers: int) -> None:
    """Train a cell from where it is, unless it is trained; evaluate it at the settings that are missing."""
    assert training.data
    recipe, data, run = training.recipe, training.data, training.run
    if recipe and not training.replicas:
        train_once(Stage(recipe, data, run), keep_checkpoints=False, device=device, workers=workers)
    elif recipe and not finished(run, recipe):
        from atrous.training.asynchronous.server import train_asynchronously

        outcome = train_asynchronously(
            recipe, data, run, replicas=training.replicas, resume=True, device=device, workers=workers
        )
        mark_finished(run, outcome.best, keep_checkpoints=False)
    if training.missing:
        _evaluate(training, data, device)


def _evaluate(training: Training, data: str, device: str | None) -> None:
    split = (training.recipe.data.val_split if training.recipe else None) or "val"
    model, card = load(training.model or training.run)
    if training.model:
        model.longest_side = None  # the paper evaluates images at their own size
    model = model.to(pick_device(device)).for_inference()
    settings = training.missing
    options = DatasetOptions.parse(card.recipe.get("options") or {})
    options = options.over(DatasetOptions(value_range=card.value_range, bands=card.bands))
    dataset = open_splits(data, split, options)
    for setting, result in zip(settings, ladder(model, dataset, settings), strict=True):
        path = training.result(setting)
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps({**result.as_dict(), "split": split, "data": data}, indent=1) + "\n")


def _leave_with_parent() -> None:
    # Standard input ends when the parent dies. Not by sys.stdin: a worker, forked meanwhile, would wait for its lock.
    os.read(0, 1)
    os._exit(1)


def main() -> int:
    """Do what `start` wrote to standard input; the exit status is 128 and more after a signal."""
    job = _from_json(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        do(*job)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # whatever it is, the parent reads it
        if isinstance(error, Stopped) and error.status >= 128:
            return error.status
        traceback.print_exc()
        print(ERROR + " ".join(f"{type(error).__name__}: {error}".split())[:500], file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
