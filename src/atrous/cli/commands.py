"""What each subcommand does: it calls one function of the package, and shows what comes back.

Everything is imported where it is used, so that the command line answers quickly. Progress and tables go to standard
error; see `atrous.cli.parser` for what goes where.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrous.cli.arguments import dataset_options
from atrous.cli.tables import listing_table, model_table, models_table, scores_table, shares_table
from atrous.messages import counted, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console


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
    print_table(shares_table({result.photograph: result.areas for result in results}))
    say("\n  ".join(("next:", *NEXT)))
    for result in results:
        print_out(str(result.overlay))
    return 0


def run_eval(args: argparse.Namespace) -> int:
    """Score a model."""
    from atrous.evaluation.as_trained import open_as_trained
    from atrous.evaluation.distributed import pick_device
    from atrous.evaluation.evaluate import check_class_names, checked_longest_side, evaluate
    from atrous.models.weights import load

    model, card = load(args.model, output_stride=args.output_stride)
    dataset, said = open_as_trained(args.data, args.split, card, dataset_options(args))
    if said:
        complain(said, 0)
    names = None if args.ignore_class_names else card.names
    check_class_names(names, dataset.labels.names, model.num_classes, "--ignore-class-names")
    if args.longest_side is not None:
        model.longest_side = checked_longest_side(args.longest_side)
    model = model.to(pick_device(args.device)).for_inference()
    with bar(args.split) as tell:

        def progress(done: int) -> None:
            tell(done, len(dataset))

        if args.ladder:
            return _eval_ladder(args, model, dataset, progress)
        result = evaluate(model, dataset, scales=args.scales, flip=args.flip, pad_to=args.pad_to, progress=progress)
    return print_json(result.as_dict()) if args.json else print_table(scores_table(result))


def _eval_ladder(args: argparse.Namespace, model: Any, dataset: Any, progress: Any) -> int:
    from atrous.evaluation.evaluate import PAPER_SCALES
    from atrous.evaluation.inference_settings import ladder, markdown, rungs

    rows = rungs(args.output_stride or 8, PAPER_SCALES if args.scales == [1.0] else args.scales, args.pad_to)
    results = ladder(model, dataset, rows, progress=progress)
    if args.json:
        return print_json({"rows": [result.as_dict() for result in results], "markdown": markdown(results)})
    say(markdown(results))
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
    from atrous.prediction.files import find_photographs
    from atrous.prediction.pseudo_label import classes_of, label
    from atrous.prediction.tflite_teacher import open_teacher

    files = find_photographs(args.sources)
    teacher = open_teacher(
        args.teacher, labels=classes_of(args.data), scales=args.scales, flip=args.flip,
        output_stride=args.output_stride, device=args.device,
    )  # fmt: skip
    with bar(args.split) as tell:
        numbers = itertools.count(1)
        done = label(
            teacher, files, args.data, split=args.split, confidence=args.confidence,
            progress=lambda _: tell(next(numbers), len(files)),
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
        say(f"{said}; {done.split}")
    return 1 if done.failures else 0


def run_submit_write(args: argparse.Namespace) -> int:
    """Write a server's archive."""
    from atrous.prediction.submission import write

    with bar(args.split) as tell:
        submission = write(
            args.model, args.data, args.out, split=args.split, competition=args.competition, pad_to=args.pad_to,
            device=args.device, output_stride=args.output_stride, scales=args.scales, flip=args.flip, progress=tell,
        )  # fmt: skip
    if args.json:
        return print_json(submission.as_dict())
    say(f"{submission.predicted} of {submission.images} images predicted, the rest were there; packed and checked:")
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
        say(f"{args.archive}: {counted(len(faults), 'problem') if faults else 'sound'}")
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
    if args.what == ["list"]:
        rows = listed(options)
        return print_json(rows) if args.json else print_table(listing_table(rows))
    answers: dict[str, Any] = {}
    if FIGURE_4 in args.what and not args.dry_run:
        answers[FIGURE_4] = figure_4(options.folder, say)
        say("\n".join(answers[FIGURE_4].values()))
    tables: dict[str, dict[str, Any]] = {}
    if words := [word for word in args.what if word != FIGURE_4]:
        console = stderr_console()  # a second one would write into the line of the status

        def told(line: str) -> None:
            console.print(line, soft_wrap=True, highlight=False)

        with console.status("") as status:
            tables = reproduce(words, options, dry_run=args.dry_run, say=told, tick=status.update)
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


def say(line: str) -> None:
    """Print a line on standard error, unbroken and uncoloured."""
    stderr_console().print(line, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def bar(text: str) -> Iterator[Callable[[float, float], None]]:
    """A progress bar on a terminal; what it yields is called with how many are done, of how many."""
    from rich.progress import Progress

    console = stderr_console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


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
