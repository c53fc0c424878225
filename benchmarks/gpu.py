"""Minutes on a GPU: whether our CUDA paths are right, how fast they are, then the paper's tables on CamVid.

    scripts/gpu OUT --minutes 9 --data CAMVID           # all parts, in this order, until the time is over
    scripts/gpu OUT --parts fast                        # one of tests, right, repeat, fast, tables
    scripts/gpu OUT --device cpu --quick                # the same lines on a CPU, small: whether they run

Each result is written to ``OUT/PART.json`` as it comes. A rerun leaves out what is finished.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# ‖ours − reference‖ / ‖reference‖ that rounding of one operator explains; of a whole network it is some times more.
TOLERANCE = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1e-2, "float16": 2e-3}


class OutOfTime(BaseException):
    """The minutes are over."""


class Report:
    """Rows of one part, written to a file as they come; steps that a run before has finished are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.exists() else {}
        self.finished: dict[str, float] = known.get("finished_seconds", {})
        self.rows = [row for row in known.get("rows", []) if row["step"] in self.finished]
        self.current = ""

    def add(self, name: str, **values: Any) -> None:
        self.rows.append({"step": self.current, "name": name, **values})
        self.write()
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"{name}: {shown}", flush=True)

    def write(self) -> None:
        whole = {"machine": machine(), "finished_seconds": self.finished, "rows": self.rows}
        self.path.write_text(json.dumps(whole, indent=1) + "\n")

    def run(self, steps: tuple[Callable[..., None], ...], args: argparse.Namespace, device: torch.device) -> None:
        """Every step that is not finished; one that fails is a row."""
        for step in steps:
            self.current = step.__name__
            if self.current in self.finished:
                print(f"{self.current}: finished before", flush=True)
                continue
            started = time.perf_counter()
            with self.step(self.current):
                step(args, device, self)
                sync(device)
            self.finished[self.current] = round(time.perf_counter() - started, 1)
            self.write()
            if device.type == "cuda":
                torch.cuda.empty_cache()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step whose failure is a row, and does not end the others."""
        try:
            yield
        except Exception as error:  # whatever it is, the other steps are wanted
            said = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            self.add(name, failed=said, where=traceback.format_exc()[-800:])


def machine() -> dict[str, Any]:
    described = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        described |= {"gpu": torch.cuda.get_device_name(), "capability": f"{major}.{minor}"}
    return described


def error(result: Tensor, reference: Tensor) -> float:
    """‖result − reference‖ / ‖reference‖; infinity where one has a NaN."""
    result, reference = result.detach().double().cpu(), reference.detach().double().cpu()
    value = float((result - reference).norm() / reference.norm().clamp(min=1e-300))
    return value if value == value else float("inf")


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: torch.device, repeats: int, warm: int = 2) -> float:
    """Median of some runs."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        sync(device)
        started = time.perf_counter()
        run()
        sync(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def judged(report: Report, name: str, value: float, kind: str, times: float = 1.0, **more: Any) -> None:
    report.add(name, error=value, allowed=TOLERANCE[kind] * times, right=value <= TOLERANCE[kind] * times, **more)


# Right --------------------------------------------------------------------------------------------------------------


def _formats(device: torch.device) -> list[str]:
    return ["float32", "tf32", "bfloat16", "float16"] if device.type == "cuda" else ["float32", "bfloat16"]


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _settled(model: nn.Module, size: int) -> nn.Module:
    """Batch norm as in a trained network, so that activations neither vanish nor explode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(torch.randn(2, 3, size, size))
    return model.eval()


def right_network(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """Forward and backward of ResNet-50 with ASPP against float64 on the CPU, batch norm frozen."""
    from atrous import DeepLabV3

    size = 65 if args.quick else 129
    grid = None if args.quick else (1, 2, 4)
    model = _settled(DeepLabV3("resnet18" if args.quick else "resnet50", 21, multi_grid=grid), size)
    x = torch.randn(2, 3, size, size)
    up = torch.randn(2, 21, size, size)

    def run(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        with torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(x)
        (logits * up.to(logits)).sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return logits, torch.cat(gradients)

    reference = run(copy.deepcopy(model).double(), x.double())
    for kind in _formats(device):
        with report.step(f"network {kind}"), _tf32(kind == "tf32"):
            # A deep network of random weights multiplies rounding errors: ours are held against those of PyTorch's own
            # convolutions in the same format.
            errors = {}
            for kernels in ("library", ""):
                there = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last)
                with patch.dict(os.environ, {"ATROUS_KERNELS": kernels}):
                    result = run(there, x.to(device), None if kind in ("float32", "tf32") else DTYPES[kind])
                errors[kernels] = [error(one, other) for one, other in zip(result, reference, strict=True)]
            for what, plain, ours in zip(("logits", "gradients"), *errors.values(), strict=True):
                right = ours <= 1.5 * plain + TOLERANCE[kind]
                report.add(f"network {kind} {what}", error=ours, library=plain, right=right)


def right_loss(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """The loss on upsampled logits, by its kernel and by tiles, against PyTorch in float64."""
    from atrous.ops import upsampled_loss as fused

    shapes = [(2, 11, 97, 129, 16), (1, 21, 65, 65, 8), (3, 2, 33, 50, 32), (1, 150, 65, 49, 16)]
    for batch, classes, height, width, stride in shapes[: 2 if args.quick else None]:
        small = [(side + stride - 2) // stride + 1 for side in (height, width)]
        logits = torch.randn(batch, classes, *small) * 5
        labels = torch.randint(0, classes, (batch, height, width))
        labels[torch.rand(labels.shape) < 0.1] = 255
        weights = torch.rand(classes) + 0.5
        for kind in [k for k in _formats(device) if k != "tf32"]:
            dtype = DTYPES[kind]
            exact = logits.detach().to(dtype).double().clone().requires_grad_()
            reference = _plain_loss(exact, labels, stride, weights.double())
            reference.backward()
            for form in ("default", "tiles"):
                name = f"loss {form} {kind} {batch}x{classes}x{height}x{width} at {stride}"
                with report.step(name):
                    there = logits.to(device, dtype).clone().requires_grad_()
                    arguments = (labels.to(device).byte(), weights.to(device), stride, 255, True)
                    if form == "default":
                        value = fused.upsampled_cross_entropy_sum(there, *arguments[:1], stride, arguments[1])
                        value.backward()
                        gradient = there.grad
                    else:
                        value, gradient = fused._cross_entropy_by_tiles(
                            there.detach(), arguments[0], arguments[1], stride, 255, True
                        )
                    assert gradient is not None and exact.grad is not None
                    judged(report, name, error(value, reference), "float32")
                    kind_of_gradient = kind if form == "default" else "float32"
                    judged(report, f"{name}, gradient", error(gradient, exact.grad), kind_of_gradient)


def _plain_loss(logits: Tensor, labels: Tensor, stride: int, weights: Tensor) -> Tensor:
    height, width = labels.shape[-2:]
    whole = [(side - 1) * stride + 1 for side in logits.shape[-2:]]
    large = F.interpolate(logits, whole, mode="bilinear", align_corners=True)[..., :height, :width]
    return F.cross_entropy(large, labels, weights, ignore_index=255, reduction="sum")


def right_argmax(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """The class of each pixel, in one view and in several, against PyTorch: the share of pixels that differ."""
    from atrous.ops.tta import View, mean_argmax, mean_probabilities
    from atrous.ops.upsampled_loss import upsampled_argmax

    logits = torch.randn(2, 21, 9, 13) * 3
    large = F.interpolate(logits.double(), (129, 193), mode="bilinear", align_corners=True)[..., :120, :190]
    ids = upsampled_argmax(logits.to(device), (120, 190), 16).cpu()
    report.add("argmax", differ=float((ids != large.argmax(1)).double().mean()))
    views = [View(logits.to(device), (120, 190), False), View(logits.flip(-1).to(device), (120, 190), True)]
    mean = mean_probabilities(views, (120, 190), 16)
    turned = F.interpolate(logits.flip(-1).double(), (129, 193), mode="bilinear", align_corners=True)
    turned = turned[..., :120, :190].softmax(1).flip(-1)
    reference = (large.softmax(1) + turned) / 2
    judged(report, "mean of probabilities", error(mean, reference), "float32")
    ids = mean_argmax(views, (120, 190), 16).cpu()
    report.add("argmax of the mean", differ=float((ids != reference.argmax(1)).double().mean()))


def right_conv(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """Every form of atrous convolution, forward and both gradients, against float64 on the CPU."""
    from atrous.ops.conv_kernels.dispatch import FORMS, atrous_conv2d_fast

    for depthwise in (False, True):
        channels, filters, size = (64, 48, 17) if args.quick else (256, 128, 33)
        rates = [2, 6, 12]
        x = torch.randn(2, channels, size, size)
        shape = (channels, 1, 3, 3) if depthwise else (filters, channels, 3, 3)
        weights = [torch.randn(shape) / (3 if depthwise else (9 * channels) ** 0.5) for _ in rates]
        ups = [torch.randn(2, shape[0], size, size) for _ in rates]
        for kind in _formats(device):
            dtype = DTYPES.get(kind, torch.float32)
            exact = _conv_passes(None, x.to(dtype).double(), [w.to(dtype).double() for w in weights], rates, ups)
            for form in FORMS:
                if form != "library" and depthwise != (form == "depthwise"):
                    continue
                name = f"{'depthwise' if depthwise else 'conv'} {form} {kind}"
                with report.step(name), _tf32(kind == "tf32"):

                    def run(x: Tensor, ws: list[Tensor], rates: list[int], form: str = form) -> list[Tensor]:
                        return atrous_conv2d_fast(x, ws, rates, form)

                    there = x.to(device, dtype).contiguous(memory_format=torch.channels_last)
                    result = _conv_passes(run, there, [w.to(device, dtype) for w in weights], rates, ups)
                    for what, one, other in zip(("forward", "input", "weights"), result, exact, strict=True):
                        judged(report, f"{name} {what}", error(one, other), kind, 2)


def _conv_passes(
    run: Callable[..., list[Tensor]] | None, x: Tensor, weights: list[Tensor], rates: list[int], ups: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().requires_grad_()
    weights = [w.detach().requires_grad_() for w in weights]
    groups = x.shape[1] if weights[0].shape[1] == 1 else 1
    if run:
        outputs = run(x, weights, rates)
    else:
        outputs = [F.conv2d(x, w, dilation=r, padding=r, groups=groups) for w, r in zip(weights, rates, strict=True)]
    total = sum((y * up.to(y)).sum() for y, up in zip(outputs, ups, strict=True))
    assert isinstance(total, Tensor)
    total.backward()
    gradients = [w.grad for w in weights]
    assert x.grad is not None
    return (
        torch.cat([y.flatten() for y in outputs]),
        x.grad,
        torch.cat([g.flatten() for g in gradients if g is not None]),
    )


def right_inference(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """Shipped models on the GPU, in each form, against float32 on the CPU: share of pixels with another class."""
    import atrous

    photo = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8)
    photo = F.interpolate(photo[None, :, ::16, ::16].float(), (240, 320), mode="bilinear")[0].byte()
    for name in ("objects-mobilenetv2", "camvid-efficientnet_lite0")[: 1 if args.quick else None]:
        model, _ = atrous.load(name)
        model.eval()
        from atrous.ops.normalization import Normalization

        x = Normalization(model.mean, model.std)(photo)[None]
        with torch.inference_mode():
            reference = model(x)
            forms: dict[str, dict[str, Any]] = {
                "float32": {"dtype": torch.float32}, "default": {}, "float16": {"dtype": torch.float16},
                "compiled": {"compile": True},
            }  # fmt: skip
            for form, options in forms.items():
                if (form == "float16" and device.type == "cpu") or (
                    form == "compiled" and (args.quick or "lite0" in name)
                ):
                    continue
                with report.step(f"{name} {form}"):
                    there = copy.deepcopy(model).to(device).for_inference(**options)
                    logits = there(x.to(device)).cpu()
                    report.add(
                        f"{name} {form}", error=error(logits, reference),
                        differ=float((logits.argmax(1) != reference.argmax(1)).double().mean()),
                    )  # fmt: skip


def right_training(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """The losses of a few steps on the GPU beside those on the CPU, for batch norm trained and frozen."""
    for batch_norm in ("train", "freeze"):
        losses = {}
        for where in (torch.device("cpu"), device):
            torch.manual_seed(0)
            network = ("resnet18", 65, 2) if args.quick else ("resnet18", 97, 4)
            state, parts = _training(network, where, batch_norm=batch_norm)
            losses[where.type] = [state.take_step(parts, 1e-3, _world(where)) for _ in range(3)]
        gap = max(abs(a / b - 1) for a, b in zip(losses[device.type], losses["cpu"], strict=True))
        report.add(
            f"losses of three steps, batch norm {batch_norm}", cpu=losses["cpu"], device=losses[device.type], gap=gap
        )


def _world(device: torch.device) -> Any:
    from atrous.evaluation.distributed import DistributedContext

    return DistributedContext(0, 1, device)


def _training(network: tuple[str, int, int], device: torch.device, **changes: Any) -> tuple[Any, Any]:
    """A state of `atrous train` and a batch of noise: backbone, crop, images."""
    from atrous.training.config import Recipe, override
    from atrous.training.state import State

    backbone, size, batch = network
    recipe = override(Recipe(), {"backbone": backbone, "weights": None, "batch_size": batch, "crop": size, **changes})
    if backbone == "resnet18":
        recipe = override(recipe, {"multi_grid": None})
    state = State.build(recipe, 21, 255, _world(device))
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 21, (batch, size, size), dtype=torch.uint8, generator=draws)
    if device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    return state, [(images, labels, ["noise"] * batch)]


def repeat_steps(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """Whether the same steps give the same bits twice, with cuDNN left to choose and held to what is deterministic."""
    networks = {"resnet50": ("resnet50", 257, 8), "lite0": ("timm/tf_efficientnet_lite0", 353, 8)}
    if args.quick:
        networks = {"resnet18": ("resnet18", 65, 2)}
    for name, network in networks.items():
        for deterministic in (False, True):
            with report.step(f"repeat {name}, deterministic {deterministic}"):
                torch.backends.cudnn.deterministic = deterministic
                runs = []
                for _ in range(2 if args.quick else 3):
                    state, parts = _training(network, device, amp="bf16", multi_grid=None)
                    losses = [state.take_step(parts, 1e-3, _world(device)) for _ in range(2 if args.quick else 6)]
                    runs.append((losses, [p.detach().clone() for p in state.model.parameters()]))
                same = all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0][1], other[1], strict=True))
                report.add(
                    f"repeat {name}, deterministic {deterministic}", same_bits=same, losses=[r[0][-1] for r in runs]
                )


# Fast ---------------------------------------------------------------------------------------------------------------


def _memory(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def fast_steps(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """Section 4.1's step, ResNet-101, 16 crops of 513: that of `atrous train`, and the peers' as users write it."""
    backbone, size, batch = ("resnet18", 65, 2) if args.quick else ("resnet101", 513, 16)
    repeats = 1 if args.quick else 8
    for stride in (16, 8):
        for kind in ("bfloat16", "float32") if stride == 16 else ("bfloat16",):
            runs: dict[str, Callable[[], Any]] = {}
            amp = "bf16" if kind == "bfloat16" else "off"
            state, parts = _training((backbone, size, batch), device, output_stride=stride, amp=amp)
            runs["atrous"] = lambda state=state, parts=parts: state.take_step(parts, 1e-3, _world(device))
            for peer in ("smp", "torchvision"):
                with report.step(f"step of {peer} at {stride}, {kind}"):
                    step = _peer_step(peer, backbone, stride, size, batch, DTYPES[kind], device)
                    if step:
                        runs[peer] = step
            for name, run in runs.items():
                with report.step(f"step of {name} at {stride}, {kind}"):
                    if device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    spent = seconds(run, device, repeats)
                    report.add(
                        f"step of {name} at {stride}, {kind}", backbone=backbone, images_per_second=batch / spent,
                        milliseconds=spent * 1e3, peak_gib=_memory(device),
                    )  # fmt: skip
            runs.clear()
            del state, parts
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _peer_step(
    peer: str, backbone: str, stride: int, size: int, batch: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], None] | None:
    """A training step as a user of the library writes it, on uint8 images like ours; None where there is none."""
    if not find_spec({"smp": "segmentation_models_pytorch"}.get(peer, peer)):
        return None
    if peer == "torchvision":
        if stride != 8 or backbone not in ("resnet50", "resnet101"):
            return None
        from torchvision.models import segmentation

        net = getattr(segmentation, f"deeplabv3_{backbone}")(weights=None, weights_backbone=None, num_classes=21)
    else:
        import segmentation_models_pytorch as smp

        size -= size % stride  # it takes no other
        net = smp.DeepLabV3(
            backbone, encoder_weights=None, classes=21, encoder_output_stride=stride,
            decoder_atrous_rates=tuple(rate * 16 // stride for rate in (6, 12, 18)),
        )  # fmt: skip
    net = net.train().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), 0.007, momentum=0.9, weight_decay=1e-4, fused=True)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    labels = torch.randint(0, 21, (batch, size, size))
    if device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(3, 1, 1)

    def step() -> None:
        x = images.to(device, non_blocking=True)
        x = ((x.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        truth = labels.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = net(x)
            logits = logits["out"] if isinstance(logits, dict) else logits
        loss = F.cross_entropy(logits.float(), truth, ignore_index=255)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def fast_settings(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """What cuDNN's settings bring to a step of ours, for the paper's network and for a small one."""
    networks = {"resnet101": ("resnet101", 513, 16), "lite0": ("timm/tf_efficientnet_lite0", 353, 8)}
    if args.quick:
        networks = {"resnet18": ("resnet18", 65, 2)}
    for name, network in networks.items():
        for label, settings in {
            "plain": {}, "benchmark": {"benchmark": True}, "deterministic": {"deterministic": True},
        }.items():  # fmt: skip
            for amp in ("bf16",) if name == "resnet101" else ("off", "bf16"):
                with report.step(f"settings {name} {label} {amp}"):
                    before = {key: getattr(torch.backends.cudnn, key) for key in ("benchmark", "deterministic")}
                    try:
                        for key, value in settings.items():
                            setattr(torch.backends.cudnn, key, value)
                        more = {} if name != "lite0" else {"optimizer": "adamw", "ema": 0.99, "multi_grid": None}
                        state, parts = _training(network, device, amp=amp, **more)
                        spent = seconds(
                            lambda state=state, parts=parts: state.take_step(parts, 1e-4, _world(device)), device,
                            1 if args.quick else 6,
                            1 if args.quick else 3,
                        )  # fmt: skip
                        report.add(f"settings {name} {label} {amp}", milliseconds=spent * 1e3)
                    finally:
                        for key, value in before.items():
                            setattr(torch.backends.cudnn, key, value)


def fast_loss(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """The loss and its gradient, ours by its kernel and by tiles, and PyTorch's, plain and compiled."""
    from atrous.ops import upsampled_loss as fused

    batch, size = (1, 65) if args.quick else (16, 513)
    for stride in (16, 8):
        side = (size - 1) // stride + 1
        logits = torch.randn(batch, 21, side, side, device=device, requires_grad=True)
        labels = torch.randint(0, 21, (batch, size, size), device=device)
        small = labels.byte()

        def plain(logits: Tensor = logits, labels: Tensor = labels) -> Tensor:
            large = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
            return F.cross_entropy(large, labels, reduction="sum")

        def ours(logits: Tensor = logits, small: Tensor = small, stride: int = stride) -> Tensor:
            return fused.upsampled_cross_entropy_sum(logits, small, stride)

        runs: dict[str, Callable[[], Any]] = {
            "ours": lambda logits=logits, ours=ours: torch.autograd.grad(ours(), logits),
            "plain": lambda logits=logits, plain=plain: torch.autograd.grad(plain(), logits),
        }
        if not args.quick:
            runs["tiles"] = lambda logits=logits, small=small, stride=stride: fused._cross_entropy_by_tiles(
                logits.detach(), small, None, stride, 255, True
            )
            compiled = torch.compile(plain)
            runs["compiled"] = lambda logits=logits, compiled=compiled: torch.autograd.grad(compiled(), logits)
        for name, run in runs.items():
            with report.step(f"loss {name} at {stride}"):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
                spent = seconds(run, device, 1 if args.quick else 20)
                peak = (torch.cuda.max_memory_allocated() - held) / 2**20 if device.type == "cuda" else 0.0
                report.add(f"loss {name} at {stride}", milliseconds=spent * 1e3, peak_mib=peak)


def fast_infer(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """Inference: ResNet-50 of random weights and a shipped model, ours and plain PyTorch."""
    import atrous

    size = 65 if args.quick else 513
    models = {"resnet50": atrous.DeepLabV3("resnet18" if args.quick else "resnet50", 21)}
    models["objects-mobilenetv2"] = atrous.load("objects-mobilenetv2")[0]
    for name, model in models.items():
        model = model.eval().to(device)
        forms: dict[str, Callable[[], nn.Module]] = {
            "eager float32": lambda model=model: model,
            "ours": lambda model=model: model.for_inference(),
        }
        if args.compile:
            forms["compiled"] = lambda model=model: model.for_inference(compile=True)
        for form, build in forms.items():
            for batch in (1,) if args.quick else (1, 16):
                x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
                with report.step(f"infer {name} {form} batch {batch}"):
                    net = build()
                    with torch.inference_mode():
                        spent = seconds(lambda net=net, x=x: net(x), device, 2 if args.quick else 15, 3)
                    report.add(
                        f"infer {name} {form} batch {batch}", milliseconds=spent * 1e3, per_image=spent * 1e3 / batch
                    )


def fast_profile(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """The longest kernels of one training step."""
    from torch.profiler import ProfilerActivity, profile

    networks = {"resnet101": ("resnet101", 513, 16), "lite0": ("timm/tf_efficientnet_lite0", 353, 8)}
    if args.quick:
        networks = {"resnet18": ("resnet18", 65, 2)}
    for name, network in networks.items():
        state, parts = _training(network, device, amp="bf16", multi_grid=None)
        for _ in range(3):
            state.take_step(parts, 1e-4, _world(device))
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        with profile(activities=activities) as profiler:
            state.take_step(parts, 1e-4, _world(device))
            sync(device)
        key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, key, 0.0))
        total = sum(getattr(row, key, 0.0) for row in rows)
        for row in rows[:15]:
            spent = getattr(row, key, 0.0)
            report.add(f"profile {name}", kernel=row.key[:110], calls=row.count, ms=spent / 1e3, share=spent / total)


# The other parts ----------------------------------------------------------------------------------------------------


def gpu_tests(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """The tests with marker gpu, on a GPU."""
    if device.type == "cuda":
        run = subprocess.run([sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "gpu"], check=False, cwd=ROOT)
        report.add("pytest -m gpu", status=run.returncode, right=run.returncode == 0)


def tables(args: argparse.Namespace, device: torch.device, report: Report) -> None:
    """`atrous reproduce` of the paper's tables, to the end or to the last minute."""
    command = [sys.executable, "-m", "atrous", "reproduce", *args.tables, "--out", str(args.out / "tables")]
    command += ["--parallel", str(args.parallel)] + (["--device", "cpu"] if device.type == "cpu" else [])
    if args.quick:
        settings = ["weights=null", "aspp_rates=[1]", "crop=33", "batch_size=4"]
        command += ["--preset", "tiny", "--iterations", "4", "--backbone", "timm/lcnet_050", "-j", "0"]
    elif args.data:
        settings = ["amp=bf16", "val_split=null", "color_jitter=0", "warmup=50", "save_every=1000000"]
        command += ["--preset", "camvid", "--iterations", str(args.iterations), "--data", args.data]
        command += ["--seeds", str(args.seeds)]
    else:
        print("tables: left out, they need --data CAMVID", flush=True)
        return
    command += [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    except OutOfTime:
        process.send_signal(signal.SIGINT)  # it saves, and writes what is done
        process.wait()
        raise
    report.add("atrous reproduce", status=status, right=status == 0)


ROOT = Path(__file__).parents[1]
PARTS: dict[str, tuple[Callable[..., None], ...]] = {
    "tests": (gpu_tests,),
    "right": (right_network, right_loss, right_argmax, right_conv, right_inference, right_training),
    "repeat": (repeat_steps,),
    "fast": (fast_steps, fast_settings, fast_loss, fast_infer, fast_profile),
    "tables": (tables,),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small: whether it runs")
    parser.add_argument("--compile", action="store_true", help="inference by torch.compile, too")
    parser.add_argument("--data", help="CamVid as a folder, for tables")
    parser.add_argument("--parallel", type=int, default=8, help="trainings at once")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    words = ["table-5", "table-1", "table-3", "table-2", "table-10", "table-8", "table-9"]
    parser.add_argument("--tables", nargs="+", default=None)
    args = parser.parse_args()
    args.tables = args.tables or (["table-10"] if args.quick else words)
    if args.quick:
        args.parallel = 2
        torch.set_num_threads(1)  # what is computed is small
    args.out.mkdir(parents=True, exist_ok=True)

    def out_of_time(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, 60 * args.minutes)
    wrong = []
    try:
        for part in args.parts:
            torch.manual_seed(0)
            report = Report(args.out / f"{part}.json")
            report.run(PARTS[part], args, torch.device(args.device))
            wrong += [row["name"] for row in report.rows if row.get("right") is False or "failed" in row]
    except OutOfTime:
        print(f"{args.minutes:g} minutes are over; the same command goes on", flush=True)
        return 3
    print(f"wrong or failed: {', '.join(wrong)}" if wrong else "all is right", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
