"""Read checkpoint files and run nothing in them: safetensors, pickles, NumPy, TensorFlow."""

from __future__ import annotations

import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from atrous.messages import listed
from atrous.models.interchange import pickles, tensorflow
from atrous.models.interchange.base import Checkpoint

PICKLES = frozenset({".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl"})
"""Suffixes of what PyTorch's and other libraries' training programs write."""
TENSORFLOW = tensorflow.KERAS | tensorflow.GRAPHS | {tensorflow.INDEX}
"""Suffixes of TensorFlow's and Keras's files."""
_STATES = ("state_dict", "model_state", "model_state_dict", "model", "net", "weights", "ema_state_dict")
"""Where training programs put the tensors, beside an optimizer's."""
_WRAPPERS = ("module.", "_orig_mod.")
_ATTRIBUTES = ("model.", "net.", "network.")
_MOST_CONFIG_BYTES = 1 << 20
_MOST_UNPACKED = 20
"""Times the size of a compressed archive: weights shrink little."""


def read_file(path: Path) -> Checkpoint:
    """The tensors of a file, or of a folder with ``config.json`` and a weight file (``save_pretrained``).

    A checkpoint of TensorFlow may be named by what its files have in common, or by one of them.

    Raises:
        FileNotFoundError: if there is no such file, or no weight file in the folder.
        ValueError: if it cannot be read as data alone, or holds no tensors.
    """
    folder = path if path.is_dir() else path.parent
    file = _weight_file(path) if path.is_dir() else tensorflow.table_of(path) or path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a checkpoint")
    if file.suffix.lower() in tensorflow.GRAPHS:
        raise ValueError(f"{file} holds a graph of TensorFlow; expected the checkpoint beside it, NAME.index")
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": _read_safetensors, ".npz": _read_npz, tensorflow.INDEX: tensorflow.read_checkpoint,
        **dict.fromkeys(tensorflow.KERAS, _read_keras),
    }  # fmt: skip
    check_is_whole(file)
    content = readers.get(file.suffix.lower(), pickles.read)(file)
    state, meta = _state_of(file, content)
    if file.name.partition(".")[0] in ("model", "pytorch_model"):
        for key, name in {"config": "config.json", "preprocessor": "preprocessor_config.json"}.items():
            if (folder / name).is_file():
                meta[key] = _read_json(folder / name)
    return Checkpoint(path, state, meta)


def check_is_whole(path: Path) -> None:
    """Refuse what was fetched in place of a file.

    Raises:
        ValueError: if it is empty, a pointer of Git LFS or a page of HTML.
    """
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    kinds = {b"version https://git-lfs": "is a pointer of Git LFS and not the file; fetch it by: git lfs pull",
             b"<": "is a page of HTML and not the file; fetch it again"}  # fmt: skip
    if what := "is empty" if not start else next((kinds[kind] for kind in kinds if start.startswith(kind)), ""):
        raise ValueError(f"{path} {what}")


def _weight_file(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin")


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_CONFIG_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected a configuration of at most a megabyte")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return config


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_npz(path: Path) -> dict[str, Any]:
    """The arrays of numbers in an archive of NumPy's, none larger than its entry says."""
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_UNPACKED * os.path.getsize(path):
                raise ValueError("it unpacks to far more than it holds")
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = _read_npy(file, entry.file_size)
    except Exception as error:  # a forged archive can raise anything
        raise ValueError(f"{path} is not a whole .npz file of numbers: {str(error)[:200]}") from None
    return arrays


def _read_keras(path: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        tensorflow.keras_as_npz(path, arrays)
        tensors = _read_npz(arrays)
    if path.suffix.lower() == ".keras":
        names = tensorflow.layers_of_archive(path)
        parts = {key: key.split("/") for key in tensors}
        return {"/".join(names.get(part, part) for part in parts[key]): value for key, value in tensors.items()}
    if any("batch_normalization/vars/" in key for key in tensors):
        raise ValueError(f"{path} does not hold the names of its layers; save the whole model as .keras, or as .h5")
    return tensors


def _read_npy(file: Any, size: int) -> Tensor:
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = header[version](file)
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array is {dtype} of the shape {shape}, expected numbers that it holds")
    values = np.frombuffer(file.read(), dtype, math.prod(shape)).reshape(shape, order="F" if fortran else "C")
    native = np.ascontiguousarray(values, dtype.newbyteorder("=")).reshape(shape)
    return torch.from_numpy(native.copy())


def _state_of(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in what a file holds, and all else."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a dictionary of tensors")
    meta: dict[str, Any] = {}
    state: Mapping[Any, Any] = content
    place = next((key for key in _STATES if isinstance(content.get(key), Mapping) and _tensors(content[key])), "")
    if place and len(_tensors(content)) < len(_tensors(content[place])):
        state = content[place]
        for key in ("meta", "hyper_parameters"):
            if isinstance(content.get(key), Mapping):
                meta |= {name: value for name, value in content[key].items() if isinstance(name, str)}
        if isinstance(content.get("config"), Mapping):
            meta["config"] = {name: value for name, value in content["config"].items() if isinstance(name, str)}
    tensors = _unwrapped(_tensors(state))
    if not tensors:
        raise ValueError(f"{path} holds no tensors; found {listed(list(map(_shown, content))) or 'nothing'}")
    if odd := next((key for key in tensors if not key.isprintable()), None):
        raise ValueError(f"{path}: one of its tensors has the name {odd[:80]!r}, which is none of a layer")
    for key, value in tensors.items():
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {key} says that it has the shape {tuple(value.shape)}, which the file does not hold"
            )
    return tensors, meta


def _shown(key: Any) -> str:
    return (key if key.isprintable() else ascii(key))[:80] if isinstance(key, str) else type(key).__name__


def _tensors(state: Mapping[Any, Any]) -> dict[Any, Tensor]:
    values = {key: value.tensor if isinstance(value, pickles.Array) else value for key, value in state.items()}
    return {key: value for key, value in values.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, and of the attribute that a training module holds its network in."""
    bare = {_without_wrappers(key): value for key, value in tensors.items()}
    attribute = next((name for name in _ATTRIBUTES if all(key.startswith(name) for key in bare)), "")
    return {_without_wrappers(key.removeprefix(attribute)): value for key, value in bare.items()}


def _without_wrappers(key: str) -> str:
    while wrapper := next((prefix for prefix in _WRAPPERS if key.startswith(prefix)), ""):
        key = key.removeprefix(wrapper)
    return key
