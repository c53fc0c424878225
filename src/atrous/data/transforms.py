"""Augment an image together with its mask, section 4.1: random scale, pad, random crop, random left-right flip.

The crop is drawn first, as a region of the source, and only that region is resampled, as uint8: far cheaper than
scaling the whole image. Nothing here normalises.

    augment = Augment(crop=513)
    image, mask = augment(image, mask, torch.Generator().manual_seed(seed))
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.data.labels import Colour
from atrous.data.resize import viewing_factor
from atrous.ops.normalization import IMAGENET


@dataclass(frozen=True)
class Augment:
    """Random scale, crop and flip of an image with its mask; the same generator state gives the same result.

    Attributes:
        crop: side, or (height, width), of the result: in the paper 513 on VOC (section 4.1), 769 on Cityscapes.
        scales: range of the scale factor, drawn uniformly, the same for both sides.
        flip: probability of a left-right flip.
        fill: colour of padding; by default the mean pixel, which normalises to about zero.
        ignore: id of padding in the mask.
        scale_step: draw the scale from low, low + step, ... high, as the authors' code does; None for any in the range.
        color_jitter: strength, 0 to 1, of random brightness, contrast and saturation; the paper has none.
        longest_side: resize each image to it, in pixels, before `scales`; None, as in the paper: do not.

    Raises:
        ValueError: if an attribute is out of its range.
    """

    crop: int | tuple[int, int] = 513
    scales: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    fill: Colour = IMAGENET.fill
    ignore: int = 255
    scale_step: float | None = None
    color_jitter: float = 0.0
    longest_side: int | None = None

    def __post_init__(self) -> None:
        low, high = self.scales
        if min(self.size) < 1:
            raise ValueError(f"crop is {self.crop}; expected a positive side or (height, width)")
        if not 0 < low <= high < math.inf:
            raise ValueError(f"scales is {self.scales}; expected 0 < low <= high")
        if self.scale_step is not None and not self.scale_step > 0:
            raise ValueError(f"scale_step is {self.scale_step}; expected a positive step, or none")
        if not (0 <= self.flip <= 1 and 0 <= self.color_jitter <= 1):
            raise ValueError(f"flip is {self.flip}, color_jitter is {self.color_jitter}; expected both in 0..1")
        if not all(0 <= part <= 255 for part in self.fill) or not 0 <= self.ignore <= 65535:
            raise ValueError(f"fill is {self.fill}, ignore is {self.ignore}; expected 0..255, and 0..65535")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one augmented pair.

        Args:
            image: uint8 3,H,W.
            mask: uint8 H,W, or int32 for more than 255 classes.
            generator: on the CPU; the only source of randomness. Every call draws the same number of values from it.

        Returns:
            uint8 3,h,w and h,w of the crop's size; an image smaller than the crop is at its top left.

        Raises:
            ValueError: if image and mask are not as above, or differ in size.
        """
        if image.shape != (3, *mask.shape) or image.dtype != torch.uint8 or mask.dtype not in _MASKS:
            given = f"{image.dtype} {tuple(image.shape)} and {mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"augmenting {given}; expected uint8 3,H,W and uint8 H,W")
        scale, top, left, flip, *jitter = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
        factor = self._factor(scale) * viewing_factor((mask.shape[0], mask.shape[1]), self.longest_side)
        rows, height = _span(mask.shape[0], self.size[0], factor)
        columns, width = _span(mask.shape[1], self.size[1], factor)
        y, x = int(top * (mask.shape[0] - rows + 1)), int(left * (mask.shape[1] - columns + 1))
        part = resized(image[:, y : y + rows, x : x + columns], (height, width))
        if self.color_jitter:
            part = _jittered(part, [1 + self.color_jitter * (2 * draw - 1) for draw in jitter])
        ids = nearest(mask[y : y + rows, x : x + columns], (height, width))
        part, ids = _padded(part, self.size, self.fill), _padded(ids[None], self.size, (self.ignore,))[0]
        return (part.flip(-1), ids.flip(-1)) if flip < self.flip else (part, ids)

    def _factor(self, draw: float) -> float:
        low, high = self.scales
        if self.scale_step is None:
            return low + draw * (high - low)
        # The tolerance lets (0.5, 2.0) with a step of 0.1 reach 2.0 in spite of rounding.
        return low + self.scale_step * int(draw * (1 + int((high - low) / self.scale_step + 1e-6)))


_MASKS = (torch.uint8, torch.int32)


def class_mix(
    pair: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], generator: torch.Generator, ignore: int = 255
) -> tuple[Tensor, Tensor]:
    """ClassMix (Olsson et al. 2021): paste a random half of the classes of another crop, with labels, onto this one.

    It counters overfitting to where objects are, and to what surrounds them, in a small data set.

    Args:
        pair: uint8 3,h,w and uint8 h,w.
        other: likewise, of the same size.
        generator: the only source of randomness.
        ignore: the ignored id, never pasted.
    """
    (image, mask), (over, ids) = pair, other
    classes = torch.bincount(ids.flatten(), minlength=256).nonzero().flatten()
    classes = classes[classes != ignore]
    chosen = classes[torch.randperm(len(classes), generator=generator)[: (len(classes) + 1) // 2]]
    pasted = torch.isin(ids, chosen)
    return torch.where(pasted, over, image), torch.where(pasted, ids, mask)


def _span(length: int, crop: int, factor: float) -> tuple[int, int]:
    """Pixels of the source along one side that the crop shows, and how many they become; all of them if they fit."""
    scaled = max(1, round(length * factor))
    if scaled <= crop:
        return length, scaled
    return min(length, max(1, round(crop / factor))), crop


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 C,H,W to `size` (height, width) as Pillow does: bilinear, antialiased, pixel centres at halves."""
    if size == tuple(image.shape[1:]):
        return image
    planes = image[None].contiguous(memory_format=torch.channels_last)  # for which PyTorch has vectorised code
    return F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)[0]


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask H,W to `size` by nearest neighbour, pixel centres at halves, aligned with `resized`."""
    if size == tuple(mask.shape):
        return mask
    if mask.dtype != torch.uint8:  # which alone PyTorch interpolates, of integers; float32 holds 24 bits
        return F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0].to(mask.dtype)
    return F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]


def _padded(planes: Tensor, size: tuple[int, int], fill: tuple[int, ...]) -> Tensor:
    if tuple(planes.shape[1:]) == size:
        return planes.clone(memory_format=torch.contiguous_format)
    canvas = torch.tensor(fill, dtype=planes.dtype).view(-1, 1, 1).repeat(1, *size)
    canvas[:, : planes.shape[1], : planes.shape[2]] = planes
    return canvas


def _jittered(image: Tensor, factors: list[float]) -> Tensor:
    """Change brightness, then contrast about the mean gray, then saturation about each pixel's gray; uint8 3,h,w."""
    brightness, contrast, saturation = factors
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    lit = (image * brightness).clamp_(0, 255)
    lit = torch.lerp((lit * luma).sum(0).mean(), lit, contrast).clamp_(0, 255)
    lit = torch.lerp((lit * luma).sum(0, keepdim=True), lit, saturation).clamp_(0, 255)
    return lit.round_().to(torch.uint8)
