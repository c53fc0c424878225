"""Test-time augmentation: the mean of probabilities over scales and flips, tile by tile (section 4.2).

A view is what a network made of one scaled, perhaps mirrored form of an image: small logits. From them to the pixels of
the image are two bilinear interpolations, to the pixels of the scaled form and from there to the image's. In each
direction both together are one matrix with four numbers in a row at most. So a tile of rows is a few small matrix
products for each view. Nothing of the size of the image is held for a view, nor for a class unless probabilities are
what is asked for. Where classes are, `class_blocks` interpolates along the edges of things alone.

    one, other = model.low_resolution_logits(half), model.low_resolution_logits(half.flip(-1))
    views = [View(one, size), View(other, size, flipped=True)]
    classes = mean_argmax(views, (height, width), output_stride=16)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from atrous.ops.class_blocks import Enlargement, Weights, interpolation, largest_class
from atrous.ops.resize import Upsampling, feature_count, resize, upsample
from atrous.ops.tiled_upsample import TILE, TILE_GPU, class_dtype, compute_dtype
from atrous.ops.trusted import library_only

LOG2E = 1.4426950408889634

COLUMNS = 256
"""Pixels that one product along the columns makes: a wider one multiplies more zeros, a narrower one is called more."""


class View(NamedTuple):
    """Logits of one form of an image.

    Attributes:
        logits: B,K,h,w float, of an image of `size`: on our grid h = ceil((H - 1) / output_stride) + 1.
        size: H, W of the picture that they were made of.
        flipped: whether it was mirrored left to right.
        upsampling: where the logits sit on the picture.
    """

    logits: Tensor
    size: tuple[int, int]
    flipped: bool = False
    upsampling: Upsampling = "grid"


def mean_probabilities(views: Sequence[View], size: tuple[int, int], output_stride: int) -> Tensor:
    """Mean over the views of the softmax of their logits, resized to `size`: B,K,H,W float32 (float64 for float64).

    Equals ``resize(upsample(view.logits, view.size, output_stride, view.upsampling), size).softmax(1)``, mirrored back,
    averaged.

    Raises:
        ValueError: if there is no view, or logits are not on the grid of their size.
    """
    _check(views, output_stride)
    if _needs_gradient(views) or _must_be_plain(views):
        return _plain_mean(views, size, output_stride)
    batch, classes = views[0].logits.shape[:2]
    mean = views[0].logits.new_empty(batch, classes, *size, dtype=compute_dtype(views[0].logits))
    for rows, tile in _tiles(views, size, output_stride):
        mean[:, :, rows] = tile.permute(1, 2, 0, 3)
    return mean


def mean_argmax(views: Sequence[View], size: tuple[int, int], output_stride: int) -> Tensor:
    """The class with the largest `mean_probabilities` of every pixel, B,H,W; the first of equal ones.

    NaN counts as the largest, as for `torch.argmax`. The dtype is `class_dtype`.

    Raises:
        ValueError: as there.
    """
    _check(views, output_stride)
    if _must_be_plain(views):
        return _plain_mean(views, size, output_stride).argmax(1).to(class_dtype(views[0].logits.shape[1]))
    dtype = compute_dtype(views[0].logits)
    with torch.autocast(views[0].logits.device.type, enabled=False):
        return largest_class(
            [Enlargement(view.logits.detach().to(dtype), *_interpolations(view, size, output_stride)) for view in views]
        )


def confidence_of(views: Sequence[View], size: tuple[int, int], output_stride: int, classes: Tensor) -> Tensor:
    """The value that `mean_probabilities` has at every pixel for the class given there.

    Args:
        views: see `mean_probabilities`, and so are the next two.
        size: of the image.
        output_stride: of the logits.
        classes: B,H,W integer, on the device of the logits.

    Returns:
        B,H,W float32 (float64 for float64).

    Raises:
        ValueError: as there.
    """
    _check(views, output_stride)
    if _needs_gradient(views) or _must_be_plain(views):
        return _plain_mean(views, size, output_stride).gather(1, classes.long()[:, None])[:, 0]
    result = torch.empty(classes.shape, dtype=compute_dtype(views[0].logits), device=views[0].logits.device)
    for rows, tile in _tiles(views, size, output_stride):
        result[:, rows] = tile.gather(2, classes[:, rows].long().transpose(0, 1)[:, :, None])[:, :, 0].transpose(0, 1)
    return result


def _check(views: Sequence[View], stride: int) -> None:
    if not views:
        raise ValueError("there is no view to average")
    for view in views:
        expected = tuple(feature_count(length, stride, view.upsampling) for length in view.size)
        if view.logits.ndim != 4 or view.logits.shape[:2] != views[0].logits.shape[:2]:
            raise ValueError(f"logits have the shapes {[tuple(v.logits.shape) for v in views]}, expected B,K,h,w each")
        if tuple(view.logits.shape[-2:]) != expected:
            raise ValueError(
                f"logits of {view.size[0]}x{view.size[1]} pixels at output stride {stride} must be "
                f"{expected[0]}x{expected[1]}, not {view.logits.shape[-2]}x{view.logits.shape[-1]}"
            )


def _needs_gradient(views: Sequence[View]) -> bool:
    return torch.is_grad_enabled() and any(view.logits.requires_grad for view in views)


def _must_be_plain(views: Sequence[View]) -> bool:
    """Whether PyTorch's operators are wanted, or needed: our matrices multiply far features by 0, which spreads NaN."""
    return library_only() or not all(bool(view.logits.isfinite().all()) for view in views)


