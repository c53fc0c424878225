"""Photographs in, masks out: `Predictor` for Python, `predict_files` for the command line.

    predictor = Predictor.load("camvid-efficientnet_lite0")
    result = predictor("street.jpg")
    result.mask, result.names, result.areas
    result.overlay().save("out.png")

Prediction shares normalisation, resampling and averaging with training and evaluation, and imports no training code. A
picture too large for one pass goes through windows (`atrous.jobs.windows`); a file need not fit into the memory.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from atrous.data.image import (
    MAX_PIXELS,
    Normalization,
    Pixels,
    read_image,
    read_note,
    read_size,
    to_tensor,
    write_image,
    write_mask,
)
from atrous.data.labels import Labels
from atrous.data.overlay import overlay
from atrous.data.strips import Strips, is_installed, open_strips, strips_of, write_mask_strips
from atrous.data.whole import sweep
from atrous.engine.distributed import pick_device
from atrous.engine.evaluate import (
    as_seen,
    check_scales,
    checked_longest_side,
    inference,
    predict_classes,
    predict_probabilities,
)
from atrous.jobs.windows import STRIP, WHOLE_PIXELS, WINDOW, Windows
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import load
from atrous.ops.resize import viewing_factor

SUFFIXES = set(".avif .bmp .gif .heic .heif .jfif .jpe .jpeg .jpg .mpo .pgm .png .pnm .ppm .tif .tiff .webp".split())
"""What is taken for a photograph in a folder; a file named outright is tried whatever its suffix."""

OVERLAY_SIDE = 4096
"""Longest side of the overlay of a picture that is read by rows: it is made smaller by a whole number."""


@dataclass(frozen=True)
class Segmentation:
    """What was found in one photograph.

    Attributes:
        mask: uint8 H,W, a class id for every pixel, at the size of the photograph as a person sees it.
        image: uint8 H,W,3, that photograph.
        labels: names and colours of all classes.
    """

    mask: npt.NDArray[np.uint8]
    image: npt.NDArray[np.uint8]
    labels: Labels

    @cached_property
    def areas(self) -> dict[int, float]:
        """Share of the pixels, 0 to 1, of each class found, by id; the largest first."""
        return _shares(_counts(self.mask))

    @property
    def names(self) -> dict[int, str]:
        """Name of each class found, by id; the largest first."""
        return {i: self.labels.names[i] for i in self.areas}

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The photograph with the classes' colours laid over it, and a legend where there is room."""
        return overlay(self.image, self.mask, self.labels, alpha=alpha)

    def segments(self) -> list[dict[str, Any]]:
        """In the form of Hugging Face's segmentation pipeline: ``[{"label", "score": None, "mask": PIL "L"}]``."""
        return [
            {"label": name, "score": None, "mask": Image.fromarray(np.where(self.mask == i, 255, 0).astype(np.uint8))}
            for i, name in self.names.items()
        ]


def _counts(mask: Pixels) -> npt.NDArray[np.int64]:
    """Pixels of each id, 256; row by row, for counting makes eight bytes of one."""
    counts = np.zeros(256, dtype=np.int64)
    for row in mask:
        counts += np.bincount(row, minlength=256)
    return counts


def _shares(counts: npt.NDArray[np.int64]) -> dict[int, float]:
    """From the pixels of each class to the share of each that has any, the largest first."""
    return {int(i): float(counts[i] / counts.sum()) for i in np.argsort(-counts, kind="stable") if counts[i]}


