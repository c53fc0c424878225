"""The way back: a library's network with the weights of ours gives the logits of ours."""

from __future__ import annotations

import pytest
import torch

from atrous.models.deeplab import DeepLabV3
from atrous.models.interchange.libraries import build, largest_difference, put_back
from foreign import shaken

IMAGES = [torch.randn(1, 3, 64, 96)]


def test_torchvision() -> None:
    model = DeepLabV3(
        "timm/mobilenetv3_large_100", 3, aspp_rates=(12, 24, 36), multi_grid=(1, 1, 1), head_conv=True,
        upsampling="half_pixel",
    )  # fmt: skip
    shaken(model)
    net = build("torchvision", model)
    assert largest_difference(model, net, IMAGES) > 0.1
    put_back(model, net, "torchvision")
    assert largest_difference(model, net, IMAGES) < 1e-6


@pytest.mark.integration
def test_huggingface() -> None:
    pytest.importorskip("transformers", reason="transformers, whose network it is")
    model = DeepLabV3("timm/mobilenetv2_050", 3, aspp_rates=(), upsampling="half_pixel")
    shaken(model)
    net = build("huggingface", model)
    put_back(model, net, "huggingface")
    assert largest_difference(model, net, IMAGES) < 1e-6


@pytest.mark.parametrize("output_stride", [8, 16])
def test_smp(output_stride: int) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch, whose network it is")
    model = DeepLabV3(
        "resnet18", 3, head_conv=True, stride_in="first", aspp_rates=(2, 4, 6), upsampling="corners",
        output_stride=output_stride,
    )  # fmt: skip
    shaken(model)
    net = build("smp", model)
    put_back(model, net, "smp")
    assert largest_difference(model, net, IMAGES) < 1e-6


def test_smps_own_encoder() -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch, whose network it is")
    model = DeepLabV3(
        "timm/tf_efficientnet_b0", 3, head_conv=True, stride_in="first", aspp_rates=(2, 4, 6), aspp_filters=16,
        upsampling="corners", convention="smp",
    )  # fmt: skip
    shaken(model)
    net = build("smp", model)
    put_back(model, net, "smp")
    assert largest_difference(model, net, IMAGES) < 1e-6
    with pytest.raises(ValueError, match="huggingface has no such network: the model has convention 'smp'"):
        build("huggingface", model)


@pytest.mark.integration
def test_mobilevit() -> None:
    pytest.importorskip("transformers", reason="transformers, whose network it is")
    model = DeepLabV3(
        "timm/mobilevit_xxs", 3, aspp_rates=(2, 4, 6), aspp_filters=16, upsampling="half_pixel",
        convention="huggingface",
    )  # fmt: skip
    shaken(model)
    net = build("huggingface", model)
    put_back(model, net, "huggingface")
    assert largest_difference(model, net, IMAGES) < 1e-6


def test_a_network_that_a_library_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="torchvision has no such network: the model has the backbone resnet18"):
        build("torchvision", DeepLabV3("resnet18", 2))
    with pytest.raises(ValueError, match="torchvision has no such network: the model has head_conv False, not True"):
        build("torchvision", DeepLabV3("resnet50", 2))
    with pytest.raises(ValueError, match="there is no way back to 'keras'; there is one to torchvision"):
        build("keras", DeepLabV3("resnet18", 2))
