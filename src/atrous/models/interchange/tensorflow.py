"""Read TensorFlow's checkpoints and Keras's files as arrays, without TensorFlow; no graph is looked at.

A checkpoint is a table of the tensors, ``NAME.index``, and their values, ``NAME.data-00000-of-00001``. The table is a
sorted one of LevelDB, whose values are small messages of protocol buffers. TensorFlow itself ends the process on some
damaged files, so they are read here. Keras's files are HDF5, alone or in an archive (``.keras``); h5py reads them, in
another process, since some files crash it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

INDEX, KERAS = ".index", frozenset({".h5", ".hdf5", ".keras"})
GRAPHS = frozenset({".meta", ".pb"})
"""Suffixes of what holds a graph."""

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_MOST_INDEX, _LONGEST_KEY = 1 << 26, 4096
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
"""By TensorFlow's numbers; tensors of other kinds, such as text, are passed over."""
_LONGEST = 120
_MOST_CONFIG = 1 << 24
_H5PY = """
import sys, os, h5py, numpy
arrays, left = {}, 20 * os.path.getsize(sys.argv[1])
def visit(name, item):
    global left
    if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu":
        if item.is_virtual or item.external:
            raise ValueError(name[:80] + " is kept in another file")
        left -= item.size * item.dtype.itemsize
        if left < 0:
            raise ValueError("it unpacks to far more than it holds")
        arrays[name] = item[()]
with h5py.File(sys.argv[1], "r") as file:
    file.visititems(visit)
numpy.savez(sys.argv[2], **arrays)
"""


