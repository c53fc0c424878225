"""Checkpointing changes memory and time, and no number: weights, statistics and random numbers to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from atrous.models.activation_checkpointing import Checkpointed, set_checkpointing, units
from atrous.models.deeplab import DeepLabV3

BACKBONES = {
    "resnet18": {"head": "cascade", "last_block": 5},
    "resnet50": {"head": "cascade", "last_block": 4},
    "timm/lcnet_050": {"aspp_rates": (1,)},
    "timm/tf_efficientnet_lite0": {"aspp_rates": (1,)},
    "timm/convnext_atto": {"aspp_rates": (1,)},
}


def build(backbone: str) -> DeepLabV3:
    torch.manual_seed(0)
    model = DeepLabV3(backbone, 3, output_stride=8, **BACKBONES[backbone])  # type: ignore[arg-type]
    model.set_batch_norm_decay(0.9)
    return model.train()


def steps(model: DeepLabV3, amp: bool = False) -> list[torch.Tensor]:
    """Two steps; all that they leave behind, and the state of the random numbers."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = model(torch.randn(2, 3, 33, 33)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*model.state_dict().values(), loss.detach(), torch.rand(1)]


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(name, marks=pytest.mark.integration if name in ("resnet50", "timm/convnext_atto") else ())
        for name in BACKBONES
    ],
)
def test_two_steps_leave_the_same_bytes(backbone: str) -> None:
    plain = build(backbone)
    saving = copy.deepcopy(plain)
    set_checkpointing(saving.backbone, True)
    assert sum(isinstance(module, Checkpointed) for module in saving.modules()) > 3
    assert saving.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(steps(plain), steps(saving), strict=True))


@pytest.mark.parametrize("frozen", [False, True])
def test_dropout_autocast_and_frozen_batch_norm_too(frozen: bool) -> None:
    plain = build("resnet18")
    for unit in units(plain.backbone):
        unit.relu = nn.Sequential(nn.ReLU(), nn.Dropout(0.3))  # type: ignore[assignment]
    if frozen:
        plain.freeze_batch_norm()
    saving = copy.deepcopy(plain)
    set_checkpointing(saving.backbone, True)
    amp = not frozen  # bfloat16 is slow where it is emulated
    assert all(torch.equal(a, b) for a, b in zip(steps(plain, amp), steps(saving, amp), strict=True))


def test_fewer_tensors_are_kept() -> None:
    def kept(model: DeepLabV3) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = model.backbone(torch.randn(1, 3, 97, 97)).out
        assert features.requires_grad
        return sum(size for place, size in sizes.items() if place not in own)

    model = build("resnet50")
    before = kept(model)
    set_checkpointing(model.backbone, True)
    assert kept(model) < before / 3
    set_checkpointing(model.backbone, False)
    assert kept(model) == pytest.approx(before, rel=0.05) and not any(
        isinstance(m, Checkpointed) for m in model.modules()
    )


def test_the_inference_form_and_evaluation_are_untouched() -> None:
    model = build("resnet18")
    set_checkpointing(model.backbone, True)
    steps(model)
    model.eval()
    image = torch.randn(1, 3, 41, 41)
    with torch.inference_mode():
        expected = model(image)
        torch.testing.assert_close(model.for_inference(dtype=torch.float32)(image), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(model.backbone.layer1[0], Checkpointed), "the model itself is left alone"
