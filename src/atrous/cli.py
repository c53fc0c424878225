"""The command line: each subcommand calls one function of the package.

A user's mistake is one line on standard error and exit status 2; a failure is 1; a run that a signal stopped, 128
plus the signal's number. With ``--json`` the last line of standard output is one JSON object and nothing else is
printed there. Nothing heavy is imported before it is known what was asked for, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

    from atrous.engine.recipe import Recipe


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line that name the nearest flag."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        _, found, words = message.partition("unrecognized arguments: ")
        if found:
            flag = (words.split() or [""])[0].split("=")[0]  # a word can be empty
            near = difflib.get_close_matches(flag, list(self._option_string_actions), 1, 0.5)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        # A subcommand's unknown flags come back to the top, which does not know their neighbours: report them below.
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            getattr(found, "parser", self).error(f"unrecognized arguments: {' '.join(rest)}")
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's; the exit status."""
    try:
        found = _parser().parse_args(arguments)
        status: int = found.run(found)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Exception as error:  # told apart below; anything unforeseen goes on as it is
        if os.environ.get("ATROUS_DEBUG"):
            raise
        status = _status_of(error)
        if not status:
            raise
        return _complain(str(error), status)


def _status_of(error: Exception) -> int:
    """The exit status that an error stands for; 0 for one that nobody foresaw."""
    if isinstance(
        error,
        ValueError | FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError | PermissionError,
    ):
        return 2
    if isinstance(error, FloatingPointError | OSError | MemoryError):
        return 1
    return int(getattr(error, "status", 0))


def _complain(message: str, status: int) -> int:
    print(f"atrous: {'error: ' if status < 128 else ''}{' '.join(message.split())}", file=sys.stderr)
    return status


def _parser() -> _Parser:
    from atrous import __version__

    parser = _Parser(prog="atrous", description="DeepLabv3: segment photographs, train, evaluate.")
    parser.add_argument("--version", action="version", version=f"atrous {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    data = (_add_data, _add_label, _add_submit)
    for add in (_add_demo, _add_predict, _add_train, _add_eval, _add_models, *data, _add_reproduce, _add_bench):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, text: str, **options: Any) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=text, description=text, **options)
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_demo(commands: Any) -> None:
    text = "segment the bundled photographs with the bundled weights, and write the overlays"
    parser = _command(commands, "demo", _demo, text)
    parser.add_argument("--out", type=Path, default=Path("atrous-demo"), help="folder to write (default: %(default)s)")
    _add_device(parser)
    _add_json(parser)


