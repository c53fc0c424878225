"""`.pt2` files: a ``torch.export`` program that runs wherever PyTorch is, or a library compiled by AOTInductor.

Neither needs this package:

    torch.export.load("model.pt2").module()(images)                 # uint8 B,H,W,3 to uint8 B,H,W
    torch._inductor.aoti_load_package("model-aot.pt2")(images)
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from atrous.deployment.network import Interface, WholeNetwork
from atrous.deployment.onnx import quiet
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import CARD, INFO

_MOST = 1 << 15
"""Largest batch, height and width of a compiled library, whose indices must be known to fit."""


def program_of(model: DeepLabV3, interface: Interface, *, limited: bool = False) -> torch.export.ExportedProgram:
    """A lean model as a program from images to classes or logits.

    Args:
        model: in its lean form.
        interface: what the program takes and gives.
        limited: bound the sizes that it takes, which a compiler needs to know.

    Raises:
        ValueError: if PyTorch cannot export the network.
    """
    height, width = interface.size or (61, 93)
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    rows, columns = (1, 2)
    if interface.raw_input:
        example, rows, columns = torch.zeros(2, 3, height, width), 2, 3
    bounds: dict[str, Any] = {"max": _MOST} if limited else {}
    dims: dict[int, Any] = {0: torch.export.Dim("batch", **bounds)}
    if not interface.size and model.upsampling == "grid":
        dims |= {rows: torch.export.Dim("height", **bounds), columns: torch.export.Dim("width", **bounds)}
    elif not interface.size:  # with these, PyTorch wants more than one feature a side, and finds the least size itself
        dims |= dict.fromkeys((rows, columns), torch.export.Dim.DYNAMIC(**bounds))
    with quiet(), torch.no_grad():
        try:
            return torch.export.export(WholeNetwork(model, interface).eval(), (example,), dynamic_shapes=(dims,))
        except Exception as error:  # of many kinds
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"torch.export cannot take {model.backbone.name}: {reason}") from error


def save(program: torch.export.ExportedProgram, path: Path, card: str, info: dict[str, Any]) -> None:
    """Write a program with its metadata."""
    content = io.BytesIO()  # PyTorch's own writer ends the process where the disk is full
    torch.export.save(program, content, extra_files={CARD: card, INFO: json.dumps(info, sort_keys=True)})
    path.write_bytes(content.getbuffer())


def compile_ahead(program: torch.export.ExportedProgram, path: Path, card: str, info: dict[str, Any]) -> None:
    """Compile a program into a library for this kind of processor, with its metadata.

    Raises:
        ValueError: if there is no C++ compiler.
    """
    if compiler() is None:
        raise ValueError("AOTInductor needs a C++ compiler, g++ or clang++, and there is none; leave out --aot")
    metadata, content = {CARD: card, INFO: json.dumps(info, sort_keys=True)}, io.BytesIO()
    with quiet():
        torch._inductor.aoti_compile_and_package(
            program, package_path=content, inductor_configs={"aot_inductor.metadata": metadata}
        )
    path.write_bytes(content.getbuffer())


def compiler() -> str | None:
    """The C++ compiler that PyTorch would call, or None."""
    return shutil.which("g++") or shutil.which("clang++")
