"""The same weights in segmentation_models_pytorch and here: the same numbers."""

import pytest
import torch
from torch import nn

from atrous.models.convert import convert, drop_in, take_over

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
    image = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    expected = net(image)
    found = drop_in(net, torch.float64)(image)
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-9 * expected.abs().max()
    fast = drop_in(net.float(), torch.float32)
    with pytest.raises(ValueError, match="images are .96, 100. pixels, expected multiples of"):
        fast(torch.randn(1, 3, 96, 100))
    with pytest.raises(ValueError, match="expected B,3,H,W"):
        fast(torch.randn(1, 4, 96, 96))
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"encoder_name": "resnext50_32x4d"},
            "is no DeepLabV3 with a ResNet that is known here: size mismatch for .*layer1.0.conv1.weight: .*$",
        ),
        ({"encoder_name": "mobilenet_v2"}, "no DeepLabV3 with a ResNet that is known here: its stages have"),
        ({"in_channels": 4}, "size mismatch for backbone.conv1.weight"),
        (
            {"decoder_atrous_rates": (3, 5, 7)},
            r"rates \[3, 5, 7\] at output stride 8 are not those of whole rates at 16",
        ),
        ({"upsampling": 4}, "it upsamples by 4.0 at output stride 8"),
        ({"activation": "sigmoid"}, "followed by Sigmoid"),
    ],
)
def test_what_cannot_be_taken_over_is_named(options: dict[str, object], message: str) -> None:
    net = smp.DeepLabV3(**{"encoder_name": "resnet18", "encoder_weights": None, "classes": 2, **options})
    with pytest.raises(ValueError, match=message) as caught:
        drop_in(net)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("backbone", ["resnet34", "resnet101", "resnet152"])
def test_its_depth_classes_and_rates_are_read_off(backbone: str) -> None:
    net = smp.DeepLabV3(
        backbone, encoder_weights=None, classes=4, encoder_output_stride=16, decoder_atrous_rates=(2, 3, 9)
    )
    ours, library = take_over(net)
    assert library == "smp" and ours.output_stride == 16 and ours.arguments["aspp_rates"] == [2, 3, 9]
    assert ours.arguments["backbone"] == backbone and ours.num_classes == 4 and not ours.training
