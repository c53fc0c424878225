"""Unpack the zip or tar of a data set once, safely, into a folder beside it that later runs use again.

    folder = unpacked(Path("cats.zip"))     # cats.1f3c09aa/ beside it, or in the cache folder where that is read-only

Nothing is written before the archive's directory has been read: paths outside the folder, links, encryption, names that
occur twice and sizes that do not fit are refused. Each archive has its folder, named by its size and time: a changed
archive is unpacked again. `ATROUS_CACHE` names another cache folder than `~/.cache/atrous`.
"""

from __future__ import annotations

import contextlib
import errno
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from atrous.atomic import sweep, written_folder
from atrous.data.datasets.base import is_clutter
from atrous.data.images.image_file import say_once

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_OTHERS = (".rar", ".7z", ".gz", ".bz2", ".xz", ".zst", ".z01", ".001")
_DOWNLOAD = "expected a whole archive: download it again"
_BY_HAND = "unpack it by hand and give the folder, if it is to be trusted"
_RATIO, _FREE_RATIO = 200, 1 << 30
"""Archives that grow by more than this factor are refused if they grow beyond the second figure, in bytes."""
_MARGIN = 1 << 28
"""Bytes that stay free on the disk."""
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError,
    RuntimeError, UnicodeError, OverflowError,
)  # fmt: skip
"""What the two modules raise on damaged archives."""
_MOST_MEMBERS = 5_000_000
_UNPACKED: set[Path] = set()
"""What this process has unpacked."""


class _Member(NamedTuple):
    """A file of an archive: its path in the folder, its size in bytes, and what opens it."""

    path: PurePosixPath
    size: int
    open: Callable[[], Any]


def is_archive(path: Path) -> bool:
    """Whether a file's name is that of an archive, of which some kinds are refused by `unpacked`."""
    return path.name.lower().endswith(SUFFIXES + _OTHERS)


def unpacked(path: Path) -> Path:
    """The folder with the files of an archive; it is said where that is.

    Raises:
        ValueError: naming the archive: no zip or tar, truncated, encrypted, unsafe, or too large for the disk.
        OSError: if it cannot be read, or its files cannot be written anywhere.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: an archive of another kind; expected {', '.join(SUFFIXES[:4])}, or the folder")
    status = path.stat()
    suffix = max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len)
    place = path.absolute().with_name(path.name[: -len(suffix)] or "data")
    return unpacked_by(place, f"{status.st_size}/{status.st_mtime_ns}", partial(_fill, path), path)


def unpacked_by(place: Path, stamp: str, fill: Callable[[Path], None], source: Path) -> Path:
    """A folder that is filled once: PLACE.DIGEST, or of that name in the cache folder where that is read-only.

    Args:
        place: the folder, without what tells one stamp from another.
        stamp: what changes with the source.
        fill: given an empty folder; what it leaves there is there whole or not at all.
        source: that it is filled from, for messages.
    """
    name = f"{place.name}.{zlib.crc32(stamp.encode('utf-8', 'surrogateescape')):08x}"
    places = [place.with_name(name), cache_folder() / "data" / name]
    for there in places:
        if there.is_dir():
            if there not in _UNPACKED:
                say_once(f"{source}: read from {there}, where it was unpacked before")
            return there
    try:
        return _filled(places[0], fill, source)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return _filled(places[1], fill, source)


def _filled(place: Path, fill: Callable[[Path], None], source: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    sweep(place.parent)
    try:
        with written_folder(place) as folder:
            say_once(f"{source}: unpacking into {place}")
            fill(folder)
    except OSError:
        if not place.is_dir():  # another process has been faster
            raise
    _UNPACKED.add(place)
    return place


def cache_folder() -> Path:
    """Where files go that can be made again: `ATROUS_CACHE`, or `atrous` in the user's cache folder."""
    if place := os.environ.get("ATROUS_CACHE"):
        return Path(place).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atrous"


def _fill(path: Path, folder: Path) -> None:
    with _opened(path) as members:
        size, free = sum(member.size for member in members), shutil.disk_usage(folder).free
        if size + _MARGIN > free:
            raise ValueError(f"{path}: its files take {size} bytes, and the disk has {free} free; make room")
        for member in members:
            _write(path, member, folder)


