"""What each subcommand does: it calls one function of the package, and shows what comes back.

Everything is imported where it is used, so that the command line answers quickly. Progress and tables go to standard
error; see `atrous.cli` for what goes where.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrous.cli.tables import listing_table, model_table, models_table, recipes_table, scores_table, shares_table
from atrous.messages import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from atrous.training.config import Recipe


def complain(message: str, status: int) -> int:
    """Print one line on standard error; return the status. 0 is a remark, a signal's status no error either."""
    print(f"atrous: {'error: ' if 0 < status < 128 else ''}{' '.join(message.split())}", file=sys.stderr)
    return status


def run_demo(args: argparse.Namespace) -> int:
    """Segment the bundled photographs."""
    from atrous.prediction.demo import NEXT, demo

    results = demo(args.out, device=args.device)
    if args.json:
        return print_json({"results": [result.as_dict() for result in results]})
    console = stderr_console()
    console.print(shares_table({result.photograph: result.areas for result in results}))
    console.print("next:", *NEXT, sep="\n  ", soft_wrap=True, highlight=False)
    for result in results:
        print_out(str(result.overlay))
    return 0


def run_predict(args: argparse.Namespace) -> int:
    """Segment photographs."""
    from rich.progress import Progress

    from atrous.data.image_io import MAX_PIXELS
    from atrous.prediction.files import find_photographs, predict_files
    from atrous.prediction.predictor import Predictor

    model, sources = _model_and_sources(args.words)
    files = find_photographs(sources)
    predictor = Predictor.load(
        model, device=args.device, output_stride=args.output_stride, scales=args.scales, flip=args.flip,
        longest_side=args.longest_side, window=args.window,
        max_pixels=MAX_PIXELS if args.max_pixels is None else args.max_pixels,
    )  # fmt: skip
    if sources is args.words:
        complain(f"segmenting with {model}; for another model name it first (atrous models)", 0)
    console = stderr_console()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        tasks = bar.add_task("", total=len(files)), bar.add_task("", total=1.0)

        places = {path: place for place, path in enumerate(files)}

        def tell(path: Path, share: float) -> None:
            bar.update(tasks[0], completed=places[path] + (share == 1.0))
            bar.update(tasks[1], completed=share, description=path.name)

        with _unwound_by_sigterm():
            batch = predict_files(predictor, files, args.out, resume=args.resume, progress=tell)
    if batch.areas:
        console.print(shares_table({str(path): areas for path, areas in batch.areas.items()}))
        console.print(f"{len(batch.areas)} of {len(files)} segmented into {args.out}", soft_wrap=True, highlight=False)
    if batch.skipped:
        console.print(f"{len(batch.skipped)} of {len(files)} were done before", highlight=False)
    for path, name in batch.shortened.items():
        console.print(f"{path}: a long name; its outputs are named {name}", soft_wrap=True, highlight=False)
    for why in batch.failures.values():
        complain(why, 2)
    if args.json:
        print_json(batch.as_dict())
    return 2 if batch.failures else 0