def _plain_mean(views: Sequence[View], size: tuple[int, int], stride: int) -> Tensor:
    total = torch.zeros((), dtype=compute_dtype(views[0].logits), device=views[0].logits.device)
    for view in views:
        logits = upsample(view.logits.to(total.dtype), view.size, stride, view.upsampling)
        probabilities = resize(logits, size).softmax(1)
        total = total + (probabilities.flip(-1) if view.flipped else probabilities)
    return total / len(views)


def _tiles(views: Sequence[View], size: tuple[int, int], stride: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of pixels and their mean probabilities, r,B,K,W, in a buffer that the next tile overwrites."""
    (batch, classes), (height, width) = views[0].logits.shape[:2], size
    budget = TILE if views[0].logits.device.type == "cpu" else TILE_GPU
    count = max(1, min(height, budget // (batch * classes * width)))
    enlarged = [_Enlarged(view, size, stride) for view in views]
    total, one = (enlarged[0].small.new_empty(count, batch, classes, width) for _ in range(2))
    for top in range(0, height, count):
        rows = slice(top, min(top + count, height))
        mean, part = total[: rows.stop - top], one[: rows.stop - top]
        for i, view in enumerate(enlarged):
            _softmax(view.rows(rows, mean if i == 0 else part))
            if i:
                mean += part
        yield rows, mean.div_(len(views)) if len(views) > 1 else mean


def _softmax(tile: Tensor) -> None:
    """Along the third dimension, in place, of values in units of log 2: PyTorch's loop for powers of two is faster."""
    tile -= tile.amax(2, keepdim=True)
    tile.exp2_()
    tile *= tile.sum(2, keepdim=True).reciprocal_()


class _Enlarged:
    """A view, and the two matrices that take it to the pixels of the image."""

    def __init__(self, view: View, size: tuple[int, int], stride: int) -> None:
        dtype = compute_dtype(view.logits)
        batch, classes, h, w = view.logits.shape
        small = view.logits.permute(2, 0, 1, 3).to(dtype, copy=True, memory_format=torch.contiguous_format)
        self.small = small.mul_(LOG2E).view(h, batch * classes, w)
        device = view.logits.device
        rows, columns = _interpolations(view, size, stride)
        self.down = rows.dense(h).to(device, dtype)
        self.across = columns.dense(w).t().to(device, dtype).contiguous()

    def rows(self, pixels: slice, out: Tensor) -> Tensor:
        """Fill `out`, r,B,K,W, with the values of some rows of pixels."""
        weights = self.down[pixels]
        nonzero = weights.ne(0).any(0).nonzero()
        used = slice(int(nonzero[0]), int(nonzero[-1]) + 1)
        lines = (weights[:, used] @ self.small[used].flatten(1)).view(-1, self.small.shape[2])
        flat = out.view(len(lines), -1)
        for first in range(0, flat.shape[1], COLUMNS):
            columns = slice(first, min(first + COLUMNS, flat.shape[1]))
            torch.mm(lines[:, self._cells(columns)], self.across[self._cells(columns), columns], out=flat[:, columns])
        return out

    def _cells(self, columns: slice) -> slice:
        """The features between which some columns of pixels lie."""
        first, last = (self.across[:, edge].nonzero() for edge in (columns.start, columns.stop - 1))
        low, high = min(int(first[0]), int(last[0])), max(int(first[-1]), int(last[-1]))
        return slice(low, high + 1)


def _interpolations(view: View, size: tuple[int, int], stride: int) -> tuple[Weights, Weights]:
    """From a view's features to the rows and columns of the image."""
    rows, columns = (
        interpolation(pixels, between, features, stride, view.upsampling)
        for pixels, between, features in zip(size, view.size, view.logits.shape[-2:], strict=True)
    )
    return rows, Weights(*(part.flip(0) for part in columns)) if view.flipped else columns
