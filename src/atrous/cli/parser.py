"""The command line: each subcommand calls one function of the package.

A user's mistake is one line on standard error and exit status 2; a failure is 1; a run that a signal stopped, 128
plus the signal's number. With ``--json`` the last line of standard output is one JSON object and nothing else is
printed there. Nothing heavy is imported before it is known what was asked for, so that ``--help`` is quick.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atrous.cli import bench, convert, export, predict, serve, train
from atrous.cli.arguments import (
    Parser,
    add_command,
    add_data,
    add_device,
    add_inference,
    add_json,
    add_longest_side,
    add_model,
    add_pad_to,
)
from atrous.cli.commands import (
    complain,
    run_demo,
    run_eval,
    run_label,
    run_models,
    run_reproduce,
    run_submit_check,
    run_submit_write,
)
from atrous.cli.data import add as add_data_commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's; the exit status."""
    lost = _open_closed_streams()
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")  # file names hold any bytes
    words = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None:  # the process is ours
        warnings.showwarning = _warn
        atexit.register(gc.freeze)  # or Python looks through all of PyTorch's objects at its end, for most of a second
    try:
        if not words:
            build_parser().print_help()
            return 0
        args = build_parser().parse_args(words)
        status: int = args.run(args)
        if lost and args.json:
            return complain("standard output is closed, so the JSON went nowhere; the work is done", 1)
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    except Exception as error:  # told apart below; anything unforeseen goes on as it is
        if os.environ.get("ATROUS_DEBUG"):
            raise
        status = _status_of(error)
        if not status:
            raise
        return complain(_said(error), status)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"atrous: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _open_closed_streams() -> bool:
    """Open what the caller has closed (cron, services) as the null device; whether standard output was closed."""
    closed = sys.stdout is None
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return closed


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"  # without Python's [Errno 28]
    return (str(error).splitlines() or [type(error).__name__])[0] if isinstance(error, RuntimeError) else str(error)


def _status_of(error: Exception) -> int:
    """The exit status that an error stands for; 0 for one that nobody foresaw."""
    if isinstance(
        error,
        ValueError | FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError | PermissionError,
    ):
        return 2
    if isinstance(error, FloatingPointError | OSError | MemoryError):
        return 1
    if "torch" in sys.modules:
        from atrous.training.interrupts import is_out_of_memory

        if is_out_of_memory(error):
            return 1
    return int(getattr(error, "status", 0))


def build_parser() -> Parser:
    """The parser of `atrous` with all its commands."""
    from atrous import __version__

    parser = Parser(
        prog="atrous",
        description="DeepLabv3: segment photographs; train, evaluate, export and serve models.",
        epilog="examples:\n  atrous predict photo.jpg\n  atrous train finetune --data my-data --out runs/mine\n"
        "  atrous COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"atrous {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for add in (
        _add_demo,
        predict.add,
        train.add,
        _add_eval,
        export.add,
        serve.add,
        bench.add,
        convert.add,
        _add_models,
        add_data_commands,
        _add_label,
        _add_submit,
        _add_reproduce,
    ):
        add(commands)
    return parser


def _add_demo(commands: Any) -> None:
    text = "segment the bundled photographs with the bundled weights, and write the overlays"
    parser = add_command(commands, "demo", run_demo, text, "atrous demo --out demo")
    parser.add_argument("--out", type=Path, default=Path("atrous-demo"), help="folder to write (default: %(default)s)")
    add_device(parser)
    add_json(parser)


def _add_eval(commands: Any) -> None:
    text, example = "mIoU of a model on a data set", "atrous eval runs/mine --data my-data --output-stride 8"
    parser = add_command(commands, "eval", run_eval, text, example, aliases=["val"])
    add_model(parser)
    add_data(parser)
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    add_longest_side(parser)
    add_inference(parser)
    text = "the rows of Table 4: output stride 16 down to --output-stride (8), then --scales (the paper's), then flips"
    parser.add_argument("--ladder", action="store_true", help=text)
    add_pad_to(parser)
    text = "compare the number of classes of model and data alone, not their names and order"
    parser.add_argument("--ignore-class-names", action="store_true", help=text)
    add_device(parser)
    add_json(parser)


def _add_models(commands: Any) -> None:
    text = "list the named weights, with classes, mIoU, size and licence"
    parser = add_command(commands, "models", run_models, text, "atrous models objects-mobilenetv2")
    parser.add_argument("name", metavar="NAME", nargs="?", help="all about this one")
    add_json(parser)


def _add_label(commands: Any) -> None:
    text = "label photographs with a teacher's masks, as a split to train on"
    parser = add_command(commands, "label", run_label, text, "atrous label runs/large photos/ --data my-data --flip")
    text = "a named model (see atrous models), a run folder, a weight file, or a .tflite graph"
    parser.add_argument("teacher", metavar="TEACHER", help=text)
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="files, folders, globs")
    parser.add_argument("--data", type=Path, required=True, help="folder to add the split to; made if there is none")
    parser.add_argument("--split", default="pseudo", help="name of the new split (default: %(default)s)")
    parser.add_argument(
        "--confidence", type=float, default=0.6, help="ignore pixels below this probability (default: %(default)s)"
    )
    add_inference(parser)
    add_device(parser)
    add_json(parser)


def _add_submit(commands: Any) -> None:
    parser = add_command(
        commands, "submit", None, "files for the test servers of VOC and Cityscapes",
        "atrous submit write runs/mine --data voc:VOCdevkit --out for-voc",
    )  # fmt: skip
    inner = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    write = add_command(
        inner, "write", run_submit_write, "predict a split and pack what the server takes",
        "atrous submit write runs/mine --data voc:VOCdevkit --out for-voc",
    )  # fmt: skip
    add_model(write)
    write.add_argument("--out", type=Path, required=True, help="folder for the predictions and the archive")
    write.add_argument(
        "--competition",
        choices=("comp5", "comp6"),
        help="of VOC: trained on its data alone (comp5), or on any (comp6, default)",
    )
    check = add_command(
        inner, "check", run_submit_check, "is this what the server takes?",
        "atrous submit check for-voc/results.tgz --data voc:VOCdevkit",
    )  # fmt: skip
    check.add_argument("archive", metavar="ARCHIVE", type=Path, help="a .zip, .tar or .tgz")
    for command in (write, check):
        command.add_argument("--data", required=True, help="voc:PATH or cityscapes:PATH")
        command.add_argument("--split", default="test", help="split that is submitted (default: %(default)s)")
    add_pad_to(write)
    add_inference(write)
    add_device(write)
    for command in (write, check):
        add_json(command)


def _add_reproduce(commands: Any) -> None:
    parser = add_command(
        commands, "reproduce", run_reproduce, "the paper's tables and figures, its numbers beside ours",
        "atrous reproduce table-5 --preset tiny",
    )  # fmt: skip
    text = "table-1 to -6, table-8 to -12, figure-4, -6, -7, -8, ablation, ablation-pseudo; several share their "
    text += "trainings; or list"
    parser.add_argument("what", metavar="WHAT", nargs="+", type=str.lower, help=text)
    text = "paper; camvid, a small faithful one; tiny, on generated data in minutes; streets for ablation, objects for "
    text += "ablation-pseudo (default: %(default)s)"
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
    text = "trainings at once (default: one on each GPU)"
    parser.add_argument("--parallel", type=int, metavar="N", help=text)
    parser.add_argument("--out", type=Path, help="folder of all runs and tables (default: reproduced/PRESET)")
    parser.add_argument("--dry-run", action="store_true", help="stop after the plan and the estimate of the time")
    add_device(parser)
    add_json(parser)
