"""The fused loss and argmax of `atrous.ops.upsampled_loss` against F.interpolate with F.cross_entropy, or with argmax.

    python benchmarks/loss.py [--rounds 15] [--threads N] [--json benchmarks/loss_HARDWARE_DATE.json]

Both forms take turns in one process on the same inputs, and each turn gives one ratio: the machine may be busy, only
ratios carry over. The extra peak memory is that of one fresh process for each form: its highest resident set while it
computes, less what it held before (Linux).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops.upsampled_loss import upsampled_argmax, upsampled_cross_entropy_sum

# job: batch, classes, height, width of the pixels, output stride
CASES: dict[str, tuple[str, int, int, int, int, int]] = {
    "loss 4x21 33 to 513": ("loss", 4, 21, 513, 513, 16),
    "loss 4x21 65 to 513": ("loss", 4, 21, 513, 513, 8),
    "loss 1x19 65x129 to 1025x2049": ("loss", 1, 19, 1025, 2049, 16),
    "loss 1x150 33 to 513": ("loss", 1, 150, 513, 513, 16),
    "loss without gradient 4x21 33 to 513": ("loss without gradient", 4, 21, 513, 513, 16),
    "argmax 1x21 33 to 513": ("argmax", 1, 21, 513, 513, 16),
    "argmax 1x21 65 to 513": ("argmax", 1, 21, 513, 513, 8),
    "argmax 1x19 65x129 to 1025x2049": ("argmax", 1, 19, 1025, 2049, 16),
}


def inputs(batch: int, classes: int, height: int, width: int, stride: int) -> tuple[Tensor, Tensor]:
    """Logits, and labels of which a tenth, in one piece below, does not count."""
    torch.manual_seed(0)
    logits = torch.randn(batch, classes, (height - 1) // stride + 1, (width - 1) // stride + 1) * 3
    labels = torch.randint(0, classes, (batch, height, width), dtype=torch.uint8)
    labels[:, -(height // 10) :] = 255
    return logits, labels


def plain_loss(logits: Tensor, labels: Tensor, stride: int) -> Tensor:
    up = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
    return F.cross_entropy(up, labels.long(), ignore_index=255, reduction="sum")


def plain_argmax(logits: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1).to(torch.uint8)


def work(case: str, form: str) -> Callable[[], Tensor]:
    """What is timed: it returns the gradient, the loss or the classes."""
    job, *shape = CASES[case]
    logits, labels = inputs(*shape)
    stride, size = shape[-1], (shape[-3], shape[-2])
    loss = upsampled_cross_entropy_sum if form == "fused" else plain_loss
    argmax = upsampled_argmax if form == "fused" else plain_argmax
    if job == "argmax":
        return lambda: argmax(logits, size, stride)
    if job == "loss without gradient":
        return lambda: loss(logits, labels, stride)
    logits.requires_grad_()
    return lambda: torch.autograd.grad(loss(logits, labels, stride), logits)[0]


def disagreement(case: str, ours: Tensor, theirs: Tensor) -> float:
    """Share of pixels of another class, or largest difference relative to the largest value."""
    if case.startswith("argmax"):
        return float((ours != theirs).double().mean())
    return float((ours - theirs).abs().max() / theirs.abs().max())


def take_turns(case: str, rounds: int) -> dict[str, Any]:
    fused, plain = work(case, "fused"), work(case, "plain")
    error = disagreement(case, fused(), plain())
    seconds: dict[str, list[float]] = {"fused": [], "plain": []}
    for _ in range(rounds):
        for name, run in (("fused", fused), ("plain", plain)):
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(seconds["fused"], seconds["plain"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "fused_seconds": statistics.median(seconds["fused"]),
        "plain_seconds": statistics.median(seconds["plain"]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "disagreement": error,
    }


def resident(field: str) -> int:
    """Bytes, from Linux: VmRSS now, VmHWM at most since it was reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_memory(case: str, form: str) -> None:
    """Print the extra peak memory of one call, in this process."""
    tiny = torch.randn(1, 3, 2, 2, requires_grad=True)
    upsampled_cross_entropy_sum(tiny, torch.zeros(1, 9, 9, dtype=torch.uint8), 8).backward()
    plain_loss(tiny, torch.zeros(1, 9, 9, dtype=torch.uint8), 8).backward()
    run = work(case, form)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    run()
    print(resident("VmHWM") - before)


def peak_memory(case: str, form: str, threads: int) -> int:
    command = [sys.executable, __file__, "--threads", str(threads), "--memory", case, form]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(case: str, rounds: int) -> dict[str, Any]:
    row = take_turns(case, rounds)
    if Path("/proc/self/clear_refs").exists():
        memory = {form: peak_memory(case, form, torch.get_num_threads()) for form in ("fused", "plain")}
        row |= {f"{form}_peak_bytes": size for form, size in memory.items()}
        row["memory_ratio"] = memory["fused"] / memory["plain"]
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{'':38}{'fused ms':>9}{'plain ms':>9}{'times':>7}{'quartiles':>14}{'fused MB':>9}{'plain MB':>9}{'error':>9}"
    ]
    for case, row in rows.items():
        low, high = row["ratio_quartiles"]
        sizes = [
            f"{row[f'{form}_peak_bytes'] / 1e6:.1f}" if "memory_ratio" in row else "-" for form in ("fused", "plain")
        ]
        lines.append(
            f"{case:38}{row['fused_seconds'] * 1e3:9.1f}{row['plain_seconds'] * 1e3:9.1f}{row['ratio']:7.2f}"
            f"{f'{low:.2f} to {high:.2f}':>14}{sizes[0]:>9}{sizes[1]:>9}{row['disagreement']:9.1e}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "FORM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        measure_memory(*arguments.memory)
        return
    rows = {case: measure(case, arguments.rounds) for case in CASES}
    print(table(rows))
    if arguments.json:
        about = {
            "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "date": time.strftime("%Y-%m-%d"),
            "cases": CASES,
        }
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
