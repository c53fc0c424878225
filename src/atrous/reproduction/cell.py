"""One cell of a table, trained from where it is and evaluated, in a process of its own.

    python -m atrous.reproduction.cell < job      # a line of `Job.to_json`; `atrous reproduce` starts these

Everything that it prints goes to ``output.txt`` in the run folder; the reason of a failure is its last line.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
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

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        training = self.training
        recipe = training.recipe.to_yaml() if training.recipe else None
        settings = [asdict(setting) for setting in training.settings]
        fields = {**vars(training), "recipe": recipe, "run": str(training.run), "settings": settings}
        return json.dumps({**vars(self), "training": fields})

    @classmethod
    def from_json(cls, line: str) -> Job:
        """The job of a line."""
        fields = json.loads(line)
        training = fields["training"]
        recipe = override(Recipe(), parse_yaml(training["recipe"])) if training["recipe"] else None
        settings = tuple(Setting(**{**row, "scales": tuple(row["scales"])}) for row in training["settings"])
        training |= {"recipe": recipe, "run": Path(training["run"]), "settings": settings}
        return cls(**{**fields, "training": Training(**training)})


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
    model, card = load(training.model or training.run)
    if training.model:
        model.longest_side = None  # the paper evaluates images at their own size
    model = model.to(pick_device(device)).for_inference()
    settings = training.missing
    options = DatasetOptions.parse(card.recipe.get("options") or {})
    options = options.over(DatasetOptions(value_range=card.value_range, bands=card.bands))
    dataset = open_splits(training.data, split, options)
    for setting, result in zip(settings, ladder(model, dataset, settings), strict=True):
        path = training.result(setting)
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps({**result.as_dict(), "split": split, "data": training.data}, indent=1) + "\n")


def _leave_with_parent() -> None:
    sys.stdin.read(1)  # standard input ends when the parent dies
    os._exit(1)


def main() -> int:
    """Do the job of standard input; the exit status is 128 and more after a signal."""
    job = Job.from_json(sys.stdin.readline())
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
