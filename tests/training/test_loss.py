"""The loss that training minimises, against PyTorch's on full-resolution logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atrous.models.deeplab import DeepLabV3
from atrous.training.config import LossConfig
from atrous.training.loss import Objective


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("upsampled", [False, True])
def test_loss_is_the_mean_over_valid_pixels(upsampled: bool, weighted: bool) -> None:
    logits, labels = torch.randn(2, 5, 3, 4, requires_grad=True), torch.randint(0, 5, (2, 33, 40))
    labels[:, :7] = 255
    weights = (0.5, 1.0, 2.0, 0.1, 3.0) if weighted else None
    model = DeepLabV3("resnet18", 5, head="cascade", last_block=4)
    objective = Objective(model, LossConfig(upsampled, weights), "off", 255)
    objective.logits = lambda images: logits
    images = torch.zeros(2, 3, 33, 40, dtype=torch.uint8)
    loss = objective(images, labels.byte()) / objective.weight(labels.byte())
    if upsampled:
        large = F.interpolate(logits, (33, 49), mode="bilinear", align_corners=True)[..., :40]
        expected = F.cross_entropy(large, labels, objective.class_weights, ignore_index=255)
    else:
        expected = F.cross_entropy(logits[..., :3], labels[:, ::16, ::16], objective.class_weights, ignore_index=255)
    torch.testing.assert_close(loss.float(), expected)
    nothing = torch.full_like(labels, 255).byte()
    loss = objective(images, nothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0 and objective.weight(nothing) == 0 and gradient.eq(0).all()
