"""`Predictor`: a model ready for photographs.

    predictor = Predictor.load()  # everyday objects; or a name, a weight file, a run folder
    result = predictor("photo.jpg")
    result.mask, result.names, result.areas
    result.overlay().save("out.png")

Imports no training code. A picture too large for one pass is segmented by a sliding window
(`atrous.prediction.sliding_window`); a file need not fit into memory (`atrous.prediction.files`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from atrous.data.image_io import MAX_PIXELS, Source, read_image, to_tensor
from atrous.data.labels import Labels
from atrous.data.row_io import is_installed, strips_of
from atrous.evaluation.distributed import pick_device
from atrous.evaluation.evaluate import (
    check_scales,
    checked_longest_side,
    inference,
    predict_classes,
    predict_probabilities,
)
from atrous.evaluation.preprocessor import Preprocessor
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import digest, load
from atrous.prediction.segmentation import Segmentation
from atrous.prediction.sliding_window import WHOLE_PIXELS, WINDOW, SlidingWindow

DEFAULT_MODEL = "objects-mobilenetv2"
"""Everyday objects: the weights that predict where no model is named."""


class Predictor:
    """A model ready for photographs.

    Args:
        model: its inference form is made for `device`.
        labels: names and colours of its classes.
        device: ``cpu``, ``cuda``, ...; None for a GPU where there is one.
        output_stride: of prediction, or None for the model's; 8 finds finer detail than 16 at about thrice the time.
        scales: average the probabilities over these scales (section 4.2).
        flip: average over left-right flipped inputs, too.
        dtype: of the model's inference form (`DeepLabV3.for_inference`); None lets the machine decide.
        longest_side: to which photographs are resized for the model, in pixels; None for the model's own, 0 for
            photographs at their own size.
        window: side of the sliding window, in pixels: photographs larger than it are segmented by it, at their own
            size. None for one of 1,601, and only where the model would see more than
            `atrous.prediction.sliding_window.WHOLE_PIXELS`.
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
        self.sliding_window()  # refuses a window that is too small

    @classmethod
    def load(cls, source: str | Path = DEFAULT_MODEL, **options: Any) -> Predictor:
        """From a name (`atrous models` lists them), a weight file or a run folder; `options` are the constructor's.

        Raises:
            ValueError: if there is no such model; names the nearest.
        """
        model, card = load(source)
        return cls(model, Labels(card.names, card.palette, card.ignore), **options)

    def __call__(self, source: Source) -> Segmentation:
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
            mask = np.concatenate(list(self.sliding_window().classes(strips_of(image))))
            return Segmentation(mask, image, self.labels)
        with inference(self.model):
            ids = predict_classes(self.model, to_tensor(image)[None], scales=self.scales, flip=self.flip)
        return Segmentation(ids[0].cpu().numpy(), image, self.labels)

    def probabilities(self, source: Source) -> npt.NDArray[np.float32]:
        """Probability of every class at every pixel, float32 K,H,W; arguments and errors are those of a call.

        The photograph is segmented in one pass, however large it is.
        """
        image = to_tensor(read_image(source, max_pixels=self.max_pixels))[None]
        with inference(self.model):
            probabilities = predict_probabilities(self.model, image, scales=self.scales, flip=self.flip)
        array: npt.NDArray[np.float32] = probabilities[0].float().cpu().numpy()
        return array

    def fits(self, height: int, width: int) -> bool:
        """Whether a photograph of that size is segmented in one pass."""
        if self.window is not None:
            return max(height, width) <= self.window
        # Made smaller, a photograph takes little memory in the model, however large it is.
        seen = math.prod(Preprocessor(self.model).seen_size((height, width)))
        return seen <= WHOLE_PIXELS and height * width <= (MAX_PIXELS if self.model.longest_side else WHOLE_PIXELS)

    def takes_whole(self, size: tuple[int, int]) -> bool:
        """Whether a file of that height and width is read whole: if it fits, or if pyvips is not there to read by rows.

        The window then still bounds what the model takes, and `MAX_PIXELS` what the picture does.
        """
        return self.fits(*size) or (not is_installed() and size[0] * size[1] <= MAX_PIXELS)

    def sliding_window(self) -> SlidingWindow:
        """Inference for photographs that do not fit."""
        window = self.window or max(WINDOW, 8 * self.model.output_stride)
        return SlidingWindow(self.model, window=window, scales=self.scales, flip=self.flip)

    def settings(self) -> str:
        """A digest of all that decides a mask, 16 hexadecimal digits: weights, stride, scales, flip, window, labels."""
        model = (self.model.arguments, self.model.output_stride, self.model.longest_side, digest(self.model))
        return hashlib.sha256(repr((model, self.labels, self.scales, self.flip, self.window)).encode()).hexdigest()[:16]
