"""The one way that a file is written: under another name beside its target, then renamed. None is there by halves.

    write_text(path, text)
    with written_whole(path) as file:
        file.write(...)

`sweep` deletes what writers that were killed have left.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class _Unnumbered(io.BufferedWriter):
    """Without the number that Pillow would write to by itself: it does not see when the disk takes but a part."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place once all is written; left by an error or Ctrl-C, it is gone."""
    # Beside its target, since a rename is atomic only within one file system; opened plainly, for the umask to apply.
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with _Unnumbered(io.FileIO(beside, "w")) as file:
            yield file
        os.replace(beside, path)
    except OSError as error:
        if error.filename is not None:
            raise
        # A full disk: what writes knows no name, and Pillow at times no reason either.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what writers that were killed have left in a folder; what a process that still runs is writing stays."""
    for path in folder.glob(".*.tmp"):
        parts = path.name.split(".")
        if len(parts) > 4 and parts[-2].isdecimal() and parts[-3].isdecimal() and not _runs(int(parts[-3])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name == "nt":  # there, os.kill would do what its name says
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make sure that a file, or a folder's list of its files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
