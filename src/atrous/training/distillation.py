"""Distillation: a student also learns the softened probabilities of a trained teacher (the recipe's `teacher`).

The paper has none. A teacher can also label photographs that have no masks: `atrous.prediction.pseudo_label`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import load
from atrous.training.config import LossConfig


class Distillation:
    """Distillation (Hinton et al. 2015): the student also learns the teacher's softened probabilities, at the grid.

    The teacher is no part of the model: it is neither saved nor trained, and sees the crops that the student sees.

    Raises:
        ValueError: if the teacher has other classes than the student, or another normalisation.
    """

    def __init__(self, config: LossConfig, student: DeepLabV3) -> None:
        assert config.teacher
        teacher, card = load(config.teacher, output_stride=student.output_stride)
        if teacher.num_classes != student.num_classes:
            raise ValueError(f"teacher {config.teacher} has {teacher.num_classes} classes, not {student.num_classes}")
        if (card.mean, card.std) != (tuple(student.mean), tuple(student.std)):
            raise ValueError(f"teacher {config.teacher} normalises images in another way than the student")
        if teacher.upsampling != student.upsampling:
            raise ValueError(
                f"teacher {config.teacher} has its features on other pixels than the student: its upsampling is "
                f"{teacher.upsampling}, expected {student.upsampling}"
            )
        self.model: DeepLabV3 | None = teacher
        self.ready: DeepLabV3 | None = None
        self.share, self.temperature = config.teacher_weight, config.teacher_temperature

    def mixed(self, loss: Tensor, logits: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        """The loss summed over pixels, a part of it replaced by the divergence from the teacher.

        Args:
            loss: summed over the valid pixels.
            logits: B,K,h,w of the student.
            inputs: B,3,H,W normalised.
            weight: what a sum over these images is divided by.
        """
        if self.ready is None:
            assert self.model
            self.ready, self.model = self.model.to(inputs.device).for_inference(), None
        with torch.no_grad():
            target = torch.log_softmax(self.ready.low_resolution_logits(inputs).float() / self.temperature, 1)
        predicted = torch.log_softmax(logits.float() / self.temperature, 1)
        divergence = (target.exp() * (target - predicted)).sum(1).mean() * self.temperature**2
        return (1 - self.share) * loss + self.share * divergence * weight.to(loss.dtype)
