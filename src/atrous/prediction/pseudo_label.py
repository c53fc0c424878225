"""Pseudo-label photographs with a teacher's masks, as one more split of a data set.

Pixels whose best class has a low probability are ignored. Train on ``train*2+pseudo`` afterwards. With a larger
network as the teacher, or with multi-scale inference, the student learns more than from its few labels alone.

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

from atrous.atomic import written_whole
from atrous.data.datasets.folding import load_labels
from atrous.data.datasets.options import read_options
from atrous.data.images.image_file import IMAGE_SUFFIXES
from atrous.data.images.image_io import read_image, write_image, write_mask
from atrous.data.labels import Labels, write_labels
from atrous.evaluation.evaluate import class_difference
from atrous.prediction.files import errors_noted, find_photographs, output_names
from atrous.prediction.segmentation import pixel_counts
from atrous.prediction.tflite_teacher import Teacher

MARK = ".labelled-by-a-teacher"
"""A file in a folder of pseudo-labels: more may be added to such a folder."""


@dataclass
class LabelResult:
    """The result of `label`.

    Attributes:
        split: folder of the masks.
        written: number of photographs labelled now.
        already: number of photographs that had a mask before.
        ignored: share of the pixels labelled now that are ignored, 0 to 1.
        shares: of each class, by name, among the other pixels.
        failures: the reason for each file that was not labelled.
    """

    split: Path
    written: int = 0
    already: int = 0
    ignored: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)

    def count(self, counts: npt.NDArray[np.int64], labels: Labels) -> None:
        """Set `ignored` and `shares` from the number of pixels of each id, 256."""
        sure = int(counts[: len(labels)].sum())
        self.ignored = round(1 - sure / int(counts.sum()), 4) if counts.any() else 0.0
        self.shares = {name: round(int(counts[i]) / max(1, sure), 6) for i, name in enumerate(labels.names)}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        failures = {str(path): why for path, why in self.failures.items()}
        return {**vars(self), "split": str(self.split), "failures": failures}


def classes_of(data: Path) -> Labels | None:
    """The classes of a data set, or None if it has none yet; errors as `read_options`.

    Raises:
        ValueError: also where its masks do not hold class ids, as a teacher's do.
    """
    path = data / "dataset.yaml"
    if not path.exists():
        return None
    options, _ = read_options(path)
    for key in ("ids", "map", "classes"):
        if getattr(options, key):
            what = "names by id" if key == "ids" else f"key {key}"
            raise ValueError(f"{path}: it maps stored ids, but a teacher's masks hold class ids; expected no {what}")
    return load_labels(path)


def label(
    teacher: Teacher,
    sources: Sequence[str | Path],
    data: Path,
    *,
    split: str = "pseudo",
    confidence: float = 0.6,
    progress: Callable[[Path], None] = lambda path: None,
) -> LabelResult:
    """Add photographs with the teacher's masks to a data set of the plain layout, which is made if there is none.

    Args:
        teacher: see `open_teacher`.
        sources: files, folders and globs.
        data: folder of the data set.
        split: to write. Photographs that have a mask there are skipped, so an interrupted call can be repeated.
        confidence: pixels whose best class has a smaller probability, 0 to 1, are ignored.
        progress: called with each file before it is labelled.

    Raises:
        ValueError: if the confidence is out of range, the data set has other classes, the split has masks that no
            teacher made, a source has no photograph, or two photographs would have one name.
        FileNotFoundError: if a source does not exist.
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence is {confidence}, expected 0 to 1")
    if Path(split).name != split or split in ("", ".", ".."):
        raise ValueError(f"split is {split!r}, expected the name of a folder")
    known = classes_of(data)
    if known and (difference := class_difference(teacher.labels.names, known.names)):
        raise ValueError(f"{data}: {difference}; expected a teacher of the same classes")
    names = output_names(find_photographs(sources))
    images, masks = data / "images" / split, data / "masks" / split
    if masks.exists() and any(masks.iterdir()) and not (masks / MARK).exists():
        raise ValueError(f"{masks} holds masks that no teacher made; expected another --split than {split}")
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    (masks / MARK).touch()
    if not known:
        write_labels(data / "dataset.yaml", teacher.labels)
    result, counts = LabelResult(masks), np.zeros(teacher.labels.largest_id + 1, dtype=np.int64)
    for path, name in names.items():
        if (masks / name).exists():
            result.already += 1
            continue
        progress(path)
        with errors_noted(path, result.failures):
            mask = _confident_mask(teacher, path, confidence)
            _add_image(path, images, Path(name).stem)
            write_mask(masks / name, mask, teacher.labels)
            counts += pixel_counts(mask, teacher.labels)
            result.written += 1
    result.count(counts, teacher.labels)
    return result


def _confident_mask(teacher: Teacher, path: Path, confidence: float) -> npt.NDArray[Any]:
    probabilities = teacher.probabilities(path)
    mask: npt.NDArray[Any] = probabilities.argmax(0).astype(np.uint8 if teacher.labels.largest_id < 256 else np.uint16)
    mask[probabilities.max(0) < confidence] = teacher.labels.ignore
    return mask


def _add_image(path: Path, folder: Path, stem: str) -> None:
    """Copy a photograph, or convert one that data sets do not read to PNG.

    Before its mask is written, so that an interrupted call leaves an image to be labelled, never a mask without one.
    """
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        write_image(folder / f"{stem}.png", read_image(path))
        return
    with open(path, "rb") as source, written_whole(folder / f"{stem}{suffix}") as copy:
        shutil.copyfileobj(source, copy)
