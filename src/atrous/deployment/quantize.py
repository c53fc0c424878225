"""Int8: calibrate on some images of the train split, choose the ranges that score best, leave what breaks in float.

    result = quantise(made, model, train, ...)   # `made` then writes an int8 file

Weights have a scale for each filter, activations one for each map. Their ranges are those of images that the train
split gives, drawn with a fixed seed. Each way to choose a range is scored by mIoU on other images of that split. If the
best loses more than half of what is allowed, layers are tried alone (`sensitivity`), and the worst stay float.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from atrous.data.datasets.dataset import SegmentationDataset
from atrous.deployment.formats import Onnx, OpenVino
from atrous.deployment.onnx import quiet
from atrous.evaluation.evaluate import evaluate
from atrous.evaluation.preprocessor import Preprocessor
from atrous.messages import counted, listed
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import (
    NETWORK_OUTPUT,
    ExportedDeepLabV3,
    cut_openvino,
    open_file,
    openvino_runtime,
    requirement,
)
from atrous.models.weights import ModelCard
from atrous.ops.resize import pad_image

IMAGES, HELD_OUT, SCANNED = 32, 16, 3
"""Images that give the ranges, that score them, and that the search for bad layers runs."""

SEED = 0


@dataclass(frozen=True)
class Int8:
    """How a file was quantised.

    Attributes:
        method: that chose the ranges of the activations.
        tried: mIoU of each method, 0 to 1, on the held-out images; ``float32`` is the model's.
        float_layers: paths of the convolutions that stay float.
        images: that gave the ranges, of the train split.
        held_out: other images of it, that chose the method.
        seed: of the draw.
    """

    method: str
    tried: dict[str, float]
    float_layers: tuple[str, ...]
    images: int
    held_out: int
    seed: int = SEED


class LossError(ValueError):
    """Int8 costs more than it may."""


@dataclass(frozen=True)
class Loss:
    """MIoU of the model, and of a file made from it, on the same images, 0 to 1."""

    before: float
    after: float

    @property
    def points(self) -> float:
        """What is lost, in points of 100."""
        return 100 * (self.before - self.after)

    def require(self, most: float, what: str) -> None:
        """Refuse a file that loses too much.

        Raises:
            LossError: with the figures.
        """
        if not self.points <= most:  # also for NaN
            raise LossError(
                f"{what} is not written: int8 loses {self.points:.2f} points of mIoU on val ({100 * self.before:.2f} "
                f"to {100 * self.after:.2f}); --max-loss {most:g} allows less, a larger one writes it all the same"
            )


class Quantiser(Protocol):
    """Makes an int8 network in one format."""

    @property
    def methods(self) -> Sequence[str]:
        """The ways that there are to choose ranges."""

    def build(self, method: str, keep: Collection[str]) -> None:
        """Have the format's file hold the int8 network, with the convolutions at the paths `keep` in float."""


