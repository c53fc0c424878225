"""From a model and a data set to scores: whole images, any output stride, scales and flip (section 4.2).

The probabilities are the mean over the scales and the flipped images, as in Tables 4, 6 and 12.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atrous.data.resize import shrunk, viewing_factor
from atrous.evaluation.distributed import DistributedContext
from atrous.evaluation.metrics import ConfusionMatrix, Scores
from atrous.models.deeplab import DeepLabV3
from atrous.models.output_stride import LONGEST_SIDE
from atrous.ops.normalization import Normalization
from atrous.ops.resize import resize
from atrous.ops.tta import View, mean_argmax, mean_probabilities
from atrous.ops.upsampled_loss import upsampled_argmax

if TYPE_CHECKING:
    from atrous.data.datasets.dataset import SegmentationDataset

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

SCALE_LIMITS = (0.05, 16.0)
"""Beyond these a scale is a slip: a picture of a few pixels, or one that fills the memory."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one evaluation, with its setting.

    Attributes:
        scores: see `Scores`.
        images: counted.
        seconds: that it took.
        output_stride: of the features.
        scales: of the inputs.
        flip: whether flipped inputs were averaged in.
        longest_side: that the images were brought to, in pixels, before `scales`; None for the images as they are.
    """

    scores: Scores
    images: int
    seconds: float
    output_stride: int
    scales: tuple[float, ...]
    flip: bool
    longest_side: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; see `Scores.as_dict`."""
        return {
            **self.scores.as_dict(),
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "output_stride": self.output_stride,
            "scales": list(self.scales),
            "flip": self.flip,
            "longest_side": self.longest_side,
        }


