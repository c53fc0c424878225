"""Exported files (ONNX, OpenVINO, torch.export) as networks, with the interface of `DeepLabV3`.

    runtime = open_file(Path("model.onnx"))
    runtime.run(images)       # the whole file: what it was exported to take and to give
    runtime.network(images)   # the network in it alone: normalised images on the grid to small logits

Prediction and evaluation need the network alone: they resize, average scales and flips, and cut large images into
windows by themselves, as for weights (`ExportedDeepLabV3`). The file's own nodes around the network are left out then.
The runtimes are extras; each is imported when a file for it is opened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor, fx, nn

from atrous.messages import listed
from atrous.models.backbone import Backbone
from atrous.models.deeplab import DeepLabV3
from atrous.ops.conv_kernels.tap_gemm import has_amx
from atrous.ops.resize import Upsampling, feature_count, padded_size

IMAGES, NETWORK_INPUT, NETWORK_OUTPUT = "images", "network_input", "network_output"
"""Names, in ONNX and OpenVINO files: the file's input, what the network in them takes, and what it gives.

A file that takes normalised images, or images of one size alone, has its padding inside the network."""

SUFFIXES = {".onnx": "ONNX", ".xml": "OpenVINO", ".pt2": "torch.export"}
"""Of exported files."""

CARD, INFO = "atrous", "atrous_export"
"""Keys of an exported file's metadata: the model card, and what the file takes and gives; JSON both."""

_TOP = 1 << 20
"""Largest metadata that is read from a `.pt2` file, in bytes."""


def is_exported(path: str | Path) -> bool:
    """Whether a name is that of an exported file, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES


def requirement(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Raises:
        ValueError: if it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ValueError(f"{name} is not installed: pip install 'atrous[{extra}]'") from error


class Runtime:
    """An exported file, opened.

    Attributes:
        path: of the file.
        card: its model card, as JSON.
        info: what it takes and gives: ``raw_input``, ``logits``, ``size``, ``output_stride``, ``int8``, ``versions``.
        digest: SHA-256 of the file, 64 hexadecimal digits.
    """

    name: str

    def __init__(self, path: Path, metadata: Mapping[str, str], digest: str) -> None:
        if CARD not in metadata or INFO not in metadata:
            raise ValueError(f"{path} has no model card of atrous in it; expected a file that atrous export wrote")
        try:
            info = json.loads(metadata[INFO])
            assert isinstance(info, dict) and isinstance(info["output_stride"], int) and info["output_stride"] > 0
            assert {"raw_input", "logits", "size"} <= info.keys()
            assert info["size"] is None or [type(side) for side in info["size"]] == [int, int]
        except (ValueError, AssertionError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: what it says about its input is not well formed") from error
        self.path, self.card, self.info, self.digest = path, metadata[CARD], info, digest

    def run(self, images: Tensor) -> Tensor:
        """Run the whole file: images as it takes them, to classes or logits."""
        raise NotImplementedError

    def network(self, images: Tensor) -> Tensor:
        """Run the network alone: normalised images on the grid, float32 B,3,H,W, to logits, float32 B,K,h,w."""
        raise NotImplementedError

    @property
    def network_input(self) -> str:
        """The value, in ONNX and OpenVINO files, at which the network begins."""
        return IMAGES if self.info["raw_input"] else NETWORK_INPUT

    def array(self, images: Tensor) -> Any:
        """Images for the network as NumPy's; where the file has one size alone, without the padding to the grid."""
        height, width = self.info["size"] or images.shape[-2:]
        return np.ascontiguousarray(images[..., :height, :width].cpu().numpy())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes


