"""`Predictor`: a model ready for photographs.

    predictor = Predictor.load()  # everyday objects; or a name, a weight file, a run folder
    result = predictor("photo.jpg")
    result.mask, result.names, result.areas
    result.overlay().save("out.png")

Imports no training code. A picture too large for one pass is segmented by a sliding window
(`atrous.prediction.sliding_window`); a file need not fit into memory (`atrous.prediction.files`).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from atrous.data.images.image_io import MAX_PIXELS, Pixels, Source, read_image, to_tensor
from atrous.data.images.row_io import is_installed, strips_of
from atrous.data.images.samples import AS_IT_IS, ImageRule
from atrous.data.labels import Labels
from atrous.evaluation.distributed import pick_device
from atrous.evaluation.evaluate import (
    check_scales,
    checked_longest_side,
    in_eval_mode,
    predict_classes,
    predict_probabilities,
    predict_with_confidence,
)
from atrous.evaluation.preprocessor import Preprocessor
from atrous.messages import counted, listed
from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import with_output_stride
from atrous.models.weights import digest, load
from atrous.prediction.inputs import from_bgr, many, name_of, size_of
from atrous.prediction.parallel import in_order
from atrous.prediction.segmentation import Segmentation
from atrous.prediction.sliding_window import WHOLE_PIXELS, WINDOW, SlidingWindow

DEFAULT_MODEL = "objects-mobilenetv2"
"""Everyday objects: the weights that predict where no model is named."""


LARGE_SEEN, LARGE = 1 << 20, 1 << 24
"""Pixels that the network sees, and pixels, of the largest photographs of which several are segmented at once."""

MOST_WORKERS = 8

_FORMS_LOCK = threading.Lock()
_DEVICE_LOCK = threading.Lock()  # but for a CPU: so that its memory holds the maps of one photograph at a time


class Predictor:
    """A model ready for photographs. Threads may share it: a call changes no model.

    Args:
        model: it is not changed; its inference form is made for `device`.
        labels: names and colours of its classes.
        device: ``cpu``, ``cuda``, ...; None for a GPU where there is one.
        output_stride: of prediction, or None for the model's; 8 finds finer detail than 16 at about thrice the time.
        scales: average the probabilities over these scales (section 4.2).
        flip: average over left-right flipped inputs, too.
        dtype: of weights and activations; None for the fastest that the device has (`DeepLabV3.for_inference`).
        longest_side: to which photographs are resized for the model, in pixels; None for the model's own, 0 for
            photographs at their own size.
        pad_to: least height and width that the network sees, in pixels, of photographs in one pass (`Preprocessor`).
        window: side of the sliding window, in pixels: photographs larger than it are segmented by it, at their own
            size. None for one of 1,601, and only where the model would see more than
            `atrous.prediction.sliding_window.WHOLE_PIXELS`.
        max_pixels: refuse larger photographs.
        value_range: of images of more than 8 bits, the values that are black and white (`ImageRule`).
        bands: of images of several bands, the three that are red, green and blue, or the one that is gray, from 1.

    Attributes:
        name: what it was loaded from, or the name of the backbone.
        model: the inference form, copies of which predict with its weights. Setting its `output_stride` or
            `longest_side` applies to the calls that begin after that; hooks and exchanged layers do not.

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
        pad_to: int | None = None,
        window: int | None = None,
        max_pixels: int = MAX_PIXELS,
        value_range: tuple[float, float] | None = None,
        bands: Sequence[int] = (),
    ) -> None:
        if len(labels) != model.num_classes:
            raise ValueError(f"there are {len(labels)} labels, the model has {model.num_classes} classes")
        check_scales(scales)
        self.device = pick_device(device)
        model = in_eval_mode(model, output_stride)
        if next(model.parameters()).device != self.device:
            model = copy.deepcopy(model).to(self.device)
        self.model = model.for_inference(dtype=dtype)
        if longest_side is not None:
            self.model.longest_side = checked_longest_side(longest_side)
        self.labels, self.scales, self.flip, self.max_pixels = labels, tuple(scales), flip, max_pixels
        self.window, self.pad_to, self.name = window, pad_to, model.backbone.name
        self.rule = ImageRule(value_range, tuple(bands))
        Preprocessor(self.model, pad_to=pad_to)  # refuses one that is out of range
        # Models that run, by output stride and longest side. They share the parameters of `model`.
        self._forms: dict[tuple[int, int | None], DeepLabV3] = {}
        self.sliding_window()  # refuses a window that is too small

    @classmethod
    def load(
        cls, source: str | Path = DEFAULT_MODEL, *, names: Sequence[str] | None = None, **options: Any
    ) -> Predictor:
        """From a name (`atrous models` lists them), a weight file, a run folder, or another library's checkpoint.

        Images are read as in the model's training, unless `value_range` or `bands` say otherwise.

        Args:
            source: as for `atrous.load`.
            names: of the classes, in place of those that the file says; a checkpoint may say none.
            **options: the constructor's.

        Raises:
            ValueError: if there is no such model; names the nearest. If there are not as many names as classes.
        """
        model, card = load(source)
        if names is not None and len({*names}) != model.num_classes:
            raise ValueError(f"{source} has {model.num_classes} classes, names that differ are {len({*names})}")
        card = replace(card, names=tuple(names)) if names is not None else card
        options.setdefault("value_range", card.value_range)
        options.setdefault("bands", card.bands)
        predictor = cls(model, Labels(card.names, card.palette, card.ignore), **options)
        predictor.name = str(source)
        return predictor

    @overload
    def __call__(
        self,
        source: Source,
        *,
        output_stride: int | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        confidence: bool = False,
        bgr: bool = False,
    ) -> Segmentation: ...
    @overload
    def __call__(
        self,
        source: list[Any] | tuple[Any, ...],
        *,
        output_stride: int | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        confidence: bool = False,
        bgr: bool = False,
    ) -> list[Segmentation]: ...
    @overload
    def __call__(
        self,
        source: Iterator[Any],
        *,
        output_stride: int | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        confidence: bool = False,
        bgr: bool = False,
    ) -> Iterator[Segmentation]: ...
    def __call__(
        self,
        source: Any,
        *,
        output_stride: int | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        confidence: bool = False,
        bgr: bool = False,
    ) -> Segmentation | list[Segmentation] | Iterator[Segmentation]:
        """Segment a photograph, or several of them at once.

        Args:
            source: a path; the content of a file as bytes; a file object; a PIL image; an array H,W, H,W,3 or H,W,4 of
                red, green, blue, uint8, or float from 0 to 1, or uint16, which is scaled as a file of 16 bits is; a
                tensor 3,H,W likewise. A list, a tuple or a batch (N,H,W,3, as a tensor N,3,H,W) gives a list of
                results; an iterator gives an iterator, which holds a few of them at a time.
            output_stride: of this call, and so are `scales` and `flip`; None for those of the predictor.
            scales: average the probabilities over these scales.
            flip: average over left-right flipped inputs, too.
            confidence: give `Segmentation.confidence`, too; it takes a little longer.
            bgr: arrays and tensors have blue, green, red, as OpenCV's.

        Raises:
            ValueError: if it cannot be read as a photograph; names the file and why; or if an option is out of range.
            FileNotFoundError: if there is no such file.
        """
        scales, flip = self.scales if scales is None else scales, self.flip if flip is None else flip

        def segment(one: Source) -> Segmentation:
            image = read_image(from_bgr(one) if bgr else one, max_pixels=self.max_pixels, rule=self.rule)
            mask, sure = self._segment(image, output_stride, scales, flip, confidence)
            return Segmentation(mask, image, self.labels, sure, name_of(one))

        several = many(source)
        if several is None:
            return segment(source)
        workers = self.workers
        results = in_order(segment, several, workers, lambda one: workers <= 1 or self.is_large(one))
        return results if isinstance(several, Iterator) else list(results)

    def _segment(
        self, image: Pixels, output_stride: int | None, scales: Sequence[float], flip: bool, confidence: bool
    ) -> tuple[Pixels, npt.NDArray[np.float32] | None]:
        if not self.fits(*image.shape[:2]):
            window = self.sliding_window(output_stride, scales, flip)
            if not confidence:
                return np.concatenate(list(window.classes(strips_of(image)))), None
            masks, sure = zip(*window.classes_with_confidence(strips_of(image)), strict=True)
            return np.concatenate(masks), np.concatenate(sure)
        # Over the memory of the array, unless that is upside down or may not be written.
        pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
        form = self.inference_model(output_stride)
        with contextlib.nullcontext() if self.device.type == "cpu" else _DEVICE_LOCK:
            if not confidence:
                ids = predict_classes(form, pixels, scales=scales, flip=flip, pad_to=self.pad_to)
                return ids[0].cpu().numpy(), None
            ids, probability = predict_with_confidence(form, pixels, scales=scales, flip=flip, pad_to=self.pad_to)
            return ids[0].cpu().numpy(), probability[0].float().cpu().numpy()

    def __repr__(self) -> str:
        return (
            f"Predictor({self.name}, {counted(len(self.labels), 'class', 'classes')}: "
            f"{listed(self.labels.names)}, output stride {self.model.output_stride}, {self.device})"
        )

    def probabilities(self, source: Source) -> npt.NDArray[np.float32]:
        """Probability of every class at every pixel, float32 K,H,W; `source` and errors are those of a call.

        The photograph is segmented in one pass, however large it is.
        """
        image = to_tensor(read_image(source, max_pixels=self.max_pixels, rule=self.rule))[None]
        probabilities = predict_probabilities(
            self.inference_model(), image, scales=self.scales, flip=self.flip, pad_to=self.pad_to
        )
        array: npt.NDArray[np.float32] = probabilities[0].float().cpu().numpy()
        return array

    @property
    def workers(self) -> int:
        """How many small photographs are segmented at once where there are many."""
        return min(MOST_WORKERS, torch.get_num_threads() if self.device.type == "cpu" else 4)

    def is_large(self, source: Any) -> bool:
        """Whether a photograph is segmented while no other is, for the memory that it takes."""
        try:
            size = size_of(source, self.max_pixels)
        except (ValueError, OSError):  # of which reading it will speak
            return False
        seen = math.prod(Preprocessor(self.model).seen_size(size))
        return not self.fits(*size) or seen > LARGE_SEEN or math.prod(size) > LARGE

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

    def sliding_window(
        self, output_stride: int | None = None, scales: Sequence[float] | None = None, flip: bool | None = None
    ) -> SlidingWindow:
        """Inference for photographs that do not fit; the arguments are those of a call."""
        form = self.inference_model(output_stride)
        scales, flip = self.scales if scales is None else scales, self.flip if flip is None else flip
        return SlidingWindow(form, window=self.window or max(WINDOW, 8 * form.output_stride), scales=scales, flip=flip)

    def settings(self) -> str:
        """A digest of all that decides a mask, 16 hexadecimal digits: weights, stride, scales, flip, window, labels."""
        model = (self.model.arguments, self.model.output_stride, self.model.longest_side, digest(self.model))
        options: tuple[Any, ...] = (self.labels, self.scales, self.flip, self.window, self.pad_to)
        options += () if self.rule == AS_IT_IS else (self.rule,)
        return hashlib.sha256(repr((model, options)).encode()).hexdigest()[:16]

    def inference_model(self, output_stride: int | None = None) -> DeepLabV3:
        """The model that runs at an output stride, made at its first use."""
        stride = self.model.output_stride if output_stride is None else output_stride
        key = (stride, self.model.longest_side)
        with _FORMS_LOCK:
            if key not in self._forms:
                self._forms[key] = with_output_stride(self.model, stride)
                self._forms[key].longest_side = key[1]
            return self._forms[key]