def evaluate(
    model: DeepLabV3,
    dataset: SegmentationDataset,
    *,
    output_stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    ctx: DistributedContext | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Count one confusion matrix over a data set, at the size of each image.

    Args:
        model: on its device. It is left as it was found: mode and output stride.
        dataset: images and masks of any size.
        output_stride: of the evaluation, or None for the model's.
        scales: of the inputs.
        flip: average left-right flipped inputs in.
        ctx: processes that share the work; None for this one alone.
        progress: called with the number of images that this process has done.

    Returns:
        The scores over all processes.

    Raises:
        ValueError: if the data set's classes are not as many as the model's.
    """
    if len(dataset.labels) != model.num_classes:
        raise ValueError(f"the data has {len(dataset.labels)} classes, the model {model.num_classes}")
    check_scales(scales)
    rank, size = (ctx.rank, ctx.size) if ctx else (0, 1)
    device = next(model.parameters()).device
    normalise = Normalization(model.mean, model.std)
    confusion = ConfusionMatrix(model.num_classes, ignore=dataset.labels.ignore)
    started = time.perf_counter()
    with inference(model, output_stride):
        for done, index in enumerate(range(rank, len(dataset), size), 1):
            sample = dataset[index]
            image = normalise(as_seen(model, sample.image, scales)[None].to(device))
            found = predict_classes(model, image, scales=scales, flip=flip, size=_size(sample.image))
            confusion.update(found[0].cpu(), sample.mask)
            progress(done)
        if ctx:
            confusion.counts = ctx.sum(confusion.counts.to(device)).cpu()
        stride = model.output_stride
    seconds = time.perf_counter() - started
    scores = confusion.scores(dataset.labels.names)
    return Evaluation(scores, len(dataset), seconds, stride, tuple(scales), flip, model.longest_side)


def predict_classes(
    model: DeepLabV3,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """The class of every pixel, B,H,W uint8; arguments and errors are those of `predict_probabilities`."""
    size = size or _size(images)
    if tuple(scales) == (1.0,) and not flip and size == _size(images) and viewing_factor(size, model.longest_side) == 1:
        return upsampled_argmax(model.low_resolution_logits(images), size, model.output_stride)
    return mean_argmax(_views(model, images, scales, flip, size), size, model.output_stride)


def predict_probabilities(
    model: DeepLabV3,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    size: tuple[int, int] | None = None,
    fit: bool = True,
) -> Tensor:
    """Mean of the probabilities over scales and flips (section 4.2, "Inference strategy").

    Args:
        model: in ``eval()``.
        images: B,3,h,w float, normalised.
        scales: each within `SCALE_LIMITS`, of the images brought to the model's `longest_side`.
        flip: run the left-right flipped images, too.
        size: H, W of the pictures, where `images` are these made smaller (`as_seen`); None for that of `images`.
        fit: bring them to the model's `longest_side`; off for a part of a picture.

    Returns:
        B,K,H,W float32, summing to 1 over the classes.

    Raises:
        ValueError: if there is no scale, or one is beyond `SCALE_LIMITS`.
    """
    size = size or _size(images)
    return mean_probabilities(_views(model, images, scales, flip, size, fit), size, model.output_stride)


def as_seen(model: DeepLabV3, image: Tensor, scales: Sequence[float]) -> Tensor:
    """A picture, uint8 3,H,W, made smaller where the largest of its views is less than half of it.

    So that no pixel is left out, and no large picture is held as floats. A smaller view, as in the paper, takes the
    pixels next to each of its own.
    """
    factor = max(scales) * viewing_factor(_size(image), model.longest_side)
    if model.longest_side is None or factor > 0.5:
        return image
    return shrunk(image, _scaled(_size(image), factor))


def probabilities_of_pass(
    model: DeepLabV3, images: Tensor, size: tuple[int, int], scale: float = 1.0, flipped: bool = False
) -> Tensor:
    """Probabilities from one scale, flipped or not: B,K,H,W float32 at `size`, turned back if flipped."""
    return mean_probabilities([_view(model, images, scale, flipped, size)], size, model.output_stride)


def _views(
    model: DeepLabV3, images: Tensor, scales: Sequence[float], flip: bool, size: tuple[int, int], fit: bool = True
) -> list[View]:
    check_scales(scales)
    turns = (False, True) if flip else (False,)
    return [_view(model, images, scale, turned, size, fit) for scale in scales for turned in turns]


def _view(
    model: DeepLabV3, images: Tensor, scale: float, flipped: bool, size: tuple[int, int], fit: bool = True
) -> View:
    """Small logits of one scale, flipped or not."""
    seen = _scaled(size, scale * viewing_factor(size, model.longest_side if fit else None))
    scaled = resize(images, seen)
    return View(model.low_resolution_logits(scaled.flip(-1) if flipped else scaled), seen, flipped)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """What becomes of H, W, corners aligned."""
    return round((size[0] - 1) * factor) + 1, round((size[1] - 1) * factor) + 1


def check_scales(scales: Sequence[float]) -> None:
    """Refuse scales that are none.

    Raises:
        ValueError: if there is no scale, or one is beyond `SCALE_LIMITS`.
    """
    low, high = SCALE_LIMITS
    if not scales or any(not low <= scale <= high for scale in scales):
        raise ValueError(f"scales are {tuple(scales)}, expected numbers from {low} to {high}")


def checked_longest_side(pixels: int) -> int | None:
    """What a user asks for as a model's `longest_side`: pixels, or 0 for pictures as they are.

    Raises:
        ValueError: if it is negative, or more than `LONGEST_SIDE`.
    """
    if not 0 <= pixels <= LONGEST_SIDE:
        raise ValueError(f"longest side is {pixels}, expected 1 to {LONGEST_SIDE} pixels, or 0 for images as they are")
    return pixels or None


@contextmanager
def inference(model: DeepLabV3, output_stride: int | None = None) -> Iterator[None]:
    """``eval()``, no gradients, another output stride; all as before at the end."""
    mode, stride = model.training, model.output_stride
    try:
        if output_stride is not None:
            model.output_stride = output_stride
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        model.output_stride = stride
        model.train(mode)
