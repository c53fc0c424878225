"""Save and resume everything, so that a killed run goes on as if nothing had happened.

A checkpoint is a folder ``checkpoints/step-N`` with ``state.pt`` (tensors and plain values; read with
``weights_only``) and ``manifest.json`` (its SHA-256). It is written under another name beside its target, flushed to
disk, then renamed; ``last`` points to it afterwards. Whatever moment a process dies at, the newest whole checkpoint
is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

STATE, MANIFEST, POINTER = "state.pt", "manifest.json", "last"


def save(run: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write a checkpoint, whole or not at all, point to it, and remove all but the newest `keep`.

    Args:
        run: the run's folder.
        step: steps done.
        state: tensors and plain values in dicts and lists.
        keep: checkpoints to keep.

    Returns:
        The checkpoint's folder.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    for interrupted in folder.glob(".step-*.partial"):
        shutil.rmtree(interrupted, ignore_errors=True)
    partial.mkdir()
    try:
        _write(state, partial / STATE)
        manifest = {"step": step, "files": {STATE: _sha256(partial / STATE)}}
        (partial / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        for file in (partial / STATE, partial / MANIFEST, partial):
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        _flush(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
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
    """The state of the newest checkpoint that is whole, or None if a run has none."""
    for step in reversed(steps(run)):
        folder = run / "checkpoints" / f"step-{step}"
        if is_whole(folder):
            state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            return state
    return None


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints in a run's folder, whole or not, in order."""
    found = (path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*"))
    return sorted(int(name) for name in found if name.isdecimal())


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint's files are those of its manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(_sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