def _add_predict(commands: Any) -> None:
    parser = _command(commands, "predict", _predict, "segment photographs into masks and overlays")
    parser.add_argument(
        "model", metavar="MODEL", help="a named model (see atrous models), a run folder or a weight file"
    )
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="files, folders, globs")
    parser.add_argument("--out", type=Path, required=True, help="folder for masks/ and overlays/")
    parser.add_argument("--resume", action="store_true", help="leave files whose mask and overlay are there, made so")
    parser.add_argument("--window", type=int, metavar="SIDE",
                        help="of the windows for larger images (default: 2049, for those above 16.8 million pixels)")  # fmt: skip
    parser.add_argument("--max-pixels", type=int, metavar="N", help="refuse larger images (default: 178956970)")
    _add_inference(parser)
    _add_device(parser)
    _add_json(parser)


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", _train, "train a model by a recipe")
    text = "finetune, a named recipe, or a YAML file; of several, each starts from the weights of the one before"
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help=text)
    text = "a folder, or voc:PATH, cityscapes:PATH, coco:PATH, folder:PATH; for several recipes once, or once each"
    parser.add_argument("--data", required=True, action="append", help=text)
    parser.add_argument("--out", type=Path, help="run folder (default: runs/RECIPE); for several, the folder of them")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's newest checkpoint")
    parser.add_argument("--output-stride", type=int, help="of training")
    parser.add_argument("-b", "--batch", type=int, help="images in a step, over all processes")
    parser.add_argument("--accumulate", type=int, help="parts of a process's share of the batch")
    parser.add_argument("--iterations", type=int, help="steps")
    parser.add_argument("--lr", type=float, help="initial learning rate")
    parser.add_argument("--weights", help="imagenet, none, or a model to start from")
    parser.add_argument("--reset-head", action="store_true", help="start the classifier anew, for other classes")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), help="automatic mixed precision")
    parser.add_argument("--ema", type=float, help="decay of the moving average of the weights; 0 for none")
    parser.add_argument("--seed", type=int, help="of everything random")
    parser.add_argument("-j", "--workers", type=int, default=1, help="processes that load data (default: %(default)s)")
    parser.add_argument("--asynchronous", type=int, metavar="N", help="replicas that do not wait for each other (Ray)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                        help="any other key of the recipe; can be given many times")  # fmt: skip
    _add_device(parser)
    _add_json(parser)


def _add_eval(commands: Any) -> None:
    parser = _command(commands, "eval", _eval, "score a model on a data set", aliases=["val"])
    parser.add_argument(
        "model", metavar="MODEL", help="a named model (see atrous models), a run folder or a weight file"
    )
    parser.add_argument("--data", required=True, help="a folder, or voc:PATH, cityscapes:PATH, coco:PATH, folder:PATH")
    parser.add_argument("--split", default="val", help="(default: %(default)s)")
    _add_inference(parser)
    text = "the rows of Table 4: output stride 16 down to --output-stride (8), then --scales (the paper's), then flips"
    parser.add_argument("--ladder", action="store_true", help=text)
    _add_device(parser)
    _add_json(parser)


def _add_models(commands: Any) -> None:
    parser = _command(commands, "models", _models, "list the named weights, with classes, mIoU, size and licence")
    _add_json(parser)


def _add_data(commands: Any) -> None:
    parser = _command(commands, "data", None, "look at a data set")
    inner = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    check = _command(inner, "check", _data_check, "is this data set sound?")
    check.add_argument("data", metavar="DATA", help="a folder, or voc:PATH, cityscapes:PATH, coco:PATH, folder:PATH")
    _add_json(check)


def _add_label(commands: Any) -> None:
    parser = _command(commands, "label", _label, "a teacher's masks for photographs that have none, as a split")
    text = "a named model (see atrous models), a run folder, a weight file, or a .tflite graph"
    parser.add_argument("teacher", metavar="TEACHER", help=text)
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="files, folders, globs")
    parser.add_argument("--data", type=Path, required=True, help="folder to add the split to; made if there is none")
    parser.add_argument("--split", default="pseudo", help="(default: %(default)s)")
    parser.add_argument("--confidence", type=float, default=0.6, help="ignore what is less sure (default: %(default)s)")
    _add_inference(parser)
    _add_device(parser)
    _add_json(parser)


def _add_submit(commands: Any) -> None:
    parser = _command(commands, "submit", None, "files for the test servers of VOC and Cityscapes")
    inner = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    write = _command(inner, "write", _submit_write, "predict a split and pack what the server takes")
    write.add_argument(
        "model", metavar="MODEL", help="a named model (see atrous models), a run folder or a weight file"
    )
    write.add_argument("--out", type=Path, required=True, help="folder for the predictions and the archive")
    write.add_argument("--competition", choices=("comp5", "comp6"), help="of VOC: only VOC's data, or any (default)")
    check = _command(inner, "check", _submit_check, "is this what the server takes?")
    check.add_argument("archive", metavar="ARCHIVE", type=Path, help="a .zip, .tar or .tgz")
    for command in (write, check):
        command.add_argument("--data", required=True, help="voc:PATH or cityscapes:PATH")
        command.add_argument("--split", default="test", help="(default: %(default)s)")
    _add_inference(write)
    _add_device(write)
    for command in (write, check):
        _add_json(command)


