"""The process that trains and evaluates cells: one job a line on standard input, one answer a line on standard output.

`Worker` is the other end. A process of its own means that a cell which dies takes nothing with it, and that each GPU
has one. Its own account goes to ``output.txt`` in the run's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from atrous.atomic import write_text
from atrous.evaluation.evaluate import Setting
from atrous.reproduction.plan import Training
from atrous.training.config import Recipe, override
from atrous.training.interrupts import Stopped

OUTPUT = "output.txt"


class Worker:
    """A process that does one job after another, and is started anew if it dies.

    Args:
        gpu: the one that it may see, or None for all.
        device: as for `train`.
        workers: processes that load data.
    """

    def __init__(self, gpu: str | None, device: str | None, workers: int) -> None:
        self.gpu, self.device, self.workers = gpu, device, workers
        self.process: subprocess.Popen[str] | None = None

    def train(self, training: Training) -> dict[str, Any]:
        """Train a cell from where it is and evaluate it: ``{"error": ...}`` if that failed."""
        assert training.data
        return self.do(
            {
                "run": str(training.run),
                "recipe": training.recipe.to_yaml() if training.recipe else None,
                "model": training.model,
                "data": training.data,
                "replicas": training.replicas,
                "settings": [[row.output_stride, list(row.scales), row.flip] for row in training.missing],
                "device": self.device,
                "workers": self.workers,
            }
        )

    def probe(self, recipe: Recipe) -> float:
        """See `probed_rate`; RuntimeError if the recipe's step cannot be taken."""
        answer = self.do({"probe": recipe.to_yaml(), "device": self.device})
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return float(answer["rate"])

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """Send a job, wait for its answer."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        status = self.process.wait()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return {"error": f"its process died ({how}); see {Path(job.get('run', '.')) / OUTPUT}"}

    def interrupt(self) -> None:
        """Ask the job to save and leave; a second time, to leave at once."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the process, once it has answered."""
        if self.process:
            assert self.process.stdin
            with contextlib.suppress(BrokenPipeError):  # it died with a job unread
                self.process.stdin.close()
            self.process.wait()

    def _start(self) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        # A group of its own: Ctrl-C at the terminal comes to us, and from us to it, once.
        return subprocess.Popen(
            [sys.executable, "-c", f"from atrous.reproduction.worker import serve; serve({os.getpid()})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            process_group=0,
        )


def serve(parent: int) -> None:
    """Do jobs until standard input ends or `parent`, a process id, is no longer the parent."""
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    while True:
        try:
            line = sys.stdin.readline()
            if not line:
                return
            answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        except KeyboardInterrupt:  # between two jobs
            return


def _leave_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    try:
        if "probe" in job:
            from atrous.reproduction.estimate import probed_rate

            return {"rate": probed_rate(_recipe(job["probe"]), job["device"])}
        run = Path(job["run"])
        run.mkdir(parents=True, exist_ok=True)
        with open(run / OUTPUT, "a", encoding="utf-8") as output, _standard_error(output):
            if job["recipe"]:
                _train(job, run)
            if job["settings"]:
                _evaluate(job, run)
        return {"done": True}
    except (KeyboardInterrupt, Exception) as error:  # whatever it is, the other cells go on
        signalled = isinstance(error, KeyboardInterrupt) or (isinstance(error, Stopped) and error.status >= 128)
        said = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return {"error": said, **({"stopped": True} if signalled else {})}


class _standard_error:  # noqa: N801
    """All that is written to standard error, by child processes too, goes to a file for a while."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def __enter__(self) -> None:
        self.kept = os.dup(2)
        os.dup2(self.file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        sys.stderr.flush()
        os.dup2(self.kept, 2)
        os.close(self.kept)


def _recipe(text: str) -> Recipe:
    import yaml

    return override(Recipe(), yaml.safe_load(text))


def _train(job: dict[str, Any], run: Path) -> None:
    from atrous.training.stages import Stage, finished, mark_finished, train_once

    recipe = _recipe(job["recipe"])
    options = {"workers": job["workers"], "device": job["device"]}
    if not job["replicas"]:
        train_once(Stage(recipe, job["data"], run), keep_checkpoints=False, **options)
    elif not finished(run, recipe):
        from atrous.training.asynchronous.server import train_asynchronously

        outcome = train_asynchronously(recipe, job["data"], run, replicas=job["replicas"], resume=True, **options)
        mark_finished(run, outcome.best, keep_checkpoints=False)


def _evaluate(job: dict[str, Any], run: Path) -> None:
    from atrous.data.sampling import open_splits
    from atrous.evaluation.distributed import pick_device
    from atrous.evaluation.inference_settings import ladder
    from atrous.models.weights import load

    split = (_recipe(job["recipe"]).data.val_split if job["recipe"] else None) or "val"
    settings = [Setting(stride, tuple(scales), flip) for stride, scales, flip in job["settings"]]
    model, _ = load(job["model"] or run)
    if job["model"]:
        model.longest_side = None  # the paper's networks see pictures as they are
    model = model.to(pick_device(job["device"])).for_inference()
    for setting, found in zip(settings, ladder(model, open_splits(job["data"], split), settings), strict=True):
        path = run / "results" / f"{setting.slug}.json"
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps({**found.as_dict(), "split": split, "data": job["data"]}, indent=1) + "\n")
