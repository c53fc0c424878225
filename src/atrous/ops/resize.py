"""Padding to the grid, upsampling of logits and downsampling of labels (section 4.1, "Upsampling logits").

One convention holds everywhere: **feature ``j`` sits on pixel ``output_stride * j``**. That is where the centred,
strided convolutions of the backbone put it, and why the paper crops 513 = 16 * 32 + 1 pixels: the first and the last
feature then lie on the first and the last pixel, and bilinear upsampling with aligned corners is exact. An image of any
other size is padded below and on the right to the next such size, and the logits are cropped
(``docs/decisions/001-align-corners.md``). Networks that were trained elsewhere keep the convention of their library:
`Upsampling`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops.conv_kernels.dispatch import is_recorded

Upsampling = Literal["grid", "half_pixel", "corners"]
"""How logits are upsampled: ``grid`` is ours. ``half_pixel`` (torchvision, mmsegmentation) takes the image as it is and
upsamples without aligned corners. ``corners`` (segmentation_models_pytorch) pads the image to a multiple of the output
stride, and upsamples with the corners of map and padded image aligned."""

IGNORE = 255
"""The label of pixels that are left out of the loss and of every metric."""


def grid_size(size: int, output_stride: int) -> int:
    """The next size of the form ``output_stride * k + 1``: 513 stays 513 at 16, 512 and 500 become 513."""
    # No negative number is divided: exported, such a division rounds towards zero.
    return (size + output_stride - 2) // output_stride * output_stride + 1


def padded_size(side: int, output_stride: int, upsampling: Upsampling = "grid") -> int:
    """The side, in pixels, that an image of `side` is padded to before the network sees it."""
    if upsampling == "grid":
        return grid_size(side, output_stride)
    return side if upsampling == "half_pixel" else feature_count(side, output_stride, upsampling) * output_stride


def feature_count(side: int, output_stride: int, upsampling: Upsampling = "grid") -> int:
    """The number of features along a side of that many pixels."""
    if upsampling == "grid":
        return grid_size(side, output_stride) // output_stride + 1
    return (side + output_stride - 1) // output_stride


def pad_image(images: Tensor, output_stride: int, upsampling: Upsampling = "grid") -> Tensor:
    """Pad normalised images, B,3,H,W float, to `padded_size`, with 0: the mean pixel after normalisation."""
    height, width = images.shape[-2:]
    below, right = (padded_size(side, output_stride, upsampling) - side for side in (height, width))
    # A branch on the size would be recorded as the example takes it.
    return F.pad(images, (0, right, 0, below)) if is_recorded() or below or right else images


def upsample(logits: Tensor, size: tuple[int, int], output_stride: int, upsampling: Upsampling = "grid") -> Tensor:
    """Bilinear logits for every pixel.

    Args:
        logits: B,K,h,w float of an input of `size`: h is its `feature_count`, on the grid ceil((H - 1) / stride) + 1.
        size: H, W of the input.
        output_stride: pixels from one feature to the next.
        upsampling: the convention.

    Returns:
        B,K,H,W float.
    """
    height, width = size
    padded = (padded_size(height, output_stride, upsampling), padded_size(width, output_stride, upsampling))
    if is_recorded() or logits.shape[-2:] != padded:
        logits = F.interpolate(logits, padded, mode="bilinear", align_corners=upsampling != "half_pixel")
    if upsampling == "half_pixel":
        return logits
    if torch.compiler.is_exporting():  # it would have to prove that a slice lies inside
        rows, columns = (torch.arange(side, device=logits.device) for side in size)
        return logits.index_select(-2, rows).index_select(-1, columns)
    return logits[..., :height, :width]


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images or probabilities, B,C,H,W float, at another size: corners aligned, as everywhere.

    Used for the scales of multi-scale inference: for the images, and then for their probabilities.
    """
    if images.shape[-2:] == size:
        return images
    if images.device.type != "cpu" or is_recorded() or torch.compiler.is_compiling():
        return F.interpolate(images, size, mode="bilinear", align_corners=True)
    # With one thread, PyTorch takes another kernel for several channels than with more, which rounds otherwise. For one
    # channel there is one kernel: so that a prediction does not depend on the number of threads.
    planes = F.interpolate(images.flatten(0, 1)[:, None], size, mode="bilinear", align_corners=True)
    resized = planes.view(*images.shape[:2], *size)
    if images.is_contiguous(memory_format=torch.channels_last) and images.shape[1] > 1:
        return resized.contiguous(memory_format=torch.channels_last)
    return resized


def downsample_labels(labels: Tensor, output_stride: int, ignore: int = IGNORE) -> Tensor:
    """Ground truth at the pixel of each feature, B,H,W int to B,h,w: training without upsampled logits (Table 8).

    A feature beyond the edge of the image gets `ignore`.
    """
    height, width = labels.shape[-2:]
    below, right = grid_size(height, output_stride) - height, grid_size(width, output_stride) - width
    return F.pad(labels, (0, right, 0, below), value=ignore)[..., ::output_stride, ::output_stride]


def label_weight(labels: Tensor, class_weights: Tensor | None = None, ignore: int = IGNORE) -> Tensor:
    """Number of valid pixels, each times the weight of its class: the divisor of a summed cross-entropy.

    The two are separate so that both can be summed over accumulated parts and processes before the division: the
    gradient is then that of the whole batch, wherever its valid pixels are.

    Args:
        labels: B,H,W int, class ids or `ignore`.
        class_weights: K float, or None for ones.
        ignore: the label that does not count.

    Returns:
        Scalar float64, exact for any count; float32 on MPS, which has no float64.
    """
    exact = torch.float32 if labels.device.type == "mps" else torch.float64
    counted = labels != ignore
    if class_weights is None:
        return counted.sum(dtype=exact)
    # No shape depends on the labels, so that nothing waits for a GPU.
    weights = class_weights.to(exact)[labels.long().clamp_(0, len(class_weights) - 1)]
    return torch.where(counted, weights, 0.0).sum()
