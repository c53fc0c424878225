"""Side by side, turn by turn, in one process: how our speed and memory are compared with others'.

A shared machine's speed changes from second to second, so an absolute time says little. Every candidate is run once in
each round, the order turns from round to round, and what is reported is the ratio of medians with its spread over the
rounds. With one thread on a CPU the clock is the processor's: what it does for other processes does not count.
"""

from __future__ import annotations

import gc
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import torch

from atrous.models.inference import native_dtype
from atrous.ops.malloc import hand_back

Run = Callable[[], Any]

_SETTLE = 0.1
"""Seconds before each turn: idle threads of the library before spin for a while, on the cores of the next one."""


@dataclass
class Candidate:
    """One way of doing the same thing.

    Attributes:
        name: as in the table.
        run: does it once; what it returns is dropped.
        gflop: of one run, counted on the plain form; 0 if it makes no sense.
        agreement: largest difference from the reference, over the reference's largest value; None where it is one.
        note: a remark for the table.
        dtype: that it multiplies in, whose peak it is measured against.
    """

    name: str
    run: Run
    gflop: float = 0.0
    agreement: float | None = None
    note: str = ""
    dtype: torch.dtype = torch.float32


@dataclass
class Row:
    """What was measured of one candidate, or why it was not.

    Attributes:
        name: of the candidate.
        seconds: median of one run.
        spread: half the distance between the quartiles, over the median.
        ratio: median over the rounds of this candidate's time over the first's: above 1, the first is faster.
        ratio_low: lower quartile of that.
        ratio_high: upper quartile.
        gflop_per_second: of the plain form's operations.
        peak_share: of the machine's own measured matrix-product peak, in the number format that it multiplies in, or
            float32 where the processor has no units for that.
        memory_mb: peak of what one run holds beyond what was held before.
        agreement: see `Candidate`.
        note: a remark; for a skipped candidate, the reason.
        skipped: whether it was not run.
    """

    name: str
    seconds: float = 0.0
    spread: float = 0.0
    ratio: float = 0.0
    ratio_low: float = 0.0
    ratio_high: float = 0.0
    gflop_per_second: float = 0.0
    peak_share: float = 0.0
    memory_mb: float = 0.0
    agreement: float | None = None
    note: str = ""
    skipped: bool = False


