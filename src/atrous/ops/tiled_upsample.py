"""Bilinear upsampling tile by tile, and the way back for gradients (section 4.1, "Upsampling logits").

`upsampled_loss` and `tta` compute on full-resolution pixels one tile after the other: some rows of pixels of one or
more images, which stay in the cache. By an integer factor, upsampling is a product with two small constant matrices,
and the gradient takes the transposed products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 1 << 19
"""Elements of a tile: two megabytes of float32, which stay in the caches; fewer cost more calls than they save misses.

PyTorch gives a thread at least 32768 elements, so that this keeps up to 16 threads busy.
"""

TILE_GPU = 1 << 24
"""Elements of a tile on a GPU: large enough that the launches of the operators do not count."""

CELLS = 16
"""Cells that one product along the columns covers: a longer one multiplies more zeros, a shorter one is called more."""


class Upsampler:
    """Upsampling of some images, tile by tile from the top, and the way back for gradients.

    Everything is laid out as row, image, class, column, so that each interpolation is one matrix product on contiguous
    rows, and what is taken over classes runs along whole rows of pixels.
    """

    def __init__(self, small: Tensor, size: tuple[int, int], stride: int, rows: int) -> None:
        """Prepare `small`, h,n,K,w float, for tiles of at most `rows` rows of an image of `size`."""
        self.small = small.flatten(1, 2)
        self.height, self.width = size
        self.stride, self.rows = stride, rows
        self.images, self.classes = small.shape[1:3]
        h, lines, w = self.small.shape
        position = torch.arange(min(CELLS, max(w - 1, 1)) * stride + 1, device=small.device, dtype=small.dtype) / stride
        feature = torch.arange(min(CELLS + 1, w), device=small.device, dtype=small.dtype)
        self.columns = (1 - (position - feature[:, None]).abs()).clamp_(min=0)
        self.columns_back = self.columns.t().contiguous()
        lower = position[:stride]
        self.weights = torch.stack((1 - lower, lower), 1)
        self.pair = small.new_zeros(2, lines, self.width)
        self.tile = small.new_empty(rows, self.images, self.classes, self.width)
        self.pair_gradient = torch.zeros_like(self.pair)
        self.gradient = torch.zeros_like(self.small)

    def _chunks(self) -> Iterator[tuple[slice, slice]]:
        """Features and the pixels that lie between them; the last chunk's end with the last pixel."""
        w = self.small.shape[2]
        for first in range(0, max(w - 1, 1), CELLS):
            last = min(first + CELLS, w - 1)
            end = self.width if last == w - 1 else last * self.stride
            yield slice(first, last + 1), slice(first * self.stride, end)

    def _widen(self, row: int, out: Tensor) -> None:
        for features, pixels in self._chunks():
            values = self.small[row, :, features]
            matrix = self.columns[: values.shape[1], : pixels.stop - pixels.start]
            torch.mm(values, matrix, out=out[:, pixels])

    def _narrow(self, gradient: Tensor, row: int) -> None:
        for features, pixels in self._chunks():
            out = self.gradient[row, :, features]
            out.addmm_(gradient[:, pixels], self.columns_back[: pixels.stop - pixels.start, : out.shape[1]])

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of pixels and their values, r,n,K,W, in a buffer that the next tile overwrites."""
        h = self.small.shape[0]
        self._widen(0, self.pair[1])
        for row in range(h):
            self.pair[0].copy_(self.pair[1])
            if row + 1 < h:
                self._widen(row + 1, self.pair[1])
            top = row * self.stride
            bottom = min(top + self.stride, self.height)
            for first in range(top, bottom, self.rows):
                pixels = slice(first, min(first + self.rows, bottom))
                yield pixels, self.values(pixels)
            self._leave(row)

    def values(self, pixels: slice) -> Tensor:
        """Fill the buffer for some rows of pixels below the current row of features."""
        tile = self.tile[: pixels.stop - pixels.start]
        lower = self._weights(pixels)[:, 1].view(-1, 1, 1)
        torch.lerp(self.pair[:1], self.pair[1:], lower, out=tile.flatten(1, 2))
        return tile

    def _weights(self, pixels: slice) -> Tensor:
        first = pixels.start % self.stride
        return self.weights[first : first + pixels.stop - pixels.start]

    def add_gradient(self, pixels: slice, gradient: Tensor) -> None:
        """Add the gradient with respect to the tile just given, r,n,K,W."""
        self.pair_gradient.flatten(1).addmm_(self._weights(pixels).t(), gradient.flatten(1))

    def _leave(self, row: int) -> None:
        self._narrow(self.pair_gradient[0], row)
        self.pair_gradient[0].copy_(self.pair_gradient[1])
        self.pair_gradient[1].zero_()


def _plan(shape: torch.Size, width: int, stride: int, device: torch.device) -> tuple[int, int]:
    """Images and rows that make up a tile: as many as `TILE` holds."""
    budget = TILE if device.type == "cpu" else TILE_GPU
    line = shape[1] * width
    pieces = math.ceil(stride / max(1, min(stride, budget // line)))
    rows = math.ceil(stride / pieces)
    batch = max(1, shape[0])
    images = max(1, min(batch, budget // (line * rows))) if pieces == 1 else 1
    return math.ceil(batch / math.ceil(batch / images)), rows


def parts(logits: Tensor, size: tuple[int, int], stride: int) -> Iterator[tuple[slice, Tensor, int]]:
    """Images, their logits as h,n,K,w float32 or float64, and the rows of a tile."""
    images, rows = _plan(logits.shape, size[1], stride, logits.device)
    for first in range(0, logits.shape[0], images):
        part = slice(first, first + images)
        small = logits[part].permute(2, 0, 1, 3)
        # `copy`, for the caller's logits must not be changed by what is done in place to these.
        yield part, small.to(compute_dtype(logits), copy=True, memory_format=torch.contiguous_format), rows


def compute_dtype(logits: Tensor) -> torch.dtype:
    """float64 stays what it is, all else becomes float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def class_dtype(classes: int) -> torch.dtype:
    """Of masks: uint8, or int32 for more than 256 classes."""
    return torch.uint8 if classes <= 256 else torch.int32


def first_maximum(tile: Tensor) -> Tensor:
    """Index of the maximum along the third dimension of r,n,K,W finite float, whose values are replaced: r,n,W.

    Its dtype is `class_dtype`.

    On a CPU PyTorch's own argmax takes element after element where the dimension is not the last. These passes are
    vectorised: the distance to the maximum, 0 or negative, is scaled up until only the maximum's own rank stays
    positive.
    """
    if tile.device.type != "cpu":
        return tile.argmax(2).to(class_dtype(tile.shape[2]))
    classes = tile.shape[2]
    rank = torch.arange(classes, 0, -1, dtype=tile.dtype, device=tile.device).view(-1, 1)
    tile -= tile.amax(2, keepdim=True)
    return torch.add(rank, tile, alpha=1e30, out=tile).amax(2).sub_(classes).neg_().to(class_dtype(classes))
