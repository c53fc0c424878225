"""Joint augmentation of image and mask, section 4.1: random scale, pad, random crop, random left-right flip.

The crop is chosen first, and only the pixels that it needs are resampled: the result is that of scaling the whole image
and cutting the crop out of it, at a fraction of the cost. Nothing here normalises.

    augment = Augment(crop=513)
    image, mask = augment(image, mask, torch.Generator().manual_seed(seed))
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atrous.data.image import IMAGENET
from atrous.data.labels import Colour


@dataclass(frozen=True)
class Augment:
    """Random scale, crop and flip of an image with its mask; the same generator state gives the same result.

    Attributes:
        crop: side, or (height, width), of the result; section 4.1 takes 513 on VOC, 769 is usual on Cityscapes.
        scales: the range of the scale, of which one is drawn uniformly for both sides.
        flip: the probability of a left-right flip.
        fill: the colour of padding, the mean pixel so that it normalises to about zero.
        ignore: the id of padding in the mask.
        scale_step: if given, scales are drawn from low, low + step, and so on to high, as the authors' code does.
        photometric: strength, 0 to 1, of random brightness, contrast and saturation; 0 as in the paper.

    Raises:
        ValueError: if any is out of its range.
    """

    crop: int | tuple[int, int] = 513
    scales: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    fill: Colour = IMAGENET.fill
    ignore: int = 255
    scale_step: float | None = None
    photometric: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scales
        if min(self.size) < 1:
            raise ValueError(f"crop is {self.crop}; expected a positive side or (height, width)")
        if not 0 < low <= high < math.inf:
            raise ValueError(f"scales is {self.scales}; expected 0 < low <= high")
        if self.scale_step is not None and not self.scale_step > 0:
            raise ValueError(f"scale_step is {self.scale_step}; expected a positive step, or none")
        if not (0 <= self.flip <= 1 and 0 <= self.photometric <= 1):
            raise ValueError(f"flip is {self.flip}, photometric is {self.photometric}; expected both in 0..1")
        if not all(0 <= part <= 255 for part in (*self.fill, self.ignore)):
            raise ValueError(f"fill is {self.fill}, ignore is {self.ignore}; expected values in 0..255")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one augmented pair.

        Args:
            image: uint8 3,H,W.
            mask: uint8 H,W.
            generator: on the CPU; the only source of randomness. Every call draws the same count of numbers from it.

        Returns:
            uint8 3,h,w and uint8 h,w of the crop's size: the picture at the top left if it is smaller than the crop.

        Raises:
            ValueError: if image and mask are not as above, or not of one size.
        """
        if image.shape != (3, *mask.shape) or image.dtype != torch.uint8 or mask.dtype != torch.uint8:
            found = f"{image.dtype} {tuple(image.shape)} and {mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"augmenting {found}; expected uint8 3,H,W and uint8 H,W")
        scale, top, left, flip, *light = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
        height, width = self._scaled(mask.shape, scale)
        window = (*_span(height, self.size[0], top), *_span(width, self.size[1], left))
        part = resized_window(image, (height, width), window)
        if self.photometric:
            part = _relit(part, [1 + self.photometric * (2 * draw - 1) for draw in light])
        ids = nearest_window(mask, (height, width), window)
        part, ids = _padded(part, self.size, self.fill), _padded(ids[None], self.size, (self.ignore,))[0]
        return (part.flip(-1), ids.flip(-1)) if flip < self.flip else (part, ids)

    def _scaled(self, shape: torch.Size, draw: float) -> tuple[int, int]:
        low, high = self.scales
        if self.scale_step is None:
            scale = low + draw * (high - low)
        else:
            # The tolerance lets (0.5, 2.0) with a step of 0.1 reach 2.0 in spite of rounding.
            scale = low + self.scale_step * int(draw * (1 + int((high - low) / self.scale_step + 1e-6)))
        return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _span(length: int, crop: int, draw: float) -> tuple[int, int]:
    """First pixel and count of the crop along one side; every place that fits is as likely."""
    count = min(length, crop)
    return int(draw * (length - count + 1)), count


Window = tuple[int, int, int, int]
"""Top, height, left, width, in pixels of the scaled image."""


def resized_window(image: Tensor, size: tuple[int, int], window: Window) -> Tensor:
    """The window of uint8 C,H,W scaled to `size` (height, width): bilinear, antialiased when shrinking.

    Within a gray level of scaling all of it exactly and cutting: Pillow weighs the pixels just outside the box,
    too, and reads no others.
    """
    top, height, left, width = window
    if size == tuple(image.shape[1:]):
        return image[:, top : top + height, left : left + width]
    down, across = image.shape[1] / size[0], image.shape[2] / size[1]
    # Pillow checks the box against the image's sides, which a product may pass by one rounding.
    bottom, right = min((top + height) * down, image.shape[1]), min((left + width) * across, image.shape[2])
    box = (left * across, top * down, right, bottom)
    planes = (Image.fromarray(plane) for plane in image.contiguous().numpy())
    return torch.from_numpy(
        np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR, box)) for plane in planes])
    )


def nearest_window(mask: Tensor, size: tuple[int, int], window: Window) -> Tensor:
    """The window of H,W scaled to `size` by nearest neighbour, pixel centres at halves: aligned with the image's."""
    top, height, left, width = window
    rows = _nearest(mask.shape[0], size[0], top, height)
    columns = _nearest(mask.shape[1], size[1], left, width)
    return mask.index_select(0, rows).index_select(1, columns)


def _nearest(source: int, target: int, first: int, count: int) -> Tensor:
    # floor((i + 1/2) * source / target) in integers: exact where floats would round a tie either way.
    return (2 * torch.arange(first, first + count) + 1) * source // (2 * target)


def _padded(planes: Tensor, size: tuple[int, int], fill: tuple[int, ...]) -> Tensor:
    if tuple(planes.shape[1:]) == size:
        return planes.contiguous()
    page = torch.tensor(fill, dtype=torch.uint8).view(-1, 1, 1).repeat(1, *size)
    page[:, : planes.shape[1], : planes.shape[2]] = planes
    return page


def _relit(image: Tensor, factors: list[float]) -> Tensor:
    """Brightness, then contrast about the mean gray, then saturation about each pixel's gray; uint8 3,h,w."""
    brightness, contrast, saturation = factors
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    lit = (image * brightness).clamp_(0, 255)
    lit = torch.lerp((lit * luma).sum(0).mean(), lit, contrast).clamp_(0, 255)
    lit = torch.lerp((lit * luma).sum(0, keepdim=True), lit, saturation).clamp_(0, 255)
    return lit.round_().to(torch.uint8)
