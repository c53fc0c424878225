"""The same weights in torchvision and here: the same numbers."""

import pytest
import torch
import torchvision
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import deeplabv3_resnet50
from torchvision.models.segmentation.deeplabv3 import ASPP as TorchvisionASPP

from atrous.models.aspp import ASPP
from atrous.models.convert import convert, drop_in
from atrous.models.deeplab import DeepLabV3
from atrous.models.resnet import ResNet
from shaken import shake


@pytest.mark.parametrize(
    ("depth", "dilated", "output_stride"),
    [(50, (False, False, False), 32), (50, (False, False, True), 16), (50, (False, True, True), 8),
     pytest.param(101, (False, True, True), 8, marks=pytest.mark.integration)],
)  # fmt: skip
@torch.no_grad()
def test_backbone_features(depth: int, dilated: tuple[bool, bool, bool], output_stride: int) -> None:
    torch.manual_seed(depth)
    theirs = torchvision.models.get_model(f"resnet{depth}", replace_stride_with_dilation=dilated)
    shake(theirs)
    ours = ResNet(depth, stride_in="first", consistent_rates=True, output_stride=output_stride).eval()
    ours.load_imagenet(theirs.state_dict())
    layers = {f"layer{i}": f"block{i}" for i in range(1, 5)}
    image = torch.randn(1, 3, 97, 129)
    expected = IntermediateLayerGetter(theirs, layers).eval()(image)
    actual = ours(image)
    for block, value in expected.items():
        torch.testing.assert_close(actual.stages[block], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
    assert actual.out is actual.stages["block4"]


@pytest.mark.parametrize("depth", [18, 34])
@torch.no_grad()
def test_basic_features_at_the_native_stride(depth: int) -> None:
    theirs = torchvision.models.get_model(f"resnet{depth}").eval()  # torchvision cannot dilate these
    ours = ResNet(depth, stride_in="first", consistent_rates=True, output_stride=32).eval()
    ours.load_imagenet(theirs.state_dict())
    image = torch.randn(1, 3, 97, 129)
    expected = IntermediateLayerGetter(theirs, {"layer4": "out"})(image)["out"]
    torch.testing.assert_close(ours(image).out, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_aspp_with_the_same_rates() -> None:
    theirs = TorchvisionASPP(512, [12, 24, 36]).eval()
    shake(theirs)
    state = convert({f"classifier.0.{key}": value for key, value in theirs.state_dict().items()})
    ours = ASPP(512, (6, 12, 18), output_stride=8).eval()
    ours.load_state_dict({key.removeprefix("head."): value for key, value in state.items()})
    features = torch.randn(2, 512, 33, 29)
    torch.testing.assert_close(ours(features), theirs(features), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_whole_model() -> None:
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True).eval()
    shake(theirs)
    ours = drop_in(theirs, torch.float32)
    for size in ((97, 97), (42, 57)):
        image = torch.randn(1, 3, *size)
        expected = theirs(image)["out"]
        actual = ours(image)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_convention_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="upsampling is 'nearest', expected one of grid, half_pixel, corners"):
        DeepLabV3("resnet18", 2, upsampling="nearest")  # type: ignore[arg-type]


def test_a_network_without_a_resnet_is_named() -> None:
    net = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(ValueError, match="DeepLabV3 is no DeepLabV3 with a ResNet that is known here"):
        drop_in(net)


def test_a_foreign_key_is_named() -> None:
    with pytest.raises(ValueError, match="'fc.weight' is no key of a DeepLabV3"):
        convert({"fc.weight": torch.zeros(1)})
