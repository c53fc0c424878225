"""Weights of the DeepLab graphs that the authors publish for TF-Lite, to start a training from.

A graph has the convolutions in the order of its network, quantised, with batch norm folded into them. They are read as
float32, and batch norm becomes a shift. So train such a model with ``batch_norm="statistics"``, or with ``"head"``
where the head is new.

    model = DeepLabV3("timm/mobilenetv2_100", 21, aspp_rates=())
    load_tflite(model, "deeplabv3_mnv2_pascal_quant.tflite")

A graph is read as data; nothing in it is run.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from atrous.models.aspp import ASPP
from atrous.models.backbone import check_classes_from

if TYPE_CHECKING:
    from atrous.models.deeplab import DeepLabV3

_HEAD = {"aspp0": "pointwise", "image_pooling": "pooling", "concat_projection": "project", "semantic": "classifier"}
"""The layers of the authors' head, by a word in their names: the 1×1 branch and the image-level features alone."""


_CHECK = "import sys; from ai_edge_litert.interpreter import Interpreter; Interpreter(sys.argv[1])"
_LONGEST = 120


@dataclass(frozen=True)
class FoldedConv:
    """One convolution of a graph.

    Attributes:
        name: of its filter.
        weight: float32 out,in/groups,h,w.
        bias: float32 out: batch norm's shift, where it had one.
    """

    name: str
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Graph:
    """The convolutions of a file in their order, and the normalisation of its input, white being 1.

    Attributes:
        convs: of the network.
        mean: of each colour.
        std: likewise.
        classifies: whether it is a classifier of whole images: it ends in a fully connected layer.
    """

    convs: tuple[FoldedConv, ...]
    mean: float
    std: float
    classifies: bool


def is_tflite(source: str | Path) -> bool:
    """Whether a source of weights is a TF-Lite graph, by its name."""
    return Path(source).suffix == ".tflite" and not os.path.isdir(source)


def load_tflite(
    model: DeepLabV3, path: str | Path, *, reset_head: bool = False, classes_from: Sequence[int] = ()
) -> None:
    """Load a DeepLab graph's weights and normalisation into a model with a network of timm.

    Of a classifier of whole images, such as an EfficientNet-Lite for ImageNet, the backbone is loaded alone.

    ASPP takes the graph's 1×1 branch, image-level features and projection where it has as many channels, and the graph
    a layer before them only where the model has it (`layout_of_graph`). These graphs have no atrous branches: in the
    projection those start with zeros. Otherwise the head starts anew.

    Args:
        model: receives them.
        path: of the graph, uint8, int8 or float32.
        reset_head: keep the model's own classifier, for other classes.
        classes_from: the graph's class that each class of the model starts from, by id; empty for the same classes.

    Raises:
        ValueError: if the file is no TF-Lite graph, ai-edge-litert is not there, or the graph is not of the model's
            backbone or has other classes.
        FileNotFoundError: if there is no such file.
    """
    graph = read_graph(Path(path))
    reset_head = reset_head or graph.classifies
    pairs = _pairs(model.backbone) + _pairs(model.last_conv)
    if len(graph.convs) < len(pairs):
        raise ValueError(f"{path} has {len(graph.convs)} convolutions, {model.backbone.name} {len(pairs)}")
    for conv, (layer, name, _) in zip(graph.convs, pairs, strict=False):
        if conv.weight.shape != layer.weight.shape:
            raise ValueError(
                f"{path} is not of {model.backbone.name}: {conv.name} has the shape {tuple(conv.weight.shape)}, "
                f"{name} {tuple(layer.weight.shape)}"
            )
    rest = graph.convs[len(pairs) :]
    head = _head(rest)
    theirs = len(head["classifier"].bias) if "classifier" in head else 0
    if classes_from and theirs:
        head["classifier"] = _rows(head["classifier"], classes_from, model.num_classes, path)
        theirs = model.num_classes
    if theirs != model.num_classes and not reset_head:
        raise ValueError(
            f"{path} has {theirs} classes, expected {model.num_classes}; with reset_head the classifier starts anew"
        )
    for conv, (layer, _, norm) in zip(graph.convs, pairs, strict=False):
        _put(conv.weight, conv.bias, layer, norm)
    # A graph with a layer between backbone and head has another head than ours.
    if len(rest) == len(head) == len(_HEAD) and isinstance(model.head, ASPP) and _fits(model.head, head):
        _load_head(model, model.head, head, classifier=not reset_head)
    elif classes_from:
        raise ValueError(f"{path} has another head than the model, so that no class can start from one of its classes")
    model.backbone.mean, model.backbone.std = (graph.mean,) * 3, (graph.std,) * 3


