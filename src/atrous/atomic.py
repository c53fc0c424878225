"""Write files and folders atomically: under another name beside the target, flushed to disk, then renamed.

    write_text(path, text)
    with written_whole(path) as file:
        file.write(...)
    with written_folder(path) as folder:
        (folder / "file").write_text(...)

`sweep` deletes what killed writers have left.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from atrous.platforms import flush, is_running


class _NoFileno(io.BufferedWriter):
    """Hides the descriptor: Pillow would write to it by itself, and does not see when the disk takes but a part."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place once all is written; after an error or Ctrl-C nothing is left of it.

    Raises:
        OSError: with the target's name, whatever the one that failed was.
    """
    beside = _beside(path)
    try:
        # Opened plainly, for the umask to apply.
        with io.FileIO(beside, "w") as raw, _NoFileno(raw) as file:
            yield file
            file.flush()
            os.fsync(raw.fileno())
        os.replace(beside, path)
        flush(path.parent)
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) != beside:
            raise
        # A full disk: what writes knows no name, and Pillow at times no reason either.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # what made it fail may stand in the way of this, too
            beside.unlink()


@contextlib.contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place once all is written; after an error or Ctrl-C nothing is left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    beside.mkdir()
    try:
        yield beside
        for inner in (*beside.rglob("*"), beside):
            flush(inner)
        os.replace(beside, path)
        flush(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, on its file system, for what other libraries write; removed at the end with all in it.

    Whole files of it are put in place by `put_in_place`.
    """
    beside = _beside(path)
    beside.mkdir()
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def put_in_place(files: Mapping[Path, Path]) -> None:
    """Move finished files to their names, in order, each flushed to the disk before.

    Args:
        files: from where a file is, to where it goes; on one file system.
    """
    for source in files:
        flush(source)
    for source, target in files.items():
        os.replace(source, target)
        flush(target.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file in UTF-8, whole or not at all. Bytes of a file name that were no UTF-8 are written as such."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def sweep(folder: Path) -> None:
    """Delete what killed writers have left in a folder; what a running process is writing stays."""
    for path in folder.glob(".*.tmp"):
        parts = path.name.split(".")
        if len(parts) > 4 and parts[-2].isdecimal() and parts[-3].isdecimal() and not is_running(int(parts[-3])):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """In the same folder, since a rename is atomic only within a file system; short, since names have a limit."""
    digest = zlib.crc32(os.fsencode(path.name))
    return path.with_name(f".{digest:08x}.{os.getpid()}.{threading.get_ident()}.tmp")
