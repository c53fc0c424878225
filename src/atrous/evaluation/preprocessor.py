"""From photographs to what a model sees: resized to its longest side, normalised, on its device.

Evaluation, prediction and pictures of predictions all come through here; nothing else resizes or normalises for them.
Training cuts its own crops (`atrous.data.transforms`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from atrous.data.resize import shrunk, viewing_factor
from atrous.models.deeplab import DeepLabV3
from atrous.ops.normalization import Normalization
from atrous.ops.resize import resize


class Preprocessor:
    """What a model sees of photographs.

    Args:
        model: on its device; says its mean, standard deviation and longest side.
        fit: resize to the model's longest side; False for a tile, which is seen at its own size.
    """

    def __init__(self, model: DeepLabV3, *, fit: bool = True) -> None:
        self.normalise = Normalization(model.mean, model.std)
        self.longest_side = model.longest_side if fit else None
        self.device = next(model.parameters()).device

    def __call__(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """Photographs as a model sees them at one scale: uint8 B,3,H,W to float32 B,3,h,w, ``channels_last``."""
        return self.views(images, scale)(scale)

    def views(self, images: Tensor, largest_scale: float = 1.0) -> Callable[[float], Tensor]:
        """Photographs at several scales, normalised once.

        Where even the largest view is less than half a photograph, the photograph is made smaller first, so that no
        pixel is left out and no large picture is held as floats. A smaller view, as in the paper, takes the pixels next
        to each of its own.

        Args:
            images: uint8 B,3,H,W.
            largest_scale: of those that will be asked for.

        Returns:
            A function from a scale to float32 B,3,h,w: see `seen_size`.
        """
        size = (images.shape[-2], images.shape[-1])
        smallest = self.seen_size(size, largest_scale)
        if self.longest_side and largest_scale * viewing_factor(size, self.longest_side) <= 0.5:
            images = torch.stack([shrunk(image, smallest) for image in images])
        inputs = self.normalise(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        return lambda scale: resize(inputs, self.seen_size(size, scale))

    def seen_size(self, size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Height and width at which a model sees a photograph of `size` at one scale, corners aligned."""
        factor = scale * viewing_factor(size, self.longest_side)
        return round((size[0] - 1) * factor) + 1, round((size[1] - 1) * factor) + 1
