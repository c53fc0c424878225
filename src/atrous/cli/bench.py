"""`atrous bench`: the runtimes that are installed on this machine, on one model."""

from __future__ import annotations

import argparse
from typing import Any

from atrous.cli.arguments import add_command, add_json, add_model, add_output_stride
from atrous.cli.commands import print_json, print_out, print_table, say


def add(commands: Any) -> None:
    """Add the command."""
    text = "compare the runtimes that are installed here on one model: time, memory, size, mIoU"
    parser = add_command(commands, "bench", run, text, "atrous bench runs/mine --data my-data")
    add_model(parser)
    text = "measure mIoU on its val split, and int8 forms, which its train split calibrates"
    parser.add_argument("--data", help=text)
    text = "size of the photograph, as the network sees it (default: %(default)s)"
    parser.add_argument("--size", default="360x480", metavar="HxW", help=text)
    add_output_stride(parser)
    text = "these alone, of: atrous, eager, compiled, onnxruntime, openvino, onnxruntime-int8, openvino-int8"
    parser.add_argument("--runtimes", nargs="+", metavar="NAME", help=text)
    parser.add_argument("--rounds", type=int, default=20, help="turns of each runtime (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of each runtime (default: PyTorch's)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare the runtimes."""
    from atrous.deployment.bench import bench
    from atrous.deployment.export import parse_size

    report = bench(
        args.model, data=args.data, size=parse_size(args.size) or (360, 480), output_stride=args.output_stride,
        runtimes=args.runtimes, rounds=args.rounds, threads=args.threads,
        say=say,
    )  # fmt: skip
    if args.json:
        return print_json(report.as_dict())
    print_table(table(report))
    print_out(report.advice)
    return 0


def table(report: Any) -> Any:
    """One row a runtime."""
    from rich.table import Table

    shown = Table()
    for name in ("runtime", "ms", "quarter to three quarters", "peak MB", "file MB", "mIoU"):
        shown.add_column(name, justify="left" if name == "runtime" else "right")
    for row in report.rows:
        miou = "" if row.miou is None else f"{100 * row.miou:.2f}"
        shown.add_row(row.runtime, f"{row.milliseconds:.1f}", f"{row.low:.1f} to {row.high:.1f}",
                      "" if row.peak is None else f"{row.peak / 1e6:.0f}", f"{row.bytes / 1e6:.2f}", miou)  # fmt: skip
    return shown