class OnnxRuntime(Runtime):
    """An ONNX file, run by ONNX Runtime on the CPU."""

    name = "ONNX Runtime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        requirement("onnxruntime", "onnx")
        self.threads = threads or torch.get_num_threads()
        data = path.read_bytes()
        self._whole: Any = self._session(data, path)
        super().__init__(path, self._whole.get_modelmeta().custom_metadata_map, hashlib.sha256(data).hexdigest())
        self._network: Any = None

    def run(self, images: Tensor) -> Tensor:  # noqa: D102
        self._whole = whole = self._whole or self._session(self.path.read_bytes(), self.path)
        return self._run(whole, np.ascontiguousarray(images.cpu().numpy()))

    def network(self, images: Tensor) -> Tensor:  # noqa: D102
        if self._network is None:
            onnx = requirement("onnx", "onnx")
            cut = cut_onnx(onnx.load(str(self.path)), self.network_input, [NETWORK_OUTPUT])
            self._network, self._whole = self._session(cut.SerializeToString(), self.path), None  # not both in memory
        return self._run(self._network, self.array(images))

    def _session(self, data: bytes, path: Path) -> Any:
        runtime = requirement("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 4
        try:
            return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has one class of errors for each kind
            raise ValueError(f"{path} is not a whole ONNX file: {_first_line(error)}") from error

    def _run(self, session: Any, array: Any) -> Tensor:
        [feed] = session.get_inputs()
        return torch.from_numpy(session.run(None, {feed.name: array})[0])


def cut_onnx(program: Any, source: str, outputs: Sequence[str]) -> Any:
    """The part of an ONNX model from one of its values to some others, as a model of its own.

    Raises:
        ValueError: if there is no such part.
    """
    helper = requirement("onnx.helper", "onnx")
    made_by = {value: node for node in program.graph.node for value in node.output}
    needed, wanted = set[int](), [*outputs]
    while wanted:
        value = wanted.pop()
        node = made_by.get(value)
        if value == source or node is None or id(node) in needed:
            continue
        needed.add(id(node))
        wanted += node.input
    nodes = [node for node in program.graph.node if id(node) in needed]
    used = {value for node in nodes for value in node.input}
    if source not in used or not set(outputs) <= made_by.keys():
        raise ValueError("the file has no network between the values that atrous export names")
    kind = requirement("onnx", "onnx").TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info(source, kind, None)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [constant for constant in program.graph.initializer if constant.name in used],
    )  # fmt: skip
    opsets = [helper.make_opsetid(opset.domain, opset.version) for opset in program.opset_import]
    return helper.make_model(graph, opset_imports=opsets, ir_version=program.ir_version)


class OpenVino(Runtime):
    """An OpenVINO file, run on the CPU in float32, whatever format the processor prefers."""

    name = "OpenVINO"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        openvino = openvino_runtime()
        self.threads = threads or torch.get_num_threads()
        weights = path.with_suffix(".bin")
        _check_xml(path)
        if not weights.is_file():
            raise FileNotFoundError(f"{weights} is missing: an OpenVINO model is a pair of files, .xml and .bin")
        try:
            self._model = openvino.Core().read_model(str(path))
        except Exception as error:
            raise ValueError(f"{path} is not a whole OpenVINO file: {_first_line(error)}") from error
        held = [key for key in (CARD, INFO) if self._model.has_rt_info(key)]
        metadata = {key: self._model.get_rt_info(key).astype(str) for key in held}
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        super().__init__(path, metadata, hashlib.sha256(path.read_bytes() + digest.encode()).hexdigest())
        if self.info.get("weights") not in (None, digest):
            raise ValueError(f"{weights} is not the one that {path.name} was written with; export both again")
        self._whole: Any = None
        self._network: Any = None

    def run(self, images: Tensor) -> Tensor:  # noqa: D102
        self._whole = self._whole or self._compiled(self._model)
        return _first(self._whole, np.ascontiguousarray(images.cpu().numpy()))

    def network(self, images: Tensor) -> Tensor:  # noqa: D102
        if self._network is None:
            try:
                self._network = self._compiled(cut_openvino(self._model, self.network_input, [NETWORK_OUTPUT]))
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from error
        return _first(self._network, self.array(images))

    def _compiled(self, model: Any) -> Any:
        openvino = openvino_runtime()
        options = {"INFERENCE_NUM_THREADS": self.threads, "INFERENCE_PRECISION_HINT": "f32"}
        return openvino.compile_model(model, "CPU", options)


def _check_xml(path: Path) -> None:
    """Refuse a file of another tool, which OpenVINO would take for one of TensorFlow, and say so at length."""
    try:
        first = ElementTree.parse(path).getroot().tag
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not a whole OpenVINO file: {error}") from error
    if first != "net":
        raise ValueError(f"{path} is an XML file of another tool: it begins with <{first}>, expected <net>")


def _first(compiled: Any, array: Any) -> Tensor:
    """The output, by a request of its own, so that threads may share the model."""
    return torch.from_numpy(np.array(compiled.infer_new_request([array])[0]))


def openvino_runtime() -> Any:
    """OpenVINO, without AMX: with it networks in int8 end the process (2026.4), and float32 has no use for it.

    Raises:
        ValueError: as `requirement`.
    """
    openvino = requirement("openvino", "openvino")
    if has_amx():
        _run_first_network(openvino)
    return openvino