def layout_of_graph(path: str | Path) -> dict[str, int]:
    """Arguments of `DeepLabV3` with which a model has a graph's own head, but for its classes and `aspp_rates`.

    Empty where the graph's head is not the authors'.

    Raises:
        ValueError: see `read_graph`.
        FileNotFoundError: likewise.
    """
    convs = read_graph(Path(path)).convs
    head = _head(convs)
    if len(head) < len(_HEAD) or len(convs) == len(head):
        return {}
    filters, channels = head["pointwise"].weight.shape[:2]
    # An inverted residual ends with fewer channels than it has within, a layer between backbone and head with more.
    widens = channels > convs[-len(head) - 1].weight.shape[1]
    return {"aspp_filters": filters, "last_conv": channels if widens else 0}


def _head(convs: Sequence[FoldedConv]) -> dict[str, FoldedConv]:
    return {part: conv for conv in convs for word, part in _HEAD.items() if word in conv.name}


def _rows(conv: FoldedConv, classes_from: Sequence[int], classes: int, path: str | Path) -> FoldedConv:
    rows = check_classes_from(classes_from, classes, len(conv.bias), path)
    return FoldedConv(conv.name, conv.weight[rows], conv.bias[rows])


def read_graph(path: Path) -> Graph:
    """A TF-Lite file's convolutions, dequantised.

    Raises:
        ValueError: if it is no such file, or holds tensors in another form.
        FileNotFoundError: if there is no such file.
    """
    check_graph(path)
    content = path.read_bytes()
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    try:
        return _read(schema, schema.ModelT.InitFromPackedBuf(content, 0))
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a TF-Lite graph: {why}") from None


def check_graph(path: Path) -> None:
    """Let ai-edge-litert check every offset of a file, in another process, since some files crash it.

    Raises:
        ValueError: if the file is no TF-Lite graph, or ai-edge-litert is not there.
        FileNotFoundError: if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a TF-Lite graph")
    if any(importlib.util.find_spec(name) is None for name in ("ai_edge_litert", "flatbuffers")):
        raise ValueError(f"{path}: TF-Lite graphs need ai-edge-litert: pip install 'atrous[teacher]'")
    try:
        check = subprocess.run(
            [sys.executable, "-P", "-c", _CHECK, path], capture_output=True, timeout=_LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{path}: cannot be read as a TF-Lite graph: not within {_LONGEST} s") from None
    if check.returncode:
        said = check.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        why = f"it ends the reader by signal {-check.returncode}" if check.returncode < 0 else "".join(said)
        raise ValueError(f"{path}: cannot be read as a TF-Lite graph: {why}")


def _read(schema: Any, model: Any) -> Graph:
    operators, main = schema.BuiltinOperator, model.subgraphs[0]
    kinds = {operators.CONV_2D: (0, 3, 1, 2), operators.DEPTHWISE_CONV_2D: (3, 0, 1, 2)}
    convs, values, classifies = [], _Values(schema, main.tensors, model.buffers), False
    for step in main.operators:
        code = model.operatorCodes[step.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        classifies |= kind == operators.FULLY_CONNECTED
        order = kinds.get(kind)
        if order is None or len(step.inputs) != 3:
            continue
        weight, bias = (values[int(i)] for i in step.inputs[1:])
        name = main.tensors[step.inputs[1]].name.decode("utf-8", "replace")
        convs.append(FoldedConv(name, weight.permute(order), bias))
        if bias.shape != convs[-1].weight.shape[:1]:
            raise ValueError(f"{name!r} has {len(convs[-1].weight)} filters and a bias of {tuple(bias.shape)}")
    return Graph(tuple(convs), *_normalisation(main.tensors[main.inputs[0]], schema.TensorType.INT8), classifies)


def _normalisation(image: Any, int8: int) -> tuple[float, float]:
    """Mean and standard deviation that a graph's input stands for, white being 1; of floats, -1 to 1."""
    scale, zero = _quantisation(image)
    if not len(scale):
        return 0.5, 0.5
    # Black is the byte 0, or -128 of the signed ones; a byte q stands for scale * (q - zero).
    black = -128 if image.type == int8 else 0
    mean, std = float(zero[0] - black) / 255, 1 / (255 * float(scale[0]))
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise ValueError(f"its input has the scale {scale[0]} and the zero point {zero[0]}")
    return mean, std


