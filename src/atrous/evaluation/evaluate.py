"""Score a model on a data set: whole images, any output stride, scales and left-right flips (section 4.2).

Probabilities are averaged over scales and flips, as in Tables 4, 6 and 12.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atrous.evaluation.distributed import DistributedContext
from atrous.evaluation.metrics import ConfusionMatrix, Scores, image_iou
from atrous.evaluation.preprocessor import Preprocessor
from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import with_output_stride
from atrous.models.output_stride import LONGEST_SIDE, check_reachable
from atrous.ops.resize import feature_count
from atrous.ops.tta import View, confidence_of, mean_argmax, mean_probabilities
from atrous.ops.upsampled_loss import upsampled_argmax

if TYPE_CHECKING:
    from atrous.data.datasets.dataset import SegmentationDataset

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

Pass = tuple[float, bool]
"""A scale, and whether the image is flipped."""

SCALE_LIMITS = (0.05, 16.0)
"""A scale outside is a slip: the image would have a few pixels, or fill the memory."""


@dataclass(frozen=True)
class Setting:
    """How to evaluate: see `evaluate`."""

    output_stride: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    pad_to: int | None = None

    @property
    def passes(self) -> frozenset[Pass]:
        """What is averaged."""
        return frozenset((scale, flipped) for scale in self.scales for flipped in {False, self.flip})

    @property
    def slug(self) -> str:
        """For the name of a file."""
        scales = "" if self.scales == (1.0,) else "-scales" + "-".join(f"{scale:g}" for scale in self.scales)
        padded = "" if self.pad_to is None else f"-pad{self.pad_to}"
        return f"os{self.output_stride}{scales}{'-flip' if self.flip else ''}{padded}"

    @property
    def ticks(self) -> dict[str, str]:
        """The columns of Table 4 beside the stride."""
        return {"MS": "✓" if len(self.scales) > 1 else "", "Flip": "✓" if self.flip else ""}


@dataclass(frozen=True)
class Example:
    """One image of an evaluation.

    Attributes:
        index: in the data set.
        iou: see `image_iou`.
        mask: what was predicted, class ids H,W.
    """

    index: int
    iou: float
    mask: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Scores of one evaluation, with its setting.

    Attributes:
        scores: see `Scores`.
        images: number of images.
        seconds: that it took.
        output_stride: of the features.
        scales: of the inputs.
        flip: whether flipped inputs were averaged in.
        longest_side: to which the images were resized, in pixels, before `scales`; None for their own size.
        pad_to: least height and width that the network saw, in pixels; None for no padding but to the feature grid.
        confusion: pixels by true class (row) and predicted class (column), int64 K,K.
        worst: the images of the lowest IoU, as many as were asked for, the worst first; this process's.
    """

    scores: Scores
    images: int
    seconds: float
    output_stride: int
    scales: tuple[float, ...]
    flip: bool
    longest_side: int | None = None
    pad_to: int | None = None
    confusion: Tensor | None = field(default=None, compare=False, repr=False)
    worst: tuple[Example, ...] = field(default=(), compare=False, repr=False)

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
            "pad_to": self.pad_to,
        }


