"""Pseudo-labels: a teacher's masks for photographs that have none, as one more split of a data set.

Pixels of which the teacher is not sure are ignored. Train on ``train*2+pseudo`` afterwards; where the teacher is a
larger network, or sees each photograph at many scales, the student learns more than its few labels hold.

    label(open_teacher("runs/large"), ["photos/"], Path("my-data"), split="pseudo")
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atrous.data.image_file import IMAGE_SUFFIXES
from atrous.data.image_io import read_image, write_image, write_mask
from atrous.data.labels import Labels, load_labels, write_labels
from atrous.prediction.files import find_photographs, output_names
from atrous.prediction.tflite_teacher import Teacher

MARK = ".labelled-by-a-teacher"
"""In a folder of masks: it holds guesses, and may be given more."""


@dataclass
class Labelled:
    """What `label` did.

    Attributes:
        split: folder of the masks.
        written: photographs that were labelled now.
        already: those that had a mask before.
        ignored: share of the pixels, of those labelled now, of which the teacher was not sure.
        shares: of each class, by name, among the others.
        failures: why, for each file that was not labelled.
    """

    split: Path
    written: int = 0
    already: int = 0
    ignored: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        failures = {str(path): why for path, why in self.failures.items()}
        return {**vars(self), "split": str(self.split), "failures": failures}


def classes_of(data: Path) -> Labels | None:
    """The classes of a data set, or None where there is none yet; errors as `load_labels`."""
    return load_labels(data / "dataset.yaml") if (data / "dataset.yaml").exists() else None


def label(
    teacher: Teacher,
    sources: Sequence[str | Path],
    data: Path,
    *,
    split: str = "pseudo",
    confidence: float = 0.6,
    progress: Callable[[Path], None] = lambda path: None,
) -> Labelled:
    """Add photographs with the teacher's masks to a plain folder, which is made if there is none.

    Args:
        teacher: see `open_teacher`.
        sources: files, folders and globs.
        data: folder of the data set.
        split: to write. Photographs that have a mask there are left, so an interrupted call can be made again.
        confidence: pixels with a smaller probability of the best class are ignored, 0 to 1.
        progress: called with each file before it is labelled.

    Raises:
        ValueError: if the confidence is out of range, the data set has other classes, the split has masks that were
            not made so, a source stands for no file, or two photographs would have one name.
        FileNotFoundError: if a source does not exist.
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence is {confidence}, expected 0 to 1")
    if Path(split).name != split or split in ("", ".", ".."):
        raise ValueError(f"split is {split!r}, expected the name of a folder")
    there = classes_of(data)
    if there and there.names != teacher.labels.names:
        raise ValueError(f"{data} has the classes {', '.join(there.names)}; the teacher has others")
    names = output_names(find_photographs(sources))
    images, masks = data / "images" / split, data / "masks" / split
    if masks.exists() and any(masks.iterdir()) and not (masks / MARK).exists():
        raise ValueError(f"{masks} holds masks that no teacher made; expected another --split than {split}")
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    (masks / MARK).touch()
    if not there:
        write_labels(data / "dataset.yaml", teacher.labels)
    done, counts = Labelled(masks), np.zeros(256, dtype=np.int64)
    for path, name in names.items():
        if (masks / name).exists():
            done.already += 1
            continue
        progress(path)
        try:
            ids = _labelled(teacher, path, confidence)
            _add_image(path, images, Path(name).stem)
        except (ValueError, OSError) as error:
            done.failures[path] = str(error)
            continue
        write_mask(masks / name, ids, teacher.labels)
        counts += np.bincount(ids.reshape(-1), minlength=256)
        done.written += 1
    _count(done, counts, teacher.labels)
    return done


def _labelled(teacher: Teacher, path: Path, confidence: float) -> npt.NDArray[np.uint8]:
    probabilities = teacher.probabilities(path)
    ids: npt.NDArray[np.uint8] = probabilities.argmax(0).astype(np.uint8)
    ids[probabilities.max(0) < confidence] = teacher.labels.ignore
    return ids


def _add_image(path: Path, folder: Path, stem: str) -> None:
    """Before its mask: what an interrupted call leaves is an image to be labelled, never a mask without one."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        write_image(folder / f"{stem}.png", read_image(path))
        return
    partial = folder / f".{stem}{suffix}.partial"
    try:
        shutil.copyfile(path, partial)
        partial.replace(folder / f"{stem}{suffix}")
    finally:
        partial.unlink(missing_ok=True)


def _count(done: Labelled, counts: npt.NDArray[np.int64], labels: Labels) -> None:
    sure = int(counts[: len(labels)].sum())
    done.ignored = round(1 - sure / max(1, int(counts.sum())), 4) if counts.sum() else 0.0
    done.shares = {name: round(int(counts[i]) / max(1, sure), 6) for i, name in enumerate(labels.names)}
