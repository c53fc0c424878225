"""What each subcommand does: it calls one function of the package, and shows what comes back.

Everything is imported where it is used, so that the command line answers quickly. Progress and tables go to standard
error; see `atrous.cli` for what goes where.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrous.cli.tables import listing_table, models_table, scores_table, shares_table

if TYPE_CHECKING:
    from rich.console import Console

    from atrous.training.config import Recipe


def complain(message: str, status: int) -> int:
    """One line on standard error; the status, to be returned."""
    print(f"atrous: {'error: ' if status < 128 else ''}{' '.join(message.split())}", file=sys.stderr)
    return status


def run_demo(found: argparse.Namespace) -> int:
    """Segment the bundled photographs."""
    from atrous.prediction.demo import NEXT, demo

    results = demo(found.out, device=found.device)
    if found.json:
        first, *others = (result.as_dict() for result in results)
        return _print_json({**first, "others": others})
    console = _stderr()
    console.print(shares_table({result.photograph: result.areas for result in results}))
    console.print("next:", *NEXT, sep="\n  ", soft_wrap=True, highlight=False)
    for result in results:
        print(result.overlay)
    return 0


def run_predict(found: argparse.Namespace) -> int:
    """Segment photographs."""
    from rich.progress import Progress

    from atrous.data.image_io import MAX_PIXELS
    from atrous.prediction.files import find_photographs, predict_files
    from atrous.prediction.predictor import Predictor

    files = find_photographs(found.sources)
    predictor = Predictor.load(
        found.model, device=found.device, output_stride=found.output_stride, scales=found.scales, flip=found.flip,
        longest_side=found.longest_side, window=found.window,
        max_pixels=MAX_PIXELS if found.max_pixels is None else found.max_pixels,
    )  # fmt: skip
    console = _stderr()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        tasks = bar.add_task("", total=len(files)), bar.add_task("", total=1.0)

        def tell(path: Path, share: float) -> None:
            bar.update(tasks[0], completed=files.index(path) + (share == 1.0))
            bar.update(tasks[1], completed=share, description=path.name)

        with _unwound_by_sigterm():
            batch = predict_files(predictor, files, found.out, resume=found.resume, progress=tell)
    if batch.areas:
        console.print(shares_table({str(path): areas for path, areas in batch.areas.items()}))
        console.print(f"{len(batch.areas)} of {len(files)} segmented into {found.out}", soft_wrap=True, highlight=False)
    if batch.skipped:
        console.print(f"{len(batch.skipped)} of {len(files)} were done before", highlight=False)
    for why in batch.failures.values():
        complain(why, 2)
    if found.json:
        _print_json(batch.as_dict())
    return 2 if batch.failures else 0


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves as Ctrl-C does, past whatever removes a file that is half written."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_train(found: argparse.Namespace) -> int:
    """Train by one recipe, or several in sequence."""
    from atrous.training.config import override, parse_assignments
    from atrous.training.recipes import load_recipe

    flags = ("output_stride", "batch", "accumulate", "iterations", "lr", "weights", "amp", "ema", "seed")
    values = {key: getattr(found, key) for key in flags if getattr(found, key) is not None}
    values |= {"reset_head": True} if found.reset_head else {}
    values |= {"weights": None} if found.weights == "none" else {}
    assigned = parse_assignments(found.assignments)
    if twice := sorted(values.keys() & assigned.keys()):
        raise ValueError(f"{twice[0]} is given twice, by --{twice[0].replace('_', '-')} and by --set")
    if found.workers < 0:
        raise ValueError(f"--workers is {found.workers}, expected at least 0")
    if len(found.recipes) > 1:
        return _train_stages(found, {**values, **assigned})
    if len(found.data) > 1:
        raise ValueError(f"1 recipe has {len(found.data)} --data, expected 1")
    (source,), (data,) = found.recipes, found.data
    given = {**values, **assigned}
    run = found.out or Path("runs") / Path(source).stem
    if source == "finetune":
        recipe: Recipe = _finetuned(data, given, run / "recipe.yaml" if found.resume else None)
    else:
        recipe = override(load_recipe(source), given)
    options = {"resume": found.resume, "workers": found.workers, "device": found.device}
    measured: dict[str, Any] = {}
    if found.asynchronous is None:
        from atrous.training.loop import train

        best = train(recipe, data, run, **options)
    else:
        from atrous.training.asynchronous.server import train_asynchronously

        outcome = train_asynchronously(recipe, data, run, replicas=found.asynchronous, **options)
        best, measured = outcome.best, {"replicas": found.asynchronous, "staleness": outcome.staleness.as_dict()}
    best = None if best is not None and best != best else best  # JSON has no NaN
    if found.json:
        return _print_json({"run": str(run), "weights": str(run / "best"), "miou": best, **measured})
    scored = f", val mIoU {best:.4f}" if best is not None else ""
    _stderr().print(f"done{scored}; the weights are in {run / 'best'}", soft_wrap=True, highlight=False)
    return 0


def _finetuned(data: str, given: dict[str, Any], before: Path | None) -> Recipe:
    """The recipe that the data asks for, or the one that a run to be gone on with has."""
    from atrous.training.autoconfig import BASE, finetune
    from atrous.training.config import override
    from atrous.training.recipes import load_recipe

    override(load_recipe(BASE), given)  # a slip is named before the data is read
    console = _stderr()
    if before is not None and before.is_file():
        console.print(f"what was chosen before, in {before}", soft_wrap=True, highlight=False)
        return override(load_recipe(before), given)
    recipe, reasons = finetune(data, _weights_asked_for(given))
    console.print(f"what {data} asks for; --set and the other flags stand over it:", soft_wrap=True, highlight=False)
    for reason in reasons:
        console.print(f"- {reason}", soft_wrap=True, highlight=False)
    return override(recipe, given)


def _weights_asked_for(given: dict[str, Any]) -> str | None:
    """What `finetune` is to start from, by the flags; None for its own choice."""
    from atrous.models.weights import read_card, resolve
    from atrous.training.autoconfig import ANYTHING, STREETS

    if "weights" in given:
        return given["weights"] or "none"
    if given.keys() & {"head", "last_block"}:
        return "imagenet"
    if "backbone" not in given:
        return None
    known = {read_card(resolve(name)).arguments["backbone"]: name for name in (ANYTHING, STREETS)}
    return known.get(given["backbone"], "imagenet")


def _train_stages(found: argparse.Namespace, values: dict[str, Any]) -> int:
    from atrous.training.stages import plan_stages, train_stages

    if found.asynchronous is not None:
        raise ValueError("--asynchronous takes one recipe at a time")
    console = _stderr()
    stages = plan_stages(found.recipes, found.data, found.out, values)
    best = train_stages(
        stages,
        resume=found.resume,
        workers=found.workers,
        device=found.device,
        said=lambda line: console.print(line, soft_wrap=True, highlight=False),
    )
    if found.json:
        runs = [str(stage.run) for stage in stages]
        return _print_json({"runs": runs, "weights": str(stages[-1].run / "best"), "miou": best})
    console.print(f"done; the weights are in {stages[-1].run / 'best'}", soft_wrap=True, highlight=False)
    return 0


def run_eval(found: argparse.Namespace) -> int:
    """Score a model."""
    from rich.progress import Progress

    from atrous.data.datasets.dataset import open_dataset
    from atrous.evaluation.distributed import pick_device
    from atrous.evaluation.evaluate import checked_longest_side, evaluate
    from atrous.models.weights import load

    dataset = open_dataset(found.data, found.split)
    model, _ = load(found.model, output_stride=found.output_stride)
    if found.longest_side is not None:
        model.longest_side = checked_longest_side(found.longest_side)
    model = model.to(pick_device(found.device)).for_inference()
    console = _stderr()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(found.split, total=len(dataset))
        if found.ladder:
            return _eval_ladder(found, model, dataset, lambda done: bar.update(task, completed=done))
        result = evaluate(
            model, dataset, scales=found.scales, flip=found.flip, progress=lambda done: bar.update(task, completed=done)
        )
    if found.json:
        return _print_json(result.as_dict())
    console.print(scores_table(result))
    return 0


def _eval_ladder(found: argparse.Namespace, model: Any, dataset: Any, progress: Any) -> int:
    from atrous.evaluation.evaluate import PAPER_SCALES
    from atrous.evaluation.inference_settings import ladder, markdown, rungs

    rows = rungs(found.output_stride or 8, PAPER_SCALES if found.scales == [1.0] else found.scales)
    results = ladder(model, dataset, rows, progress=progress)
    if found.json:
        return _print_json({"rows": [result.as_dict() for result in results], "markdown": markdown(results)})
    _stderr().print(markdown(results), soft_wrap=True, highlight=False)
    return 0


def run_models(found: argparse.Namespace) -> int:
    """List the named weights."""
    from atrous.models.weights import cards, speeds

    hardware, milliseconds = speeds()

    def measured(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
        took = milliseconds.get(name, {})
        return {what: found | ({"milliseconds": took[what]} if what in took else {}) for what, found in metrics.items()}

    rows = {
        name: {
            "classes": list(card.names),
            "metrics": measured(name, card.metrics),
            "output_stride": card.output_stride,
            "longest_side": card.longest_side,
            "megabytes": round(path.stat().st_size / 1e6, 3),
            "data": card.data,
            "licence": card.licence,
            "description": card.description,
        }
        for name, (path, card) in cards().items()
    }
    if found.json:
        return _print_json(rows)
    _stderr().print(models_table(rows, hardware))
    return 0


def run_data_check(found: argparse.Namespace) -> int:
    """Look at a data set."""
    from atrous.data.validate import check, render

    report = check(found.data)
    if found.json:
        _print_json(report.as_dict())
    else:
        _stderr().print(render(report))
    return 1 if report.problems else 0


def run_label(found: argparse.Namespace) -> int:
    """Write a teacher's masks."""
    from rich.progress import Progress

    from atrous.prediction.files import find_photographs
    from atrous.prediction.pseudo_label import classes_of, label
    from atrous.prediction.tflite_teacher import open_teacher

    files = find_photographs(found.sources)
    teacher = open_teacher(
        found.teacher,
        labels=classes_of(found.data),
        scales=found.scales,
        flip=found.flip,
        output_stride=found.output_stride,
        device=found.device,
    )
    console = _stderr()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(found.split, total=len(files))
        done = label(
            teacher, files, found.data, split=found.split, confidence=found.confidence,
            progress=lambda _: bar.advance(task),
        )  # fmt: skip
    for why in done.failures.values():
        complain(why, 1)
    if found.json:
        _print_json(done.as_dict())
    else:
        if done.written and done.ignored == 1:
            complain("the teacher was sure of no pixel: nothing can be learnt from these masks", 1)
        said = f"{done.written} labelled, {done.already} had been, {len(done.failures)} failed"
        said += f"; {done.ignored:.1%} of the new pixels ignored" if done.written else ""
        console.print(f"{said}; {done.split}", soft_wrap=True, highlight=False)
    return 1 if done.failures else 0


