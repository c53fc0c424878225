"""The candidates of `python -m benchmarks`: ours and the installed peers, on the same weights and the same input.

For output stride 8 the network is torchvision's DeepLabV3, for others that of segmentation_models_pytorch, because
those are what their users run; ours takes their weights and their conventions (`atrous.models.convert`). What agrees
is what is timed: the logits for every pixel.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrous.evaluation.distributed import DistributedContext
from atrous.models.convert import Library, logits_of, take_over
from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import compiled
from atrous.ops.resize import IGNORE, grid_size
from atrous.training.config import override
from atrous.training.loss import Objective
from atrous.training.recipes import RECIPES
from atrous.training.state import State, build_optimizer
from benchmarks.timing import Candidate, Row

CLASSES = 21
NEEDS = {
    "torchvision": ("torchvision",),
    "smp": ("segmentation_models_pytorch",),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino", "onnx", "onnxscript"),
}
"""Modules that each peer needs; those that are missing come with ``pip install 'atrous[bench]'``."""


def missing(peer: str) -> list[str]:
    """Modules of a peer that are not installed.

    Raises:
        ValueError: for a peer that there is not.
    """
    if peer not in NEEDS:
        raise ValueError(f"there is no peer {peer!r}; there are {', '.join(NEEDS)}")
    return [module for module in NEEDS[peer] if importlib.util.find_spec(module) is None]


def skipped(peer: str) -> Row | None:
    """The row of a peer that is not installed, or None."""
    lacking = missing(peer)
    return Row(peer, note=f"skipped: {', '.join(lacking)} not installed", skipped=True) if lacking else None


def _library(output_stride: int, size: int) -> Library:
    """The library whose network and weights an output stride is compared on, at images of a size that it takes."""
    library: Library = "torchvision" if output_stride == 8 else "smp"
    if row := skipped(library):
        raise ValueError(f"output stride {output_stride} is compared on {library}'s weights: {row.note}")
    if library == "smp" and size % output_stride:
        raise ValueError(
            f"size is {size}, expected a multiple of {output_stride}, as segmentation_models_pytorch wants"
        )
    return library


class Pair:
    """One network twice, with the same weights: the peer library's and ours.

    Args:
        backbone: a ResNet.
        output_stride: 8 for torchvision's, 16 or 8 for that of segmentation_models_pytorch.
        library: ``torchvision`` or ``smp``.
    """

    def __init__(self, backbone: str, output_stride: int, library: Library) -> None:
        torch.manual_seed(0)
        self.theirs = _theirs(library, backbone, output_stride)
        self.ours, self.library = take_over(self.theirs)
        self._exported: bytes | None = None

    def onnx(self, images: Tensor) -> bytes:
        """Theirs as its users would export it, for images of this shape; made once, for that takes a while."""
        if self._exported is None:
            self._exported = _onnx(self.theirs, images)
        return self._exported

    def to(self, device: torch.device) -> Pair:
        """Both on a device."""
        self.theirs, self.ours = self.theirs.to(device), self.ours.to(device)
        return self


def _theirs(library: str, backbone: str, output_stride: int) -> Any:
    if library == "torchvision":
        from torchvision.models import segmentation

        build = getattr(segmentation, f"deeplabv3_{backbone}", None)
        if build is None or output_stride != 8:
            raise ValueError(f"torchvision has no DeepLabV3 with {backbone} at output stride {output_stride}")
        net = build(weights=None, weights_backbone=None, num_classes=CLASSES)
    else:
        import segmentation_models_pytorch as smp

        try:
            net = smp.DeepLabV3(backbone, encoder_weights=None, classes=CLASSES, encoder_output_stride=output_stride)
        except KeyError:
            raise ValueError(f"segmentation_models_pytorch has no encoder {backbone!r}") from None
    for module in net.modules():  # statistics as of a trained network: activations neither vanish nor explode
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    _settle(net)
    return net.eval()


@torch.no_grad()
def _settle(net: nn.Module) -> None:
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain mean over the batches
        norm.reset_running_stats()
    net.train()
    net(torch.randn(2, 3, 128, 128))
    for norm in norms:
        norm.momentum = 0.1


def infer(
    *, backbone: str, output_stride: int, size: int, batch: int, peers: Sequence[str], device: torch.device, fp32: bool
) -> list[Candidate | Row]:
    """Candidates for inference: images in, logits at their size out.

    Args:
        backbone: a ResNet that the peers have.
        output_stride: 8 or 16.
        size: side of the square images; segmentation_models_pytorch wants a multiple of the stride.
        batch: images.
        peers: of `NEEDS`; each is run in its plain form and, where it has one, in bfloat16.
        device: a GPU runs the libraries only, not the exported forms.
        fp32: leave the bfloat16 forms out.

    Raises:
        ValueError: for an unknown peer, or a network that the library cannot build.
    """
    rows = [row for peer in peers if (row := skipped(peer))]
    library = _library(output_stride, size)
    pair = Pair(backbone, output_stride, library).to(device)
    images = torch.randn(batch, 3, size, size, device=device)
    gflop = _gflop(lambda: pair.theirs(images))
    with torch.inference_mode():
        reference = logits_of(pair.theirs(images))
    candidates: list[Candidate | Row] = list(_our_forms(pair, images, reference, gflop, fp32))
    for peer in peers:
        if not missing(peer):
            candidates += _BUILDERS[peer](pair, images, reference, gflop, fp32)
    return candidates + list(rows)


def _our_forms(pair: Pair, images: Tensor, reference: Tensor, gflop: float, fp32: bool) -> list[Candidate]:
    wanted: dict[str, torch.dtype | None] = {"atrous fp32": torch.float32}
    if not fp32:
        wanted = {"atrous": None, **wanted, "atrous bf16": torch.bfloat16}
    inputs = images.contiguous(memory_format=torch.channels_last)

    def run(net: nn.Module) -> Callable[[], Tensor]:
        def once() -> Tensor:
            with torch.inference_mode():
                logits: Tensor = net(inputs)
            return logits

        return once

    candidates = []
    for name, dtype in wanted.items():
        form = pair.ours.for_inference(dtype=dtype)
        once = run(form)
        multiplied = form.classifier.weight.dtype
        candidates.append(Candidate(name, once, gflop, _differs(once(), reference), dtype=multiplied))
    if images.shape[-1] != grid_size(images.shape[-1], pair.ours.output_stride):
        name, dtype = next(iter(wanted.items()))
        # A form of its own: each keeps weights laid out for one size of map.
        form = pair.ours.for_inference(dtype=dtype)
        form.upsampling = "grid"
        padded = run(form)
        why = "another convention"
        candidates.append(
            Candidate(f"{name}, padded to its own grid", padded, gflop, note=why, dtype=candidates[0].dtype)
        )
    return candidates


def _library_forms(pair: Pair, images: Tensor, reference: Tensor, gflop: float, fp32: bool) -> list[Candidate]:
    name = pair.library

    def eager() -> Any:
        with torch.inference_mode():
            return pair.theirs(images)

    candidates = [Candidate(name, eager, gflop)]
    if not fp32:
        net = copy.deepcopy(pair.theirs).to(memory_format=torch.channels_last)
        inputs = images.contiguous(memory_format=torch.channels_last)

        def autocast() -> Any:
            with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
                return net(inputs)

        agreement = _differs(logits_of(autocast()), reference)
        candidates.append(Candidate(f"{name} bf16 autocast", autocast, gflop, agreement, dtype=torch.bfloat16))
    return candidates


def _other_library(library: str) -> Callable[..., list[Candidate | Row]]:
    def build(pair: Pair, images: Tensor, reference: Tensor, gflop: float, fp32: bool) -> list[Candidate | Row]:
        if pair.library == library:
            return [*_library_forms(pair, images, reference, gflop, fp32)]
        return [Row(library, note=f"skipped: this setting is compared on {pair.library}'s network", skipped=True)]

    return build


def _onnxruntime(pair: Pair, images: Tensor, reference: Tensor, gflop: float, _: bool) -> list[Candidate | Row]:
    import onnxruntime

    if images.device.type != "cpu":
        return [Row("onnxruntime", note="skipped: compared on the CPU only", skipped=True)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(pair.onnx(images), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    agreement = _differs(torch.from_numpy(session.run(None, feed)[0]), reference)
    return [Candidate("onnxruntime fp32", lambda: session.run(None, feed), gflop, agreement)]


def _openvino(pair: Pair, images: Tensor, reference: Tensor, gflop: float, fp32: bool) -> list[Candidate | Row]:
    import openvino

    if images.device.type != "cpu":
        return [Row("openvino", note="skipped: compared on the CPU only", skipped=True)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(pair.onnx(images))
        network = openvino.Core().read_model(path)
    candidates: list[Candidate | Row] = []
    for precision in ("f32",) if fp32 else ("f32", "bf16"):
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        run = partial(openvino.Core().compile_model(network, "CPU", options), images.numpy())
        agreement = _differs(torch.from_numpy(run()[0]), reference)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        candidates.append(Candidate(f"openvino {precision}", run, gflop, agreement, dtype=dtype))
    return candidates


_BUILDERS: dict[str, Callable[..., list[Candidate | Row]]] = {
    "torchvision": _other_library("torchvision"),
    "smp": _other_library("smp"),
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def train(
    *,
    backbone: str,
    output_stride: int,
    size: int,
    batch: int,
    peers: Sequence[str],
    device: torch.device,
    compile: bool | str = False,
) -> list[Candidate | Row]:
    """Candidates for one training step: images in bytes and labels in, the optimizer's step done.

    Ours is the step of ``atrous train`` (`atrous.training.state.State.take_step`) with the paper's recipe.

    Arguments and errors are those of `infer`; `compile` is for all, as for `atrous.models.inference.compiled`.
    """
    library = _library(output_stride, size)
    pair = Pair(backbone, output_stride, library).to(device)
    images = torch.randint(0, 256, (batch, 3, size, size), device=device, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (batch, size, size), device=device, dtype=torch.uint8)
    gflop = 3 * _gflop(lambda: pair.theirs(images.float()))
    candidates: list[Candidate | Row] = []
    suffix = " compiled" if compile else ""
    for name, dtype in (("atrous bf16", torch.bfloat16), ("atrous fp32", torch.float32)):
        step = _our_step(pair.ours, images, labels, dtype, compile)
        candidates.append(Candidate(name + suffix, step, gflop, dtype=dtype))
    for peer in peers:
        if row := skipped(peer):
            candidates.append(row)
        elif peer == library:
            for name, dtype in ((f"{peer} bf16 autocast", torch.bfloat16), (peer, torch.float32)):
                step = _their_step(pair.theirs, images, labels, dtype, compile)
                candidates.append(Candidate(name + suffix, step, gflop, dtype=dtype))
        else:
            why = "does not train" if peer in ("onnxruntime", "openvino") else f"compared on {library}'s network"
            candidates.append(Row(peer, note=f"skipped: {why}", skipped=True))
    return candidates


def _our_step(
    model: DeepLabV3, images: Tensor, labels: Tensor, dtype: torch.dtype, compile: bool | str
) -> Callable[[], object]:
    amp = "bf16" if dtype == torch.bfloat16 else "off"
    recipe = override(RECIPES["voc-resnet101"], {"amp": amp, "batch_size": len(images)})
    model = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
    model.upsampling = "grid"  # the loss of `atrous train` knows our grid alone
    objective = Objective(model, recipe.loss, recipe.optim.amp, IGNORE).to(images.device)
    if compile:
        objective.logits = compiled(model.low_resolution_logits, compile)
    scaler = torch.amp.GradScaler(images.device.type, enabled=False)
    optimizer = build_optimizer(recipe.optim, model)
    state = State(recipe, model, objective, objective, optimizer, scaler, average=None)
    ctx, parts = DistributedContext(0, 1, images.device), [(images, labels, [""] * len(images))]
    return lambda: state.take_step(parts, recipe.optim.lr, ctx)


def _their_step(
    net: Any, images: Tensor, labels: Tensor, dtype: torch.dtype, compile: bool | str
) -> Callable[[], None]:
    net = copy.deepcopy(net).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), 0.007, momentum=0.9, weight_decay=1e-4)
    if compile:
        net = compiled(net, compile)

    def step() -> None:
        inputs = (images.float() / 255 - 0.45).div_(0.225).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = logits_of(net(inputs))
        loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _gflop(run: Callable[[], Any]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9


def _differs(result: Tensor, reference: Tensor) -> float:
    return float((result.float() - reference.float()).abs().max() / reference.float().abs().max())


def _onnx(net: Any, images: Tensor) -> bytes:
    """A library's network as its users would export it."""

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return logits_of(self.net(x))

    program = torch.onnx.export(Logits().eval(), (images,), dynamo=True, verbose=False)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())