class _Values(dict[int, Tensor]):
    """The tensors of a file by number, as float32, each dequantised once."""

    def __init__(self, schema: Any, tensors: Any, buffers: Any) -> None:
        types = schema.TensorType
        self.kinds = {types.FLOAT32: np.float32, types.UINT8: np.uint8, types.INT8: np.int8, types.INT32: np.int32}
        self.tensors, self.buffers = tensors, buffers

    def __missing__(self, number: int) -> Tensor:
        tensor = self.tensors[number]
        data, kind, shape = self.buffers[tensor.buffer].data, self.kinds.get(tensor.type), tuple(map(int, tensor.shape))
        if kind is None or data is None or len(data) != int(np.prod(shape)) * np.dtype(kind).itemsize:
            raise ValueError(f"{tensor.name!r} holds no plain values of 8 bits or float32")
        raw = np.frombuffer(np.asarray(data, dtype=np.uint8).tobytes(), dtype=kind).reshape(shape).astype(np.float64)
        scale, zero = _quantisation(tensor)
        if len(scale):
            axis = [1] * len(shape)
            axis[tensor.quantization.quantizedDimension if len(scale) > 1 else 0] = -1
            raw = (raw - zero.reshape(axis)) * scale.reshape(axis)
        self[number] = torch.from_numpy(raw.astype(np.float32))
        if not bool(self[number].isfinite().all()):
            raise ValueError(f"{tensor.name!r} holds NaN or infinity")
        return self[number]


def _quantisation(tensor: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scales and zero points of a tensor, none for floats, one for all of it, or one a channel."""
    held = tensor.quantization
    if held is None or held.scale is None or not len(held.scale):
        return np.zeros(0), np.zeros(0)
    return np.asarray(held.scale, dtype=np.float64), np.asarray(held.zeroPoint, dtype=np.float64)


def _pairs(module: nn.Module) -> list[tuple[nn.Conv2d, str, nn.Module]]:
    """A network's convolutions in the order of their definition, each with its name and batch norm."""
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.modules.batchnorm._BatchNorm)
    ]
    return [
        (layer, name, norm)
        for (name, layer), (_, norm) in zip(layers, layers[1:], strict=False)
        if isinstance(layer, nn.Conv2d)
    ]


def _fits(aspp: ASPP, head: dict[str, FoldedConv]) -> bool:
    if aspp.pointwise is None or aspp.image_pooling is None:
        return False
    branch = tuple(aspp.state_dict()["pointwise.0.weight"].shape)
    filters = branch[0]
    wanted = {"pointwise": branch, "pooling": branch, "project": (filters, 2 * filters, 1, 1)}
    wanted["classifier"] = (len(head["classifier"].bias), filters, 1, 1)
    return all(head[part].weight.shape == shape for part, shape in wanted.items())


def _load_head(model: DeepLabV3, aspp: ASPP, head: dict[str, FoldedConv], *, classifier: bool) -> None:
    assert aspp.pointwise is not None and aspp.image_pooling is not None
    for part, module in (("pointwise", aspp.pointwise), ("pooling", aspp.image_pooling)):
        ((layer, _, norm),) = _pairs(module)
        _put(head[part].weight, head[part].bias, layer, norm)
    # They join the image-level features and the 1×1 branch in this order; ours come the other way about.
    pooling, pointwise = head["project"].weight.chunk(2, 1)
    projection = aspp.with_branches(torch.cat([pointwise, pooling], 1))
    _put(projection, head["project"].bias, aspp.project[0], aspp.project[1])
    if classifier:
        _put(head["classifier"].weight, head["classifier"].bias, model.classifier, None)


@torch.no_grad()
def _put(weight: Tensor, bias: Tensor, layer: nn.Module, norm: nn.Module | None) -> None:
    """Set a convolution and the batch norm behind it to a folded one."""
    assert isinstance(layer, nn.Conv2d)
    layer.weight.copy_(weight)
    if norm is None:
        assert layer.bias is not None
        layer.bias.copy_(bias)
        return
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.fill_(1)
    norm.bias.copy_(bias)
