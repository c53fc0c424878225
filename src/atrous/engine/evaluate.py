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

from atrous.data.image import Normalization
from atrous.engine.distributed import World
from atrous.engine.metrics import ConfusionMatrix, Scores
from atrous.models.deeplab import DeepLabV3
from atrous.ops.fused import upsampled_argmax
from atrous.ops.resize import resize
from atrous.ops.views import View, mean_argmax, mean_probabilities

if TYPE_CHECKING:
    from atrous.data.datasets import SegmentationDataset

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
    """

    scores: Scores
    images: int
    seconds: float
    output_stride: int
    scales: tuple[float, ...]
    flip: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON; see `Scores.as_dict`."""
        return {
            **self.scores.as_dict(),
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "output_stride": self.output_stride,
            "scales": list(self.scales),
            "flip": self.flip,
        }


def evaluate(
    model: DeepLabV3,
    dataset: SegmentationDataset,
    *,
    output_stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    world: World | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Count one confusion matrix over a data set, at the size of each image.

    Args:
        model: on its device. It is left as it was found: mode and output stride.
        dataset: images and masks of any size.
        output_stride: of the evaluation, or None for the model's.
        scales: of the inputs.
        flip: average left-right flipped inputs in.
        world: processes that share the work; None for this one alone.
        progress: called with the number of images that this process has done.

    Returns:
        The scores over all processes.

    Raises:
        ValueError: if the data set's classes are not as many as the model's.
    """
    if len(dataset.labels) != model.num_classes:
        raise ValueError(f"the data has {len(dataset.labels)} classes, the model {model.num_classes}")
    rank, size = (world.rank, world.size) if world else (0, 1)
    device = next(model.parameters()).device
    normalise = Normalization(model.mean, model.std)
    confusion = ConfusionMatrix(model.num_classes, ignore=dataset.labels.ignore)
    started = time.perf_counter()
    with inference(model, output_stride):
        for done, index in enumerate(range(rank, len(dataset), size), 1):
            sample = dataset[index]
            image = normalise(sample.image[None].to(device))
            confusion.update(predict_classes(model, image, scales=scales, flip=flip)[0].cpu(), sample.mask)
            progress(done)
        if world:
            confusion.counts = world.sum(confusion.counts.to(device)).cpu()
        stride = model.output_stride
    seconds = time.perf_counter() - started
    return Evaluation(confusion.scores(dataset.labels.names), len(dataset), seconds, stride, tuple(scales), flip)


def predict_classes(
    model: DeepLabV3, images: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Tensor:
    """The class of every pixel, B,H,W uint8, of normalised images, B,3,H,W float."""
    if tuple(scales) == (1.0,) and not flip:
        size = (images.shape[-2], images.shape[-1])
        return upsampled_argmax(model.grid_logits(images), size, model.output_stride)
    return mean_argmax(_views(model, images, scales, flip), (images.shape[-2], images.shape[-1]), model.output_stride)


def predict_probabilities(
    model: DeepLabV3, images: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Tensor:
    """Mean of the probabilities over scales and flips (section 4.2, "Inference strategy").

    Args:
        model: in ``eval()``.
        images: B,3,H,W float, normalised.
        scales: each within `SCALE_LIMITS`.
        flip: run the left-right flipped images, too.

    Returns:
        B,K,H,W float32, summing to 1 over the classes.

    Raises:
        ValueError: if there is no scale, or one is beyond `SCALE_LIMITS`.
    """
    views = _views(model, images, scales, flip)
    return mean_probabilities(views, (images.shape[-2], images.shape[-1]), model.output_stride)


def _views(model: DeepLabV3, images: Tensor, scales: Sequence[float], flip: bool) -> list[View]:
    check_scales(scales)
    return [_view(model, images, scale, turned) for scale in scales for turned in ((False, True) if flip else (False,))]


def _view(model: DeepLabV3, images: Tensor, scale: float, flipped: bool) -> View:
    """Small logits of one scale, flipped or not."""
    height, width = images.shape[-2:]
    size = (round((height - 1) * scale) + 1, round((width - 1) * scale) + 1)
    scaled = resize(images, size)
    return View(model.grid_logits(scaled.flip(-1) if flipped else scaled), size, flipped)


def probabilities_of_pass(model: DeepLabV3, images: Tensor, scale: float = 1.0, flipped: bool = False) -> Tensor:
    """Probabilities from one scale, flipped or not: B,K,H,W float32 at the size of `images`, turned back if flipped."""
    view, size = _view(model, images, scale, flipped), (images.shape[-2], images.shape[-1])
    return mean_probabilities([view], size, model.output_stride)


def check_scales(scales: Sequence[float]) -> None:
    """Refuse scales that are none.

    Raises:
        ValueError: if there is no scale, or one is beyond `SCALE_LIMITS`.
    """
    low, high = SCALE_LIMITS
    if not scales or any(not low <= scale <= high for scale in scales):
        raise ValueError(f"scales are {tuple(scales)}, expected numbers from {low} to {high}")


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