def evaluate(
    model: DeepLabV3,
    dataset: SegmentationDataset,
    *,
    output_stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    pad_to: int | None = None,
    names: Sequence[str] | None = None,
    worst: int = 0,
    ctx: DistributedContext | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Count one confusion matrix over a data set, at the size of each image.

    Args:
        model: on its device; it is not changed.
        dataset: images and masks of any size.
        output_stride: of the evaluation, or None for the model's.
        scales: of the inputs.
        flip: average left-right flipped inputs in.
        pad_to: least height and width that the network sees, in pixels: 513 for VOC as in section 4.1, None for whole
            images as in appendix C; see `Preprocessor`.
        names: of the model's classes, which must be the data set's in the same order; None compares their number alone.
        worst: how many of the images of the lowest IoU to keep, with their masks.
        ctx: processes that share the work; None for this one alone.
        progress: called with the number of images that this process has done.

    Returns:
        The scores over all processes.

    Raises:
        ValueError: if the data set's classes are not the model's, or the model cannot take a setting.
    """
    setting = Setting(output_stride or model.output_stride, tuple(scales), flip, pad_to)

    def predict(image: Tensor) -> Iterator[tuple[int, Tensor, float]]:
        yield 0, predict_classes(network, image[None], scales=scales, flip=flip, pad_to=pad_to)[0], 0.0

    started, network = time.perf_counter(), in_eval_mode(model, output_stride)
    [evaluation] = evaluate_settings(
        model, dataset, [setting], predict, names=names, worst=worst, ctx=ctx, progress=progress
    )
    return replace(evaluation, seconds=time.perf_counter() - started)


def evaluate_settings(
    model: DeepLabV3,
    dataset: SegmentationDataset,
    settings: Sequence[Setting],
    predict: Callable[[Tensor], Iterable[tuple[int, Tensor, float]]],
    *,
    names: Sequence[str] | None = None,
    worst: int = 0,
    ctx: DistributedContext | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Evaluation]:
    """Go over a data set once and count a confusion matrix for each of several settings.

    Args:
        model: says the classes and output strides that there can be.
        dataset: images and masks of any size.
        settings: what is evaluated.
        predict: from a photograph, uint8 3,H,W, to the index of each setting, its mask, H,W, and the seconds it took.
        names: see `evaluate`, and so are the rest.
        worst: of each setting.
        ctx: processes that share the work; None for this one alone.
        progress: called with the number of images that this process has done.

    Raises:
        ValueError: see `evaluate`.
    """
    check_class_names(names, dataset.labels.names, model.num_classes)
    for setting in settings:
        check_scales(setting.scales)
        check_reachable(setting.output_stride, model.backbone.reachable, model.backbone.name)
    rank, size = (ctx.rank, ctx.size) if ctx else (0, 1)
    matrices = [ConfusionMatrix(model.num_classes, ignore=dataset.labels.ignore) for _ in settings]
    seconds, examples = [0.0] * len(settings), [list[Example]() for _ in settings]
    for done, index in enumerate(range(rank, len(dataset), size), 1):
        sample = dataset[index]
        for i, mask, took in predict(sample.image):
            counts = matrices[i].update(mask.cpu(), sample.mask)
            _keep_worst(examples[i], worst, index, counts, mask)
            seconds[i] += took
        progress(done)
    for matrix in matrices:
        matrix.counts = ctx.sum(matrix.counts.to(ctx.device)).cpu() if ctx else matrix.counts
    return [
        Evaluation(
            matrix.scores(dataset.labels.names), len(dataset), spent, setting.output_stride, setting.scales,
            setting.flip, model.longest_side, setting.pad_to, matrix.counts, tuple(kept),
        )
        for matrix, spent, setting, kept in zip(matrices, seconds, settings, examples, strict=True)
    ]  # fmt: skip


def _keep_worst(kept: list[Example], most: int, index: int, counts: Tensor, mask: Tensor) -> None:
    """Note an image, by its confusion matrix, if it is among the `most` of the lowest IoU so far."""
    iou = image_iou(counts) if most else float("nan")
    if iou == iou and (len(kept) < most or iou < kept[-1].iou):
        kept.append(Example(index, iou, mask.cpu()))
        kept.sort(key=lambda one: (one.iou, one.index))
        del kept[most:]


@torch.inference_mode()
def predict_classes(
    model: DeepLabV3, images: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False, pad_to: int | None = None
) -> Tensor:
    """The class of every pixel, B,H,W uint8, or int32 for more than 256 classes.

    Arguments and errors are those of `predict_probabilities`.
    """
    views = run_passes(model, Preprocessor(model, pad_to=pad_to), images, scales, flip)
    return classes_of(views, (images.shape[-2], images.shape[-1]), model.output_stride)


@torch.inference_mode()
def predict_with_confidence(
    model: DeepLabV3, images: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False, pad_to: int | None = None
) -> tuple[Tensor, Tensor]:
    """`predict_classes`, and the probability of that class at every pixel, B,H,W float32."""
    size = (images.shape[-2], images.shape[-1])
    views = run_passes(model, Preprocessor(model, pad_to=pad_to), images, scales, flip)
    classes = classes_of(views, size, model.output_stride)
    return classes, confidence_of(views, size, model.output_stride, classes)


def classes_of(views: Sequence[View], size: tuple[int, int], output_stride: int) -> Tensor:
    """The class of every pixel of an image of `size`, B,H,W uint8, from the logits of its views."""
    view = views[0]
    if len(views) == 1 and view.size == size and not view.flipped and view.upsampling == "grid":
        return upsampled_argmax(view.logits, size, output_stride)
    return mean_argmax(views, size, output_stride)


@torch.inference_mode()
def predict_probabilities(
    model: DeepLabV3,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    pad_to: int | None = None,
    fit: bool = True,
) -> Tensor:
    """Mean of the probabilities over scales and flips (section 4.2, "Inference strategy").

    Args:
        model: in ``eval()``.
        images: photographs, B,3,H,W uint8.
        scales: each within `SCALE_LIMITS`, of the photographs resized to the model's `longest_side`.
        flip: run the left-right flipped images, too.
        pad_to: see `Preprocessor`.
        fit: resize to the model's `longest_side`; False for a tile of a photograph.

    Returns:
        B,K,H,W float32, summing to 1 over the classes.

    Raises:
        ValueError: if there is no scale, or one is beyond `SCALE_LIMITS`.
    """
    views = run_passes(model, Preprocessor(model, fit=fit, pad_to=pad_to), images, scales, flip)
    return mean_probabilities(views, (images.shape[-2], images.shape[-1]), model.output_stride)


def run_passes(
    model: DeepLabV3, preprocess: Preprocessor, images: Tensor, scales: Sequence[float], flip: bool
) -> list[View]:
    """Low-resolution logits at each scale and, with `flip`, of the flipped image."""
    check_scales(scales)
    view, flips = preprocess.views(images, max(scales)), (False, True) if flip else (False,)
    return [run_pass(model, preprocess, view, scale, flipped) for scale in scales for flipped in flips]


def run_pass(
    model: DeepLabV3, preprocess: Preprocessor, view: Callable[[float], Tensor], scale: float, flipped: bool
) -> View:
    """Low-resolution logits of one scale of the photographs of `view` (`Preprocessor.views`), flipped or not."""
    inputs = view(scale)
    padded = preprocess.pad(inputs.flip(-1) if flipped else inputs, scale)
    size, stride = (inputs.shape[-2], inputs.shape[-1]), model.output_stride
    if padded.shape != inputs.shape and model.upsampling != "grid":
        raise ValueError(
            f"pad_to is {preprocess.pad_to}, and the model's upsampling is {model.upsampling}: its features would move "
            "with the padding; expected no pad_to"
        )
    height, width = (feature_count(side, stride, model.upsampling) for side in size)
    # The features of the padding served as context alone.
    logits = model.low_resolution_logits(padded)[..., :height, :width]
    return View(logits, size, flipped, model.upsampling)


def check_class_names(
    names: Sequence[str] | None, data_names: Sequence[str], num_classes: int, flag: str = "names=None"
) -> None:
    """Compare a model's classes with a data set's: their names and order, or their number if `names` is None.

    Args:
        names: of the model's classes.
        data_names: of the data set's classes.
        num_classes: of the model.
        flag: what a user gives to compare the number alone, for the message.

    Raises:
        ValueError: with both lists and the first difference, if they are not the same.
    """
    if names is None:
        if len(data_names) != num_classes:
            raise ValueError(f"the data has {len(data_names)} classes, the model {num_classes}")
        return
    if difference := class_difference(names, data_names):
        raise ValueError(f"{difference}; expected the same names in the same order, or {flag}")


def class_difference(names: Sequence[str], data_names: Sequence[str]) -> str:
    """Both lists of classes and the first that differs; "" if none does."""
    pairs = enumerate(zip_longest(data_names, names, fillvalue="none"))
    for i, (theirs, ours) in pairs:
        if theirs != ours:
            return (
                f"the data has the {len(data_names)} classes {', '.join(data_names)}; the model has the {len(names)} "
                f"classes {', '.join(names)}; the first difference is class {i}, {theirs} in the data and {ours} in "
                "the model"
            )
    return ""


def check_scales(scales: Sequence[float]) -> None:
    """Check the scales of the inputs.

    Raises:
        ValueError: if there is no scale, or one is beyond `SCALE_LIMITS`.
    """
    low, high = SCALE_LIMITS
    if not scales or any(not low <= scale <= high for scale in scales):
        raise ValueError(f"scales are {tuple(scales)}, expected numbers from {low} to {high}")


def checked_longest_side(pixels: int) -> int | None:
    """A user's choice of `longest_side` in pixels; 0 becomes None, for images at their own size.

    Raises:
        ValueError: if it is negative, or more than `LONGEST_SIDE`.
    """
    if not 0 <= pixels <= LONGEST_SIDE:
        raise ValueError(f"longest side is {pixels}, expected 1 to {LONGEST_SIDE} pixels, or 0 for images as they are")
    return pixels or None


def in_eval_mode(model: DeepLabV3, output_stride: int | None = None) -> DeepLabV3:
    """A model in ``eval()`` at an output stride: itself if it is so, otherwise a copy that shares its parameters.

    Raises:
        ValueError: if the model cannot reach the output stride.
    """
    stride = output_stride or model.output_stride
    if stride == model.output_stride and not any(layer.training for layer in model.modules()):
        return model
    return with_output_stride(model, stride).eval()
