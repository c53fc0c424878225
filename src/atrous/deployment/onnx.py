"""ONNX files: the network by PyTorch's exporter, and around it a few nodes from pixels to classes.

The nodes around the network are written by hand, so that they are few, and so that the network between the values
`NETWORK_INPUT` and `NETWORK_OUTPUT` can be cut out again (`atrous.models.exported`) or replaced by an int8 one.

Upsampling is two matrix products with weights computed from the size in whole numbers: on the grid exact also where a
runtime computes in bfloat16, and several times as fast as a Resize in ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from atrous.deployment.network import Interface, Network, class_map_dtype
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import IMAGES, NETWORK_INPUT, NETWORK_OUTPUT, requirement
from atrous.ops.resize import Upsampling, feature_count

OPSET = 18
"""The ONNX operators that a file uses: ONNX Runtime has them since 1.14, OpenVINO since 2023."""

_SCOPES = "pkg.torch.onnx.name_scopes"


def network_to_onnx(model: DeepLabV3, interface: Interface) -> Any:
    """The network of a model in its lean form, as an ONNX model of `NETWORK_INPUT` and `NETWORK_OUTPUT`.

    Raises:
        ValueError: if onnx or onnxscript is missing, or the exporter cannot take the network.
    """
    requirement("onnx", "onnx")
    requirement("onnxscript", "onnx")
    stride, dynamic = model.output_stride, torch.export.Dim.DYNAMIC
    height, width = interface.size or (4 * stride + 1, 6 * stride + 1)
    if model.upsampling != "grid" and not interface.size:
        height, width = 4 * stride, 6 * stride  # as images are there
    example = torch.zeros(2, 3, height, width)
    dims = {0: dynamic} if interface.size else {0: dynamic, 2: dynamic, 3: dynamic}
    source = IMAGES if interface.raw_input and _is_unpadded(model, interface) else NETWORK_INPUT
    network = Network(model, pads=interface.size is not None)
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                network, (example,), dynamo=True, dynamic_shapes=(dims,), opset_version=OPSET, input_names=[source],
                output_names=[NETWORK_OUTPUT], verbose=False,
            )  # fmt: skip
        except Exception as error:  # PyTorch's exporter wraps whatever went wrong
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ValueError(f"PyTorch's ONNX exporter cannot take {model.backbone.name}: {reason}") from error
    assert program is not None
    made = program.model_proto
    _strip(made)
    return made


def wrapped(network: Any, model: DeepLabV3, interface: Interface) -> Any:
    """A whole model: the nodes before the network, the network, and the nodes after it."""
    helper = requirement("onnx.helper", "onnx")
    before, after = _Nodes("before"), _Nodes("after")
    images, size = _write_before(before, model, interface)
    output = _write_after(after, size, model, interface)
    body = network.graph
    graph = helper.make_graph(
        [*before.nodes, *body.node, *after.nodes], "atrous", [images], [output],
        [*before.constants, *body.initializer, *after.constants],
        value_info=[*body.value_info, *(v for v in body.input if v.name != IMAGES), *body.output],
    )  # fmt: skip
    opsets = [helper.make_opsetid(opset.domain, opset.version) for opset in network.opset_import]
    return helper.make_model(graph, opset_imports=opsets, ir_version=network.ir_version, producer_name="atrous")


def describe(program: Any, card: str, info: dict[str, Any], documentation: str) -> None:
    """Write the model card and what the file takes and gives into an ONNX model."""
    helper = requirement("onnx.helper", "onnx")
    helper.set_model_props(program, {"atrous": card, "atrous_export": json.dumps(info, sort_keys=True)})
    program.doc_string = documentation


def module_of_node(node: Any) -> str:
    """The path of the module, in the PyTorch network, that a node was made from; "" for none."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = [scope for scope in entry.value.strip("[]").replace("'", "").split(", ") if "." in scope]
            return scopes[-1].removeprefix("model.") if scopes else ""
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' own remarks off standard output and standard error, those of their C++ code, too."""
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable()
        with contextlib.suppress(OSError):  # of a caller that closed it
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


class _Nodes:
    """Nodes and constants under a common prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.nodes, self.constants = prefix, list[Any](), list[Any]()

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"{self.prefix}_constant_{len(self.constants)}"
        numpy_helper = requirement("onnx.numpy_helper", "onnx")
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{self.prefix}_{kind.lower()}_{len(self.nodes)}"
        helper = requirement("onnx.helper", "onnx")
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{self.prefix}_node_{len(self.nodes)}",
                                           **attributes))  # fmt: skip
        return output

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)


def _write_before(to: _Nodes, model: DeepLabV3, interface: Interface) -> tuple[Any, str]:
    """From the file's input to what the network takes; the input, and the name of its H and W, int64."""
    onnx, helper = requirement("onnx", "onnx"), requirement("onnx.helper", "onnx")
    height, width = interface.size or ("height", "width")
    shape: list[Any] = ["batch", 3, height, width] if interface.raw_input else ["batch", height, width, 3]
    kind = onnx.TensorProto.FLOAT if interface.raw_input else onnx.TensorProto.UINT8
    x, last = IMAGES, NETWORK_INPUT if _is_unpadded(model, interface) else ""
    if not interface.raw_input:
        # Moved as bytes, and normalised a plane at a time: colours side by side take ONNX Runtime 30 times as long.
        x = to.node("Cast", [to.node("Transpose", [x], perm=[0, 3, 1, 2])], to=onnx.TensorProto.FLOAT)
        scale = np.reshape([255 * part for part in model.std], (3, 1, 1))
        shift = np.reshape([mean / std for mean, std in zip(model.mean, model.std, strict=True)], (3, 1, 1))
        x = to.node("Div", [x, to.constant(scale, np.float32)])
        x = to.node("Sub", [x, to.constant(shift, np.float32)], last)
    if interface.size:
        size = to.integers(*interface.size)
    else:
        size = to.node("Shape", [IMAGES], start=shape.index("height"), end=shape.index("width") + 1)
    if not last:
        to.node("Pad", [x, _pads(to, size, model.output_stride, model.upsampling)], NETWORK_INPUT)
    return helper.make_tensor_value_info(IMAGES, kind, shape), size