def _add_reproduce(commands: Any) -> None:
    parser = _command(commands, "reproduce", _reproduce, "the paper's tables and figures, its numbers beside ours")
    parser.add_argument("what", metavar="WHAT", help="table-1 to -6, table-8 to -12, figure-4, -6, -7, -8; or list")
    text = "paper; camvid, a small faithful one; tiny, on generated data in minutes (default: %(default)s)"
    parser.add_argument("--preset", default="paper", help=text)
    parser.add_argument("--data", help="as of train; tiny makes its own")
    parser.add_argument("--pretraining", metavar="DATA", help="for the row of Table 6 that is pretrained on COCO")
    parser.add_argument("--model", help="evaluate this model in place of training one: tables 4, 6, 12, figures 6, 8")
    parser.add_argument("--backbone", nargs="+", default=[], help="in place of the preset's; two for table-2")
    parser.add_argument("--iterations", type=int, help="steps of each training")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each cell, for mean and spread (default: 1)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                        help="any other key of the base recipe, as of train")  # fmt: skip
    parser.add_argument("-j", "--workers", type=int, default=1, help="processes that load data (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of all runs and tables (default: reproduced/PRESET)")
    parser.add_argument("--dry-run", action="store_true", help="stop after the plan and the estimate of the time")
    _add_device(parser)
    _add_json(parser)


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", _bench, "ours and the installed peers, turn by turn on the same weights")
    parser.add_argument("what", choices=("infer", "train", "loss", "data", "conv"))
    parser.add_argument(
        "--peers", nargs="*", metavar="PEER", help="torchvision, smp, onnxruntime, openvino (default: all)"
    )
    parser.add_argument("--backbone", default="resnet50", help="(default: %(default)s)")
    parser.add_argument("--output-stride", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, help="side of the images (default: 513, or 512 at output stride 16)")
    parser.add_argument("-b", "--batch", type=int, help="(default: 1; 2 for train, 4 for loss)")
    parser.add_argument("--fp32", action="store_true", help="leave bfloat16 out")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON, too")
    _add_device(parser)
    _add_json(parser)