def _write(path: Path, member: _Member, folder: Path) -> None:
    target = folder / member.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, target.open("xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except _DAMAGE as error:
        raise ValueError(f"{path}: {_said(member.path)} cannot be unpacked ({error}); {_DOWNLOAD}") from None
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise ValueError(f"{path}: {_said(member.path)} occurs twice, as this system reads names; {_BY_HAND}") from None
    except OSError as error:
        raise _of_damage(path, error) from None
    if target.stat().st_size != member.size:
        raise ValueError(f"{path}: {_said(member.path)} ends early; {_DOWNLOAD}")


def _of_damage(path: Path, error: OSError) -> Exception:
    """The error of a wrong offset in an archive, to which no file can be positioned, as a ValueError; others as is."""
    return ValueError(f"{path}: not a whole archive; {_DOWNLOAD}") if error.errno == errno.EINVAL else error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[list[_Member]]:
    """The checked members of an archive, which can be opened while this is open."""
    with contextlib.ExitStack() as stack:
        try:
            if path.name.lower().endswith(".zip"):
                members = list(_of_zip(path, stack.enter_context(zipfile.ZipFile(path))))
            else:
                members = list(_of_tar(path, stack.enter_context(tarfile.open(path))))
        except _DAMAGE as error:
            raise ValueError(f"{path}: not a whole archive ({error}); {_DOWNLOAD}") from None
        except OSError as error:
            raise _of_damage(path, error) from None
        if not members:
            raise ValueError(f"{path}: no files in it; expected a data set")
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"{path}: {len(members)} files; expected at most {_MOST_MEMBERS}; {_BY_HAND}")
        if twice := [place for place, times in Counter(member.path for member in members).items() if times > 1]:
            raise ValueError(f"{path}: {_said(twice[0])} occurs twice; {_BY_HAND}")
        _check_growth(path, sum(member.size for member in members))
        yield members


def _of_zip(path: Path, archive: zipfile.ZipFile) -> Iterator[_Member]:
    infos = archive.infolist()
    for info in infos:
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"{path}: {_said(info.filename)} is a link; expected files and folders; {_BY_HAND}")
        if info.flag_bits & 1:
            raise ValueError(f"{path}: it is encrypted; unpack it with its password and give the folder")
        if not info.filename:
            raise ValueError(f"{path}: a file in it has no name; {_DOWNLOAD}")
        if not info.is_dir() and (place := _inside(path, _name_of(info))):
            yield _Member(place, info.file_size, partial(archive.open, info))
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise ValueError(f"{path}: its files overlap, as in a decompression bomb; {_BY_HAND}")


def _name_of(info: zipfile.ZipInfo) -> str:
    """The name of a member: UTF-8, as macOS and Linux write it without the flag that says so, or what zipfile reads."""
    if info.flag_bits & 1 << 11:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _said(name: object) -> str:
    """A member's name for a message of one line."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def _of_tar(path: Path, archive: tarfile.TarFile) -> Iterator[_Member]:
    total = 0
    for info in archive:
        if not (info.isfile() or info.isdir()):
            raise ValueError(
                f"{path}: {_said(info.name)} is a link or a device; expected files and folders; {_BY_HAND}"
            )
        total += info.size
        _check_growth(path, total)
        if info.isfile() and (place := _inside(path, info.name)):
            yield _Member(place, info.size, partial(archive.extractfile, info))


def _inside(path: Path, name: str) -> PurePosixPath | None:
    """The place of a member in the folder; None for clutter."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]  # Windows' zips have \
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or ":" in (parts or [""])[0]:
        raise ValueError(f"{path}: {name!r} lies outside the archive's folder; {_BY_HAND}")
    return None if not parts or any(map(is_clutter, parts)) else PurePosixPath(*parts)


def _check_growth(path: Path, size: int) -> None:
    packed = path.stat().st_size
    if size > _FREE_RATIO and size > _RATIO * packed:
        raise ValueError(
            f"{path}: its {packed} bytes would become {size} or more, as in a decompression bomb; {_BY_HAND}"
        )
