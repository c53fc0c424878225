"""LiteRT files (`.tflite`): one image at a time, of one size, converted by litert-torch."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atrous.deployment.network import Interface, WholeNetwork
from atrous.deployment.onnx import quiet
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import CARD, INFO, requirement


def converted(model: DeepLabV3, interface: Interface) -> bytes:
    """A lean model as the bytes of a LiteRT file.

    Raises:
        ValueError: if litert-torch is missing, or cannot convert the network.
    """
    assert interface.size is not None
    shape = (1, 3, *interface.size) if interface.raw_input else (1, *interface.size, 3)
    example = torch.zeros(shape, dtype=torch.float32 if interface.raw_input else torch.uint8)
    with quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        try:
            litert = requirement("litert_torch", "litert")
            litert.convert(WholeNetwork(model, interface).eval(), (example,)).export(f"{folder}/model.tflite")
            return Path(folder, "model.tflite").read_bytes()
        except Exception as error:  # of many kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"litert-torch cannot take {model.backbone.name}: {reason}") from error


def save(content: bytes, path: Path, card: str, info: dict[str, Any], about: str) -> None:
    """Write a file, its input and output named as in the other formats, with its metadata."""
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers = importlib.import_module("flatbuffers")
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    model.description = about
    [signature] = model.signatureDefs
    signature.inputs[0].name, signature.outputs[0].name = "images", "logits" if info["logits"] else "classes"
    for name, text in ((CARD, card), (INFO, json.dumps(info, sort_keys=True))):
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(text.encode(), np.uint8)
        entry.name, entry.buffer = name, len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """What runs a file on the CPU, from an image as it takes it to classes or logits."""
    with quiet():
        interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(model_path=str(path))
        run = interpreter.get_signature_runner()

    def call(images: Tensor) -> Tensor:
        with quiet():
            [output] = run(images=images.numpy()).values()
        return torch.from_numpy(output)

    return call