def _add_inference(parser: _Parser) -> None:
    parser.add_argument("--output-stride", type=int, help="of the features (default: the model's)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="average over these scales")
    parser.add_argument("--flip", action="store_true", help="average over left-right flipped inputs, too")


def _add_device(parser: _Parser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")


def _add_json(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")


def _demo(found: argparse.Namespace) -> int:
    from atrous.jobs.demo import NEXT, demo

    results = demo(found.out, device=found.device)
    if found.json:
        first, *others = (result.as_dict() for result in results)
        return _print_json({**first, "others": others})
    console = _stderr()
    console.print(_shares_table({result.photograph: result.areas for result in results}))
    console.print("next:", *NEXT, sep="\n  ", soft_wrap=True, highlight=False)
    for result in results:
        print(result.overlay)
    return 0


def _predict(found: argparse.Namespace) -> int:
    from rich.progress import Progress

    from atrous.data.image import MAX_PIXELS
    from atrous.jobs.predict import Predictor, find_photographs, predict_files

    files = find_photographs(found.sources)
    predictor = Predictor.load(
        found.model, device=found.device, output_stride=found.output_stride, scales=found.scales, flip=found.flip,
        window=found.window, max_pixels=MAX_PIXELS if found.max_pixels is None else found.max_pixels,
    )  # fmt: skip
    console = _stderr()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        tasks = bar.add_task("", total=len(files)), bar.add_task("", total=1.0)

        def tell(path: Path, share: float) -> None:
            bar.update(tasks[0], completed=files.index(path) + (share == 1.0))
            bar.update(tasks[1], completed=share, description=path.name)

        batch = predict_files(predictor, files, found.out, resume=found.resume, progress=tell)
    if batch.areas:
        console.print(_shares_table({str(path): areas for path, areas in batch.areas.items()}))
        console.print(f"{len(batch.areas)} of {len(files)} segmented into {found.out}", soft_wrap=True, highlight=False)
    if batch.skipped:
        console.print(f"{len(batch.skipped)} of {len(files)} were done before", highlight=False)
    for why in batch.failures.values():
        _complain(why, 2)
    if found.json:
        _print_json(batch.as_dict())
    return 2 if batch.failures else 0


def _train(found: argparse.Namespace) -> int:
    from atrous.engine.recipe import load_recipe, override, parse_assignments

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
    chosen = _finetuned(data) if source == "finetune" else load_recipe(source)
    recipe: Recipe = override(chosen, {**values, **assigned})

    run = found.out or Path("runs") / Path(source).stem
    options = {"resume": found.resume, "workers": found.workers, "device": found.device}
    measured: dict[str, Any] = {}
    if found.asynchronous is None:
        from atrous.engine.train import train

        best = train(recipe, data, run, **options)
    else:
        from atrous.engine.asynchronous import train_asynchronously

        outcome = train_asynchronously(recipe, data, run, replicas=found.asynchronous, **options)
        best, measured = outcome.best, {"replicas": found.asynchronous, "staleness": outcome.staleness.as_dict()}
    best = None if best is not None and best != best else best  # JSON has no NaN
    if found.json:
        return _print_json({"run": str(run), "weights": str(run / "best"), "miou": best, **measured})
    scored = f", val mIoU {best:.4f}" if best is not None else ""
    _stderr().print(f"done{scored}; the weights are in {run / 'best'}", soft_wrap=True, highlight=False)
    return 0


def _finetuned(data: str) -> Recipe:
    from atrous.engine.finetune import finetune

    recipe, reasons = finetune(data)
    console = _stderr()
    console.print(f"what {data} asks for; --set and the other flags stand over it:", soft_wrap=True, highlight=False)
    for reason in reasons:
        console.print(f"- {reason}", soft_wrap=True, highlight=False)
    return recipe


def _train_stages(found: argparse.Namespace, values: dict[str, Any]) -> int:
    from atrous.jobs.stages import plan_stages, train_stages

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


def _eval(found: argparse.Namespace) -> int:
    from rich.progress import Progress

    from atrous.data.datasets import open_dataset
    from atrous.engine.distributed import pick_device
    from atrous.engine.evaluate import evaluate
    from atrous.models.weights import load

    dataset = open_dataset(found.data, found.split)
    model, _ = load(found.model, output_stride=found.output_stride)
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
    console.print(_scores_table(result))
    return 0


def _eval_ladder(found: argparse.Namespace, model: Any, dataset: Any, progress: Any) -> int:
    from atrous.engine.evaluate import PAPER_SCALES
    from atrous.jobs.ladder import ladder, markdown, rungs

    rows = rungs(found.output_stride or 8, PAPER_SCALES if found.scales == [1.0] else found.scales)
    results = ladder(model, dataset, rows, progress=progress)
    if found.json:
        return _print_json({"rows": [result.as_dict() for result in results], "markdown": markdown(results)})
    _stderr().print(markdown(results), soft_wrap=True, highlight=False)
    return 0


def _models(found: argparse.Namespace) -> int:
    from atrous.models.weights import cards

    rows = {
        name: {
            "classes": list(card.names),
            "metrics": card.metrics,
            "output_stride": card.output_stride,
            "megabytes": round(path.stat().st_size / 1e6, 2),
            "data": card.data,
            "licence": card.licence,
            "description": card.description,
        }
        for name, (path, card) in cards().items()
    }
    if found.json:
        return _print_json(rows)
    _stderr().print(_models_table(rows))
    return 0


def _data_check(found: argparse.Namespace) -> int:
    from atrous.jobs.check import check, render

    report = check(found.data)
    if found.json:
        _print_json(report.as_dict())
    else:
        _stderr().print(render(report))
    return 1 if report.problems else 0


def _label(found: argparse.Namespace) -> int:
    from rich.progress import Progress

    from atrous.jobs.label import classes_of, label
    from atrous.jobs.predict import find_photographs
    from atrous.jobs.teacher import open_teacher

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
        _complain(why, 1)
    if found.json:
        _print_json(done.as_dict())
    else:
        said = f"{done.written} labelled, {done.already} had been, {len(done.failures)} failed"
        console.print(f"{said}; {done.ignored:.1%} of the pixels ignored; {done.split}", soft_wrap=True)
    return 1 if done.failures else 0


def _submit_write(found: argparse.Namespace) -> int:
    from rich.progress import Progress

    from atrous.jobs.submit import write

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


def _submit_check(found: argparse.Namespace) -> int:
    from atrous.jobs.submit import check

    faults = check(found.archive, found.data, split=found.split)
    if found.json:
        _print_json({"archive": str(found.archive), "sound": not faults, "problems": faults})
    else:
        for line in faults:
            _complain(line, 2)
        verdict = f"{len(faults)} problems" if faults else "sound"
        _stderr().print(f"{found.archive}: {verdict}", soft_wrap=True, highlight=False)
    return 1 if faults else 0


def _reproduce(found: argparse.Namespace) -> int:
    from atrous.engine.recipe import parse_assignments
    from atrous.jobs.plan import Options

    options = Options(
        preset=found.preset, data=found.data, pretraining=found.pretraining, model=found.model,
        backbones=found.backbone, iterations=found.iterations, seeds=found.seeds, out=found.out,
        values=parse_assignments(found.assignments), workers=found.workers, device=found.device,
    )  # fmt: skip
    from atrous.jobs.reproduce import check_what, figure_4, listed, reproduce

    check_what(found.what, options)
    console = _stderr()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    if found.what in ("list", "figure-4"):
        answer: Any = listed(options) if found.what == "list" else figure_4(options.folder, say)
        if found.json:
            return _print_json(answer)
        console.print(_listing_table(answer) if found.what == "list" else "\n".join(answer.values()))
        return 0
    with console.status("") as status:
        result = reproduce(found.what, options, dry_run=found.dry_run, say=say, tick=status.update)
    if found.json:
        _print_json(result.as_dict())
    elif "markdown" in result.files:
        say(Path(result.files["markdown"]).read_text(encoding="utf-8"))
    return 1 if result.failed else 0


def _listing_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("what", "cells", "title", "written")
    for row in rows:
        table.add_row(row["what"], str(row["cells"] or ""), row["title"], row["written"] or "")
    return table


def _bench(found: argparse.Namespace) -> int:
    from atrous.engine.checkpoint import write_text
    from atrous.jobs.bench import bench, render

    console = _stderr()
    with console.status("") as status:
        result = bench(
            found.what,
            peers=found.peers,
            backbone=found.backbone,
            output_stride=found.output_stride,
            size=found.size,
            batch=found.batch,
            fp32=found.fp32,
            rounds=found.rounds,
            device=found.device,
            progress=status.update,
        )
    if found.out:
        write_text(found.out, json.dumps(result.as_dict(), indent=1) + "\n")
    if found.json:
        return _print_json(result.as_dict())
    console.print(render(result))
    return 0


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False)  # names of files and classes hold anything


def _print_json(value: Any) -> int:
    print(json.dumps(value, allow_nan=False))
    return 0


def _shares_table(files: dict[str, dict[str, float]]) -> Any:
    from rich.table import Table

    table = Table("file", "classes, by share of the pixels")
    for name, areas in files.items():
        table.add_row(name, ", ".join(f"{label} {share:.1%}" for label, share in areas.items()))
    return table


def _scores_table(result: Any) -> Any:
    from rich.table import Table

    scores = result.scores
    setting = f"output stride {result.output_stride}, scales {', '.join(map(str, result.scales))}"
    title = f"{result.images} images in {result.seconds:.1f} s, {setting}{', flipped' if result.flip else ''}"
    left_out = f"left out of the mean, in neither truth nor prediction: {', '.join(scores.left_out)}"
    table = Table(
        "class", "IoU", "accuracy", title=title, caption=left_out if scores.left_out else None, show_footer=True
    )
    for name, iou, accuracy in zip(scores.names, scores.iou, scores.accuracy, strict=True):
        table.add_row(name, *("-" if value != value else f"{value:.2%}" for value in (iou, accuracy)))
    table.columns[0].footer = "mean"
    table.columns[1].footer = f"{scores.miou:.2%}"
    table.columns[2].footer = f"{scores.mean_accuracy:.2%} (of pixels {scores.pixel_accuracy:.2%})"
    return table


def _models_table(rows: dict[str, dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("name", "classes", "mIoU", "MB", "licence", "what it is")
    table.columns[0].overflow = "fold"  # a name must be read whole, for it is to be typed
    for name, row in rows.items():
        scored = "\n".join(
            f"{setting}: {found['miou']:.2%}"
            for setting, found in row["metrics"].items()
            if found.get("miou") is not None
        )
        table.add_row(name, f"{len(row['classes'])}", scored, f"{row['megabytes']}", row["licence"], row["description"])
    return table
