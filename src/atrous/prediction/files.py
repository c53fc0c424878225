"""Segment files, folders and globs into masks and overlays: `atrous predict`."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atrous.atomic import sweep
from atrous.data.datasets.base import is_clutter
from atrous.data.images.image_file import IMAGE_SUFFIXES
from atrous.data.images.image_io import (
    Pixels,
    read_note,
    read_size,
    write_image,
    write_mask,
    write_mask_strips,
)
from atrous.data.images.row_io import Strips, open_strips
from atrous.data.labels import CLASSES, write_labels
from atrous.data.overlay import overlay
from atrous.ops.malloc import hand_back, memory_kept
from atrous.prediction.parallel import in_order
from atrous.prediction.predictor import Predictor
from atrous.prediction.segmentation import areas_of, pixel_counts
from atrous.prediction.sliding_window import STRIP

LONGEST_NAME = 200
"""Longest file name of an output, in bytes: most file systems take 255, and whoever copies it may add to it."""

_DISK = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EROFS")}
"""Errors that the next file would meet, too."""

LARGE = 1 << 22
"""Pixels from which memory is given back between the steps of one photograph."""

OVERLAY_SIDE = 4096
"""Longest side, in pixels, of the overlay of a picture that is read by rows: made smaller by a whole number."""


@dataclass
class FilesResult:
    """The result of `predict_files`.

    Attributes:
        areas: share of each class, by name, for each file that was segmented.
        failures: the reason for each file that was not segmented.
        skipped: files whose outputs were there already.
        shortened: the file name of the outputs, for each file whose own name would have been too long.
    """

    areas: dict[Path, dict[str, float]] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)
    skipped: list[Path] = field(default_factory=list)
    shortened: dict[Path, str] = field(default_factory=dict)

    def add(self, outcome: _Outcome) -> None:
        """Count one file in."""
        self.failures |= outcome.failures
        if outcome.skipped:
            self.skipped.append(outcome.path)
        elif not outcome.failures:
            self.areas[outcome.path] = outcome.areas

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "files": {str(path): areas for path, areas in self.areas.items()},
            "failures": {str(path): why for path, why in self.failures.items()},
            "skipped": [str(path) for path in self.skipped],
            "shortened": {str(path): name for path, name in self.shortened.items()},
        }


def predict_files(
    predictor: Predictor,
    sources: Sequence[str | Path],
    out: Path,
    *,
    resume: bool = False,
    progress: Callable[[Path, float], None] = lambda path, share: None,
    workers: int | None = None,
    beside: Sequence[Path] = (),
) -> FilesResult:
    """Segment files, folders and globs into ``out/masks`` and ``out/overlays``; the classes are in ``classes.yaml``.

    A mask is a palette PNG of class ids at the size of its source. An overlay has that size, too, or `OVERLAY_SIDE`. A
    file that fails is noted, and the others are segmented. Each output is written whole or not at all.

    Args:
        predictor: the model with its settings.
        sources: files, folders, globs.
        out: folder to write.
        resume: skip a file whose mask and overlay are newer and were made with these settings from a file of its size.
        progress: called with each file and the share of it, 0 to 1, that is done, in the order of the files.
        workers: photographs that are segmented at once, as long as they are small; None for `Predictor.workers`.
        beside: other photographs, whose outputs are in `out` or will be; the names of the outputs differ from theirs.

    Raises:
        ValueError: if a source has no photograph, or two files would be written to one name.
        FileNotFoundError: if a source does not exist.
    """
    files = find_photographs(sources)
    together = output_names([*dict.fromkeys([*files, *beside])])
    names = {path: together[path] for path in files}
    result = FilesResult(shortened={path: name for path, name in names.items() if is_shortened(path, name)})
    _check_outputs(out, names)
    sweep(out)
    sweep(out / "masks")
    sweep(out / "overlays")
    settings, here = predictor.settings(), set[Path]()

    def segment(path: Path) -> _Outcome:
        outcome, tell = _Outcome(path), functools.partial(progress, path)
        if path in here:
            progress(path, 0.0)
        with errors_noted(path, outcome.failures):
            size, name = read_size(path, max_pixels=predictor.max_pixels), names[path]
            outputs = _Outputs(out / "masks" / name, out / "overlays" / name, f"{settings} {path.stat().st_size}")
            if resume and outputs.are_done(path):
                outcome.skipped = True
            elif predictor.takes_whole(size):
                outcome.areas = _segment(predictor, path, outputs)
            else:
                outcome.areas = _segment_by_rows(predictor, path, outputs, tell)
        return outcome

    workers = predictor.workers if workers is None else workers

    def runs_alone(path: Path) -> bool:
        _make_room(path, memory)
        alone = workers <= 1 or predictor.is_large(path)
        if alone:
            here.add(path)
        return alone

    with contextlib.ExitStack() as memory:
        memory.enter_context(memory_kept(predictor.device))
        for outcome in in_order(segment, names, workers, runs_alone):
            if outcome.path not in here:
                progress(outcome.path, 0.0)
            result.add(outcome)
            progress(outcome.path, 1.0)
    if result.areas:
        write_labels(out / CLASSES, predictor.labels)
    return result


def _make_room(path: Path, memory: contextlib.ExitStack) -> None:
    """Before a large photograph keep no more memory, for good: it would come on top of what the photograph takes."""
    with contextlib.suppress(ValueError, OSError):  # of which reading it will speak
        if math.prod(read_size(path, max_pixels=sys.maxsize)) > LARGE:
            memory.close()


@dataclass
class _Outcome:
    """What has come of one file; see `FilesResult`."""

    path: Path
    areas: dict[str, float] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)
    skipped: bool = False


@contextlib.contextmanager
def errors_noted(path: Path, failures: dict[Path, str]) -> Iterator[None]:
    """Note why a file failed, so that the others can be done; a full or read-only disk ends them all."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        failures[path] = str(error)
    except OSError as error:
        if error.errno in _DISK:
            raise
        place = f"{error.filename}: " if str(error.filename or path) != str(path) else ""
        failures[path] = f"{path}: {place}{error.strerror or error}"
    except (RuntimeError, MemoryError) as error:  # too large for the memory, above all
        failures[path] = f"{path}: {str(error).splitlines()[0] if str(error) else 'out of memory'}"


