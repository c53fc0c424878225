"""Whole files alone: none is read that was cut, none is written by halves.

PNG and GIF say where they end, and Pillow does not look: cut in its last bytes, such a file still opens. The other
formats that `atrous.data.image` reads tell of a cut by themselves. What stands behind the end mark (a phone's film, a
signature) is not the picture's and is not looked at.

    with open_file(path) as file:
        check_whole(file, "PNG")
    with written_whole(path) as file:
        file.write(...)
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def open_file(path: Path) -> IO[bytes]:
    """Open a file to read.

    Raises:
        ValueError: for a folder, a pipe or a device, on none of which this waits.
        OSError: as ``open``.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to would never come back.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError("not a file; expected an image file")
    return os.fdopen(number, "rb")


def check_whole(file: IO[bytes], kind: str | None) -> None:
    """Refuse a PNG or GIF without its end mark; the place in the file stays as it was.

    Args:
        file: whose header has been seen to be that of `kind`.
        kind: Pillow's name of the format; of others than PNG and GIF nothing is asked.

    Raises:
        ValueError: if the end mark is missing.
    """
    ends = {"PNG": _png_ends, "GIF": _gif_ends}.get(kind or "")
    if ends is None:
        return
    place = file.tell()
    whole = ends(file)
    file.seek(place)
    if not whole:
        raise ValueError("truncated, for its end mark is missing; expected a whole file")


def _png_ends(file: IO[bytes]) -> bool:
    """Walk the chunks (length, name, data, checksum) to IEND."""
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", header)
        if name == b"IEND":
            return file.read(4) == b"\xaeB`\x82"
        file.seek(length + 4, os.SEEK_CUR)
    return False


def _gif_ends(file: IO[bytes]) -> bool:
    """Walk the extensions and frames to the trailer."""
    file.seek(10)
    _skip_colours(file, file.read(1))
    file.seek(2, os.SEEK_CUR)
    while (kind := file.read(1)) in (b"!", b","):
        if kind == b",":
            _skip_colours(file, file.read(9)[8:])
        file.seek(1, os.SEEK_CUR)  # an extension's label, a frame's code size
        while length := file.read(1).strip(b"\0"):
            file.seek(length[0], os.SEEK_CUR)
    return kind == b";"


def _skip_colours(file: IO[bytes], flags: bytes) -> None:
    """Past the colour table, if the flags say that there is one."""
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)


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