@functools.cache
def _run_first_network(openvino: Any) -> None:
    """OpenVINO reads once in a process which instructions it may use, at its first network: here, without AMX."""
    name = "ONEDNN_MAX_CPU_ISA"
    if name in os.environ:
        return
    torch.zeros(1, 8).to_mkldnn()  # PyTorch reads the same variable, once
    parameter = openvino.opset13.parameter([1, 8], np.float32)
    os.environ[name] = "AVX512_CORE_BF16"
    try:
        openvino.compile_model(openvino.Model([openvino.opset13.relu(parameter)], [parameter], "first"), "CPU")
    finally:
        del os.environ[name]


def cut_openvino(model: Any, source: str, outputs: Sequence[str]) -> Any:
    """The part of an OpenVINO model from one of its values to some others, as a model of its own.

    Raises:
        ValueError: if there is no such part.
    """
    openvino = openvino_runtime()
    copied = model.clone()
    values = {name: output for node in copied.get_ops() for output in node.outputs() for name in output.get_names()}
    if missing := {source, *outputs} - values.keys():
        raise ValueError(f"the file has no value {listed(sorted(missing))}, which atrous export names")
    start = values[source]
    parameter = openvino.opset13.parameter(start.get_partial_shape(), start.get_element_type())
    for target in start.get_target_inputs():
        target.replace_source_output(parameter.output(0))
    results = [openvino.opset13.result(values[name]) for name in outputs]
    return openvino.Model(results, [parameter], "network")


class TorchProgram(Runtime):
    """A ``torch.export`` program, run by PyTorch on the CPU."""

    name = "torch.export"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        del threads  # PyTorch's own
        super().__init__(path, _metadata_of_archive(path), hashlib.sha256(path.read_bytes()).hexdigest())
        try:
            self._module = torch.export.load(path).module()
        except Exception as error:
            raise ValueError(f"{path} is not a whole torch.export file: {_first_line(error)}") from error

    @torch.inference_mode()
    def run(self, images: Tensor) -> Tensor:  # noqa: D102
        output: Tensor = self._module(images.cpu())
        return output

    @torch.inference_mode()
    def network(self, images: Tensor) -> Tensor:  # noqa: D102
        b, c, height, width = images.shape
        dummy = torch.zeros(b, c, height, width) if self.info["raw_input"] else images.new_zeros(
            b, height, width, c, dtype=torch.uint8, device="cpu"
        )  # fmt: skip
        walk = NetworkAlone(self._module, images.cpu())
        return walk.logits(dummy)


class NetworkAlone(fx.Interpreter):
    """Runs a program that was exported, from its padded images, which are given, to its small logits."""

    def __init__(self, module: Any, images: Tensor) -> None:
        super().__init__(module)
        calls = [node for node in module.graph.nodes if node.op == "call_function"]
        padded = [node for node in calls if str(node.target).startswith(("aten.pad", "aten.constant_pad"))]
        enlarged = [node for node in calls if str(node.target).startswith("aten.upsample_bilinear2d")]
        if not padded or not enlarged:
            raise ValueError("the program has no padding or no upsampling: it is none of atrous export")
        self.start, self.end, self.images = padded[0], enlarged[-1].args[0], images

    def run_node(self, n: fx.Node) -> Any:
        """As `fx.Interpreter`, but for where the network begins, and without the program's check of its input."""
        if n.op == "call_module":
            return None
        return self.images if n is self.start else super().run_node(n)

    def logits(self, example: Tensor) -> Tensor:
        """The small logits; `example` has the size of the padded images."""
        graph: Any = self.module.graph
        for node in graph.nodes:
            if node.op == "placeholder":
                self.env[node] = example
            elif node.op != "output":
                self.env[node] = self.run_node(node)
            for done in self.user_to_last_uses.get(node, []):
                del self.env[done]
            if node is self.end:
                break
        result: Tensor = self.env[self.end]
        return result


def _metadata_of_archive(path: Path) -> dict[str, str]:
    """Metadata of a `.pt2` file, without running or unpickling anything of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any("aotinductor" in name for name in archive.namelist()):
                raise ValueError(
                    f"{path} was compiled by AOTInductor, which runs as a whole (torch._inductor.aoti_load_package); "
                    "expected a file that was exported without --aot"
                )
            # Of a file that was cut short, the archive of the example inside it can be what is found.
            if not any(name.endswith("models/model.json") for name in archive.namelist()):
                raise zipfile.BadZipFile("there is no models/model.json in it")
            metadata = {}
            for entry in archive.infolist():
                key = Path(entry.filename).name
                if key in (CARD, INFO) and entry.file_size <= _TOP and "extra" in entry.filename:
                    metadata[key] = archive.read(entry).decode()
            return metadata
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole torch.export file: {_first_line(error)}") from error


RUNTIMES: dict[str, type[OnnxRuntime] | type[OpenVino] | type[TorchProgram]] = {
    ".onnx": OnnxRuntime, ".xml": OpenVino, ".pt2": TorchProgram,
}  # fmt: skip
"""By the ending of a file's name."""


