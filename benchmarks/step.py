"""A training step on a CPU: ours with each of its parts off, segmentation_models_pytorch's and plain PyTorch's.

    python benchmarks/step.py [--rounds 7] [--threads N] [--json benchmarks/step_HARDWARE_DATE.json]

Every candidate lives in a process of its own, for what one tells the allocator would hold for all; they take turns, so
that a busy machine is busy for all of them, and each turn gives one ratio. A turn is two steps; the second counts.
`objects-mobilenetv2` is a step of its recipe, as `atrous train finetune` takes it, and beside it the same network and
recipe in plain PyTorch: its convolutions, batch norm in eval(), interpolate and cross_entropy, AdamW, averaged weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

BATCH = {"resnet50": 2, "timm/mobilenetv2_100": 8, "timm/tf_efficientnet_lite0": 8, "objects-mobilenetv2": 8}
SIDE = 417
CANDIDATES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "resnet50": [
        ("atrous", {}),
        ("atrous, memory given back", {"kept": False}),
        ("segmentation_models_pytorch", {"peer": True}),
    ],
    "timm/mobilenetv2_100": [
        ("atrous", {}),
        ("atrous, memory given back", {"kept": False}),
        ("atrous, batch norm frozen", {"frozen": True}),
        ("atrous, batch norm frozen, as layers", {"frozen": True, "layers": True}),
        ("segmentation_models_pytorch", {"peer": True}),
    ],
    "timm/tf_efficientnet_lite0": [
        ("atrous", {}),
        ("atrous, memory given back", {"kept": False}),
        ("segmentation_models_pytorch", {"peer": True}),
    ],
    "objects-mobilenetv2": [
        ("atrous", {}),
        ("atrous, memory given back", {"kept": False}),
        ("plain PyTorch", {"plain": True}),
    ],
}


def our_step(backbone: str, frozen: bool = False, layers: bool = False) -> Callable[[], Any]:
    from atrous.evaluation.distributed import DistributedContext
    from atrous.training.config import override
    from atrous.training.recipes import RECIPES
    from atrous.training.state import State

    changes = {
        "backbone": backbone, "weights": None, "class_weights": None, "ema_decay": 0.0, "batch_size": BATCH[backbone],
        "batch_norm": "statistics" if frozen else "train",
    }  # fmt: skip
    recipe = RECIPES.get(backbone, RECIPES["camvid-efficientnet_lite0"])
    recipe = override(recipe, {"weights": None} if backbone in RECIPES else changes)
    ctx = DistributedContext(0, 1, torch.device("cpu"))
    state = State.build(recipe, 21, 255, ctx)
    if layers:
        state.objective.logits = state.model.low_resolution_logits
    images, labels = _inputs(backbone)

    return lambda: state.take_step([(images, labels, [""] * len(images))], 1e-4, ctx)


def their_step(backbone: str) -> Callable[[], Any]:
    import segmentation_models_pytorch as smp

    name = backbone.replace("timm/", "tu-")
    net = smp.DeepLabV3(
        name, encoder_weights=None, classes=21, encoder_output_stride=16, decoder_atrous_rates=(6, 12, 18)
    )
    net = net.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
    images, labels = _inputs(backbone)
    # It takes multiples of the stride only.
    images, labels = images[..., :-1, :-1], labels[..., :-1, :-1]

    def step() -> None:
        inputs = (images.float() / 255 - 0.45).div_(0.225).contiguous(memory_format=torch.channels_last)
        F.cross_entropy(net(inputs), labels.long(), ignore_index=255).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_step(model_name: str) -> Callable[[], Any]:
    import atrous
    from atrous.training.recipes import RECIPES

    recipe = RECIPES[model_name]
    net = atrous.load(model_name)[0].train().requires_grad_().to(memory_format=torch.channels_last)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    optimizer = torch.optim.AdamW(net.parameters(), recipe.optim.lr, fused=True)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.optim.ema_decay)
    )
    images, labels = _inputs(model_name)
    mean, std = (torch.tensor(values)[:, None, None] for values in (net.mean, net.std))

    def step() -> None:
        inputs = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        logits = F.interpolate(net.low_resolution_logits(inputs), (SIDE, SIDE), mode="bilinear", align_corners=True)
        F.cross_entropy(logits, labels.long(), ignore_index=255).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(net)

    return step


def _inputs(backbone: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shape = (BATCH[backbone], 3, SIDE, SIDE)
    labels = torch.randint(0, 21, (shape[0], SIDE, SIDE), dtype=torch.uint8)
    return torch.randint(0, 256, shape, dtype=torch.uint8), labels


def work(pipe: Connection, backbone: str, threads: int, options: dict[str, Any]) -> None:
    """A candidate's process: two steps for each word that comes, the seconds of the second for an answer."""
    from atrous.ops.malloc import memory_kept

    torch.set_num_threads(threads)
    options = dict(options)
    others = {"peer": their_step, "plain": plain_step}
    other = next((others[name] for name in others if options.pop(name, False)), None)
    kept = memory_kept(torch.device("cpu")) if options.pop("kept", True) and not other else None
    if other:
        os.environ["ATROUS_KERNELS"] = "library"
    with kept or contextlib.nullcontext():
        step = other(backbone) if other else our_step(backbone, **options)
        while pipe.recv():
            step()
            before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            step()
            seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
            pipe.send((seconds, after.ru_stime - before.ru_stime, after.ru_maxrss / 1024))


def compare(backbone: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _, options in CANDIDATES[backbone]:
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(theirs, backbone, threads, options), daemon=True))
        processes[-1].start()
        pipes.append(ours)
    turns: list[list[tuple[float, float, float]]] = []
    for turn in range(rounds + 1):
        usage: dict[int, tuple[float, float, float]] = {}
        for i in [*range(turn % len(pipes), len(pipes)), *range(turn % len(pipes))]:
            pipes[i].send(True)
            usage[i] = pipes[i].recv()
        if turn:  # the first is a warm-up
            turns.append([usage[i] for i in range(len(pipes))])
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    rows = []
    for i, (name, _) in enumerate(CANDIDATES[backbone]):
        ratios = [turn[i][0] / turn[0][0] for turn in turns]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        seconds, system = (statistics.median(turn[i][part] for turn in turns) for part in (0, 1))
        rows.append(
            {
                "backbone": backbone, "name": name, "seconds": seconds, "system_seconds": system, "ratio": middle,
                "quartiles": [low, high], "peak_mb": turns[-1][i][2],
            }
        )  # fmt: skip
        print(
            f"{backbone:28} {name:38} {seconds:6.2f} s, of it the system's {system:5.2f}; {middle:.2f} times ours "
            f"({low:.2f} to {high:.2f}), {turns[-1][i][2]:.0f} MB",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backbones", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds must be at least 2, for quartiles")
    rows = [row for backbone in args.backbones for row in compare(backbone, args.rounds, args.threads)]
    if args.json:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, it knows its own folder only
        from benchmarks.timing import describe_machine

        machine = {**describe_machine(), "threads": args.threads}
        setting = {"batch": BATCH, "side": SIDE, "rounds": args.rounds, "dtype": "float32"}
        args.json.write_text(
            json.dumps({"what": "step", "setting": setting, "machine": machine, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
