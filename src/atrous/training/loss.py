"""What training minimises: cross-entropy at the size of the labels (section 4.1), and the distance from a teacher.

`atrous.ops.upsampled_loss` computes the first, `atrous.training.distillation` the second.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrous.models.deeplab import DeepLabV3
from atrous.ops.normalization import Normalization
from atrous.ops.resize import downsample_labels, label_weight
from atrous.ops.upsampled_loss import upsampled_cross_entropy_sum
from atrous.training.config import LossConfig
from atrous.training.distillation import Distillation
from atrous.training.frozen_bn import FoldedBatchNorm

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(nn.Module):
    """The loss as a module for data-parallel training to wrap: uint8 images and labels to a scalar."""

    class_weights: Tensor | None

    def __init__(self, model: DeepLabV3, config: LossConfig, amp: str, ignore: int) -> None:
        super().__init__()
        self.model = model
        self.logits: Callable[[Tensor], Tensor] = FoldedBatchNorm(model)
        self.teaching = Distillation(config, model) if config.teacher else None
        self.normalise = Normalization(model.mean, model.std)
        self.amp = PRECISIONS.get(amp)
        self.upsampled, self.ignore = config.upsample_logits, ignore
        weights = torch.tensor(config.class_weights) if config.class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the valid pixels of B,3,H,W uint8 images with B,H,W uint8 labels."""
        inputs = self.normalise(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self.amp, enabled=self.amp is not None):
            logits = self.logits(inputs)
        if self.upsampled:
            stride = self.model.output_stride
            loss = upsampled_cross_entropy_sum(logits, labels, stride, self.class_weights, ignore=self.ignore)
        else:
            target = self._small(labels).long()
            loss = F.cross_entropy(
                logits.float(), target, self.class_weights, ignore_index=self.ignore, reduction="sum"
            )
        return self.teaching.mixed(loss, logits, inputs, self.weight(labels)) if self.teaching else loss

    def weight(self, labels: Tensor) -> Tensor:
        """What the summed loss is divided by."""
        return label_weight(labels if self.upsampled else self._small(labels), self.class_weights, self.ignore)

    def _small(self, labels: Tensor) -> Tensor:
        return downsample_labels(labels, self.model.output_stride, self.ignore)
