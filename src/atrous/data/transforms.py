"""Joint augmentation of image and mask, section 4.1: random scale, pad, random crop, random left-right flip.

The crop is chosen first, as the window of the source that it will show, and only that window is resampled, in bytes:
a small part of the cost of scaling all of the picture and throwing most of it away. Nothing here normalises.

    augment = Augment(crop=513)
    image, mask = augment(image, mask, torch.Generator().manual_seed(seed))
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.data.image_io import IMAGENET
from atrous.data.labels import Colour
from atrous.data.resize import viewing_factor


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
        longest_side: bring each picture to it before `scales`; None, as in the paper, for the pictures as they are.

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
    longest_side: int | None = None

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
        factor = self._factor(scale) * viewing_factor((mask.shape[0], mask.shape[1]), self.longest_side)
        rows, height = _span(mask.shape[0], self.size[0], factor)
        columns, width = _span(mask.shape[1], self.size[1], factor)
        y, x = int(top * (mask.shape[0] - rows + 1)), int(left * (mask.shape[1] - columns + 1))
        part = resized(image[:, y : y + rows, x : x + columns], (height, width))
        if self.photometric:
            part = _relit(part, [1 + self.photometric * (2 * draw - 1) for draw in light])
        ids = nearest(mask[y : y + rows, x : x + columns], (height, width))
        part, ids = _padded(part, self.size, self.fill), _padded(ids[None], self.size, (self.ignore,))[0]
        return (part.flip(-1), ids.flip(-1)) if flip < self.flip else (part, ids)

    def _factor(self, draw: float) -> float:
        low, high = self.scales
        if self.scale_step is None:
            return low + draw * (high - low)
        # The tolerance lets (0.5, 2.0) with a step of 0.1 reach 2.0 in spite of rounding.
        return low + self.scale_step * int(draw * (1 + int((high - low) / self.scale_step + 1e-6)))


def class_mix(
    pair: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], generator: torch.Generator, ignore: int = 255
) -> tuple[Tensor, Tensor]:
    """Half of the classes of another crop, drawn at random, laid over this one with their labels (Olsson et al. 2021).

    What is learnt by heart of a few images, their places and surroundings, is no longer of use so.

    Args:
        pair: uint8 3,h,w and uint8 h,w.
        other: likewise, of the same size.
        generator: the only source of randomness.
        ignore: the id that is no class.
    """
    (image, mask), (over, ids) = pair, other
    classes = torch.bincount(ids.flatten(), minlength=256).nonzero().flatten()
    classes = classes[classes != ignore]
    chosen = classes[torch.randperm(len(classes), generator=generator)[: (len(classes) + 1) // 2]]
    laid = torch.isin(ids, chosen)
    return torch.where(laid, over, image), torch.where(laid, ids, mask)


def _span(length: int, crop: int, factor: float) -> tuple[int, int]:
    """Pixels of the source that are taken along one side, and how many they become: all, if they fit into the crop."""
    scaled = max(1, round(length * factor))
    if scaled <= crop:
        return length, scaled
    return min(length, max(1, round(crop / factor))), crop


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 C,H,W at `size` (height, width): bilinear, antialiased when shrinking, pixel centres at halves.

    Pillow's filter, in PyTorch's vectorised form for bytes that lie channel by channel within a pixel.
    """
    if size == tuple(image.shape[1:]):
        return image
    planes = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)[0]


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 H,W at `size` by nearest neighbour, pixel centres at halves: aligned with the image's."""
    if size == tuple(mask.shape):
        return mask
    return F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]


def _padded(planes: Tensor, size: tuple[int, int], fill: tuple[int, ...]) -> Tensor:
    if tuple(planes.shape[1:]) == size:
        return planes.clone(memory_format=torch.contiguous_format)
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
