"""Normalise uint8 images by a mean and a standard deviation for each colour.

normalized = IMAGENET(torch.from_numpy(pixels).permute(2, 0, 1))  # float32 3,H,W
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Colours = tuple[float, float, float]


@dataclass(frozen=True)
class Normalization:
    """(image / 255 - mean) / std, channel by channel: the only normalisation in the package.

    Attributes:
        mean: of red, green, blue, in units of 0..1.
        std: likewise.
    """

    mean: Colours
    std: Colours

    def __call__(self, image: Tensor) -> Tensor:
        """Turn uint8 ...,3,H,W into float32 of the same shape, on the same device; ValueError for anything else."""
        if image.dtype != torch.uint8 or image.ndim < 3 or image.shape[-3] != 3:
            raise ValueError(f"normalising {image.dtype} of shape {tuple(image.shape)}; expected uint8 ...,3,H,W")
        scale, shift = _scale_and_shift(self.mean, self.std, image.device)
        return image.float().div_(scale).sub_(shift)

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean pixel in 0..255: padding that normalises to about zero."""
        red, green, blue = (round(255 * part) for part in self.mean)
        return red, green, blue


@functools.cache
def _scale_and_shift(mean: Colours, std: Colours, device: torch.device) -> tuple[Tensor, Tensor]:
    # Cached: making a tensor from a list on a GPU waits for the GPU.
    # In float32 whatever the default is at the first call.
    options: dict[str, Any] = {"dtype": torch.float32, "device": device}
    with torch.inference_mode(False):
        scale = torch.tensor([255 * part for part in std], **options).view(3, 1, 1)
        return scale, torch.tensor([m / s for m, s in zip(mean, std, strict=True)], **options).view(3, 1, 1)


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The normalisation of the ImageNet weights that section 4 of the paper starts from."""