def open_file(path: Path, threads: int | None = None) -> Runtime:
    """Open an exported file.

    Args:
        path: its ending, one of `SUFFIXES`, says what runs it.
        threads: of the runtime; None for PyTorch's number.

    Raises:
        ValueError: if the runtime is not installed, or the file is not whole, or none of ours.
        FileNotFoundError: if there is no such file, or its second part is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return RUNTIMES[path.suffix.lower()](path, threads)


class ExportedBackbone(Backbone):
    """Stands for the backbone inside an exported file: its name, its normalisation, its one output stride."""

    def __init__(self, name: str, mean: Sequence[float], std: Sequence[float], output_stride: int) -> None:
        super().__init__()
        self.name, self.channels, self.output_stride = name, 0, output_stride
        self.mean, self.std = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

    @property
    def reachable(self) -> tuple[int, ...]:  # noqa: D102
        return (self.output_stride,)

    def set_output_stride(self, output_stride: int) -> None:  # noqa: D102
        if output_stride != self.output_stride:
            raise ValueError(
                f"the file was exported at output stride {self.output_stride} and has no other; "
                f"export it again with --output-stride {output_stride}"
            )


class ExportedDeepLabV3(DeepLabV3):
    """An exported file as a model for prediction and evaluation. It is float32 on the CPU and cannot be trained.

    Args:
        runtime: the opened file.
        arguments: of the `DeepLabV3` that was exported, from the file's card; so are the rest.
        mean: of each colour.
        std: likewise.
        longest_side: in pixels, or None.
    """

    def __init__(
        self,
        runtime: Runtime,
        arguments: Mapping[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
        longest_side: int | None,
    ) -> None:
        nn.Module.__init__(self)
        if arguments.get("upsampling", "grid") not in get_args(Upsampling):
            raise ValueError(f"{runtime.path}: its model card has the upsampling {arguments['upsampling']!r}")
        stride = runtime.info["output_stride"]
        self.runtime, self.arguments, self.longest_side = runtime, {**arguments}, longest_side
        self.num_classes, self._output_stride = arguments["num_classes"], stride
        self.upsampling = arguments.get("upsampling", "grid")
        self.backbone = ExportedBackbone(str(arguments.get("backbone")), mean, std, stride)
        self.last_conv, self.head, self.head_conv = nn.Identity(), nn.Identity(), nn.Identity()
        # It computes nothing: it stands for the device and the dtype of a model.
        self.classifier = nn.Conv2d(1, self.num_classes, 1).requires_grad_(False)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]
        self.register_buffer("file", torch.frombuffer(bytearray.fromhex(runtime.digest), dtype=torch.uint8))
        self.eval()

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of the only images that the file takes, as the network sees them; None for any."""
        size = self.runtime.info["size"]
        return (size[0], size[1]) if size else None

    def network(self, images: Tensor) -> Tensor:
        """As `DeepLabV3.network`, by the file's runtime.

        Raises:
            ValueError: if the file takes one size alone and `images` have another, or it gives something unforeseen.
        """
        fixed, stride = self.fixed_size, self._output_stride
        height, width = images.shape[-2:]
        if fixed and [padded_size(side, stride, self.upsampling) for side in fixed] != [height, width]:
            raise ValueError(
                f"{self.runtime.path} takes images of {fixed[0]}×{fixed[1]} pixels alone, found {height}×{width} with "
                "the padding; export it with --size dynamic"
            )
        logits = self.runtime.network(images.float())
        counts = (feature_count(side, stride, self.upsampling) for side in (height, width))
        expected = (len(images), self.num_classes, *counts)
        if tuple(logits.shape) != expected:
            raise ValueError(f"{self.runtime.path} gave {tuple(logits.shape)}, expected logits of {expected}")
        return logits.to(images.device)

    def for_inference(self, *, dtype: torch.dtype | None = None, compile: bool | str = False) -> Self:
        """The model as it is: a runtime has its own number format."""
        del dtype, compile
        return self

    def train(self, mode: bool = True) -> Self:
        """In ``eval()``, always; see `DeepLabV3`."""
        del mode
        return nn.Module.train(self, False)


def _first_line(error: BaseException) -> str:
    with contextlib.suppress(IndexError):
        lines = [line.strip() for line in str(error).strip().splitlines()]
        return next((line for line in lines if not line.startswith(("Exception from", "Check '"))), lines[0])[:300]
    return type(error).__name__
