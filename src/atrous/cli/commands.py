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

from atrous.cli.arguments import dataset_options
from atrous.cli.tables import listing_table, model_table, models_table, scores_table, shares_table
from atrous.messages import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from atrous.data.datasets.dataset import SegmentationDataset
    from atrous.models.weights import ModelCard


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
        max_pixels=MAX_PIXELS if args.max_pixels is None else args.max_pixels, **_reading(args),
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


def _reading(args: argparse.Namespace) -> dict[str, Any]:
    """What `Predictor` takes of `--value-range` and `--bands`; without them it reads as the model's training did."""
    options = dataset_options(args)
    values = {"value_range": options.value_range, "bands": options.bands}
    return {key: value for key, value in values.items() if value}


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


def run_eval(args: argparse.Namespace) -> int:
    """Score a model."""
    from rich.progress import Progress

    from atrous.evaluation.distributed import pick_device
    from atrous.evaluation.evaluate import check_class_names, checked_longest_side, evaluate
    from atrous.models.weights import load

    model, card = load(args.model, output_stride=args.output_stride)
    dataset = _opened_as_trained(args, card)
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


def _opened_as_trained(args: argparse.Namespace, card: ModelCard) -> SegmentationDataset:
    """The data as the flags say; without any, as the model's training read its own, if it has other classes else."""
    from atrous.data.datasets.dataset import list_split, open_dataset
    from atrous.data.datasets.options import DatasetOptions

    given = dataset_options(args)
    trained = DatasetOptions.parse(card.recipe.get("options") or {})
    as_trained = DatasetOptions(value_range=card.value_range, bands=card.bands)
    if given or not trained or list_split(args.data, args.split).labels.names == card.names:
        return open_dataset(args.data, args.split, given.over(as_trained))
    complain(f"{args.data} is read as in the training of {args.model}: {trained}", 0)
    return open_dataset(args.data, args.split, trained.over(as_trained))


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
