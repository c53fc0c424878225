"""Sliding-window inference for images too large for one forward pass.

    sliding_window = SlidingWindow(model)
    for rows in sliding_window.classes(open_strips("city.tif"), progress=print):
        ...                                             # uint8 h,W class ids, from top to bottom

The result is meant to be that of one pass over the whole image:

- a window starts on the feature grid (`atrous.ops.resize`), so its features are those of the whole image, except near
  its edges, where the network sees padding. Features within `CONTEXT` pixels of such an edge do not count;
- windows are blended as logits on that grid, then upsampled as for whole images;
- the image-level features of ASPP (section 3.3) are the mean over the whole image, computed in a pass of its own at
  output stride 32. With the mean of each window, neighbours would disagree.

Memory holds the activations of one window, and rows of pixels and logits of the image's width and a window's height.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrous.data.images.image_io import Pixels, to_tensor
from atrous.data.images.row_io import Strips
from atrous.evaluation.evaluate import predict_probabilities
from atrous.evaluation.preprocessor import Preprocessor
from atrous.models.aspp import ASPP
from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import with_output_stride
from atrous.ops.malloc import hand_back
from atrous.ops.resize import grid_size
from atrous.ops.tta import View, confidence_of
from atrous.ops.upsampled_loss import upsampled_argmax

WHOLE_PIXELS = 4097 * 4097
"""Images of up to this many pixels are segmented in one pass, unless a window is asked for."""

WINDOW = 1601
"""Default side of the window, in pixels: 20,000 × 20,000 pixels take less than 1.5 GB."""

CONTEXT = 352
"""Pixels between a window's edge and the first feature that counts.

