"""One cell of a table, trained from where it is and evaluated, in a process of its own.

    python -m atrous.reproduction.cell < job      # a pickled `Job`; `atrous reproduce` starts these

Everything that it prints goes to ``output.txt`` in the run folder; the reason of a failure is its last line.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
import traceback
from dataclasses import dataclass

from atrous.atomic import write_text
from atrous.data.sampling import open_splits
from atrous.evaluation.distributed import pick_device
from atrous.evaluation.inference_settings import ladder
from atrous.models.weights import load
from atrous.reproduction.plan import Training
from atrous.training.interrupts import Stopped
from atrous.training.stages import Stage, finished, mark_finished, train_once

ERROR = "error: "


@dataclass(frozen=True)
class Job:
    """A training to finish.

    Attributes:
        training: with its settings.
        device: as for `train`.
        workers: processes that load data.
    """

    training: Training
    device: str | None = None
    workers: int = 1


def do(job: Job) -> None:
    """Train a cell from where it is, unless it is trained; evaluate it at the settings that are missing."""
    training, options = job.training, {"device": job.device, "workers": job.workers}
    assert training.data
    recipe, run = training.recipe, training.run
    if recipe and not training.replicas:
        train_once(Stage(recipe, training.data, run), keep_checkpoints=False, **options)  # type: ignore[arg-type]
    elif recipe and not finished(run, recipe):
        from atrous.training.asynchronous.server import train_asynchronously

        outcome = train_asynchronously(
            recipe, training.data, run, replicas=training.replicas, resume=True, device=job.device, workers=job.workers
        )
        mark_finished(run, outcome.best, keep_checkpoints=False)
    if training.missing:
        _evaluate(training, job.device)


def _evaluate(training: Training, device: str | None) -> None:
    assert training.data
    split = (training.recipe.data.val_split if training.recipe else None) or "val"
    model, _ = load(training.model or training.run)
    if training.model:
        model.longest_side = None  # the paper evaluates images at their own size
    model = model.to(pick_device(device)).for_inference()
    settings = training.missing
    for setting, result in zip(settings, ladder(model, open_splits(training.data, split), settings), strict=True):
        path = training.result(setting)
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps({**result.as_dict(), "split": split, "data": training.data}, indent=1) + "\n")


def _leave_with_parent() -> None:
    os.read(0, 1)  # standard input ends when the parent dies
    os._exit(1)


def main() -> int:
    """Do the job of standard input; the exit status is 128 and more after a signal."""
    job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        do(job)
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
