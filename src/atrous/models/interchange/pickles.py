"""Read pickles and run nothing in them: PyTorch's by ``weights_only``, others by a table of a few names.

What training programs and detectron2's model zoo put beside tensors, or in place of them, is NumPy's numbers and
arrays. The names that their pickles ask for stand here for functions of ours, which make numbers of bytes, and no more
bytes than the file has.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

_MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""Near the start of PyTorch's files from before they were archives."""


_KEYS = (str, int, float, bool, bytes, type(None))
"""What a pickle may name things by: a tuple of tuples can take its hash for ever, or the stack of the process."""


class _Left(threading.local):
    """How many bytes the file that this thread reads may still make: one array can be named any number of times."""

    count = 0

    def take(self, count: int) -> None:
        self.count -= count
        if self.count < 0:
            raise ValueError("it makes more numbers than it holds")


_left = _Left()


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


def _bytes(text: str, codec: str) -> bytes:
    if not isinstance(text, str) or codec != "latin1":
        raise ValueError("it has bytes that are not written as latin1")
    _left.take(len(text))
    return text.encode("latin1")


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    pairs = [(key, value) for key, value in pairs]
    _left.take(len(pairs))
    _check_keys([key for key, _ in pairs])
    return OrderedDict(pairs)


def _check_keys(keys: list[Any]) -> None:
    if wrong := [type(key).__name__ for key in keys if type(key) not in _KEYS]:
        raise ValueError(f"it names something by a {wrong[0]}, expected words and numbers")


_STAND_INS: dict[str, Callable[..., Any]] = {
    **{f"numpy.{core}.multiarray._reconstruct": _empty for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    "numpy.ndarray": Array,
    "numpy.dtype": _Kind,
    "mmengine.logging.history_buffer.HistoryBuffer": _Passed,
}
_OF_PLAIN_PICKLES = {**_STAND_INS, "_codecs.encode": _bytes, "collections.OrderedDict": _ordered}


_STEPS: dict[int, Any] = {**pickle._Unpickler.dispatch}
_REFUSED = {
    code[0]
    for code in (
        pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.PERSID,
        pickle.BINPERSID, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EMPTY_SET,
        pickle.ADDITEMS, pickle.FROZENSET,
    )
}  # fmt: skip
"""Steps of a pickle that no dictionary of arrays needs; one of them takes what memory a file tells it to."""


def read(path: Path) -> Any:
    """What a pickle holds, with `Array` in place of NumPy's arrays.

    Raises:
        ValueError: if it is damaged, or asks for more than tensors and numbers.
    """
    check_archive(path)
    _left.count = 2 * os.path.getsize(path)  # of protocol 2, text is made bytes, and these numbers
    with path.open("rb") as file:
        start = file.read(64)
    plain = start.startswith(b"\x80") and _MAGIC not in start
    try:
        if plain:
            return _Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        names: list[Any] = [(function, name) for name, function in _STAND_INS.items()]
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(names):
            return _without_attributes(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a forged pickle can raise anything
        asked = _printable(str(error).partition("GLOBAL ")[2].split(" ")[0][:100])
        if asked:
            raise ValueError(
                f"{path} holds more than tensors: it asks for {asked}, which is not run here; where you trust "
                "it, load it by torch.load(FILE, weights_only=False) and torch.save its state_dict alone"
            ) from None
        raise ValueError(f"{path} cannot be read as a checkpoint of PyTorch: {_why(error)}") from None


class _Plain(pickle._Unpickler):  # in Python: the one in C takes what memory a file tells it to
    """A pickle that PyTorch did not write: dictionaries, lists, words, numbers, and calls of our stand-ins."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {code: step for code, step in _STEPS.items() if code not in _REFUSED}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _OF_PLAIN_PICKLES:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} ")
        return _OF_PLAIN_PICKLES[f"{module}.{name}"]

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Array | _Kind | _Passed):
            made.__setstate__(state)
        elif not isinstance(made, OrderedDict):  # whose attributes could hide its methods
            raise ValueError(f"it changes a {type(made).__name__}")

    def _set_item(self) -> None:
        _check_keys(self.stack[-2:-1])
        _STEPS[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        _check_keys(self.stack[::2])
        _STEPS[pickle.SETITEMS[0]](self)

    def _dictionary(self) -> None:
        _check_keys(self.stack[::2])
        _STEPS[pickle.DICT[0]](self)

    dispatch |= {
        pickle.BUILD[0]: _build, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dictionary,
    }  # fmt: skip


def _why(error: Exception) -> str:
    """What is wrong, without the advice to let the file run."""
    said = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
    if (
        not said
        or said.isdecimal()
        or any(words in said for words in ("Weights only load failed", "central directory", "operand"))
    ):
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
