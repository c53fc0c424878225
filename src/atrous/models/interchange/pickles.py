"""Read pickles and run nothing in them: PyTorch's by ``weights_only``, others by a table of a few names.

What training programs and detectron2's model zoo put beside tensors, or in place of them, is NumPy's numbers and
arrays. The names that their pickles ask for stand here for functions of ours, which make numbers of bytes.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""Near the start of PyTorch's files from before they were archives."""


class Array:
    """In the place of an array of NumPy's; `tensor` is None until its values were read."""

    def __init__(self, *_: Any) -> None:
        self.tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        values = kind.values(data, math.prod(shape)).reshape(shape, order="F" if fortran else "C")
        self.tensor = torch.from_numpy(values.copy())


class _Kind:
    """In the place of NumPy's dtype: numbers alone."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def values(self, data: Any, count: int) -> np.ndarray[Any, Any]:
        data = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 has them
        if not re.fullmatch("[fiub][1248]", str(self.code)) or not isinstance(data, bytes):
            raise ValueError(f"it holds an array of {str(self.code)[:20]!r}, expected numbers")
        kind = np.dtype(self.order + self.code)
        if count * kind.itemsize != len(data):
            raise ValueError(f"an array in it has {len(data)} bytes for {count} numbers")
        return np.frombuffer(data, kind).astype(kind.newbyteorder("="))


class _Passed:
    """In the place of what only its own program needs."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _number(kind: _Kind, data: bytes) -> Any:
    return kind.values(data, 1).item()


def _empty(*_: Any) -> Array:
    return Array()


def _bytes(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise ValueError(f"it has bytes as {codec[:20]!r}")
    return text.encode("latin1")


_STAND_INS: dict[str, Callable[..., Any]] = {
    **{f"numpy.{core}.multiarray._reconstruct": _empty for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    "numpy.ndarray": Array,
    "numpy.dtype": _Kind,
    "mmengine.logging.history_buffer.HistoryBuffer": _Passed,
}
_OF_PLAIN_PICKLES = {**_STAND_INS, "_codecs.encode": _bytes, "collections.OrderedDict": OrderedDict}


def read(path: Path) -> Any:
    """What a pickle holds, with `Array` in place of NumPy's arrays.

    Raises:
        ValueError: if it is damaged, or asks for more than tensors and numbers.
    """
    check_archive(path)
    with path.open("rb") as file:
        start = file.read(64)
    plain = start.startswith(b"\x80") and _MAGIC not in start
    try:
        if plain:
            return _Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        names: list[Any] = [(function, name) for name, function in _STAND_INS.items()]
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(names):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a forged pickle can raise anything
        asked = str(error).partition("GLOBAL ")[2].split(" ")[0]
        if asked:
            raise ValueError(
                f"{path} holds more than tensors: it asks for {asked[:100]}, which is not run here; where you trust "
                "it, load it by torch.load(FILE, weights_only=False) and torch.save its state_dict alone"
            ) from None
        raise ValueError(f"{path} cannot be read as a checkpoint of PyTorch: {_why(error)}") from None


class _Plain(pickle._Unpickler):  # in Python: the one in C takes what memory a file tells it to
    """A pickle that PyTorch did not write."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _OF_PLAIN_PICKLES:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} ")
        return _OF_PLAIN_PICKLES[f"{module}.{name}"]


def _why(error: Exception) -> str:
    """What is wrong, without the advice to let the file run."""
    said = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
    if not said or any(words in said for words in ("Weights only load failed", "central directory", "operand")):
        return "it is cut off, damaged or something else; fetch or save it again"
    return said.splitlines()[0][:200]


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