@dataclass(frozen=True)
class _Outputs:
    """Mask and overlay of a photograph, and the note in the mask: a digest of the settings, the photograph's bytes."""

    mask: Path
    overlay: Path
    note: str

    def are_done(self, source: Path) -> bool:
        """Whether both are there, whole, and of this photograph and these settings."""
        made = source.stat().st_mtime_ns
        try:
            read_size(self.overlay, max_pixels=sys.maxsize)
            # The overlay is written last: one that is older than the mask is of another prediction.
            in_order = made <= self.mask.stat().st_mtime_ns <= self.overlay.stat().st_mtime_ns
            return in_order and read_note(self.mask) == self.note
        except (ValueError, OSError):
            return False

    def make_folders(self) -> None:
        for path in (self.mask, self.overlay):
            path.parent.mkdir(parents=True, exist_ok=True)


def _segment(predictor: Predictor, path: Path, outputs: _Outputs) -> dict[str, float]:
    """Write mask and overlay; the areas by name."""
    result = predictor(path)
    if result.mask.size > LARGE:
        hand_back()  # an overlay takes as much as what the network had
    outputs.make_folders()
    write_mask(outputs.mask, result.mask, predictor.labels, outputs.note)
    write_image(outputs.overlay, result.overlay())
    return result.areas