def table_of(path: Path) -> Path | None:
    """The ``.index`` of a checkpoint that is named by what its files have in common, or by the one of its values.

    None for what is a file of another kind, or a folder.
    """
    values = path.suffix.startswith(".data-")
    if os.path.exists(path) and not values:
        return None
    index = path.with_suffix(INDEX) if values else Path(f"{path}{INDEX}")
    return index if os.path.isfile(index) else None


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of numbers in a checkpoint.

    Args:
        path: of its ``.index``.

    Raises:
        ValueError: if it is no such file, the values are not beside it, or it says more than they hold.
    """
    try:
        if path.stat().st_size > _MOST_INDEX:
            raise ValueError("a table of so many bytes is none of a network")
        return _read(path)
    except (IndexError, struct.error, OSError, OverflowError) as error:
        raise ValueError(f"{path} is not a whole checkpoint of TensorFlow: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint of TensorFlow that is known: {error}") from None


def _read(path: Path) -> dict[str, Tensor]:
    table = path.read_bytes()
    footer = table[-_FOOTER:]
    if len(footer) < _FOOTER or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as one")
    _, at = _handle(footer, 0)
    handle, _ = _handle(footer, at)
    entries: dict[bytes, bytes] = {}
    for _, value in _block(table, handle):
        entries.update(_block(table, _handle(value, 0)[0]))
    header = _numbers(entries.pop(b"", b""))
    shards = header.get(1, 1)
    if header.get(2):
        raise ValueError("its numbers have the largest byte first")
    files = [path.with_suffix(f".data-{i:05d}-of-{shards:05d}") for i in range(min(shards, 1000))]
    left = sum(file.stat().st_size for file in files)
    tensors = {}
    for name, message in entries.items():
        numbers = _numbers(message)
        parts = [(number, value) for number, value in _fields(message) if isinstance(value, bytes)]
        dtype, size = _DTYPES.get(numbers.get(1, 0)), numbers.get(5, 0)
        if dtype is None:
            continue
        if any(number == 7 for number, _ in parts):
            raise ValueError(f"{name[:80]!r} is kept in slices; save it in one piece")
        sides = [
            side for number, shape in parts if number == 2 for _, side in _fields(shape) if isinstance(side, bytes)
        ]
        shape = tuple(_numbers(side).get(1, 0) for side in sides)
        left -= size
        if math.prod(shape) * np.dtype(dtype).itemsize != size or left < 0:
            raise ValueError(f"{name[:80]!r} of the shape {shape} says that it has {size} bytes")
        with files[numbers.get(3, 0)].open("rb") as file:
            file.seek(numbers.get(4, 0))
            values = np.frombuffer(file.read(size), dtype, math.prod(shape))
        tensors[name.decode()] = torch.from_numpy(values.reshape(shape).copy())
    return tensors


def _block(table: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block; a key begins as the one before it, as far as its entry says."""
    start, size = handle
    block = table[start : start + size]
    if len(block) != size or table[start + size] != 0:
        raise ValueError("its table is cut off, or compressed")
    end, at, key = size - 4 - 4 * struct.unpack("<I", block[-4:])[0], 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or shared + own > _LONGEST_KEY or at + own + length > end:
            raise ValueError("its table is damaged")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    start, at = _varint(data, at)
    size, at = _varint(data, at)
    return (start, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number in it does not end")


def _numbers(message: bytes) -> dict[int, int]:
    """The fields of a message that are whole numbers."""
    return {number: value for number, value in _fields(message) if isinstance(value, int)}


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            length, at = _varint(message, at)
        elif not length:
            raise ValueError(f"a field in it is of kind {kind}")
        yield tag >> 3, message[at : at + length]
        at += length


def keras_as_npz(path: Path, out: Path) -> None:
    """Write the arrays in a file of Keras as ``.npz``, by h5py in another process.

    Args:
        path: ``.h5`` or ``.keras``.
        out: the file to write.

    Raises:
        ValueError: if it cannot be read, or h5py is not there.
    """
    if importlib.util.find_spec("h5py") is None:
        raise ValueError(f"{path}: Keras's files need h5py: pip install 'atrous[keras]'")
    with tempfile.TemporaryDirectory() as folder:
        held = path
        if path.suffix.lower() == ".keras":
            held = Path(folder) / "model.weights.h5"
            try:
                with zipfile.ZipFile(path) as archive:
                    if archive.getinfo(held.name).file_size > 20 * os.path.getsize(path):
                        raise ValueError("it unpacks to far more than it holds")
                    with archive.open(held.name) as source, held.open("wb") as target:
                        shutil.copyfileobj(source, target)
            except Exception as error:  # a forged archive can raise anything
                raise ValueError(f"{path} is not a whole .keras file: {str(error)[:200]}") from None
        try:
            run = subprocess.run(
                [sys.executable, "-P", "-c", _H5PY, held, out], capture_output=True, timeout=_LONGEST, check=False
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{path}: cannot be read as HDF5: not within {_LONGEST} s") from None
    if run.returncode:
        said = "".join(run.stderr.decode("utf-8", "replace").strip().splitlines()[-1:])[:200]
        why = f"it ends the reader by signal {-run.returncode}" if run.returncode < 0 else said
        raise ValueError(f"{path}: cannot be read as HDF5: {why}")


def layers_of_archive(path: Path) -> dict[str, str]:
    """The names of a ``.keras`` file's layers, by those that its arrays have: the kind of layer, and a number.

    Raises:
        ValueError: if its configuration cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > _MOST_CONFIG:
                raise ValueError("its configuration is too large")
            layers = json.loads(archive.read("config.json"))["config"]["layers"]
        counts: Counter[str] = Counter()
        names = {}
        for layer in layers:
            kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", layer["class_name"])
            kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
            names[f"{kind}_{counts[kind]}" if counts[kind] else kind] = str(layer["config"]["name"])
            counts[kind] += 1
    except Exception as error:  # a forged archive can raise anything
        raise ValueError(f"{path}: its configuration is not one of Keras: {str(error)[:200]}") from None
    return names


_BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_VARIABLES = {"kernel": "weights", "depthwise_kernel": "depthwise_weights", "bias": "biases"}


def names_of_layers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a Keras network with ``research/deeplab``'s names, where its layers are called after those.

    Args:
        tensors: ``LAYER/vars/0`` or ``LAYER/LAYER/kernel:0``, in folders of any name.
    """
    named = {}
    for path, value in tensors.items():
        parts = [part for part in path.split("/") if part not in ("model_weights", "layers", "vars")]
        if not parts:
            continue
        layer, variable = parts[0], parts[-1].partition(":")[0]
        is_norm = layer.endswith("_BN")
        if variable.isdecimal():
            variable = [*(_BATCH_NORM if is_norm else ("kernel", "bias")), *[variable] * 10][min(int(variable), 9)]
        if layer.endswith("depthwise") and variable == "kernel":
            variable = "depthwise_kernel"
        scope = layer.removesuffix("_BN").replace("custom_logits_semantic", "logits_semantic")
        scope = "logits/semantic" if scope == "logits_semantic" else scope
        match = re.fullmatch(r"(expanded_conv(?:_\d+)?)_(expand|depthwise|project)", scope)
        if match or scope == "Conv":
            scope = "MobilenetV2/" + (f"{match[1]}/{match[2]}" if match else scope)
        named[f"{scope}/{'BatchNorm/' if is_norm else ''}{_VARIABLES.get(variable, variable)}"] = value
    return named
