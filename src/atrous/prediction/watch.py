"""Segment what is put into a folder, as long as the process runs: `atrous predict --watch`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from atrous.data.datasets.base import is_clutter
from atrous.data.images.image_file import IMAGE_SUFFIXES
from atrous.prediction.files import FilesResult, predict_files
from atrous.prediction.predictor import Predictor

INTERVAL = 1.0
"""Seconds from one look into the folder to the next. A file is whole once two looks see the same size and time."""

_Seen = tuple[int, int]


def watch(
    predictor: Predictor,
    folder: Path,
    out: Path,
    *,
    said: Callable[[FilesResult], None] = lambda batch: None,
    interval: float = INTERVAL,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Segment the photographs in a folder, and each new or changed one as it comes; until Ctrl-C.

    Args:
        predictor: the model with its settings.
        folder: to look into, without subfolders.
        out: see `predict_files`; what was done before is not done again.
        said: called with the result of each batch.
        interval: seconds between two looks.
        wait: called with them; returns something true to end.

    Raises:
        ValueError: if the folder is none, or is written into; and as `predict_files`.
    """
    if not folder.is_dir():
        raise ValueError(f"--watch takes one folder; found {str(folder)!r}, which is none")
    if os.path.realpath(folder) in {os.path.realpath(out / name) for name in ("masks", "overlays")}:
        raise ValueError(f"{folder} is where the results of --out {out} go; watch another folder")
    before: dict[Path, _Seen] = {}
    done: dict[Path, _Seen] = {}
    while True:
        now = _look(folder)
        ready = [path for path, seen in now.items() if before.get(path) == seen and done.get(path) != seen]
        if ready:
            said(predict_files(predictor, ready, out, resume=True, beside=[*now]))
            done |= {path: now[path] for path in ready}
        before = now
        if wait(interval):
            return


def _look(folder: Path) -> dict[Path, _Seen]:
    """Size and time of each photograph that is there."""
    there: dict[Path, _Seen] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not is_clutter(entry.name) and entry.is_file():
            status = entry.stat()
            there[folder / entry.name] = (status.st_size, status.st_mtime_ns)
    return there