@dataclass
class Result:
    """One benchmark: its setting, the machine, the rows."""

    what: str
    setting: dict[str, Any]
    rows: list[Row]
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(
    what: str,
    setting: dict[str, Any],
    candidates: Sequence[Candidate | Row],
    *,
    rounds: int = 7,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Result:
    """Time the candidates turn by turn; rows of skipped ones are passed through.

    Args:
        what: name of the benchmark.
        setting: whatever says what was run.
        candidates: the first is the one that the ratios are against: ours.
        rounds: each candidate runs once in each, after one warm-up.
        device: that they run on, to wait for.
        progress: told what is being run.
    """
    runnable = [candidate for candidate in candidates if isinstance(candidate, Candidate)]
    memory = {}
    for candidate in runnable:
        progress(f"{candidate.name}: warming up")
        candidate.run()
        memory[candidate.name] = peak_memory(candidate.run, device)
    times: dict[str, list[float]] = {candidate.name: [] for candidate in runnable}
    for turn in range(rounds):
        progress(f"round {turn + 1} of {rounds}")
        for candidate in runnable[turn % len(runnable) :] + runnable[: turn % len(runnable)]:
            time.sleep(_SETTLE)
            times[candidate.name].append(_timed(candidate.run, device))
    where = device or torch.device("cpu")
    # A format that the processor emulates has no peak: what it is used for is measured against float32.
    natively = {torch.float32, native_dtype(where)}
    dtypes = {torch.float32} | {candidate.dtype for candidate in runnable if candidate.dtype in natively}
    peaks = {dtype: matrix_peak(dtype, where) for dtype in dtypes}
    clock = "wall" if _clock(device) is time.perf_counter else "processor"
    rows = [
        candidate
        if isinstance(candidate, Row)
        else _row(candidate, times[candidate.name], times[runnable[0].name], peaks, memory[candidate.name])
        for candidate in candidates
    ]
    measured = {f"{str(dtype).removeprefix('torch.')}_peak_gflops": round(peak, 1) for dtype, peak in peaks.items()}
    return Result(what, {**setting, "rounds": rounds, "clock": clock, **dict(sorted(measured.items()))}, rows)


def _timed(run: Run, device: torch.device | None) -> float:
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    clock = _clock(device)
    started = clock()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - started


def _clock(device: torch.device | None) -> Callable[[], float]:
    """Processor time of all threads, where there is one that works; the time on the wall elsewhere."""
    on_cpu = device is None or device.type == "cpu"
    return time.process_time if on_cpu and torch.get_num_threads() == 1 else time.perf_counter


def _row(
    candidate: Candidate, times: list[float], first: list[float], peaks: dict[torch.dtype, float], memory: float
) -> Row:
    ratios = [one / other for one, other in zip(times, first, strict=True)]
    seconds = statistics.median(times)
    low, _, high = _quartiles(times)
    ratio_low, ratio, ratio_high = _quartiles(ratios)
    rate = candidate.gflop / seconds
    return Row(
        candidate.name,
        seconds,
        (high - low) / 2 / seconds,
        ratio,
        ratio_low,
        ratio_high,
        rate,
        rate / peaks.get(candidate.dtype, peaks[torch.float32]),
        memory,
        candidate.agreement,
        candidate.note,
    )


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def matrix_peak(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """GFLOP/s of the best of several products of two square matrices: what the machine can do, at its best moment."""
    size = size if device.type == "cpu" else 4 * size
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    quickest = min(_timed(lambda: a @ b, device) for _ in range(6))
    return 2 * size**3 / quickest / 1e9


def peak_memory(run: Run, device: torch.device | None = None) -> float:
    """Most MB that one run holds beyond what was held before: exact on a GPU, sampled every millisecond on a CPU."""
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return float(torch.cuda.max_memory_allocated() - held) / 1e6
    hand_back()  # else what was freed before is taken again, and does not show
    before, most, done = _resident_mb(), 0.0, threading.Event()

    def sample() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, _resident_mb())

    watcher = threading.Thread(target=sample)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(0.0, most - before)


def _resident_mb() -> float:
    import resource

    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:  # not Linux
        return 0.0


def describe_machine() -> dict[str, Any]:
    """Processor, accelerator, threads and versions: what a figure is worth nothing without."""
    versions: dict[str, Any] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        versions["gpu"] = torch.cuda.get_device_name()
    for package in ("atrous", "torch", "torchvision", "segmentation-models-pytorch", "onnxruntime", "openvino"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def render(result: Result) -> Any:
    """A rich table."""
    from rich.table import Table

    setting = ", ".join(f"{key} {value}" for key, value in result.setting.items())
    table = Table(
        *("", "ms", "spread", "times ours", "quartiles", "GFLOP/s", "of peak", "MB", "differs by", ""),
        title=f"{result.what}: {setting}",
        caption=f"{result.machine['processor']}, {result.machine['threads']} threads",
    )
    for row in result.rows:
        if row.skipped:
            table.add_row(row.name, *["-"] * 8, row.note)
            continue
        table.add_row(
            row.name,
            f"{row.seconds * 1e3:.1f}",
            f"{row.spread:.0%}",
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f} to {row.ratio_high:.2f}",
            f"{row.gflop_per_second:.0f}" if row.gflop_per_second else "",
            f"{row.peak_share:.0%}" if row.gflop_per_second else "",
            f"{row.memory_mb:.0f}",
            "" if row.agreement is None else f"{row.agreement:.1e}",
            row.note,
        )
    return table
