"""The class of every pixel from small logits, block by block, without interpolating where neighbours agree.

Between features the logits are interpolated: each pixel's are a mean of those around it, with weights that are not
negative and add up to 1. So where one class is the largest at all features that a block of pixels is interpolated from,
it is the largest at all of its pixels, in every view alike, and so it is after a softmax and a mean over views. Nothing
is computed there. In a photograph that is most of it: only blocks along the edges of things are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops.resize import Upsampling, padded_size
from atrous.ops.tiled_upsample import TILE, TILE_GPU, first_maximum

LARGE, SMALL = 16, 8
"""Sides of a block in pixels: the small one where features are closer than the large one."""


class Weights(NamedTuple):
    """Linear interpolation along one direction: each pixel is the sum of four features times their weights.

    Attributes:
        features: P,4 int64, indices of features; some may be equal.
        weights: P,4 float64, at least 0, 1 together.
    """

    features: Tensor
    weights: Tensor

    def dense(self, count: int) -> Tensor:
        """The same as a matrix, P,`count` float64."""
        return self.weights.new_zeros(len(self.weights), count).scatter_add_(1, self.features, self.weights)


def interpolation(pixels: int, between: int, features: int, stride: int, upsampling: Upsampling = "grid") -> Weights:
    """From features to `between` pixels, as `atrous.ops.resize.upsample` has it, and from these to `pixels`.

    Args:
        pixels: of the image.
        between: of the picture that the features were made of.
        features: along this direction.
        stride: pixels of the picture from one feature to the next.
        upsampling: where the features sit on the picture.
    """
    step = (between - 1) / (pixels - 1) if pixels > 1 else 0.0
    position = torch.arange(pixels, dtype=torch.float64) * step
    lower = position.floor().clamp(max=max(between - 2, 0))
    indices, weights = [], []
    for pixel, share in ((lower, 1 - (position - lower)), (lower + 1, position - lower)):
        place = _feature_coordinate(pixel, between, features, stride, upsampling)
        cell = place.floor().clamp(max=max(features - 2, 0))
        for feature, weight in ((cell, 1 - (place - cell)), (cell + 1, place - cell)):
            indices.append(feature.long().clamp(max=features - 1))
            weights.append(share * weight)
    return Weights(torch.stack(indices, 1), torch.stack(weights, 1))


def _feature_coordinate(pixel: Tensor, pixels: int, features: int, stride: int, upsampling: Upsampling) -> Tensor:
    """Where pixels lie between the features of a row."""
    if upsampling == "grid":
        return pixel / stride
    if upsampling == "corners":
        return pixel * ((features - 1) / max(1, padded_size(pixels, stride, upsampling) - 1))
    return ((pixel + 0.5) * (features / pixels) - 0.5).clamp(0, features - 1)


class Enlargement(NamedTuple):
    """Logits of one view, and how they are interpolated.

    Attributes:
        logits: B,K,h,w float32 or float64, finite.
        rows: for the rows of pixels.
        columns: for the columns of pixels.
    """

    logits: Tensor
    rows: Weights
    columns: Weights


def largest_class(views: Sequence[Enlargement]) -> Tensor:
    """The class of the largest logit of every pixel, or of the largest mean of probabilities over several views.

    Where two classes are equal to rounding, either may be returned; exactly equal ones give the smaller class.

    Returns:
        B,H,W of `class_dtype`, H and W those of `rows` and `columns`.
    """
    first = views[0].logits
    batch, classes = first.shape[:2]
    height, width = len(views[0].rows.weights), len(views[0].columns.weights)
    side = SMALL if max(height / first.shape[2], width / first.shape[3]) < LARGE - 1 else LARGE
    blocked = [_Blocked(view, side) for view in views]
    lowest = torch.stack([view.lowest for view in blocked]).amin(0)
    agreed = lowest == torch.stack([view.highest for view in blocked]).amax(0)
    down, across = lowest.shape[1:]
    # B, block, block, pixel, pixel: a view of the map, whose rows of pixels lie one behind the other.
    result = lowest[:, :, None, :, None].expand(batch, down, side, across, side).contiguous().permute(0, 1, 3, 2, 4)
    mixed = (~agreed).nonzero()
    # Elements of a block: its logits, or its weights where it has many features.
    most = side * side * max(classes, *(view.down.shape[1] * view.across.shape[1] for view in blocked))
    count = max(1, (TILE if first.device.type == "cpu" else TILE_GPU) // most)
    for start in range(0, len(mixed), count):
        image, row, column = mixed[start : start + count].unbind(1)
        total: Tensor | None = None
        for view in blocked:
            values = view.values(image, row, column)
            if len(views) > 1:
                values = values.softmax(1)
            total = values if total is None else total.add_(values)
        assert total is not None
        largest = first_maximum(total[:, None])
        result[image, row, column] = largest.view(-1, side, side)
    return result.permute(0, 1, 3, 2, 4).reshape(batch, down * side, across * side)[:, :height, :width].contiguous()


class _Blocked:
    """A view in blocks of pixels: the features of each, and whether these agree.

    Attributes:
        lowest, highest: of the classes of a block's features, B,blocks down,blocks across of `class_dtype`.
    """

    def __init__(self, view: Enlargement, side: int) -> None:
        device, dtype = view.logits.device, view.logits.dtype
        self.logits = view.logits.permute(0, 2, 3, 1).contiguous()
        (self.rows, self.down), (self.columns, self.across) = (
            (features.to(device), weights.to(device, dtype))
            for features, weights in (_blocks(direction, side) for direction in (view.rows, view.columns))
        )
        # A copy, for it is written to.
        top = first_maximum(view.logits.permute(2, 0, 1, 3).clone(memory_format=torch.contiguous_format))
        top = top.transpose(0, 1)
        self.lowest, self.highest = self._over_features(top, "amin"), self._over_features(top, "amax")

    def _over_features(self, top: Tensor, name: str) -> Tensor:
        reduce = getattr(torch, name)
        result: Tensor = reduce(reduce(top[:, self.rows], 2)[:, :, self.columns], 3)
        return result

    def values(self, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Logits of the pixels of some blocks, N,K,pixels."""
        window = self.logits[image[:, None, None], self.rows[row][:, :, None], self.columns[column][:, None, :]]
        weights = torch.einsum("nmp,nkq->nmkpq", self.down[row], self.across[column])
        return torch.bmm(window.flatten(1, 2).transpose(1, 2), weights.flatten(3).flatten(1, 2))


def _blocks(direction: Weights, side: int) -> tuple[Tensor, Tensor]:
    """The features of each block of pixels, blocks,n int64, and their weights, blocks,n,pixels float64.

    All blocks have the same number of features: one that has fewer names its last again, with the weight 0.
    """
    count = -(-len(direction.weights) // side)
    missing = count * side - len(direction.weights)
    weights = F.pad(direction.weights, (0, 0, 0, missing)).view(count, side * 4)
    features = F.pad(direction.features, (0, 0, 0, missing)).view(count, side * 4)
    used = weights != 0
    first = features.masked_fill(~used, torch.iinfo(torch.int64).max).amin(1, keepdim=True)
    last = features.masked_fill(~used, -1).amax(1, keepdim=True)
    longest = int((last - first).max()) + 1
    place = (features - first).clamp_(0, longest - 1) * side + torch.arange(side).repeat_interleave(4)
    table = weights.new_zeros(count, longest * side).scatter_add_(1, place, weights)
    return torch.minimum(first + torch.arange(longest), last), table.view(count, longest, side)
