"""From photographs to what a model sees: resized to its longest side, normalised, on its device.

Evaluation, prediction and pictures of predictions all come through here; nothing else resizes or normalises for them.
Training cuts its own crops (`atrous.data.transforms`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.data.resize import shrunk, viewing_factor
from atrous.models.deeplab import DeepLabV3
from atrous.models.output_stride import LONGEST_SIDE
from atrous.ops.normalization import Normalization
from atrous.ops.resize import resize


class Preprocessor:
    """What a model sees of photographs.

    Args:
        model: on its device; says its mean, standard deviation and longest side.
        fit: resize to the model's longest side; False for a tile, which is seen at its own size.
        pad_to: least height and width, in pixels at scale 1, that the network sees: smaller photographs are padded with
            the mean pixel, below and to the right. 513 for VOC (section 4.1); None for no padding (appendix C).

    Raises:
        ValueError: if `pad_to` is out of range.
    """

    def __init__(self, model: DeepLabV3, *, fit: bool = True, pad_to: int | None = None) -> None:
        if pad_to is not None and not 1 <= pad_to <= LONGEST_SIDE:
            raise ValueError(f"pad_to is {pad_to}, expected 1 to {LONGEST_SIDE} pixels, or None")
        self.pad_to = pad_to
        self.normalise = Normalization(model.mean, model.std)
        self.longest_side = model.longest_side if fit else None
        self.device = next(model.parameters()).device

    def __call__(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """Photographs as a model sees them at one scale: uint8 B,3,H,W to float32 B,3,h,w."""
        return self.pad(self.views(images, scale)(scale), scale)

    def views(self, images: Tensor, largest_scale: float = 1.0) -> Callable[[float], Tensor]:
        """Photographs at several scales, normalised once.

        Where even the largest view is less than half a photograph, the photograph is made smaller first, so that no
        pixel is left out and no large picture is held as floats. A smaller view, as in the paper, takes the pixels next
        to each of its own.

        Args:
            images: uint8 B,3,H,W.
            largest_scale: of those that will be asked for.

        Returns:
            A function from a scale to float32 B,3,h,w, not padded: see `seen_size`, `pad`.
        """
        size = (images.shape[-2], images.shape[-1])
        smallest = self.seen_size(size, largest_scale)
        if self.longest_side and largest_scale * viewing_factor(size, self.longest_side) <= 0.5:
            images = torch.stack([shrunk(image, smallest) for image in images])
        inputs = self.normalise(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        return lambda scale: resize(inputs, self.seen_size(size, scale))

    def pad(self, inputs: Tensor, scale: float = 1.0) -> Tensor:
        """Pad what a model sees at one scale, float32 B,3,h,w, to `pad_to` times the scale."""
        least = round(((self.pad_to or 1) - 1) * scale) + 1
        height, width = inputs.shape[-2:]
        return F.pad(inputs, (0, max(0, least - width), 0, max(0, least - height)))

    def seen_size(self, size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Height and width at which a model sees a photograph of `size` at one scale, corners aligned, not padded."""
        factor = scale * viewing_factor(size, self.longest_side)
        return round((size[0] - 1) * factor) + 1, round((size[1] - 1) * factor) + 1