def _model_and_sources(words: list[str]) -> tuple[str, list[str]]:
    """The model, everyday objects by default, and what it is to segment.

    Raises:
        ValueError: if the first word is neither a model nor a photograph, or nothing follows a model.
    """
    from atrous.models.weights import names, resolve
    from atrous.prediction.predictor import DEFAULT_MODEL

    first, *rest = words
    folder = Path(first)
    is_run = any((folder / name).exists() for name in ("recipe.yaml", "best", "model.safetensors"))
    if first in names() or first.endswith((".safetensors", ".onnx", ".xml", ".pt2")) or is_run:
        resolve(first)
        if not rest:
            raise ValueError(f"{first} is a model; expected photographs after it: atrous predict {first} photo.jpg")
        return first, rest
    if not os.path.lexists(first) and not glob.has_magic(first):
        beside = [str(path) for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = did_you_mean(first, [*names(), *beside], otherwise="")
        raise ValueError(f"there is no photograph and no model {first!r}{near or '; atrous models lists the models'}")
    return DEFAULT_MODEL, words


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


def run_train(args: argparse.Namespace) -> int:
    """Train by one recipe, or several in sequence."""
    from atrous.training.config import override, parse_assignments
    from atrous.training.recipes import load_recipe

    flags = (
        "output_stride", "batch_size", "grad_accum_steps", "iterations", "lr", "weights", "amp", "ema_decay", "seed",
    )  # fmt: skip
    values = {key: getattr(args, key) for key in flags if getattr(args, key) is not None}
    values |= {"reset_head": True} if args.reset_head else {}
    values |= {"weights": None} if args.weights == "none" else {}
    assigned = parse_assignments(args.assignments)
    if twice := sorted(values.keys() & assigned.keys()):
        raise ValueError(f"{twice[0]} is given twice, by --{twice[0].replace('_', '-')} and by --set")
    if args.workers < 0:
        raise ValueError(f"--workers is {args.workers}, expected at least 0")
    if len(args.recipes) > 1:
        return _train_stages(args, {**values, **assigned})
    if len(args.data) > 1:
        raise ValueError(f"1 recipe has {len(args.data)} --data, expected 1")
    (source,), (data,) = args.recipes, args.data
    given = {**values, **assigned}
    run = args.out or Path("runs") / Path(source).stem
    if source == "finetune":
        recipe: Recipe = _finetuned(data, given, run / "recipe.yaml" if args.resume else None)
    else:
        recipe = override(load_recipe(source), given)
    options = {"resume": args.resume, "workers": args.workers, "device": args.device}
    measured: dict[str, Any] = {}
    if args.asynchronous is None:
        from atrous.training.loop import train

        best = train(recipe, data, run, **options)
    else:
        from atrous.training.asynchronous.server import train_asynchronously

        outcome = train_asynchronously(recipe, data, run, replicas=args.asynchronous, **options)
        best, measured = outcome.best, {"replicas": args.asynchronous, "staleness": outcome.staleness.as_dict()}
    best = None if best is not None and best != best else best  # JSON has no NaN
    if args.json:
        return print_json({"run": str(run), "weights": str(run / "best"), "miou": best, **measured})
    scored = f", val mIoU {best:.4f}" if best is not None else ""
    stderr_console().print(f"done{scored}; the weights are in {run / 'best'}", soft_wrap=True, highlight=False)
    return 0


def _finetuned(data: str, given: dict[str, Any], before: Path | None) -> Recipe:
    """The recipe that the data asks for, or the one that a run to be gone on with has."""
    from atrous.training.autoconfig import BASE, finetune
    from atrous.training.config import override
    from atrous.training.recipes import load_recipe

    override(load_recipe(BASE), given)  # a slip is named before the data is read
    console = stderr_console()
    if before is not None and before.is_file():
        console.print(f"what was chosen before, in {before}", soft_wrap=True, highlight=False)
        return override(load_recipe(before), given)
    recipe, reasons = finetune(data, _weights_asked_for(given))
    console.print(f"settings chosen for {data}:", soft_wrap=True, highlight=False)
    for reason in reasons:
        console.print(f"- {reason}", soft_wrap=True, highlight=False)
    if given:
        yours = ", ".join(f"{key} {value}" for key, value in given.items())
        console.print(f"- your settings replace these: {yours}", soft_wrap=True, highlight=False)
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


def _train_stages(args: argparse.Namespace, values: dict[str, Any]) -> int:
    from atrous.training.stages import plan_stages, train_stages

    if args.asynchronous is not None:
        raise ValueError("--asynchronous takes one recipe at a time")
    console = stderr_console()
    stages = plan_stages(args.recipes, args.data, args.out, values)
    best = train_stages(
        stages,
        resume=args.resume,
        workers=args.workers,
        device=args.device,
        said=lambda line: console.print(line, soft_wrap=True, highlight=False),
    )
    if args.json:
        runs = [str(stage.run) for stage in stages]
        return print_json({"runs": runs, "weights": str(stages[-1].run / "best"), "miou": best})
    console.print(f"done; the weights are in {stages[-1].run / 'best'}", soft_wrap=True, highlight=False)
    return 0


def run_eval(args: argparse.Namespace) -> int:
    """Score a model."""
    from rich.progress import Progress

    from atrous.data.datasets.dataset import open_dataset
    from atrous.evaluation.distributed import pick_device
    from atrous.evaluation.evaluate import check_class_names, checked_longest_side, evaluate
    from atrous.models.weights import load

    dataset = open_dataset(args.data, args.split)
    model, card = load(args.model, output_stride=args.output_stride)
    names = None if args.ignore_class_names else card.names
    check_class_names(names, dataset.labels.names, model.num_classes, "--ignore-class-names")
    if args.longest_side is not None:
        model.longest_side = checked_longest_side(args.longest_side)
    model = model.to(pick_device(args.device)).for_inference()
    console = stderr_console()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(args.split, total=len(dataset))
        if args.ladder:
            return _eval_ladder(args, model, dataset, lambda done: bar.update(task, completed=done))
        result = evaluate(
            model, dataset, scales=args.scales, flip=args.flip, pad_to=args.pad_to,
            progress=lambda done: bar.update(task, completed=done),
        )  # fmt: skip
    if args.json:
        return print_json(result.as_dict())
    console.print(scores_table(result))
    return 0


def _eval_ladder(args: argparse.Namespace, model: Any, dataset: Any, progress: Any) -> int:
    from atrous.evaluation.evaluate import PAPER_SCALES
    from atrous.evaluation.inference_settings import ladder, markdown, rungs

    rows = rungs(args.output_stride or 8, PAPER_SCALES if args.scales == [1.0] else args.scales, args.pad_to)
    results = ladder(model, dataset, rows, progress=progress)
    if args.json:
        return print_json({"rows": [result.as_dict() for result in results], "markdown": markdown(results)})
    stderr_console().print(markdown(results), soft_wrap=True, highlight=False)
    return 0


def run_models(args: argparse.Namespace) -> int:
    """List the named weights, or tell all about one."""
    from atrous.models.weights import cards, speeds

    hardware, milliseconds = speeds()

    def measured(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
        took = milliseconds.get(name, {})
        return {what: row | ({"milliseconds": took[what]} if what in took else {}) for what, row in metrics.items()}

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
    if args.name is not None:
        if args.name not in rows:
            raise ValueError(f"there is no model {args.name!r}{did_you_mean(args.name, rows)}")
        row = rows[args.name]
        return print_json(row) if args.json else print_table(model_table(args.name, row, hardware))
    return print_json(rows) if args.json else print_table(models_table(rows, hardware))


def list_recipes() -> None:
    """Print the named recipes."""
    from atrous.training.recipes import RECIPES

    print_table(recipes_table(RECIPES))


def run_data_check(args: argparse.Namespace) -> int:
    """Look at a data set."""
    from atrous.data.validate import check, render

    report = check(args.data, allow_empty_classes=args.allow_empty_classes)
    if args.json:
        print_json(report.as_dict())
    else:
        stderr_console().print(render(report))
    return 1 if report.problems else 0


def run_label(args: argparse.Namespace) -> int:
    """Write a teacher's masks."""
    from rich.progress import Progress

    from atrous.prediction.files import find_photographs
    from atrous.prediction.pseudo_label import classes_of, label
    from atrous.prediction.tflite_teacher import open_teacher

    files = find_photographs(args.sources)
    teacher = open_teacher(
        args.teacher,
        labels=classes_of(args.data),
        scales=args.scales,
        flip=args.flip,
        output_stride=args.output_stride,
        device=args.device,
    )
    console = stderr_console()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(args.split, total=len(files))
        done = label(
            teacher, files, args.data, split=args.split, confidence=args.confidence,
            progress=lambda _: bar.advance(task),
        )  # fmt: skip
    for why in done.failures.values():
        complain(why, 1)
    if args.json:
        print_json(done.as_dict())
    else:
        if done.written and done.ignored == 1:
            complain("the teacher was sure of no pixel: nothing can be learnt from these masks", 1)
        said = f"{done.written} labelled, {done.already} had been, {len(done.failures)} failed"
        said += f"; {done.ignored:.1%} of the new pixels ignored" if done.written else ""
        console.print(f"{said}; {done.split}", soft_wrap=True, highlight=False)
    return 1 if done.failures else 0


def run_submit_write(args: argparse.Namespace) -> int:
    """Write a server's archive."""
    from rich.progress import Progress

    from atrous.prediction.submission import write

    console = stderr_console()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(args.split)
        submission = write(
            args.model,
            args.data,
            args.out,
            split=args.split,
            competition=args.competition,
            pad_to=args.pad_to,
            device=args.device,
            output_stride=args.output_stride,
            scales=args.scales,
            flip=args.flip,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if args.json:
        return print_json(submission.as_dict())
    said = f"{submission.predicted} of {submission.images} images predicted, the rest were there; packed and checked:"
    console.print(said, highlight=False)
    print_out(str(submission.archive))
    return 0


def run_submit_check(args: argparse.Namespace) -> int:
    """Check one."""
    from atrous.prediction.submission import check

    faults = check(args.archive, args.data, split=args.split)
    if args.json:
        print_json({"archive": str(args.archive), "sound": not faults, "problems": faults})
    else:
        for line in faults:
            complain(line, 2)
        verdict = f"{len(faults)} problem{'s' if len(faults) > 1 else ''}" if faults else "sound"
        stderr_console().print(f"{args.archive}: {verdict}", soft_wrap=True, highlight=False)
    return 1 if faults else 0


def run_reproduce(args: argparse.Namespace) -> int:
    """Make a table or a figure of the paper."""
    from atrous.reproduction.plan import Options
    from atrous.training.config import parse_assignments

    options = Options(
        preset=args.preset, data=args.data, pretraining=args.pretraining, model=args.model,
        backbones=args.backbone, iterations=args.iterations, seeds=args.seeds, out=args.out,
        values=parse_assignments(args.assignments), workers=args.workers, parallel=args.parallel,
        device=args.device,
    )  # fmt: skip
    from atrous.reproduction.run import FIGURE_4, check_words, figure_4, listed, reproduce

    check_words(args.what, options)
    console = stderr_console()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    if args.what == ["list"]:
        rows = listed(options)
        if args.json:
            return print_json(rows)
        console.print(listing_table(rows))
        return 0
    answers: dict[str, Any] = {}
    if FIGURE_4 in args.what and not args.dry_run:
        answers[FIGURE_4] = figure_4(options.folder, say)
        say("\n".join(answers[FIGURE_4].values()))
    tables: dict[str, dict[str, Any]] = {}
    if words := [word for word in args.what if word != FIGURE_4]:
        with console.status("") as status:
            tables = reproduce(words, options, dry_run=args.dry_run, say=say, tick=status.update)
    for table in tables.values():
        if "markdown" in table["files"] and not args.json:
            say(Path(table["files"]["markdown"]).read_text(encoding="utf-8"))
    if args.json:
        answers |= tables
        print_json(answers if len(answers) > 1 else next(iter(answers.values()), {}))
    return 1 if any(table["failed"] for table in tables.values()) else 0


def stderr_console() -> Console:
    """A console for progress and tables."""
    from rich.console import Console

    # Names of files and classes hold anything. A pipe has no width: rich would cut tables at 80 columns.
    wide = 160 if not sys.stderr.isatty() and "COLUMNS" not in os.environ else None
    return Console(stderr=True, markup=False, emoji=False, width=wide)


def print_table(table: Any) -> int:
    """Print a table on standard error; exit status 0."""
    stderr_console().print(table)
    return 0


def print_json(value: Any) -> int:
    """Print one JSON object on standard output; exit status 0."""
    print_out(json.dumps(value, allow_nan=False))
    return 0


def print_out(text: str = "", end: str = "\n") -> None:
    """Print on standard output at once.

    Raises:
        OSError: if it cannot be written, with "standard output" as its file.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        error.filename = "standard output"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again as it ends
        raise
