"""What differs between operating systems: flushing folders, process ids and groups, sockets, peak memory."""

from __future__ import annotations

import errno
import multiprocessing.util
import os
import sys
import tempfile
from pathlib import Path

_SOCKET_PATH = 104
"""Bytes that a Unix socket's path may have (macOS; Linux has four more)."""
_LONGEST_NAME = 40
"""Of a socket within the temporary folder, as multiprocessing and Ray name theirs."""


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of files, to the disk; not where it opens no folders."""
    try:
        # Windows flushes a file only where it is open for writing.
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems flush no folders
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def is_running(process: int) -> bool:
    """Whether there is a process of this id; where that cannot be asked, True."""
    if sys.platform == "win32":  # there, os.kill would do what its name says
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def leave_process_group() -> None:
    """Make this process the first of a group of its own, out of reach of signals to its parent's group."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def short_temporary_folder() -> str | None:
    """Where a socket's path has room for its name: the temporary folder, or another; None if there is none."""
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        fits = sys.platform == "win32" or len(os.fsencode(folder)) + _LONGEST_NAME <= _SOCKET_PATH
        if fits and os.path.isdir(folder) and os.access(folder, os.W_OK):
            return folder
    return None


def place_sockets() -> None:
    """Have multiprocessing put its sockets where their paths are not too long, as under a long TMPDIR.

    Otherwise processes that load data die at their first batch, and training waits for ever.

    Raises:
        ValueError: if there is no such folder.
    """
    folder = short_temporary_folder()
    if folder is None:
        longest = _SOCKET_PATH - _LONGEST_NAME
        where = tempfile.gettempdir()
        raise ValueError(f"TMPDIR is {where}, of {len(where)} characters; expected at most {longest}, or --workers 0")
    before, tempfile.tempdir = tempfile.gettempdir(), folder
    try:
        multiprocessing.util.get_temp_dir()  # made once, kept for all later sockets, removed when the process ends
    finally:
        tempfile.tempdir = before


def peak_memory() -> int | None:
    """Most memory that this process has held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
