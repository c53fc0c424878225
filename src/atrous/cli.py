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
            flag = words.split()[0].split("=")[0]
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
    if isinstance(error, FloatingPointError | OSError):
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
    for add in (_add_demo, _add_predict, _add_train, _add_eval, _add_models, _add_data, _add_bench):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, text: str, **options: Any) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=text, description=text, **options)
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_demo(commands: Any) -> None:
    text = "segment the bundled photograph with the bundled weights, and write the overlay"
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
    _add_inference(parser)
    _add_device(parser)
    _add_json(parser)


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", _train, "train a model by a recipe")
    parser.add_argument("recipe", metavar="RECIPE", help="a named recipe, or a YAML file of its keys")
    parser.add_argument("--data", required=True, help="a folder, or voc:PATH, cityscapes:PATH, folder:PATH")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/RECIPE)")
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
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                        help="any other key of the recipe; can be given many times")  # fmt: skip
    _add_device(parser)
    _add_json(parser)


def _add_eval(commands: Any) -> None:
    parser = _command(commands, "eval", _eval, "score a model on a data set", aliases=["val"])
    parser.add_argument(
        "model", metavar="MODEL", help="a named model (see atrous models), a run folder or a weight file"
    )
    parser.add_argument("--data", required=True, help="a folder, or voc:PATH, cityscapes:PATH, folder:PATH")
    parser.add_argument("--split", default="val", help="(default: %(default)s)")
    _add_inference(parser)
    _add_device(parser)
    _add_json(parser)


def _add_models(commands: Any) -> None:
    parser = _command(commands, "models", _models, "list the named weights, with classes, mIoU, size and licence")
    _add_json(parser)


def _add_data(commands: Any) -> None:
    parser = _command(commands, "data", None, "look at a data set")
    inner = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    check = _command(inner, "check", _data_check, "is this data set sound?")
    check.add_argument("data", metavar="DATA", help="a folder, or voc:PATH, cityscapes:PATH, folder:PATH")
    _add_json(check)


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
    from atrous.jobs.demo import demo

    result = demo(found.out, device=found.device)
    if found.json:
        return _print_json(result.as_dict())
    _stderr().print(_shares_table({result.photograph: result.areas}))
    print(result.overlay)
    return 0


def _predict(found: argparse.Namespace) -> int:
    from rich.progress import Progress

    from atrous.jobs.predict import Predictor, find_photographs, predict_files

    files = find_photographs(found.sources)
    predictor = Predictor.load(
        found.model, device=found.device, output_stride=found.output_stride, scales=found.scales, flip=found.flip
    )
    console = _stderr()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(files))
        batch = predict_files(
            predictor, files, found.out, progress=lambda path: bar.update(task, advance=1, description=path.name)
        )
    if batch.areas:
        console.print(_shares_table({str(path): areas for path, areas in batch.areas.items()}))
        console.print(f"{len(batch.areas)} of {len(files)} segmented into {found.out}", soft_wrap=True, highlight=False)
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
    recipe: Recipe = override(load_recipe(found.recipe), {**values, **assigned})
    if found.workers < 0:
        raise ValueError(f"--workers is {found.workers}, expected at least 0")

    from atrous.engine.train import train

    run = found.out or Path("runs") / Path(found.recipe).stem
    best = train(recipe, found.data, run, resume=found.resume, workers=found.workers, device=found.device)
    best = None if best is not None and best != best else best  # JSON has no NaN
    if found.json:
        return _print_json({"run": str(run), "weights": str(run / "best"), "miou": best})
    scored = f", val mIoU {best:.4f}" if best is not None else ""
    _stderr().print(f"done{scored}; the weights are in {run / 'best'}", soft_wrap=True, highlight=False)
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
        result = evaluate(
            model, dataset, scales=found.scales, flip=found.flip, progress=lambda done: bar.update(task, completed=done)
        )
    if found.json:
        return _print_json(result.as_dict())
    console.print(_scores_table(result))
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