def _is_unpadded(model: DeepLabV3, interface: Interface) -> bool:
    """Whether nothing is padded before the network: it does so itself, or takes images as they are."""
    return interface.size is not None or model.upsampling == "half_pixel"


def _pads(to: _Nodes, size: str, stride: int, upsampling: Upsampling) -> str:
    """Name of the padding of B,3,H,W, by the name of H and W: see `atrous.ops.resize.padded_size`."""
    rest = 1 if upsampling == "grid" else 0
    cells = to.node("Div", [to.node("Add", [size, to.integers(stride - 1 - rest)]), to.integers(stride)])
    padded = to.node("Add", [to.node("Mul", [cells, to.integers(stride)]), to.integers(rest)])
    return to.node("Concat", [to.integers(0, 0, 0, 0, 0, 0), to.node("Sub", [padded, size])], axis=0)


def _write_after(to: _Nodes, size: str, model: DeepLabV3, interface: Interface) -> Any:
    """From `NETWORK_OUTPUT` to the file's output, which is returned."""
    onnx, helper = requirement("onnx", "onnx"), requirement("onnx.helper", "onnx")
    height, width = interface.size or ("height", "width")
    down = _interpolation(to, size, 0, model, interface)
    across = to.node("Transpose", [_interpolation(to, size, 1, model, interface)], perm=[1, 0])
    wide = to.node("MatMul", [NETWORK_OUTPUT, across])
    if interface.logits:
        to.node("MatMul", [down, wide], "logits")
        return helper.make_tensor_value_info(
            "logits", onnx.TensorProto.FLOAT, ["batch", model.num_classes, height, width]
        )
    dtype = {torch.uint8: "UINT8", torch.int16: "INT16", torch.int32: "INT32"}[class_map_dtype(model.num_classes)]
    kind = getattr(onnx.TensorProto, dtype)
    best = to.node("ArgMax", [to.node("MatMul", [down, wide])], axis=1, keepdims=0)
    to.node("Cast", [best], "classes", to=kind)
    return helper.make_tensor_value_info("classes", kind, ["batch", height, width])


def _interpolation(to: _Nodes, size: str, axis: int, model: DeepLabV3, interface: Interface) -> str:
    """Name of the weights, pixels by features, of bilinear interpolation along one axis.

    A pixel and feature ``j`` are ``place - j * step`` apart, in whole numbers: the weight is 1 at 0, and 0 at `step`.
    On the grid the place is the pixel and the step the output stride (`atrous.ops.resize.Upsampling`).
    """
    stride = model.output_stride
    if interface.size:
        return to.constant(_fixed_weights(interface.size[axis], stride, model.upsampling), np.float32)
    onnx = requirement("onnx", "onnx")
    zero, one, two, step = (to.constant(value, np.int64) for value in (0, 1, 2, stride))
    side = to.node("Gather", [size, to.constant(axis, np.int64)])
    count = to.node("Squeeze", [to.node("Shape", [NETWORK_OUTPUT], start=2 + axis, end=3 + axis)])
    place, last = to.node("Range", [zero, side, one]), to.node("Sub", [count, one])
    if model.upsampling == "corners":
        place, step = to.node("Mul", [place, last]), to.node("Sub", [to.node("Mul", [count, step]), one])
    elif model.upsampling == "half_pixel":
        step = to.node("Mul", [side, two])
        doubled = to.node("Add", [to.node("Mul", [place, two]), one])
        place = to.node("Sub", [to.node("Mul", [doubled, count]), side])
        place = to.node("Min", [to.node("Max", [place, zero]), to.node("Mul", [last, step])])
    features = to.node("Mul", [to.node("Range", [zero, count, one]), step])
    apart = to.node("Abs", [to.node("Sub", [to.node("Unsqueeze", [place, to.integers(1)]), features])])
    near = to.node("Cast", [to.node("Sub", [step, to.node("Min", [apart, step])])], to=onnx.TensorProto.FLOAT)
    return to.node("Div", [near, to.node("Cast", [step], to=onnx.TensorProto.FLOAT)])


def _fixed_weights(side: int, stride: int, upsampling: Upsampling) -> Any:
    """`_interpolation` of one size."""
    count = feature_count(side, stride, upsampling)
    place, step = np.arange(side), stride
    if upsampling == "corners":
        place, step = place * (count - 1), count * stride - 1
    elif upsampling == "half_pixel":
        place, step = ((2 * place + 1) * count - side).clip(0, 2 * side * (count - 1)), 2 * side
    return (step - np.abs(place[:, None] - step * np.arange(count)).clip(max=step)) / step


def _strip(program: Any) -> None:
    """Leave out what the exporter writes about itself, paths of files among it; the modules' names stay."""
    graph = program.graph
    for entry in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph, program):
        kept = [(p.key, p.value) for p in entry.metadata_props if p.key == _SCOPES]
        del entry.metadata_props[:]
        for key, value in kept:
            entry.metadata_props.add(key=key, value=value)
        if entry.HasField("doc_string"):
            entry.ClearField("doc_string")