def _segment_by_rows(
    predictor: Predictor, path: Path, outputs: _Outputs, progress: Callable[[float], None]
) -> dict[str, float]:
    """The same, for a photograph that is never in memory as a whole."""
    picture, labels = open_strips(path, max_pixels=predictor.max_pixels, rule=predictor.rule), predictor.labels
    smaller = -(-max(picture.size) // OVERLAY_SIDE)
    counts, kept, top = np.zeros(labels.largest_id + 1, dtype=np.int64), [], 0

    def observed_rows() -> Iterator[Pixels]:
        nonlocal top
        for rows in predictor.sliding_window().classes(picture, progress):
            counts[:] += pixel_counts(rows, labels)
            kept.append(rows[-top % smaller :: smaller, ::smaller].copy())
            top += len(rows)
            yield rows

    outputs.make_folders()
    write_mask_strips(outputs.mask, observed_rows(), picture.size, labels, outputs.note)
    write_image(outputs.overlay, overlay(_reduced(picture, smaller), np.concatenate(kept), labels))
    return {labels.names[i]: share for i, share in areas_of(counts).items()}


def _reduced(picture: Strips, by: int) -> Pixels:
    """A picture made smaller by a whole number: each pixel is the mean of `by` × `by`."""
    strips = picture.strips(-(-STRIP // by) * by)
    return np.concatenate([np.asarray(Image.fromarray(strip).reduce(by)) for strip in strips])


def _check_outputs(out: Path, names: dict[Path, str]) -> None:
    """Refuse to write over a photograph, or where there can be no folder, before anything is computed."""
    for folder in (out / "masks", out / "overlays"):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise ValueError(f"{there} is a file, expected a folder to write into")
        if not os.access(there, os.W_OK):
            raise ValueError(f"{there} cannot be written to; expected a folder that can")
    photographs = {os.path.realpath(path) for path in names}
    for written in (out / folder / name for name in names.values() for folder in ("masks", "overlays")):
        if os.path.realpath(written) in photographs:
            raise ValueError(f"{written} is one of the photographs and would be overwritten")


def find_photographs(sources: Iterable[str | Path]) -> list[Path]:
    """Paths of the photographs that files, folders (without subfolders) and globs name, each once, sorted in a source.

    Raises:
        ValueError: if a folder or glob holds no photograph.
        FileNotFoundError: if there is no such file or folder.
    """
    photographs: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
            files = (path / name for name in os.listdir(path) if not is_clutter(name))
            paths = sorted(p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir())
        elif os.path.lexists(path):
            paths = [path]
        elif glob.has_magic(str(source)):
            fixed = len(Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)).parts)
            matches = (Path(match) for match in glob.glob(str(source), recursive=True))
            paths = sorted(p for p in matches if not any(map(is_clutter, p.parts[fixed:])) and not p.is_dir())
        else:
            raise FileNotFoundError(f"there is no file or folder {str(source)!r}")
        if not paths:
            raise ValueError(f"{str(source)!r} holds no photograph (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
        photographs |= dict.fromkeys(paths)
    return list(photographs)


def output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The file name, ``STEM.png``, for each path; where stems collide, ``STEM.SUFFIX.png``.

    A name of more than `LONGEST_NAME` bytes is cut and gets a digest of the whole.

    Raises:
        ValueError: if even these collide.
    """
    stems = Counter(path.stem for path in paths)
    names = {path: f"{_shortened(path.stem if stems[path.stem] == 1 else path.name)}.png" for path in paths}
    taken: dict[str, Path] = {}
    for path, name in names.items():
        if name in taken:
            raise ValueError(f"{taken[name]} and {path} would both be written to {name}; segment them into two folders")
        taken[name] = path
    return names


def _shortened(stem: str) -> str:
    """A stem that fits into `LONGEST_NAME` together with ".png"."""
    raw = os.fsencode(stem)
    if len(raw) + len(".png") <= LONGEST_NAME:
        return stem
    # Where the cut falls into a character, the rest of it is left out.
    start = raw[: LONGEST_NAME - len("-01234567.png")].decode("utf-8", "ignore")
    return f"{start}-{hashlib.sha256(raw).hexdigest()[:8]}"


def is_shortened(path: Path, name: str) -> bool:
    """Whether the name of an output does not begin with its source's."""
    return not name.startswith(path.stem)
