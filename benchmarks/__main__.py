"""Ours and the installed peers, turn by turn on the same weights.

    python -m benchmarks infer --output-stride 8
    python -m benchmarks loss

Progress and the table go to standard error. With ``--json`` the last line of standard output is one JSON object. A
user's mistake is one line on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="ours and the installed peers, turn by turn on the same weights",
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=("infer", "train", "loss", "data", "conv"))
    parser.add_argument(
        "--peers", nargs="*", metavar="PEER", help="torchvision, smp, onnxruntime, openvino (default: all)"
    )
    parser.add_argument("--backbone", default="resnet50", help="(default: %(default)s)")
    parser.add_argument("--output-stride", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, help="side of the images (default: 513, or 512 at output stride 16)")
    parser.add_argument("-b", "--batch", type=int, help="(default: 1; 2 for train, 4 for loss)")
    parser.add_argument("--fp32", action="store_true", help="leave bfloat16 out")
    parser.add_argument("--compile", action="store_true", help="for train: all steps by torch.compile, as on a GPU")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON, too")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Time ours beside the installed peers; the exit status."""
    args = parser().parse_args(arguments)
    try:
        return _run(args)
    except ValueError as error:
        print(f"benchmarks: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from atrous.atomic import write_text
    from benchmarks.bench import bench, render

    console = Console(stderr=True, markup=False, emoji=False)
    with console.status("") as status:
        result = bench(
            args.what,
            peers=args.peers,
            backbone=args.backbone,
            output_stride=args.output_stride,
            size=args.size,
            batch=args.batch,
            fp32=args.fp32,
            compile=args.compile,
            rounds=args.rounds,
            device=args.device,
            progress=status.update,
        )
    if args.out:
        write_text(args.out, json.dumps(result.as_dict(), indent=1) + "\n")
    if args.json:
        print(json.dumps(result.as_dict(), allow_nan=False))
    else:
        console.print(render(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