def quantise(
    made: Onnx,
    model: DeepLabV3,
    train: SegmentationDataset,
    file: Path,
    card: ModelCard,
    info: dict[str, Any],
    max_loss: float,
    seconds: float,
    say: Callable[[str], None],
) -> Int8:
    """Replace the network of `made` by an int8 one.

    Args:
        made: what will write the file; its network is replaced.
        model: as it was loaded.
        train: the split that the images are drawn from.
        file: where candidates are written.
        card: of the model.
        info: what the file takes and gives.
        max_loss: points of mIoU that may be lost.
        seconds: for the search for layers that stay float.
        say: called with what goes on.

    Raises:
        ValueError: if a package is missing, or the split is empty.
    """
    shown, judged = draw(train)
    say(f"calibrating on {counted(len(shown), 'image')} of train, choosing on {counted(len(judged), 'other image')}")
    images = [seen_by(model, shown[i].image) for i in range(len(shown))]
    quantiser: Quantiser = OpenVinoInt8(made, images) if isinstance(made, OpenVino) else OnnxInt8(made, images, file)
    reference = evaluate(model.for_inference(dtype=torch.float32), judged).scores.miou

    def score(method: str, keep: Collection[str]) -> float:
        quantiser.build(method, keep)
        made.save(file, card, info)
        trial = ExportedDeepLabV3(open_file(file), card.arguments, card.mean, card.std, card.longest_side)
        return evaluate(trial, judged).scores.miou

    last = list(made.layers())[-1:]  # its output are the logits, whose small differences decide
    tried = {method: score(method, last) for method in quantiser.methods}
    method = max(tried, key=lambda name: tried[name])
    say("mIoU on the held-out images: " + ", ".join(f"{name} {100 * value:.2f}" for name, value in tried.items())
        + f", float32 {100 * reference:.2f}")  # fmt: skip
    keep, best, enough = last, tried[method], reference - max_loss / 200
    if best < enough:
        worst, end = ranked(made.model, images[:SCANNED], seconds / 2, say), time.monotonic() + seconds / 2
        count = 1
        while best < enough and count < 2 * len(worst) and time.monotonic() < end:
            candidate = list(dict.fromkeys([*worst[:count], *last]))
            if (reached := score(method, candidate)) > best:
                keep, best = candidate, reached
            say(f"{counted(min(count, len(worst)), 'layer')} in float: mIoU {100 * reached:.2f}")
            count *= 2
        say(f"float stays {listed(keep)}")
    quantiser.build(method, keep)
    return Int8(method, {**tried, "float32": reference}, tuple(keep), len(shown), len(judged))


def draw(train: SegmentationDataset) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Images that give the ranges and others that choose among them, from a seeded draw; a single one does both.

    Raises:
        ValueError: if there is none.
    """
    items = list(train.items)
    if not items:
        raise ValueError("the train split is empty; int8 takes the ranges of activations from it")
    random.Random(SEED).shuffle(items)
    judged = min(HELD_OUT, max(1, len(items) // 3))
    return train.with_items(items[judged:][:IMAGES] or items), train.with_items(items[:judged])


def seen_by(model: DeepLabV3, image: Tensor) -> Tensor:
    """A photograph, uint8 3,H,W, as the network takes it: resized, normalised, padded to the grid, 1,3,h,w."""
    return pad_image(Preprocessor(model)(image[None]), model.output_stride, model.upsampling).contiguous()


class OnnxInt8:
    """Quantises by ONNX Runtime, into pairs of QuantizeLinear and DequantizeLinear."""

    methods: Sequence[str] = ("entropy", "percentile", "minmax")

    def __init__(self, made: Onnx, images: Sequence[Tensor], file: Path) -> None:
        self.made, self.images, self.work = made, images, file.parent
        self.float_network = made.network
        self.prepared = self.work / "prepared.onnx"
        quantization = requirement("onnxruntime.quantization", "onnx")
        raw = self.work / "float.onnx"
        requirement("onnx", "onnx").save(made.network, str(raw))
        with quiet():
            quantization.quant_pre_process(str(raw), str(self.prepared), skip_symbolic_shape=True,
                                           skip_optimization=True)  # fmt: skip
        self.ranges: dict[str, Any] = {}

    def build(self, method: str, keep: Collection[str]) -> None:
        """See `Quantiser`."""
        onnx, quantization = requirement("onnx", "onnx"), requirement("onnxruntime.quantization", "onnx")
        if method not in self.ranges:
            self.ranges[method] = self._ranges(method)
        program = onnx.load(str(self.prepared))
        left_out = [self.made.layers_of(self.float_network)[path] for path in keep]
        names = [node.name for node in program.graph.node if set(node.output) & set(left_out)]
        kinds = sorted({node.op_type for node in program.graph.node} & _QUANTISED)
        with quiet():
            work = quantization.QDQQuantizer(
                program, True, False, quantization.QuantType.QInt8, quantization.QuantType.QUInt8,
                self.ranges[method], [], names, kinds, {"ActivationSymmetric": False},
            )  # fmt: skip
            work.quantize_model()
        self.made.network = work.model.model

    def _ranges(self, method: str) -> Any:
        quantization = requirement("onnxruntime.quantization", "onnx")
        kind = {"entropy": "Entropy", "percentile": "Percentile", "minmax": "MinMax"}[method]
        augmented = self.work / "augmented.onnx"
        with quiet():
            calibrator = quantization.create_calibrator(
                str(self.prepared), augmented_model_path=str(augmented),
                calibrate_method=getattr(quantization.CalibrationMethod, kind),
                extra_options={"percentile": 99.99} if method == "percentile" else {},
            )  # fmt: skip
            name = self.float_network.graph.input[0].name
            for image in self.images:  # one by one, since the activations of all do not fit into memory
                calibrator.collect_data(_Once({name: image.numpy()}))
            return calibrator.compute_data()


_QUANTISED = {"Conv", "Add", "Concat", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Mul", "Gemm"}


class _Once:
    """ONNX Runtime's data reader, for one image."""

    def __init__(self, feed: dict[str, Any]) -> None:
        self.feeds = [feed]

    def get_next(self) -> dict[str, Any] | None:
        """The image, then None."""
        return self.feeds.pop() if self.feeds else None