class Predictor:
    """A model ready for photographs.

    Args:
        model: its inference form is made for `device`.
        labels: names and colours of its classes.
        device: ``cpu``, ``cuda``, ...; None for a GPU where there is one.
        output_stride: of prediction, or None for the model's; 8 finds finer detail than 16 at about thrice the time.
        scales: average the probabilities over these scales (section 4.2).
        flip: and over left-right flipped inputs.
        dtype: of the model's inference form (`DeepLabV3.for_inference`); None lets the machine decide.
        longest_side: in pixels, that photographs are brought to for the model; None for the model's own, 0 for the
            photographs as they are.
        window: side in pixels of the windows that photographs larger than it are segmented by, at their own size. None:
            those that the model would see at more than `atrous.jobs.windows.WHOLE_PIXELS` go by windows of 1,601, and
            all others whole.
        max_pixels: refuse larger photographs.

    Raises:
        ValueError: if labels and classes differ in number, the stride cannot be reached, a scale is not positive, the
            longest side is negative, or the window is too small for the stride.
    """

    def __init__(
        self,
        model: DeepLabV3,
        labels: Labels,
        *,
        device: str | None = None,
        output_stride: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        dtype: torch.dtype | None = None,
        longest_side: int | None = None,
        window: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if len(labels) != model.num_classes:
            raise ValueError(f"there are {len(labels)} labels, the model has {model.num_classes} classes")
        check_scales(scales)
        self.device = pick_device(device)
        self.model = model.to(self.device).for_inference(dtype=dtype)
        if output_stride is not None:
            self.model.output_stride = output_stride
        if longest_side is not None:
            self.model.longest_side = checked_longest_side(longest_side)
        self.labels, self.scales, self.flip, self.max_pixels = labels, tuple(scales), flip, max_pixels
        self.window = window
        self.windows()  # refuses a window that is too small
        self.normalise = Normalization(model.mean, model.std)

    @classmethod
    def load(cls, source: str | Path, **options: Any) -> Predictor:
        """From a name (`atrous models` lists them), a weight file or a run folder; `options` are the constructor's.

        Raises:
            ValueError: if there is no such thing; names the nearest.
        """
        model, card = load(source)
        return cls(model, Labels(card.names, card.palette, card.ignore), **options)

    def __call__(self, source: str | Path | Image.Image | npt.NDArray[Any] | Tensor) -> Segmentation:
        """Segment one photograph.

        Args:
            source: a path; a PIL image; an array H,W, H,W,3 or H,W,4, uint8 or float from 0 to 1; a tensor 3,H,W
                likewise.

        Raises:
            ValueError: if it cannot be read as a photograph; names the file and why.
            FileNotFoundError: if there is no such file.
        """
        image = read_image(source, max_pixels=self.max_pixels)
        if not self.fits(*image.shape[:2]):
            return Segmentation(np.concatenate(list(self.windows().classes(strips_of(image)))), image, self.labels)
        with inference(self.model):
            size = (image.shape[0], image.shape[1])
            mask = predict_classes(self.model, self._tensor(image), scales=self.scales, flip=self.flip, size=size)
        return Segmentation(mask[0].cpu().numpy(), image, self.labels)

    def probabilities(self, source: str | Path | Image.Image | npt.NDArray[Any] | Tensor) -> npt.NDArray[np.float32]:
        """Probability of every class at every pixel, float32 K,H,W; arguments and errors are those of a call.

        The photograph goes through whole, however large it is.
        """
        image = read_image(source, max_pixels=self.max_pixels)
        with inference(self.model):
            size = (image.shape[0], image.shape[1])
            found = predict_probabilities(
                self.model, self._tensor(image), scales=self.scales, flip=self.flip, size=size
            )
        array: npt.NDArray[np.float32] = found[0].float().cpu().numpy()
        return array

    def fits(self, height: int, width: int) -> bool:
        """Whether a photograph of that size is segmented in one pass."""
        if self.window is not None:
            return max(height, width) <= self.window
        # Made smaller, a photograph takes little memory in the model, however large it is.
        seen = height * width * viewing_factor((height, width), self.model.longest_side) ** 2
        return seen <= WHOLE_PIXELS and height * width <= (MAX_PIXELS if self.model.longest_side else WHOLE_PIXELS)

    def takes_whole(self, size: tuple[int, int]) -> bool:
        """Whether a file of that height and width is read whole: if it fits, or nothing here reads by rows.

        The windows then still bound what the model takes, and `MAX_PIXELS` what the picture does.
        """
        return self.fits(*size) or (not is_installed() and size[0] * size[1] <= MAX_PIXELS)

    def windows(self) -> Windows:
        """What photographs that do not fit are segmented by."""
        window = self.window or max(WINDOW, 8 * self.model.output_stride)
        return Windows(self.model, window=window, scales=self.scales, flip=self.flip)

    def settings(self) -> str:
        """Sixteen digits that stand for whatever decides a mask: weights, stride, scales, flips, windows, labels."""
        digest = hashlib.sha256(repr((self.model.arguments, self.model.output_stride, self.labels)).encode())
        digest.update(repr((self.scales, self.flip, self.model.longest_side, self.window)).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def _tensor(self, image: npt.NDArray[np.uint8]) -> Tensor:
        seen = as_seen(self.model, to_tensor(image), self.scales)
        return self.normalise(seen[None].to(self.device)).contiguous(memory_format=torch.channels_last)


@dataclass
class Batch:
    """What `predict_files` did.

    Attributes:
        areas: share of each class, by name, for each file that was segmented.
        failures: why, for each file that was not.
        skipped: files whose outputs were there already.
    """

    areas: dict[Path, dict[str, float]] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)
    skipped: list[Path] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "files": {str(path): areas for path, areas in self.areas.items()},
            "failures": {str(path): why for path, why in self.failures.items()},
            "skipped": [str(path) for path in self.skipped],
        }


