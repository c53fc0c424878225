"""Photographs in, masks out: `Predictor`.

    predictor = Predictor.load("camvid-efficientnet_lite0")
    result = predictor("street.jpg")
    result.mask, result.names, result.areas
    result.overlay().save("out.png")

Prediction shares normalisation, resampling and averaging with training and evaluation, and imports no training code. A
picture too large for one pass goes through windows (`atrous.prediction.sliding_window`); a file need not fit into the
memory (`atrous.prediction.files`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from atrous.data.image_io import MAX_PIXELS, Pixels, read_image, to_tensor
from atrous.data.labels import Labels
from atrous.data.overlay import overlay
from atrous.data.resize import viewing_factor
from atrous.data.row_io import is_installed, strips_of
from atrous.evaluation.distributed import pick_device
from atrous.evaluation.evaluate import (
    as_seen,
    check_scales,
    checked_longest_side,
    inference,
    predict_classes,
    predict_probabilities,
)
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import load
from atrous.ops.normalization import Normalization
from atrous.prediction.sliding_window import WHOLE_PIXELS, WINDOW, Windows


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
        return shares_of(counts_of(self.mask))

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


def counts_of(mask: Pixels) -> npt.NDArray[np.int64]:
    """Pixels of each id, 256; row by row, for counting makes eight bytes of one."""
    counts = np.zeros(256, dtype=np.int64)
    for row in mask:
        counts += np.bincount(row, minlength=256)
    return counts


def shares_of(counts: npt.NDArray[np.int64]) -> dict[int, float]:
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
            those that the model would see at more than `atrous.prediction.sliding_window.WHOLE_PIXELS` go by windows of
            1,601, and all others whole.
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
