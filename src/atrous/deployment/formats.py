"""A class for each export format: how a file of it is made, written, opened and inspected."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from atrous.deployment import litert, torch_export
from atrous.deployment import onnx as onnx_file
from atrous.deployment import openvino as openvino_file
from atrous.deployment.network import Interface
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import (
    IMAGES,
    NETWORK_INPUT,
    NetworkAlone,
    Runtime,
    cut_onnx,
    cut_openvino,
    open_file,
    openvino_runtime,
    requirement,
)
from atrous.models.weights import ModelCard


class Whole:
    """An opened file that runs whole alone, so that it is no model for prediction.

    Attributes:
        name: of what runs it.
        run: images as it takes them, to classes or logits.
    """

    def __init__(self, name: str, run: Callable[[Tensor], Tensor]) -> None:
        self.name, self.run = name, run


class Format:
    """A form of a file.

    Attributes:
        suffix: of its name.
        extra: of this package, with which what it needs is installed.
        packages: that it needs.
        batches: images in a call for which file and model are compared.
    """

    suffix: str
    extra = ""
    packages: tuple[str, ...] = ("torch",)
    batches: tuple[int, ...] = (1, 2)

    def __init__(self, model: DeepLabV3, interface: Interface) -> None:
        raise NotImplementedError

    def save(self, path: Path, card: ModelCard, info: dict[str, Any]) -> None:
        """Write the file with its metadata."""
        raise NotImplementedError

    @staticmethod
    def open(path: Path) -> Runtime | Whole:
        """Open a written file."""
        return open_file(path)

    def layers(self) -> dict[str, str]:
        """The convolutions by the paths of their modules: their names in the file. Empty where it runs whole alone."""
        return {}

    def taps(self, path: Path, layers: Sequence[str], images: Tensor) -> Mapping[str, Tensor]:
        """Outputs of layers in the written file; `layers` are paths of modules."""
        raise NotImplementedError


class Onnx(Format):
    """An ONNX file."""

    suffix, extra, packages = ".onnx", "onnx", ("torch", "onnx", "onnxscript", "onnxruntime")
    quantiser = "onnxruntime"

    def __init__(self, model: DeepLabV3, interface: Interface) -> None:
        self.model, self.interface = model, interface
        self.network = onnx_file.network_to_onnx(model, interface)

    @property
    def source(self) -> str:
        """The value at which the network begins."""
        return IMAGES if self.interface.raw_input else NETWORK_INPUT

    def save(self, path: Path, card: ModelCard, info: dict[str, Any]) -> None:  # noqa: D102
        whole = onnx_file.wrapped(self.network, self.model, self.interface)
        onnx_file.describe(whole, card.to_json(), info, about(card, info))
        requirement("onnx", "onnx").save(whole, str(path))

    def layers(self) -> dict[str, str]:  # noqa: D102
        return self.layers_of(self.network)

    @staticmethod
    def layers_of(network: Any) -> dict[str, str]:
        """As `layers`, of an ONNX model: the names of their outputs."""
        nodes = [node for node in network.graph.node if node.op_type == "Conv"]
        return {path: node.output[0] for node in nodes if (path := onnx_file.module_of_node(node))}

    def taps(self, path: Path, layers: Sequence[str], images: Tensor) -> Mapping[str, Tensor]:  # noqa: D102
        onnx, runtime = requirement("onnx", "onnx"), requirement("onnxruntime", "onnx")
        names = [self.layers()[layer] for layer in layers]
        cut = cut_onnx(onnx.load(str(path)), self.source, names)
        session = runtime.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs = session.run(names, {session.get_inputs()[0].name: images.numpy()})
        return dict(zip(layers, map(torch.from_numpy, outputs), strict=True))


class OpenVino(Onnx):
    """An OpenVINO file, converted from ONNX."""

    suffix, extra, packages = ".xml", "openvino", ("torch", "openvino", "onnx", "onnxscript")
    quantiser = "nncf"
    quantised: Any = None
    """An OpenVINO model of the network alone, in place of `network`."""

    def float_model(self) -> Any:
        """The OpenVINO model in float32."""
        whole = onnx_file.wrapped(self.network, self.model, self.interface)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            requirement("onnx", "openvino").save(whole, str(path))
            return openvino_file.from_onnx(path)

    def save(self, path: Path, card: ModelCard, info: dict[str, Any]) -> None:  # noqa: D102
        model = self.float_model()
        if self.quantised is not None:
            model = openvino_file.with_network(model, self.quantised, self.source)
        openvino_file.save(model, path, card, info)

    def taps(self, path: Path, layers: Sequence[str], images: Tensor) -> Mapping[str, Tensor]:  # noqa: D102
        openvino = openvino_runtime()
        model, names = openvino.Core().read_model(str(path)), [self.layers()[layer] for layer in layers]
        cut = cut_openvino(model, self.source, names)
        compiled = openvino.compile_model(cut, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled(images.numpy())
        return {layer: torch.from_numpy(results[i].copy()) for i, layer in enumerate(layers)}


class Torch(Format):
    """A ``torch.export`` program."""

    suffix = ".pt2"

    def __init__(self, model: DeepLabV3, interface: Interface) -> None:
        self.program = torch_export.program_of(model, interface)

    def save(self, path: Path, card: ModelCard, info: dict[str, Any]) -> None:  # noqa: D102
        torch_export.save(self.program, path, card.to_json(), info)

    def layers(self) -> dict[str, str]:  # noqa: D102
        return _convolutions(self.program.module().graph)

    def taps(self, path: Path, layers: Sequence[str], images: Tensor) -> Mapping[str, Tensor]:  # noqa: D102
        program, outputs = torch.export.load(path), dict[str, Tensor]()
        module = program.module()
        paths = {name: layer for layer, name in _convolutions(module.graph).items()}

        class Noting(NetworkAlone):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if n.name in paths:
                    outputs[paths[n.name]] = result.clone()
                return result

        b, c, height, width = images.shape
        placeholder = next(node for node in module.graph.nodes if node.op == "placeholder")
        raw = placeholder.meta["val"].dtype != torch.uint8
        example = torch.zeros(b, c, height, width) if raw else torch.zeros(b, height, width, c, dtype=torch.uint8)
        Noting(module, images).logits(example)
        return {layer: outputs[layer] for layer in layers if layer in outputs}


class AheadOfTime(Format):
    """A library compiled by AOTInductor."""

    suffix = ".pt2"

    def __init__(self, model: DeepLabV3, interface: Interface) -> None:
        self.program = torch_export.program_of(model, interface, limited=True)

    def save(self, path: Path, card: ModelCard, info: dict[str, Any]) -> None:  # noqa: D102
        torch_export.compile_ahead(self.program, path, card.to_json(), info)

    @staticmethod
    def open(path: Path) -> Whole:  # noqa: D102
        return Whole("AOTInductor", torch._inductor.aoti_load_package(str(path)))


class LiteRt(Format):
    """A LiteRT file: one image at a time, of one size."""

    suffix, extra, packages, batches = ".tflite", "litert", ("torch", "litert_torch"), (1,)

    def __init__(self, model: DeepLabV3, interface: Interface) -> None:
        self.content = litert.converted(model, interface)

    def save(self, path: Path, card: ModelCard, info: dict[str, Any]) -> None:  # noqa: D102
        litert.save(self.content, path, card.to_json(), info, about(card, info))

    @staticmethod
    def open(path: Path) -> Whole:  # noqa: D102
        return Whole("LiteRT", litert.opened(path))


FORMATS: dict[str, type[Format]] = {"onnx": Onnx, "openvino": OpenVino, "torch": Torch, "litert": LiteRt}
"""By the name that ``--format`` takes; ``--aot`` makes `AheadOfTime` of torch."""


def _convolutions(graph: fx.Graph) -> dict[str, str]:
    """The convolutions by the paths of their modules: the names of their nodes."""
    nodes = {}
    for node in graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if str(node.target).startswith(("aten.conv2d", "aten.convolution")) and stack:
            path = str(stack[-1][0])
            marker = "network.model."
            nodes[path[path.index(marker) + len(marker) :] if marker in path else path] = node.name
    return nodes


def about(card: ModelCard, info: dict[str, Any]) -> str:
    """What a file takes and gives, in words."""
    height, width = info["size"] or ("H", "W")
    batch = info["batch"] or "B"
    takes = f"float32 {batch},3,{height},{width}, (RGB / 255 - mean) / std" if info["raw_input"] else (
        f"uint8 RGB {batch},{height},{width},3"
    )  # fmt: skip
    gives = f"float32 logits {batch},{len(card.names)},{height},{width}" if info["logits"] else (
        f"class ids {batch},{height},{width}"
    )  # fmt: skip
    resized = f"; resize images to a longest side of {card.longest_side} first" if card.longest_side else ""
    return f"takes {takes}{resized}; gives {gives}"
