"""OpenVINO files (.xml and .bin), converted from the ONNX model, with the labels where OpenVINO's own tools look."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from atrous.deployment.onnx import quiet
from atrous.models.exported import CARD, INFO, NETWORK_OUTPUT, openvino_runtime
from atrous.models.weights import ModelCard


def from_onnx(path: Path) -> Any:
    """An OpenVINO model from an ONNX file.

    Raises:
        ValueError: if OpenVINO is missing or cannot convert it.
    """
    openvino = openvino_runtime()
    try:
        with quiet():
            return openvino.convert_model(str(path))
    except Exception as error:
        raise ValueError(f"OpenVINO cannot take this network: {str(error).strip().splitlines()[0]}") from error


def with_network(model: Any, network: Any, source: str) -> Any:
    """A whole model with another network in its middle: what `cut_openvino` cut out from `source` on, quantised."""
    openvino = openvino_runtime()
    values = {name: output for node in model.get_ops() for output in node.outputs() for name in output.get_names()}
    before, after = values[source], values[NETWORK_OUTPUT]
    [parameter], [result] = network.get_parameters(), network.get_results()
    made = result.input_value(0)
    targets = list(after.get_target_inputs())
    for target in parameter.output(0).get_target_inputs():
        target.replace_source_output(before)
    for target in targets:
        target.replace_source_output(made)
    after.set_names(set())
    made.set_names({NETWORK_OUTPUT})
    before.set_names({source})
    return openvino.Model(model.get_results(), model.get_parameters(), "atrous")


def save(model: Any, path: Path, card: ModelCard, info: dict[str, Any]) -> None:
    """Write a model's two files with its metadata; `path` is that of the .xml file."""
    model.set_rt_info(card.to_json(), CARD)
    model.set_rt_info("segmentation", ["model_info", "model_type"])
    model.set_rt_info(" ".join(name.replace(" ", "_") for name in card.names), ["model_info", "labels"])
    _write(model, path)
    # The weights' file is the same whatever the metadata is, so their digest can be a part of it.
    digest = hashlib.sha256(path.with_suffix(".bin").read_bytes()).hexdigest()
    model.set_rt_info(json.dumps({**info, "weights": digest}, sort_keys=True), INFO)
    _write(model, path)


def _write(model: Any, path: Path) -> None:
    """Let OpenVINO write its files; it does not say why it could not, so a full disk is looked for."""
    try:
        openvino_runtime().save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        needed = sum(op.data.nbytes for op in model.get_ops() if op.get_type_name() == "Constant")
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