def predict_files(
    predictor: Predictor,
    sources: Sequence[str | Path],
    out: Path,
    *,
    resume: bool = False,
    progress: Callable[[Path, float], None] = lambda path, share: None,
) -> Batch:
    """Segment files, folders and globs into ``out/masks`` and ``out/overlays``.

    A mask is a palette PNG of class ids at the size of its source, and so is an overlay, but for `OVERLAY_SIDE`. A file
    that fails is noted, and the others are done. However the process ends, what stands there under its name is whole.

    Args:
        predictor: the model with its settings.
        sources: files, folders, globs.
        out: folder to write.
        resume: leave a file whose mask and overlay are there, newer, and made by these settings of a file of its size.
        progress: is told each file, and the share of it, 0 to 1, that is done.

    Raises:
        ValueError: if a source stands for no file at all, or two files would be written to one name.
        FileNotFoundError: if a source does not exist.
    """
    batch, names = Batch(), output_names(find_photographs(sources))
    _check_outputs(out, names)
    sweep(out / "masks")
    sweep(out / "overlays")
    settings = predictor.settings()
    for path, name in names.items():
        progress(path, 0.0)
        try:
            size = read_size(path, max_pixels=predictor.max_pixels)
            outputs = _Outputs(out / "masks" / name, out / "overlays" / name, f"{settings} {path.stat().st_size}")
            if resume and outputs.are_done(path):
                batch.skipped.append(path)
            elif predictor.takes_whole(size):
                batch.areas[path] = _segment(predictor, path, outputs)
            else:
                batch.areas[path] = _segment_by_rows(predictor, path, outputs, functools.partial(progress, path))
        except (ValueError, FileNotFoundError) as error:
            batch.failures[path] = str(error)
        except (RuntimeError, MemoryError) as error:  # too large for the memory, above all
            batch.failures[path] = f"{path}: {str(error).splitlines()[0] if str(error) else 'out of memory'}"
        progress(path, 1.0)
    return batch


@dataclass(frozen=True)
class _Outputs:
    """The two files that are made of a photograph, and the note in the mask that says of what and how."""

    mask: Path
    overlay: Path
    note: str

    def are_done(self, source: Path) -> bool:
        """Whether both are there, whole, and of this photograph and these settings."""
        made = source.stat().st_mtime_ns
        try:
            read_size(self.overlay, max_pixels=sys.maxsize)
            # The overlay is the last that is written: an older one is of another prediction.
            in_order = made <= self.mask.stat().st_mtime_ns <= self.overlay.stat().st_mtime_ns
            return in_order and read_note(self.mask) == self.note
        except (ValueError, OSError):
            return False

    def make_folders(self) -> None:
        for path in (self.mask, self.overlay):
            path.parent.mkdir(parents=True, exist_ok=True)


