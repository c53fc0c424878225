"""Atrous convolution: every form of every pass, turn by turn in one process on the same input.

    python benchmarks/conv.py                               # the shapes of ASPP, forward and both gradients
    python benchmarks/conv.py --sizes 65 --rates 36 --dtypes bfloat16 --batches 1
    python benchmarks/conv.py --depthwise --side 5 --channels 1152 --sizes 24 --rates 2 4 --forms library depthwise
    python benchmarks/conv.py --clock cpu --threads 1       # processor time: on a machine that others use too

A line a pass and form: the median and the least time, and the ratio of the library's median to it. What differs from
the library by more than rounding is an error. The paper's rates are taken at output stride 16 (33×33) and 8 (65×65).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atrous.ops.conv_kernels import dispatch
from atrous.ops.conv_kernels.tap_gemm import valid_share

RATES = {33: (6, 12, 18), 65: (12, 24, 36)}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = [
        result
        for dtype in args.dtypes
        for batch in args.batches
        for size in args.sizes
        for rates in branches(args.rates or RATES.get(size, (6, 12, 18)), args.joint)
        for result in measure(args, getattr(torch, dtype), batch, size, rates)
    ]
    if args.out:
        machine = {"processor": platform.processor(), "device": args.device, "torch": torch.__version__}
        report = {"date": str(date.today()), "machine": machine, "arguments": vars(args), "results": results}
        Path(args.out).write_text(json.dumps(report, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[33, 65])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rates", type=int, nargs="+", help="instead of the paper's for the size")
    parser.add_argument("--joint", action="store_true", help="all rates in one call, as ASPP does, not one at a time")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--filters", type=int, default=256)
    parser.add_argument("--side", type=int, default=3, help="of the filter")
    parser.add_argument("--depthwise", action="store_true", help="filters of one channel each")
    parser.add_argument("--passes", nargs="+", default=["forward", "input", "weight"])
    parser.add_argument("--forms", nargs="+", default=["library", "window", "tap_gemm"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", help="a JSON file to write")
    return parser.parse_args()


def branches(rates: Sequence[int], joint: bool) -> list[list[int]]:
    return [list(rates)] if joint else [[rate] for rate in rates]


def measure(
    args: argparse.Namespace, dtype: torch.dtype, batch: int, size: int, rates: list[int]
) -> list[dict[str, Any]]:
    """All passes of one shape."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).to(args.device, dtype).to(memory_format=torch.channels_last)

    x = draw(batch, args.channels, size, size)
    filters, read = (args.channels, 1) if args.depthwise else (args.filters, args.channels)
    weights = [draw(filters, read, args.side, args.side) / (args.side**2 * read) ** 0.5 for _ in rates]
    gradients = [draw(batch, filters, size, size) for _ in rates]
    results = []
    for task in args.passes:
        runs = {form: runner(task, form, x, gradients, weights, rates) for form in args.forms}
        agree(runs, TOLERANCE[dtype])
        times = alternate(runs, args)
        products = batch * size * size * filters * read * args.side**2
        useful = 2 * products * sum(valid_share(size, size, args.side, rate) for rate in rates)
        for form, taken in times.items():
            median = statistics.median(taken)
            results.append(
                {
                    "pass": task,
                    "form": form,
                    "dtype": str(dtype)[6:],
                    "batch": batch,
                    "size": size,
                    "rates": rates,
                    "median": median,
                    "least": min(taken),
                    "ratio": statistics.median(times["library"]) / median,
                    "useful_gflops": useful / median / 1e9,
                }
            )
            show(results[-1])
    return results


def runner(
    task: str, form: str, x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]
) -> Callable[[], list[Tensor]]:
    return lambda: dispatch._run(task, form, x, gradients, weights, rates)


def agree(runs: dict[str, Callable[[], list[Tensor]]], tolerance: float) -> None:
    """Warm up, and see that all forms give the same."""
    expected = runs["library"]()
    for form, run in runs.items():
        for result, true in zip(run(), expected, strict=True):
            error = float((result.float() - true.float()).norm() / true.float().norm())
            if error > tolerance:
                raise SystemExit(f"{form} differs from the library by {error:.1e}")


def alternate(runs: dict[str, Callable[[], list[Tensor]]], args: argparse.Namespace) -> dict[str, list[float]]:
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    wait: Callable[[], None] = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    times: dict[str, list[float]] = {form: [] for form in runs}
    for _ in range(args.rounds):
        for form, run in runs.items():
            wait()
            start = clock()
            run()
            wait()
            times[form].append(clock() - start)
    return times


def show(result: dict[str, Any]) -> None:
    print(
        "{dtype:9} {batch}x{size:<3} rates {rates!s:13} {pass:8} {form:9}".format(**result),
        "{:8.1f} ms (least {:8.1f}) {:6.2f}x {:6.0f} GFLOP/s".format(
            result["median"] * 1e3, result["least"] * 1e3, result["ratio"], result["useful_gflops"]
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
