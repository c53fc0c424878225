"""How time and memory grow with pixels, batch, classes, output stride and threads.

    python -m benchmarks.growth --out benchmarks/growth_MACHINE_DATE.json --plot docs/growth.png

Of inference (a network with this model's weights, from a photograph to its classes) and of the loss with its gradient.
One axis is moved at a time. `slope` is how steeply a cost grows between two neighbouring points on a logarithmic scale:
1 where it grows as its work does, above 1 where it grows faster. Work is classes times, for inference, the network's
operations, and for the loss, pixels.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from atrous.atomic import write_text
from atrous.evaluation.evaluate import predict_classes
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import load
from atrous.ops.upsampled_loss import upsampled_cross_entropy_sum
from benchmarks.timing import describe_machine, peak_memory

AXES: dict[str, tuple[int, ...]] = {
    "side": (257, 385, 513, 769, 1025, 1537, 2049),
    "batch": (1, 2, 4, 8),
    "classes": (2, 21, 64, 150, 400, 1000),
    "output_stride": (32, 16, 8),
    "threads": (1, 2),
}
MIDDLE = {"side": 513, "batch": 1, "classes": 21, "output_stride": 16, "threads": 1}
LABELS = {
    "side": "side of the image, pixels", "batch": "images", "classes": "classes", "output_stride": "output stride",
    "threads": "threads",
}  # fmt: skip


@dataclass
class Point:
    """One measurement.

    Attributes:
        task: ``inference`` or ``loss``.
        axis: what is moved.
        value: of the axis.
        work: operations of the network, or pixels of the loss, times classes.
        seconds: the median, of processor time with one thread, on the wall with more.
        spread: half the distance between the quartiles, over the median.
        memory_mb: most that one run holds beyond what was held before.
        slope: of the seconds against the work, since the point before; None for the first.
        memory_slope: likewise.
    """

    task: str
    axis: str
    value: int
    work: float
    seconds: float
    spread: float
    memory_mb: float
    slope: float | None = None
    memory_slope: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="objects-mobilenetv2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    points = measure(args.model, args.rounds)
    result = {"model": args.model, "rounds": args.rounds, "machine": describe_machine()}
    if args.out:
        write_text(args.out, json.dumps({**result, "points": [asdict(point) for point in points]}, indent=1) + "\n")
    if args.plot:
        plot(points, args.model, str(result["machine"].get("processor", "")), args.plot)


def measure(model: str, rounds: int) -> list[Point]:
    points: list[Point] = []
    for task, work_of in (("inference", _inference), ("loss", _loss)):
        for axis, values in AXES.items():
            before: Point | None = None
            for value in values:
                setting = {**MIDDLE, axis: value}
                if setting["threads"] > len(os.sched_getaffinity(0)):
                    continue
                torch.set_num_threads(setting["threads"])
                work, run = work_of(model, setting)
                point = Point(task, axis, value, work, *_seconds(run, rounds, setting["threads"]), peak_memory(run))
                if before and axis != "threads":
                    step = math.log(point.work / before.work)
                    point.slope = math.log(point.seconds / before.seconds) / step if step else None
                    if step and min(point.memory_mb, before.memory_mb) > 1:
                        point.memory_slope = math.log(point.memory_mb / before.memory_mb) / step
                print(_line(point), flush=True)
                points.append(point)
                before = point
    return points


def _seconds(run: Callable[[], object], rounds: int, threads: int) -> tuple[float, float]:
    clock = time.process_time if threads == 1 else time.perf_counter
    run()
    seconds = []
    for _ in range(rounds):
        started = clock()
        run()
        seconds.append(clock() - started)
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return middle, (high - low) / 2 / middle


def _inference(name: str, setting: dict[str, int]) -> tuple[float, Callable[[], Tensor]]:
    model = load(name, output_stride=setting["output_stride"])[0].eval()
    if setting["classes"] != model.num_classes:
        arguments = {**model.arguments, "num_classes": setting["classes"]}
        model = DeepLabV3(output_stride=setting["output_stride"], **arguments).eval()
    model.longest_side = None
    images = torch.randint(0, 256, (setting["batch"], 3, setting["side"], setting["side"]), dtype=torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(images.shape))
    form = model.for_inference(dtype=torch.float32)
    return float(counter.get_total_flops() * setting["classes"]), lambda: predict_classes(form, images)


def _loss(_: str, setting: dict[str, int]) -> tuple[float, Callable[[], Tensor]]:
    stride, side, batch, classes = (setting[key] for key in ("output_stride", "side", "batch", "classes"))
    features = -(-side // stride)
    logits = torch.randn(batch, classes, features, features).requires_grad_()
    labels = torch.randint(0, classes, (batch, side, side), dtype=torch.int64)
    labels = labels if classes > 255 else labels.to(torch.uint8)

    def run() -> Tensor:
        return torch.autograd.grad(upsampled_cross_entropy_sum(logits, labels, stride), logits)[0]

    return float(batch * side * side * classes), run


def _line(point: Point) -> str:
    slopes = [f"{slope:.2f}" if slope is not None else "-" for slope in (point.slope, point.memory_slope)]
    return (
        f"{point.task:10}{point.axis:14}{point.value:6}{point.seconds * 1e3:10.1f} ms ±{point.spread:.0%}"
        f"{point.memory_mb:9.1f} MB   slope {slopes[0]}, of memory {slopes[1]}"
    )


def plot(points: list[Point], model: str, machine: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, len(AXES), figsize=(16, 6.4), layout="constrained")
    for column, axis in enumerate(AXES):
        for row, (key, unit) in enumerate((("seconds", "ms"), ("memory_mb", "MB"))):
            panel = panels[row][column]
            for task, colour in (("inference", "#2b6cb0"), ("loss", "#c05621")):
                line = [point for point in points if (point.task, point.axis) == (task, axis)]
                scale = 1e3 if key == "seconds" else 1
                xs, ys = [point.value for point in line], [getattr(point, key) * scale for point in line]
                panel.plot(xs, ys, "o-", color=colour, label=task)
                work = [ys[0] * point.work / line[0].work for point in line]
                if axis != "threads":
                    panel.plot(xs, work, ":", color=colour, linewidth=1, label=f"{task}'s work")
            panel.set_yscale("log")
            if axis != "threads":
                panel.set_xscale("log", base=2)
            panel.set_xticks(AXES[axis], [str(value) for value in AXES[axis]], fontsize=7)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            if row:
                panel.set_xlabel(LABELS[axis])
            if not column:
                panel.set_ylabel(unit)
    panels[0][0].legend(fontsize=8)
    others = "an image of 513×513, 21 classes, output stride 16, one thread"
    figure.suptitle(f"{model}, float32, {machine}: one axis moved, the others at {others}", fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
