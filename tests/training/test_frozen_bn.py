"""Frozen batch norm inside the convolutions: the same logits, gradients and statistics as beside them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from atrous import DeepLabV3
from atrous.models.activation_checkpointing import set_checkpointing
from atrous.training.frozen_bn import FoldedBatchNorm

FROZEN = [{"affine": True}, {"affine": False}, {"affine": False, "head": False}]


def model_of(backbone: str, **options: Any) -> DeepLabV3:
    """In float64, with batch norm that does something; of ASPP, a branch that every place of a small map is seen by."""
    return copy.deepcopy(built(backbone, **options)).train()


@functools.cache
def built(backbone: str, **options: Any) -> DeepLabV3:
    torch.manual_seed(0)
    model = DeepLabV3(backbone, 4, aspp_rates=(1,), **options).double()
    for norm in model.batch_norms():
        assert norm.running_mean is not None and norm.running_var is not None
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias, std=0.2)
    nn.init.normal_(model.classifier.weight)
    return model


def stepped(
    model: DeepLabV3, run: FoldedBatchNorm | None = None, side: int = 33
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of a step of the model, or of its folded form."""
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = (run or model.low_resolution_logits)(images)
    logits.square().mean().backward()
    return logits.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def test_a_norm_without_weights_is_folded_too() -> None:
    model = model_of("resnet18")
    norm: Any = model.backbone.get_submodule("layer2.0.bn1")
    norm.register_parameter("weight", None)
    norm.register_parameter("bias", None)
    model.freeze_batch_norm()
    layers, folded = copy.deepcopy(model), FoldedBatchNorm(model)
    (logits, gradients), (wanted_logits, wanted) = stepped(model, folded), stepped(layers)
    torch.testing.assert_close(logits, wanted_logits)
    torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize("options", FROZEN, ids=str)
@pytest.mark.parametrize("backbone", ["resnet18", "timm/mobilenetv2_035"])
def test_logits_gradients_and_statistics_are_those_of_the_layers(backbone: str, options: dict[str, bool]) -> None:
    model = model_of(backbone)
    model.freeze_batch_norm(**options)
    layers, folded = copy.deepcopy(model), FoldedBatchNorm(model)
    norms = [norm for norm in model.batch_norms() if not norm.training]
    read: list[int] = []
    folded.current()
    for norm in norms:
        norm.register_forward_hook(lambda *_: read.append(1))
    (logits, gradients), (wanted_logits, wanted) = stepped(model, folded), stepped(layers)
    assert norms and not read  # no frozen one was computed as a layer
    torch.testing.assert_close(logits, wanted_logits, rtol=1e-9, atol=1e-9)
    assert gradients.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(gradients[key], value, rtol=1e-7, atol=1e-9, msg=key)
    for key, value in layers.state_dict().items():  # the running statistics of those that are trained, too
        torch.testing.assert_close(model.state_dict()[key], value)


@pytest.mark.parametrize("backbone", ["timm/mixnet_s", "timm/resnetblur18"])
def test_what_follows_no_convolution_stays_a_frozen_layer(backbone: str) -> None:
    # mixnet normalises what several convolutions have given together; resnetblur has buffers that no state dict holds.
    model = model_of(backbone, output_stride=32)
    model.freeze_batch_norm()
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    layers = copy.deepcopy(model)
    torch.testing.assert_close(stepped(model, FoldedBatchNorm(model))[0], stepped(layers)[0], rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())


def test_synchronised_batch_norm_is_folded_too() -> None:
    model = model_of("resnet18")
    layers = copy.deepcopy(model)
    layers.freeze_batch_norm()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.freeze_batch_norm()
    folded = FoldedBatchNorm(model)
    logits = stepped(model, folded)[0]
    assert folded.skeleton is not None and len(folded.skeleton.pairs) == len(list(model.batch_norms()))
    torch.testing.assert_close(logits, stepped(layers)[0], rtol=1e-9, atol=1e-9)


def test_the_decay_and_the_modes_of_what_still_learns_are_followed() -> None:
    model = model_of("resnet18")
    model.freeze_batch_norm(affine=False, head=False)
    layers, folded = copy.deepcopy(model), FoldedBatchNorm(model)
    for one, run in ((model, folded), (layers, None)):
        stepped(one, run)
        one.set_batch_norm_decay(0.5)
        stepped(one, run)
        one.head.eval()
        stepped(one, run)
    for key, value in layers.named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[key], value)


def test_it_follows_the_output_stride_new_weights_and_another_freezing() -> None:
    model = model_of("resnet18")
    model.freeze_batch_norm()
    folded = FoldedBatchNorm(model)

    def same() -> torch.Tensor:
        logits = stepped(model, folded)[0]
        torch.testing.assert_close(logits, stepped(copy.deepcopy(model))[0], rtol=1e-9, atol=1e-9)
        return logits

    at_16 = same()
    model.output_stride = 8
    same()
    with torch.no_grad():
        model.backbone.get_parameter("conv1.weight").mul_(0.5)
    same()
    model.freeze_batch_norm(affine=False, head=False)
    model.output_stride = 16
    assert not torch.allclose(at_16, same())
    model.unfreeze_batch_norm()
    stepped(model, folded)
    assert folded.skeleton is None and all(norm.training for norm in model.batch_norms())


def test_the_model_knows_nothing_of_it() -> None:
    model = model_of("timm/mobilenetv2_035")
    keys = list(model.state_dict())
    model.freeze_batch_norm()
    stepped(model, FoldedBatchNorm(model))
    assert list(model.state_dict()) == keys
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.classifier.weight.zero_()
    assert not torch.equal(stepped(twin, FoldedBatchNorm(twin))[0], stepped(model, FoldedBatchNorm(model))[0])


def test_evaluation_computes_the_layers() -> None:
    model = model_of("timm/mobilenetv2_035")
    model.freeze_batch_norm()
    folded = FoldedBatchNorm(model.eval())
    images = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    assert torch.equal(folded(images), model.low_resolution_logits(images)) and folded.skeleton is None


def test_checkpointing_computes_the_layers_and_the_same() -> None:
    model = model_of("resnet18")
    model.freeze_batch_norm()
    twin = copy.deepcopy(model)
    wanted = stepped(twin, FoldedBatchNorm(twin))
    set_checkpointing(model.backbone, True)
    folded = FoldedBatchNorm(model)
    logits, gradients = stepped(model, folded)
    assert folded.skeleton is None
    torch.testing.assert_close(logits, wanted[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients, wanted[1], rtol=1e-7, atol=1e-9)
