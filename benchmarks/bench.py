"""`python -m benchmarks`: one function for each thing that is compared, all measured by `benchmarks.timing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.evaluation.distributed import pick_device
from atrous.ops.conv_kernels.dispatch import atrous_conv2d_fast
from atrous.ops.upsampled_loss import upsampled_cross_entropy_sum
from benchmarks import baselines, crop_pipelines
from benchmarks.timing import Candidate, Result, Row, compare, render

__all__ = ["WHAT", "bench", "render"]

SIZES = {8: 513}
"""Side of the images for an output stride; 512 for others: segmentation_models_pytorch takes multiples of 16 only."""


def bench(
    what: str,
    *,
    peers: Sequence[str] | None = None,
    backbone: str = "resnet50",
    output_stride: int = 8,
    size: int | None = None,
    batch: int | None = None,
    fp32: bool = False,
    compile: bool | str = False,
    rounds: int = 7,
    device: str | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Result:
    """Compare ours with the installed peers; a peer that is not installed is a row that says so.

    Args:
        what: ``infer``, ``train``, ``loss``, ``data`` or ``conv``.
        peers: names of peers for ``infer`` and ``train``; None for all.
        backbone: a ResNet, for these two.
        output_stride: of the features.
        size: side of the square images in pixels.
        batch: images at a time.
        fp32: leave bfloat16 out.
        compile: for ``train``, all steps by ``torch.compile``, or by a backend of this name.
        rounds: turns of each candidate.
        device: None for a GPU where there is one.
        progress: told what is being run.

    Raises:
        ValueError: for what cannot be compared: an unknown benchmark, peer, or network.
    """
    if what not in WHAT:
        raise ValueError(f"there is no benchmark {what!r}; there are {', '.join(WHAT)}")
    if rounds < 1 or (batch is not None and batch < 1) or (size is not None and size < 33):
        raise ValueError("rounds and batch must be at least 1, and size at least 33")
    if compile and what != "train":
        raise ValueError(f"compile is for 'train', not {what!r}")
    where = pick_device(device)
    setting: dict[str, Any] = {
        "backbone": backbone,
        "output_stride": output_stride,
        "size": size or SIZES.get(output_stride, 512),
        "batch": batch,
        "fp32": fp32,
        "compile": compile,
        "device": where,
        "peers": _known(peers),
    }
    progress("preparing")
    candidates, used = WHAT[what](setting)
    shown = {key: str(value) for key, value in setting.items() if key in used}
    return compare(what, shown, candidates, rounds=rounds, device=where, progress=progress)


Prepared = tuple[Sequence[Candidate | Row], tuple[str, ...]]
"""The candidates, and what of the setting they depend on."""


def _known(names: Sequence[str] | None) -> list[str]:
    for name in names or ():
        baselines.missing(name)
    return list(baselines.NEEDS if names is None else names)


def _infer(setting: dict[str, Any]) -> Prepared:
    setting["batch"] = setting["batch"] or 1
    wanted = {key: value for key, value in setting.items() if key != "compile"}
    return baselines.infer(**wanted), ("backbone", "output_stride", "size", "batch", "device")


def _train(setting: dict[str, Any]) -> Prepared:
    setting["batch"] = setting["batch"] or 2
    wanted = {key: value for key, value in setting.items() if key != "fp32"}
    candidates = baselines.train(**wanted)
    kept = [row for row in candidates if not (setting["fp32"] and "bf16" in row.name)]
    return kept, ("backbone", "output_stride", "size", "batch", "compile", "device")


def _data(setting: dict[str, Any]) -> Prepared:
    torch.set_num_threads(1)  # as in a worker that loads data
    setting["size"] = 513
    return crop_pipelines.data(setting["size"]), ("size",)


def _loss(setting: dict[str, Any]) -> Prepared:
    """Cross-entropy of upsampled logits, forward and backward."""
    setting["batch"], stride = setting["batch"] or 4, setting["output_stride"]
    side = (setting["size"] - 1) // stride + 1
    setting["size"] = (side - 1) * stride + 1
    shape, device = (setting["batch"], baselines.CLASSES, side, side), setting["device"]
    logits = torch.randn(shape, device=device, requires_grad=True)
    labels = torch.randint(0, baselines.CLASSES, (shape[0], setting["size"], setting["size"]), device=device)

    def fused() -> Tensor:
        return torch.autograd.grad(upsampled_cross_entropy_sum(logits, labels, stride), logits)[0]

    def plain() -> Tensor:
        large = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
        return torch.autograd.grad(F.cross_entropy(large, labels, reduction="sum"), logits)[0]

    agreement = float((fused() - plain()).abs().max() / plain().abs().max())
    ours = Candidate("atrous, fused", fused, agreement=agreement)
    return [ours, Candidate("interpolate and cross_entropy", plain)], ("output_stride", "size", "batch", "device")


def _conv(setting: dict[str, Any]) -> Prepared:
    """ASPP's three atrous convolutions of 2048 channels to 256, at the rates of the output stride."""
    setting["batch"], stride, device = setting["batch"] or 1, setting["output_stride"], setting["device"]
    side = -(-setting["size"] // stride)
    rates = [rate * 16 // stride for rate in (6, 12, 18)]
    candidates: list[Candidate | Row] = []
    for dtype in (torch.float32,) if setting["fp32"] else (torch.float32, torch.bfloat16):
        x = torch.randn(setting["batch"], 2048, side, side, device=device).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weights = [torch.randn(256, 2048, 3, 3, device=device).to(dtype) / 136 for _ in rates]
        candidates += _conv_forms(x, weights, rates)
    return candidates, ("output_stride", "size", "batch", "device")


def _conv_forms(x: Tensor, weights: list[Tensor], rates: list[int]) -> list[Candidate]:
    def run(form: str) -> Callable[[], list[Tensor]]:
        def once() -> list[Tensor]:
            with torch.no_grad():
                return atrous_conv2d_fast(x, weights, rates, None if form == "rule" else form)

        return once

    kind = str(x.dtype).removeprefix("torch.")
    reference = run("library")()
    scale = max(float(y.float().abs().max()) for y in reference)
    gflop = 2 * x[:, 0].numel() * sum(weight.numel() for weight in weights) / 1e9
    candidates = []
    for form in ("rule", "window", "tap_gemm", "library"):
        differs = max(float((y.float() - z.float()).abs().max()) for y, z in zip(run(form)(), reference, strict=True))
        candidates.append(Candidate(f"{form} {kind}", run(form), gflop, None if form == "library" else differs / scale))
    return candidates


WHAT: dict[str, Callable[[dict[str, Any]], Prepared]] = {
    "infer": _infer,
    "train": _train,
    "loss": _loss,
    "data": _data,
    "conv": _conv,
}
"""The benchmarks by name."""
