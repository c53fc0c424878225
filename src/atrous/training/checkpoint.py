"""Checkpoints that a kill at any moment leaves usable, and the lock of a run folder.

A checkpoint is a folder ``checkpoints/step-N`` with ``state.pt`` (tensors and plain values; read with
``weights_only``) and ``manifest.json`` (its SHA-256). It is written under another name beside its target, flushed to
disk, then renamed; ``last`` points to it afterwards. Whatever moment a process dies at, the newest whole checkpoint
is found. The best weights are no checkpoint: they lie in ``best`` and are never pushed out.
"""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from atrous.atomic import sweep, write_text, written_folder

STATE, MANIFEST, POINTER, LOCK = "state.pt", "manifest.json", "last", ".lock"


# A file that was made to do harm stumbles in many ways.
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError)


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold a run's folder against a second process; the system lets go when this one ends, however it ends.

    Raises:
        ValueError: if another process holds it, it is no folder, or its name is not UTF-8.
    """
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file, expected a folder to write a run into")
    try:
        str(run).encode()
    except UnicodeEncodeError as error:  # neither safetensors nor TensorBoard takes such a path
        raise ValueError(f"the name of the run folder {run} is not UTF-8; name another --out") from error
    run.mkdir(parents=True, exist_ok=True)
    held = FileLock(run / LOCK)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{run} is being written by another process; wait for it, or name another --out") from error
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise  # those are file systems without locks
    try:
        yield
    finally:
        held.release()


def save(run: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write a checkpoint, whole or not at all, point to it, and remove all but the newest `keep`.

    A whole one of the same step is left as it is: a run's state is a function of its step.

    Returns:
        The checkpoint's folder.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    target = folder / f"step-{step}"
    if not is_whole(target):
        with written_folder(target) as partial:
            _write(state, partial / STATE)
            manifest = {"step": step, "files": {STATE: _sha256(partial / STATE)}}
            (partial / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)  # it is there, but not whole
    write_text(run / POINTER, f"checkpoints/{target.name}\n")
    # Those of later steps are not whole, or the run would have gone on from there; they push nothing out.
    for old in [other for other in steps(run) if other <= step][:-keep]:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)
    return target


def _write(state: dict[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # PyTorch's writer knows no other, whatever the disk said
        raise OSError(f"{path} could not be written; is the disk full? ({str(error).splitlines()[0]})") from error


def load_newest(run: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole, or None if a run has none.

    Raises:
        ValueError: if it holds anything but tensors and plain values, none of which is run.
    """
    for step in reversed(steps(run)):
        folder = run / "checkpoints" / f"step-{step}"
        if is_whole(folder):
            return _read(folder / STATE)
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} holds no state of a run, and nothing of it was used: {why}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds {type(state).__name__}, expected the state of a run")
    return state


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints in a run's folder, whole or not, in order."""
    names = (path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint's files are those of its manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return STATE in files and all(_sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
