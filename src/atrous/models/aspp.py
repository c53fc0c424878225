"""Atrous Spatial Pyramid Pooling with image-level features (section 3.3, Figure 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atrous.models.batch_norm import BatchNorm
from atrous.models.output_stride import Dial
from atrous.ops.conv import AtrousConv2d, parallel, set_stride_and_dilation
from atrous.ops.conv_kernels.tap_gemm import order

FILTERS = 256
"""Of every branch and of the projection (section 3.3)."""


def conv_bn_relu(channels: int, filters: int, kernel_size: int = 1) -> nn.Sequential:
    """Convolution, batch norm, rectifier: B,C,h,w float to B,filters,h,w."""
    return nn.Sequential(AtrousConv2d(channels, filters, kernel_size), BatchNorm(filters), nn.ReLU(inplace=True))


class ImagePooling(nn.Module):
    """Image-level features: global average pooling, a 1×1 convolution, and upsampling to the size of the map.

    Bilinear upsampling of a 1×1 map repeats its value.
    """

    def __init__(self, channels: int, filters: int = FILTERS) -> None:
        super().__init__()
        self.project = conv_bn_relu(channels, filters)

    def forward(self, x: Tensor) -> Tensor:
        """B,C,h,w float to B,filters,h,w."""
        y: Tensor = self.project(x.mean((-2, -1), keepdim=True))
        # Repeated in memory, too: concatenated with a view of one value, the maps would no longer be channels-last.
        return y.expand(-1, -1, *x.shape[-2:]).contiguous(memory_format=order(x))


class ASPP(nn.Module):
    """Parallel atrous convolutions of one map, concatenated and projected.

    Args:
        channels: of the map.
        rates: of the 3×3 branches, one or more or none, given at output stride 16.
        pointwise: whether there is the 1×1 branch.
        image_pooling: whether there are image-level features.
        filters: of every branch and of the projection.
        projection: side of the projection's filter, 1 in the paper.
        output_stride: of the map.

    Raises:
        ValueError: if no branch is left, or a rate is below 1.
    """

    def __init__(
        self,
        channels: int,
        rates: Sequence[int] = (6, 12, 18),
        *,
        pointwise: bool = True,
        image_pooling: bool = True,
        filters: int = FILTERS,
        projection: int = 1,
        output_stride: int = 16,
    ) -> None:
        super().__init__()
        if any(not isinstance(rate, int) or rate < 1 for rate in rates):
            raise ValueError(f"aspp_rates is {tuple(rates)}, expected whole numbers of at least 1")
        self.rates = tuple(rates)
        self.pointwise = conv_bn_relu(channels, filters) if pointwise else None
        self.atrous = nn.ModuleList(conv_bn_relu(channels, filters, 3) for _ in self.rates)
        self.image_pooling = ImagePooling(channels, filters) if image_pooling else None
        count = len(self.rates) + bool(pointwise) + bool(image_pooling)
        if not count:
            raise ValueError("ASPP has no branch left: give aspp_rates, aspp_pointwise or image_pooling")
        self.project = conv_bn_relu(count * filters, filters, projection)
        self.channels = filters
        self.set_output_stride(output_stride)

    def with_branches(self, projection: Tensor) -> Tensor:
        """A projection of the other branches alone, with zeros for the 3×3 ones, which then add nothing at first.

        Args:
            projection: filters,C,1,1 of an ASPP with this one's 1×1 branch and image-level features, and no rates.
        """
        filters, before = len(projection), 0 if self.pointwise is None else len(projection)
        unused = projection.new_zeros(filters, len(self.rates) * filters, *projection.shape[2:])
        return torch.cat([projection[:, :before], unused, projection[:, before:]], 1)

    def set_output_stride(self, output_stride: int) -> None:
        """Scale the rates to the map: doubled at 8, halved at 32."""
        for branch, rate in zip(self.atrous, Dial(output_stride).aspp_rates(self.rates), strict=True):
            assert isinstance(branch, nn.Sequential) and isinstance(branch[0], AtrousConv2d)
            set_stride_and_dilation(branch[0], 1, rate)

    def forward(self, x: Tensor) -> Tensor:
        """B,C,h,w float to B,filters,h,w."""
        maps = [] if self.pointwise is None else [self.pointwise(x)]
        maps += parallel(x, list(self.atrous))
        maps += [] if self.image_pooling is None else [self.image_pooling(x)]
        y: Tensor = self.project(torch.cat(maps, 1))
        return y