def _segment(predictor: Predictor, path: Path, outputs: _Outputs) -> dict[str, float]:
    """The areas by name."""
    found = predictor(path)
    outputs.make_folders()
    write_mask(outputs.mask, found.mask, predictor.labels, outputs.note)
    write_image(outputs.overlay, found.overlay())
    return {found.names[i]: share for i, share in found.areas.items()}


def _segment_by_rows(
    predictor: Predictor, path: Path, outputs: _Outputs, progress: Callable[[float], None]
) -> dict[str, float]:
    picture, labels = open_strips(path, max_pixels=predictor.max_pixels), predictor.labels
    smaller = -(-max(picture.size) // OVERLAY_SIDE)
    counts, kept, top = np.zeros(256, dtype=np.int64), [], 0

    def looked_at() -> Iterator[Pixels]:
        nonlocal top
        for rows in predictor.windows().classes(picture, progress):
            counts[:] += _counts(rows)
            kept.append(rows[-top % smaller :: smaller, ::smaller].copy())
            top += len(rows)
            yield rows

    outputs.make_folders()
    write_mask_strips(outputs.mask, looked_at(), picture.size, labels, outputs.note)
    write_image(outputs.overlay, overlay(_reduced(picture, smaller), np.concatenate(kept), labels))
    return {labels.names[i]: share for i, share in _shares(counts).items()}


def _reduced(picture: Strips, by: int) -> Pixels:
    """A picture made smaller by a whole number, each pixel the mean of those it stands for."""
    height, width = (-(-side // by) for side in picture.size)
    found, top = np.empty((height, width, 3), dtype=np.uint8), 0
    for strip in picture.strips(-(-STRIP // by) * by):
        rows = np.asarray(Image.fromarray(strip).reduce(by))
        found[top : top + len(rows)] = rows
        top += len(rows)
    return found


def _check_outputs(out: Path, names: dict[Path, str]) -> None:
    """Refuse to write over a photograph, or into a folder that is a file."""
    for folder in (out, out / "masks", out / "overlays"):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, expected a folder to write into")
    photographs = {os.path.realpath(path) for path in names}
    for written in (out / folder / name for name in names.values() for folder in ("masks", "overlays")):
        if os.path.realpath(written) in photographs:
            raise ValueError(f"{written} is one of the photographs and would be overwritten")


def find_photographs(sources: Iterable[str | Path]) -> list[Path]:
    """The files that files, folders (not those below them) and globs stand for, each once, sorted within a source.

    Raises:
        ValueError, FileNotFoundError: if a folder or glob holds no photograph, if there is no such file or folder.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            paths = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.is_dir())
        elif os.path.lexists(path):
            paths = [path]
        elif glob.has_magic(str(source)):
            paths = sorted(Path(p) for p in glob.glob(str(source), recursive=True) if not Path(p).is_dir())
        else:
            raise FileNotFoundError(f"there is no file or folder {str(source)!r}")
        if not paths:
            raise ValueError(f"{str(source)!r} holds no photograph (looked for {', '.join(sorted(SUFFIXES))})")
        found |= dict.fromkeys(paths)
    return list(found)


def output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The file name, ``STEM.png``, for each path; where stems collide, ``STEM.SUFFIX.png``.

    Raises:
        ValueError: if even these collide.
    """
    stems = Counter(path.stem for path in paths)
    names = {path: f"{path.stem if stems[path.stem] == 1 else path.name}.png" for path in paths}
    taken: dict[str, Path] = {}
    for path, name in names.items():
        if name in taken:
            raise ValueError(f"{taken[name]} and {path} would both be written to {name}; segment them into two folders")
        taken[name] = path
    return names