class OpenVinoInt8:
    """Quantises by NNCF."""

    methods: Sequence[str] = ("mean minmax", "minmax", "mean quantile")

    def __init__(self, made: OpenVino, images: Sequence[Tensor]) -> None:
        self.made, self.images = made, images
        self.nncf = requirement("nncf", "openvino")
        self.names = made.layers()

    def build(self, method: str, keep: Collection[str]) -> None:
        """See `Quantiser`."""
        openvino = openvino_runtime()
        with quiet():
            network = cut_openvino(self.made.float_model(), self.made.source, [NETWORK_OUTPUT])
            names = _operations(network, [self.names[path] for path in keep])
            known = self.nncf.quantization.range_estimator.RangeEstimatorParametersSet
            estimator = getattr(known, method.upper().replace(" ", "_"))
            advanced = self.nncf.AdvancedQuantizationParameters(activations_range_estimator_params=estimator)
            quantised = self.nncf.quantize(
                network, self.nncf.Dataset([image.numpy() for image in self.images]), subset_size=len(self.images),
                preset=self.nncf.QuantizationPreset.MIXED, advanced_parameters=advanced,
                ignored_scope=self.nncf.IgnoredScope(names=names, validate=False),
            )  # fmt: skip
        assert isinstance(quantised, openvino.Model)
        self.made.quantised = quantised


def _operations(network: Any, values: Collection[str]) -> list[str]:
    """Names of the convolutions that make some values; a bias may have been added in between."""
    wanted, convolutions = set(values), []
    for node in network.get_ordered_ops():
        if any(output.get_names() & wanted for output in node.outputs()):
            before = [node, *(node.input_value(i).get_node() for i in range(node.get_input_size()))]
            convolutions += [each.get_friendly_name() for each in before if "Convolution" in each.get_type_name()]
    return convolutions


@torch.no_grad()
def ranked(model: DeepLabV3, images: Sequence[Tensor], seconds: float, say: Callable[[str], None]) -> list[str]:
    """Convolutions, the one that int8 harms most first: each is rounded alone, and the error of the logits measured.

    Args:
        model: in its lean form.
        images: as the network takes them.
        seconds: after which the rest is left out.
        say: called with how far it came.
    """
    layers = {path: layer for path, layer in model.named_modules() if type(layer).__name__ != "Identity"
              and isinstance(layer, nn.Conv2d)}  # fmt: skip
    expected = [model.network(image) for image in images]
    end, harm = time.monotonic() + seconds, dict[str, float]()
    for path, layer in layers.items():
        if time.monotonic() > end:
            break
        handle, weight = layer.register_forward_pre_hook(_round_input), layer.weight.data
        scale = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / 127
        layer.weight.data = (weight / scale).round() * scale
        logits = [model.network(image) for image in images]
        layer.weight.data = weight
        handle.remove()
        harm[path] = sum(float((a - b).square().mean()) for a, b in zip(expected, logits, strict=True))
    say(f"{len(harm)} of {len(layers)} layers tried alone")
    return sorted(harm, key=lambda path: -harm[path])


def _round_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """To the 256 values between the least and the largest."""
    low, high = inputs[0].amin().clamp(max=0), inputs[0].amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    return (((inputs[0] - low) / scale).round() * scale + low,)