The widest branch of ASPP reaches 18 × 16 = 288 pixels at every output stride, the backbone some more. With 256 pixels
three to four times as many pixels near a seam change their class, with 448 less than half as many (LOG.md)."""

BLEND = 64
"""Pixels over which one window fades into the next."""

STRIP = 16
"""Rows that are read at a time; the memory of a reader grows with them."""

MARGIN = 64
"""As `CONTEXT`, for the mean over the whole image, in which a few features at an edge weigh little."""

FIRST_PASS = 0.25
"""Share of the progress that the image-level features take."""

SAMPLE = 4
"""Averaged probabilities are kept at every fourth pixel, and interpolated between."""


@dataclass(frozen=True)
class Span:
    """One window along one axis.

    Attributes:
        start: first pixel.
        stop: the pixel after the last.
        first: first feature, on the whole image's grid, for which the window counts.
        last: the feature after the last of those.
        weights: float32, of each of these features; over all windows they sum to 1.
    """

    start: int
    stop: int
    first: int
    last: int
    weights: Tensor


def spans(length: int, side: int, overlap: int, align: int, step: int) -> list[Span]:
    """Cover an axis evenly with windows.

    Args:
        length: of the axis, in pixels.
        side: of the windows, in pixels.
        overlap: least overlap of neighbours, in pixels, before alignment.
        align: windows start at multiples of it.
        step: pixels from one feature to the next; divides `align`.
    """
    starts = [0]
    if length > side:
        count = math.ceil((length - overlap) / (side - overlap))
        starts = [math.ceil((length - side) * i / (count - 1) / align) * align for i in range(count)]
    stops = [min(start + side, length) for start in starts]
    blend = min(BLEND, overlap // 4)
    fades = [(after + stop - blend) / 2 for after, stop in zip(starts[1:], stops[:-1], strict=True)]
    total = -(-(length - 1) // step) + 1
    positions = torch.arange(total) * step
    # At each feature, from 0 to 1, how far window i - 1 has faded into window i.
    faded = [torch.ones(total), *(((positions - fade) / blend).clamp(0, 1) for fade in fades), torch.zeros(total)]
    windows = []
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        weights = faded[i] - faded[i + 1]
        counted = weights.nonzero().flatten()
        first, last = int(counted[0]), int(counted[-1]) + 1
        windows.append(Span(start, stop, first, last, weights[first:last]))
    return windows


class SlidingWindow:
    """Inference on images of any size.

    Args:
        model: in its inference form, on its device.
        window: side of the window, in pixels.
        scales: as `atrous.evaluation.evaluate.predict_probabilities`.
        flip: likewise.

    Raises:
        ValueError: if the window is too small for the model's output stride.
    """

    def __init__(
        self, model: DeepLabV3, *, window: int = WINDOW, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> None:
        stride = model.output_stride
        if window < 8 * stride:
            raise ValueError(f"window is {window}, expected at least {8 * stride} at output stride {stride}")
        self.model, self.scales, self.flip = model, tuple(scales), flip
        ours = (
            model.upsampling == "grid"
        )  # other conventions have no grid that windows could share: blend probabilities
        self.averaged = self.scales != (1.0,) or flip or not ours
        self.side = (window - 1) // stride * stride + 1 if ours else window // stride * stride
        context = round(CONTEXT / min(1.0, *self.scales))  # at half the size the network sees twice as far
        self.overlap = min(2 * context + BLEND, self.side // 2)
        self.step = min(SAMPLE, stride) if self.averaged else stride
        self.preprocess = Preprocessor(model, fit=False)

    def classes(self, picture: Strips, progress: Callable[[float], None] = lambda share: None) -> Iterator[Pixels]:
        """Class ids of an image, in strips uint8 h,W from top to bottom.

        Args:
            picture: the rows of the image; read twice if the model has image-level features.
            progress: called with the share, 0 to 1, that is done.
        """
        for size, band in self._sized_bands(picture, progress):
            yield upsampled_argmax(band, size, self.step)[0].cpu().numpy()
        hand_back()  # an overlay takes as much as a window

    def classes_with_confidence(self, picture: Strips) -> Iterator[tuple[Pixels, npt.NDArray[np.float32]]]:
        """`classes`, each strip with the probability of its classes, float32 h,W."""
        for size, band in self._sized_bands(picture, lambda share: None):
            classes = upsampled_argmax(band, size, self.step)
            logits = band.clamp_min(1e-30).log() if self.averaged else band  # whose softmax is what they were
            confidence = confidence_of([View(logits, size)], size, self.step, classes)
            yield classes[0].cpu().numpy(), confidence[0].float().cpu().numpy()
        hand_back()

    def _sized_bands(
        self, picture: Strips, progress: Callable[[float], None]
    ) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Height and width of a strip of pixels, and its band."""
        (height, width), done = picture.size, 0
        for band in self._bands(picture, progress):
            rows = (band.shape[2] - 1) * self.step
            rows = height - done if done + rows >= height - 1 else rows
            yield (rows, width), band
            done += rows

    def _bands(self, picture: Strips, progress: Callable[[float], None]) -> Iterator[Tensor]:
        """Blended logits or probabilities, 1,K,h,w, from top to bottom; a band starts with the last row before it."""
        stride, size = self.model.output_stride, picture.size
        downs, acrosses = (spans(length, self.side, self.overlap, stride, self.step) for length in size)
        means = self._image_level(picture, lambda share: progress(FIRST_PASS * share))
        model = _with_image_level(self.model, means) if means else self.model
        begun, rows = FIRST_PASS if means else 0.0, _Rows(picture, self.side)
        band, top = torch.zeros(1, self.model.num_classes, 0, acrosses[-1].last, device=self.preprocess.device), 0
        for i, down in enumerate(downs):
            band = F.pad(band, (0, 0, 0, down.last - top - band.shape[2]))
            pixels = rows.take(down.start, down.stop)
            for j, across in enumerate(acrosses):
                features = self._features(model, pixels[:, across.start : across.stop])
                counted = band[:, :, down.first - top :, across.first : across.last]
                counted += _weighted(features, down, across, self.step)
                progress(begun + (1 - begun) * (i + (j + 1) / len(acrosses)) / len(downs))
            hand_back()
            final = downs[i + 1].first if i + 1 < len(downs) else down.last
            yield band[:, :, : final - top]
            band, top = band[:, :, final - top - 1 :], final - 1

    def _features(self, model: DeepLabV3, pixels: Pixels) -> Tensor:
        """One window, uint8 h,W,3: 1,K,h',w' logits, or probabilities if they are averaged."""
        features = self._run(model, pixels)
        for axis in (2, 3) if self.averaged else ():
            last = features.shape[axis] - 1
            positions = torch.arange(-(-last // self.step) + 1, device=features.device) * self.step
            features = features.index_select(axis, positions.clamp(max=last))
        return features

    @torch.inference_mode()
    def _run(self, model: DeepLabV3, pixels: Pixels) -> Tensor:
        hand_back()
        image = to_tensor(pixels)[None]
        if self.averaged:
            return predict_probabilities(model, image, scales=self.scales, flip=self.flip, fit=False)
        # Cast here, so that the float32 copy is freed before the network runs.
        return model.low_resolution_logits(self.preprocess(image).to(model.classifier.weight.dtype))

    def _image_level(self, picture: Strips, progress: Callable[[float], None]) -> list[Tensor]:
        """Input of ASPP's image-level branch for the whole image, 1,C,1,1, for each scale and flip; [] without it."""
        if not isinstance(self.model.head, ASPP) or self.model.head.image_pooling is None:
            return []
        # Features at output stride 32 are every second of those at 16, so their mean is about the same.
        stride = 32 if 32 in self.model.backbone.reachable else self.model.output_stride
        downs, acrosses = (_parts(length, self.side, stride) for length in picture.size)
        rows, sums, counts = _Rows(picture, self.side), torch.zeros(()), torch.zeros(())
        model, seen = with_output_stride(self.model, stride), list[Tensor]()
        _pooling(model).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].float()))
        for i, down in enumerate(downs):
            pixels = rows.take(down.start, down.stop)
            for across in acrosses:
                seen.clear()
                self._run(model, pixels[:, across.start : across.stop])
                parts = [part[:, :, down.inner(part.shape[2])][..., across.inner(part.shape[3])] for part in seen]
                sums = sums + torch.stack([part.sum((-2, -1), keepdim=True) for part in parts])
                counts = counts + torch.tensor([part[0, 0].numel() for part in parts])
            progress((i + 1) / len(downs))
        return [total / count for total, count in zip(sums, counts.tolist(), strict=True)]