def run_submit_write(found: argparse.Namespace) -> int:
    """Write a server's archive."""
    from rich.progress import Progress

    from atrous.prediction.submission import write

    console = _stderr()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(found.split)
        submission = write(
            found.model,
            found.data,
            found.out,
            split=found.split,
            competition=found.competition,
            device=found.device,
            output_stride=found.output_stride,
            scales=found.scales,
            flip=found.flip,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if found.json:
        return _print_json(submission.as_dict())
    said = f"{submission.predicted} of {submission.images} images predicted, the rest were there; packed and checked:"
    console.print(said, highlight=False)
    print(submission.archive)
    return 0


def run_submit_check(found: argparse.Namespace) -> int:
    """Check one."""
    from atrous.prediction.submission import check

    faults = check(found.archive, found.data, split=found.split)
    if found.json:
        _print_json({"archive": str(found.archive), "sound": not faults, "problems": faults})
    else:
        for line in faults:
            complain(line, 2)
        verdict = f"{len(faults)} problem{'s' if len(faults) > 1 else ''}" if faults else "sound"
        _stderr().print(f"{found.archive}: {verdict}", soft_wrap=True, highlight=False)
    return 1 if faults else 0


def run_reproduce(found: argparse.Namespace) -> int:
    """Make a table or a figure of the paper."""
    from atrous.reproduction.plan import Options
    from atrous.training.config import parse_assignments

    options = Options(
        preset=found.preset, data=found.data, pretraining=found.pretraining, model=found.model,
        backbones=found.backbone, iterations=found.iterations, seeds=found.seeds, out=found.out,
        values=parse_assignments(found.assignments), workers=found.workers, parallel=found.parallel,
        device=found.device,
    )  # fmt: skip
    from atrous.reproduction.run import FIGURE_4, check_words, figure_4, listed, reproduce

    check_words(found.what, options)
    console = _stderr()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    if found.what == ["list"]:
        rows = listed(options)
        if found.json:
            return _print_json(rows)
        console.print(listing_table(rows))
        return 0
    answers: dict[str, Any] = {}
    if FIGURE_4 in found.what and not found.dry_run:
        answers[FIGURE_4] = figure_4(options.folder, say)
        say("\n".join(answers[FIGURE_4].values()))
    tables: dict[str, dict[str, Any]] = {}
    if words := [word for word in found.what if word != FIGURE_4]:
        with console.status("") as status:
            tables = reproduce(words, options, dry_run=found.dry_run, say=say, tick=status.update)
    for table in tables.values():
        if "markdown" in table["files"] and not found.json:
            say(Path(table["files"]["markdown"]).read_text(encoding="utf-8"))
    if found.json:
        answers |= tables
        _print_json(answers if len(answers) > 1 else next(iter(answers.values()), {}))
    return 1 if any(table["failed"] for table in tables.values()) else 0


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False)  # names of files and classes hold anything


def _print_json(value: Any) -> int:
    print(json.dumps(value, allow_nan=False))
    return 0
