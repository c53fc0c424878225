"""The same weights in segmentation_models_pytorch and here: the same numbers."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atrous.models.convert import convert, drop_in, take_over
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import ModelCard, load, save

LARGER = functools.partial(pytest.param, marks=pytest.mark.integration)
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


@pytest.mark.parametrize(("backbone", "output_stride"), [("resnet18", 16), ("resnet18", 8), LARGER("resnet50", 16)])
@torch.no_grad()
def test_the_whole_model(backbone: str, output_stride: int) -> None:
    net = theirs(backbone, output_stride).double()
    image = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    expected = net(image)
    actual = drop_in(net, torch.float64)(image)
    assert actual.shape == expected.shape and (actual - expected).abs().max() < 1e-9 * expected.abs().max()
    fast = drop_in(net.float(), torch.float32)
    odd = torch.randn(1, 3, 90, 100)  # which theirs refuses
    padded = torch.nn.functional.pad(odd, (0, -100 % output_stride, 0, -90 % output_stride))
    whole = net(padded.to(next(net.parameters()).dtype))[..., :90, :100].float()
    assert fast(odd).shape == whole.shape and (fast(odd) - whole).abs().max() < 1e-4 * whole.abs().max()
    with pytest.raises(ValueError, match="expected B,3,H,W"):
        fast(torch.randn(1, 4, 96, 96))
    for _ in range(3):  # weights are laid out for a size when it comes again
        actual = fast(image.float())
        assert actual.dtype == torch.float32 and (actual - expected).abs().max() < 1e-4 * expected.abs().max()


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


def changed(how: Callable[[nn.Module], object]) -> nn.Module:
    net = theirs("resnet18", 8)
    how(net)
    return net


SHOWN = "DeepLabV3 is no DeepLabV3 with a ResNet that is known here: "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_name": "resnext50_32x4d"}, SHOWN + "size mismatch for .*layer1.0.conv1.weight: .*$"),
        ({"encoder_name": "mobilenet_v2"}, SHOWN + "its stages have"),
        ({"in_channels": 4}, SHOWN + "size mismatch for backbone.conv1.weight"),
        ({"decoder_atrous_rates": (3, 5, 7)}, SHOWN + r"rates \[3, 5, 7\] at output stride 8 are not those of whole"),
        ({"upsampling": 4}, SHOWN + "it gives .1, 2, 16, 20. for images of .1, 3, 32, 40."),
        ({"activation": "sigmoid"}, SHOWN + "segmentation_head.2.activation is Sigmoid"),
    ],
)
def test_what_cannot_be_taken_over_is_named(options: dict[str, object], message: str) -> None:
    net = smp.DeepLabV3(**{"encoder_name": "resnet18", "encoder_weights": None, "classes": 2, **options})
    with pytest.raises(ValueError, match=message) as caught:
        drop_in(net)
    assert len(str(caught.value)) < 300


# Nothing of this shows in a name or a shape.
@pytest.mark.parametrize(
    "how",
    [
        lambda net: setattr(net.encoder, "maxpool", nn.AvgPool2d(3, 2, 1)),
        lambda net: setattr(net.encoder.conv1, "stride", (1, 1)),
        lambda net: setattr(net.encoder, "relu", nn.Tanh()),
        lambda net: [setattr(net.encoder.layer4[1].conv2, name, (2, 2)) for name in ("dilation", "padding")],
        # No tap but the middle one lies on the small map of the trial.
        lambda net: [setattr(net.decoder.aspp.convs[2][0], name, (24, 40)) for name in ("dilation", "padding")],
        lambda net: setattr(net.decoder, "relu", nn.Hardtanh(0, 1e6)),
        lambda net: [
            setattr(module, "forward", lambda x: F.leaky_relu(x, 1e-3))
            for module in net.decoder.modules()
            if isinstance(module, nn.ReLU)
        ],
        lambda net: net.segmentation_head.__setitem__(1, nn.Upsample(scale_factor=8, mode="bilinear")),
    ],
)
def test_what_only_shows_when_it_runs_is_refused(how: Callable[[nn.Module], object]) -> None:
    with pytest.raises(ValueError, match=SHOWN):
        drop_in(changed(how))


def test_another_epsilon_of_batch_norm_is_taken_over() -> None:
    def widen(net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.05

    net, image = changed(widen), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(drop_in(net, torch.float32)(image), net(image), rtol=1e-4, atol=1e-4)
        ours, _ = take_over(net)
        again = DeepLabV3(**ours.arguments, output_stride=ours.output_stride).eval()
        again.load_state_dict(ours.state_dict())
        assert torch.equal(again(image), ours(image)), "a saved model has it, too"


def test_what_is_frozen_and_momentum_are_taken_over() -> None:
    net = theirs("resnet18", 8)
    net.encoder.requires_grad_(False)
    net.encoder.bn1.momentum = 0.01
    ours, _ = take_over(net)
    frozen = {name.partition(".")[0] for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone"} and ours.backbone.get_submodule("bn1").momentum == 0.01


def test_where_the_first_units_are_dilated_stays_with_the_dial_and_the_weights(tmp_path: Path) -> None:
    net, image = theirs("resnet50", 16), torch.randn(1, 3, 65, 97)
    ours, _ = take_over(net)
    with torch.no_grad():
        expected = net.segmentation_head[0](net.decoder(net.encoder(image)))
        ours.output_stride = 8
        ours.output_stride = 16
        torch.testing.assert_close(ours.network(image), expected, rtol=1e-3, atol=1e-4)
        names, palette = tuple(map(str, range(7))), ((0, 0, 0),) * 7
        card = ModelCard(ours.arguments, names, palette, ours.mean, ours.std, output_stride=16)
        save(ours, tmp_path / "net.safetensors", card)
        again = load(tmp_path / "net.safetensors")[0].eval()
        again.output_stride = 16
        assert again.upsampling == "corners"
        torch.testing.assert_close(again.network(image), expected, rtol=2e-2, atol=2e-2)  # stored as float16
    assert not ours.training and net.training is False


def test_wrapped_networks_are_taken_out_and_what_is_no_network_is_named() -> None:
    net = theirs("resnet18", 16)
    for wrapped in (nn.DataParallel(net), torch.compile(net, backend="eager")):
        assert take_over(wrapped)[0].output_stride == 16
    with pytest.raises(ValueError, match="expected a network, nn.Module, not OrderedDict"):
        take_over(net.state_dict())  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", ["resnet34", LARGER("resnet101"), LARGER("resnet152")])
def test_its_depth_classes_and_rates_are_read_off(backbone: str) -> None:
    net = smp.DeepLabV3(
        backbone, encoder_weights=None, classes=4, encoder_output_stride=16, decoder_atrous_rates=(2, 3, 9)
    )
    ours, library = take_over(net)
    assert library == "smp" and ours.output_stride == 16 and ours.arguments["aspp_rates"] == [2, 3, 9]
    assert ours.arguments["backbone"] == backbone and ours.num_classes == 4 and not ours.training