def _weighted(features: Tensor, down: Span, across: Span, step: int) -> Tensor:
    """The features of a window that count, times their weights."""
    (top, left), weights = (down.start // step, across.start // step), torch.outer(down.weights, across.weights)
    part = features[:, :, down.first - top : down.last - top, across.first - left : across.last - left]
    return part * weights.to(features)


@dataclass(frozen=True)
class _Part:
    """Pixels `first` to `last` of an axis, with context from `start` to `stop`; features are `align` pixels apart."""

    start: int
    first: int
    last: int
    stop: int
    align: int

    def inner(self, count: int) -> slice:
        """Which of `count` features, evenly spaced from start to stop, are the part's own."""
        each = (count - 1) / max(1, grid_size(self.stop - self.start, self.align) - 1)
        end = round((self.last - self.start) * each) if self.last < self.stop else count
        return slice(round((self.first - self.start) * each), end)


def _parts(length: int, side: int, align: int) -> list[_Part]:
    """Cut an axis into parts at multiples of `align`; with `MARGIN` around it, a part has at most `side` pixels."""
    margin = min(MARGIN, side // 8) // align * align
    each = (side - 2 * margin) // align * align if length > side else length
    firsts = range(0, length, each)
    return [_Part(max(0, a - margin), a, min(a + each, length), min(a + each + margin, length), align) for a in firsts]


def _pooling(model: DeepLabV3) -> nn.Module:
    assert isinstance(model.head, ASPP) and model.head.image_pooling is not None
    return model.head.image_pooling


def _with_image_level(model: DeepLabV3, means: Sequence[Tensor]) -> DeepLabV3:
    """A copy whose image-level branch sees these means, in turn, instead of its own input's; parameters are shared.

    Hooks of a copy leave other threads alone, which may use the model at the same time.
    """
    given, turns = with_output_stride(model, model.output_stride), itertools.cycle(means)
    _pooling(given).register_forward_pre_hook(
        lambda module, inputs: (next(turns).to(inputs[0].dtype).expand_as(inputs[0]),)
    )
    return given


class _Rows:
    """The rows of an image, from top to bottom; rows that windows share are read once."""

    def __init__(self, picture: Strips, most: int) -> None:
        height, width = picture.size
        self._strips = picture.strips(STRIP)
        self._held = np.empty((min(most, height) + STRIP, width, 3), dtype=np.uint8)
        self._top = self._bottom = 0

    def take(self, start: int, stop: int) -> Pixels:
        """Rows `start` to `stop`, uint8 h,W,3, valid until the next call; neither may decrease from call to call."""
        for i in range(self._bottom - start):  # one by one: NumPy would copy overlapping rows first
            self._held[i] = self._held[i + start - self._top]
        self._top = start
        while self._bottom < stop:
            strip = next(self._strips)
            self._held[self._bottom - start :][: len(strip)] = strip
            self._bottom += len(strip)
        return self._held[: stop - start]
