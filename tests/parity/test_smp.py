"""The same weights in segmentation_models_pytorch and here: the same numbers."""

import pytest
import torch
from torch import nn

from atrous.models.convert import DropIn, convert
from atrous.models.deeplab import DeepLabV3

smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch, whose weights these are")


def theirs(backbone: str, output_stride: int) -> nn.Module:
    torch.manual_seed(0)
    net = smp.DeepLabV3(backbone, encoder_weights=None, classes=7, encoder_output_stride=output_stride)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
    return net.eval()


@pytest.mark.parametrize(("backbone", "output_stride"), [("resnet18", 16), ("resnet18", 8), ("resnet50", 16)])
@torch.no_grad()
def test_the_whole_model(backbone: str, output_stride: int) -> None:
    net = theirs(backbone, output_stride).double()
    # Theirs has the rates 12, 24, 36 at any stride; ours are given at 16 and scaled.
    rates = [rate * output_stride // 16 for rate in (12, 24, 36)]
    ours = DeepLabV3(
        backbone, 7, aspp_rates=rates, head_conv=True, stride_in="first", output_stride=output_stride
    ).eval()
    ours.load_state_dict(convert(net.state_dict()))
    image = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    expected = net(image)
    found = DropIn(ours.double(), "smp")(image)
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-9 * expected.abs().max()
    fast = DropIn(ours.float().for_inference(dtype=torch.float32), "smp")
    for _ in range(3):  # weights are laid out for a size when it comes again
        found = fast(image.float())
        assert found.dtype == torch.float32 and (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_keys_of_before_0_6_and_keys_of_others() -> None:
    state = theirs("resnet18", 16).state_dict()
    old = {
        key.replace("decoder.aspp.", "decoder.0.")
        .replace("decoder.conv.", "decoder.1.")
        .replace("decoder.bn.", "decoder.2."): value
        for key, value in state.items()
    }
    assert convert(old).keys() == convert(state).keys()
    with pytest.raises(ValueError, match="'stem.weight' is no key of a DeepLabV3"):
        convert({"stem.weight": torch.zeros(1)})
