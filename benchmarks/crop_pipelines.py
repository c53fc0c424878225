"""Candidates of `python -m benchmarks data`: crops from JPEG files, ours and torchvision's reference pipeline."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from atrous.data.datasets.dataset import Item, SegmentationDataset
from atrous.data.labels import VOC
from atrous.data.transforms import Augment
from atrous.evaluation.distributed import generator
from atrous.ops.normalization import IMAGENET
from benchmarks.timing import Candidate

FILES = 16


class Crops:
    """A folder of generated pictures of 640×480 pixels with masks, and pipelines over it."""

    def __init__(self, crop: int) -> None:
        self.crop = crop
        self.folder = tempfile.TemporaryDirectory()
        self.items = [self._write(i) for i in range(FILES)]
        self.dataset = SegmentationDataset(self.items, VOC)
        self.kept = SegmentationDataset(self.items, VOC, cache=True)

    def _write(self, seed: int) -> Item:
        # Blurred noise: as rich in detail as a photograph, so that decoding costs what it does there.
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        image, mask = Path(self.folder.name) / f"{seed}.jpg", Path(self.folder.name) / f"{seed}.png"
        Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(image, quality=90)
        ids = Image.fromarray(rng.integers(0, 21, (12, 16), dtype=np.uint8))
        ids.resize((640, 480), Image.Resampling.NEAREST).save(mask)
        return Item(str(seed), image, mask)

    def ours(self) -> None:
        """Decode, then only the pixels that the crop needs are scaled; normalised on the device, as in training."""
        self._crop(self.dataset)

    def cached(self) -> None:
        """The same from images that were decoded before (``open_dataset(..., cache=True)``)."""
        self._crop(self.kept)

    def _crop(self, dataset: SegmentationDataset) -> None:
        augment = Augment(crop=self.crop)
        for index in range(FILES):
            sample = dataset[index]
            image, _ = augment(sample.image, sample.mask, generator(0, 0, index))
            IMAGENET(image)

    def torchvisions(self) -> None:
        """The steps of torchvision's reference segmentation training, by its own transforms, on PIL images."""
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        fill: dict[Any, Any] = {tv_tensors.Image: 0, tv_tensors.Mask: 255, Image.Image: 0}
        pipeline = v2.Compose(
            [
                v2.RandomResize(240, 960, antialias=True),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomCrop(self.crop, pad_if_needed=True, fill=fill),
                v2.ToImage(),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
                v2.Normalize(IMAGENET.mean, IMAGENET.std),
            ]
        )
        for item in self.items:
            assert isinstance(item.mask, Path)
            image = Image.open(item.image).convert("RGB")
            mask = tv_tensors.Mask(v2.functional.pil_to_tensor(Image.open(item.mask)))
            pipeline(image, mask)

    def decoding(self) -> None:
        """Pillow's decoding of the pictures alone: what no pipeline over these files can do without."""
        for item in self.items:
            Image.open(item.image).convert("RGB").load()


def data(crop: int) -> list[Candidate]:
    """Candidates; one run makes 16 crops."""
    crops = Crops(crop)
    note = f"{FILES} crops a run"
    return [
        Candidate("atrous", crops.ours, note=note),
        Candidate("atrous, images cached", crops.cached, note=note),
        Candidate("torchvision reference", crops.torchvisions, note=note),
        Candidate("Pillow, decoding alone", crops.decoding, note=note),
    ]
