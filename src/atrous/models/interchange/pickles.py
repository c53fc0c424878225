"""Read pickles by ``torch.load(weights_only=True)``, which runs nothing in them, PyTorch's own and others.

What training programs and detectron2's model zoo put beside tensors, or in place of them, is NumPy's numbers and
arrays. The names that their pickles ask for stand here for functions of ours, which make numbers of bytes, and no more
bytes than the file has.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle in PyTorch's files from before they were archives; its version follows, and what it was made on."""


class _Left(threading.local):
    """How many bytes the file that this thread reads may still make: one array can be named any number of times."""

    count = 0

    def take(self, count: int) -> None:
        self.count -= count
        if self.count < 0:
            raise ValueError("it makes more numbers than it holds")


_left = _Left()
_one_at_a_time = threading.Lock()
"""Which names a pickle may ask for is a setting of the whole process."""


class Array:
    """Stand-in for a NumPy array; `tensor` is None until its values were read."""

    tensor: Tensor | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        values = kind.values(data, math.prod(shape)).reshape(shape, order="F" if fortran else "C")
        self.tensor = torch.from_numpy(values.copy())


class _Kind:
    """Stand-in for NumPy's dtype, of numbers alone."""

    code, order = "", "<"

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def values(self, data: Any, count: int) -> np.ndarray[Any, Any]:
        data = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 has them
        code = self.code if isinstance(self.code, str) else ""  # of a list of lists, a word can be endless
        if not re.fullmatch("[fiub][1248]", code) or not isinstance(data, bytes):
            raise ValueError(f"it holds an array of {code[:20]!r}, expected numbers")
        kind = np.dtype(self.order + code)
        if count * kind.itemsize != len(data):
            raise ValueError(f"an array in it has {len(data)} bytes for {count} numbers")
        _left.take(len(data))
        return np.frombuffer(data, kind).astype(kind.newbyteorder("="))


class _Passed:
    """Stand-in for an object that only its own program needs; it keeps nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _number(kind: _Kind, data: bytes) -> Any:
    return kind.values(data, 1).item()


def _empty(*_: Any) -> Array:
    return Array()


_STAND_INS: dict[str, Callable[..., Any]] = {
    **{f"numpy.{core}.multiarray._reconstruct": _empty for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    "numpy.ndarray": Array,
    "numpy.dtype": _Kind,
    "mmengine.logging.history_buffer.HistoryBuffer": _Passed,
}


def read(path: Path) -> Any:
    """What a pickle holds, with `Array` in place of NumPy's arrays.

    Raises:
        ValueError: if it is damaged, or asks for more than tensors and numbers.
    """
    check_archive(path)
    _left.count = 2 * os.path.getsize(path)  # of protocol 2, text is made bytes, and these numbers
    with path.open("rb") as file:
        start = file.read(64)
    plain = start.startswith(b"\x80") and _MAGIC.to_bytes(10, "little") not in start
    try:
        file_or_path: Any = io.BytesIO(_as_pytorch_writes(path.read_bytes())) if plain else path
        names: list[Any] = [(function, name) for name, function in _STAND_INS.items()]
        with _one_at_a_time, warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(names):
            options: Any = {"encoding": "latin1"} if plain else {}
            return _without_attributes(torch.load(file_or_path, map_location="cpu", weights_only=True, **options))
    except Exception as error:  # a forged pickle can raise anything
        asked = _printable(str(error).partition("GLOBAL ")[2].split(" ")[0][:100])
        if asked:
            raise ValueError(
                f"{path} holds more than tensors: it asks for {asked}, which is not run here; where you trust "
                "it, load it by torch.load(FILE, weights_only=False) and torch.save its state_dict alone"
            ) from None
        raise ValueError(f"{path} cannot be read as a checkpoint of PyTorch: {_why(error)}") from None


def _as_pytorch_writes(content: bytes) -> bytes:
    """A pickle of protocol 2 or 3 as the one object of a file of PyTorch's, in the opcodes that ``weights_only`` knows.

    Raises:
        ValueError: if it has another protocol, or is damaged.
    """
    start: list[Any] = [_MAGIC, 1001, {}]
    parts, done = [pickle.dumps(each, 2) for each in start], 0
    for opcode, argument, position in pickletools.genops(content):
        if opcode.name == "PROTO" and argument not in (2, 3):
            raise ValueError(
                f"it is a pickle of protocol {argument}; where you trust it, load it by pickle.load and torch.save its "
                "state_dict alone"
            )
        if isinstance(argument, bytes) and position is not None:  # protocol 2 has text in the place of bytes
            text = argument.decode("latin1").encode()
            length = len(text).to_bytes(4, "little")
            parts += [content[done:position], b"c_codecs\nencode\nX", length, text, b"X\x06\x00\x00\x00latin1\x86R"]
            done = position + (2 if opcode.name == "SHORT_BINBYTES" else 5) + len(argument)
    return b"".join([*parts, content[done:], pickle.dumps([], 2)])


def _why(error: Exception) -> str:
    """What is wrong, without the advice to let the file run."""
    said = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
    pointless = ("Weights only load failed", "central directory", "operand")
    if not said or said.isdigit() or any(words in said for words in pointless):
        return "it is cut off, damaged or something else; fetch or save it again"
    return _printable(said.splitlines()[0][:200])


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _without_attributes(content: Any) -> Any:
    """The same, its dictionaries without the attributes that a pickle gave them, which would hide their methods."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                getattr(value, "__dict__", {}).clear()
            left += dict.values(value) if isinstance(value, dict) else value
    return content


def check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is.

    Raises:
        ValueError: if it does, is compressed or is not whole.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {error}") from error
    if not entries:
        raise ValueError(f"{path} is an archive of nothing; fetch or save it again")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"{path} is a compressed archive; expected a checkpoint as torch.save writes it")
    if sum(entry.file_size for entry in entries) > os.path.getsize(path):
        raise ValueError(f"{path} says that it unpacks to more than it holds")
