"""The dial on networks of timm, of which this package knows nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import SplitAttn
from torch import Tensor, nn

from atrous.models import timm_backbone
from atrous.models.backbone import Features, mismatch
from atrous.models.timm_backbone import TimmBackbone
from atrous.ops.conv import set_stride_and_dilation
from shaken import shake

FAMILIES = [
    "tf_efficientnet_lite0",  # "same" padding in its forward
    "resnet18d",  # means in its shortcuts
    "regnety_002",
    "convnext_atto",  # patches, and no batch norm
    "densenet121",  # pooling between its stages
    "mobilenetv4_conv_small",
    "vgg11_bn",  # pooling with even windows
    "resnest14d",  # means that count their padding
    "res2net50_48w_2s",
]


def shaken(net: TimmBackbone) -> TimmBackbone:
    """With batch norms, and what scales a residual, far from the zeros that timm starts them with.

    Squeeze-and-excitation and split attention go: their mean is over the map, which changes with the stride.
    """
    for name, module in list(shake(net.net).named_modules()):
        if type(module).__name__ in ("SEModule", "SqueezeExcite", "SqueezeExciteCl"):
            net.net.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = nn.Identity()
        if isinstance(module, SplitAttn):
            module.fc2.weight.data.zero_()  # type: ignore[union-attr]
    for name, parameter in net.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.0)
    return net.eval().double()


def features(net: TimmBackbone, images: Tensor, after: Callable[[], None] = lambda: None) -> dict[int, Tensor]:
    """Of every output stride; `after` is called when it has been set."""
    maps = {}
    with torch.no_grad():
        for stride in net.reachable:
            net.set_output_stride(stride)
            after()
            maps[stride] = net(images).out
    return maps


def inconsistency(maps: dict[int, Tensor]) -> float:
    """The largest difference of a map, subsampled by two, to that of twice the stride."""
    pairs = [(maps[stride][..., ::2, ::2], maps[2 * stride]) for stride in maps if 2 * stride in maps]
    return max(float((dense - sparse).abs().max() / sparse.abs().max()) for dense, sparse in pairs)


@pytest.mark.parametrize("name", FAMILIES)
def test_atrous_consistency(name: str) -> None:
    torch.manual_seed(0)
    net = shaken(TimmBackbone(name))
    assert net.reachable == (4, 8, 16, 32)
    images = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    maps = features(net, images)
    assert all(maps[stride].shape[-2:] == (64 // stride + 1, 96 // stride + 1) for stride in net.reachable)
    assert inconsistency(maps) < 1e-9

    def without_rates() -> None:
        for path in net.layers:
            layer: Any = net.net.get_submodule(path)
            set_stride_and_dilation(layer, layer.stride if isinstance(layer.stride, int) else layer.stride[0], 1)

    assert inconsistency(features(net, images, without_rates)) > 1e-3, "a test that sees no rate says nothing"


@pytest.mark.parametrize(
    ("name", "stride"),
    [*((name, stride) for name in ("tf_efficientnet_lite0", "resnet18") for stride in (8, 16, 32)), ("skresnet18", 32)],
)  # the last has atrous layers of its own
def test_features_are_timms_where_timm_has_them(name: str, stride: int) -> None:
    theirs = timm.create_model(name, features_only=True, output_stride=stride).eval()
    ours = TimmBackbone(name, output_stride=stride).eval()
    ours.net.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 97, 129)
    with torch.no_grad():
        torch.testing.assert_close(ours(image).out, theirs(image)[-1], rtol=1e-5, atol=1e-5)


def test_stages_are_named_and_the_dial_keeps_the_parameters() -> None:
    net = TimmBackbone("tf_efficientnet_lite0").eval()
    parameters = list(net.parameters())
    keys = list(net.state_dict())
    for stride in net.reachable:
        net.set_output_stride(stride)
    assert keys == list(net.state_dict())
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    with torch.no_grad():
        actual = net(torch.zeros(1, 3, 33, 33))
    assert isinstance(actual, Features)
    assert list(actual.stages) == ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]
    assert actual.out is actual.stages["blocks.6"] and actual.out.shape[1] == net.channels == 320
    assert net.mean == (0.5, 0.5, 0.5) and net.std == (0.5, 0.5, 0.5)


def depthwise_rates(module: nn.Module) -> list[int]:
    return [layer.dilation[0] for name, layer in module.named_modules() if name.endswith("conv_dw")]  # type: ignore[union-attr, index]


def test_multi_grid_on_the_last_three_units() -> None:
    net = TimmBackbone("tf_efficientnet_lite0", multi_grid=(1, 2, 4))
    assert net.grid_units == ("blocks.5.2", "blocks.5.3", "blocks.6.0")
    assert depthwise_rates(net.net)[-5:] == [1, 2, 2, 4, 8]
    net.set_output_stride(8)
    assert depthwise_rates(net.net)[-5:] == [2, 4, 4, 8, 16]


@pytest.mark.parametrize("name", ["resnet50", "resnet50d", "tf_efficientnet_lite0"])
def test_rates_of_the_paper_in_the_last_three_units(name: str) -> None:
    for grid in ((1, 1, 1), (1, 2, 4)):
        with torch.device("meta"):
            net = TimmBackbone(name, multi_grid=grid)
        rates = [
            layer.dilation[0]
            for unit in net.grid_units
            for layer in net.net.get_submodule(unit).modules()
            if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1
        ]  # a mean in a shortcut follows its unit
        assert rates == [2 * unit_rate for unit_rate in grid]


def test_a_grid_of_ones_is_none_with_consistent_rates() -> None:
    with torch.device("meta"):
        plain = TimmBackbone("resnet50")
        ones = TimmBackbone("resnet50", multi_grid=(1, 1, 1), consistent_rates=True)
    assert [m.dilation for m in plain.modules() if isinstance(m, nn.Conv2d)] == [
        m.dilation for m in ones.modules() if isinstance(m, nn.Conv2d)
    ]


def test_cascade_of_replicas_to_256() -> None:
    net = TimmBackbone("tf_efficientnet_lite0", last_block=7).eval()
    assert net.reachable == (4, 8, 16, 32, 64, 128, 256)
    net.set_output_stride(16)
    assert [depthwise_rates(block) for block in net.cascade.children()] == [[2, 4, 4], [4, 8, 8], [8, 16, 16]]
    net = shaken(TimmBackbone("mobilenetv2_035", last_block=7))  # a smaller one, for the maps at 4 are large
    assert net.reachable[-1] == 256
    assert inconsistency(features(net, torch.randn(1, 3, 257, 257, dtype=torch.float64))) < 1e-9


def test_replicas_start_from_block4_and_the_packaged_weights() -> None:
    from atrous.models.imagenet import imagenet

    net = TimmBackbone("tf_efficientnet_lite0", last_block=5)
    net.load_imagenet(imagenet("timm/tf_efficientnet_lite0"))
    assert net.grid_units == ("blocks.5.1", "blocks.5.2", "blocks.5.3")
    for replica, name in zip(net.cascade["block5"].children(), net.grid_units, strict=True):
        copied, source = replica.unit.state_dict(), net.net.get_submodule(name).state_dict()
        assert copied.keys() == source.keys() and all(torch.equal(copied[key], source[key]) for key in source)
    # A unit that does not add its input (160 channels from 96) cannot be copied: its replica is one of the next.
    small = TimmBackbone("mobilenetv2_100", last_block=5)
    assert small.grid_units == ("blocks.5.0", "blocks.5.1", "blocks.5.2")
    first, second, third = (replica.unit.conv_pw.weight for replica in small.cascade["block5"].children())
    assert torch.equal(first, second) and not torch.equal(second, third)


def test_replicas_that_add_nothing_leave_block4_as_it_is() -> None:
    net = TimmBackbone("mobilenetv2_035", last_block=6).eval()
    for block in net.cascade.values():
        for replica in block.children():
            nn.init.zeros_(replica.get_parameter("unit.bn3.weight"))
    for stride in (16, 32, 128):
        net.set_output_stride(stride)
        images = torch.randn(1, 3, 129, 257)
        block4, block6 = net.net(images)[-1], net(images).out
        stride_left = (block4.shape[-1] - 1) // (block6.shape[-1] - 1)
        assert block6.shape[1] == net.channels and torch.equal(block6, block4[..., ::stride_left, ::stride_left])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tf_efficientnet_lite", {}, "timm has no network 'tf_efficientnet_lite'; did you mean tf_efficientnet"),
        ("vit_tiny_patch16_224", {}, "does not take images of 256x256 pixels|cannot reach output_stride 16"),
        ("hrnet_w18_small", {"output_stride": 8}, "cannot reach output_stride 8; it can reach 32"),
        ("resnet50", {"last_block": 5}, "the cascade needs inverted residuals"),
        ("inception_v3", {"last_block": 5}, "need 3 units; the last stage of timm/inception_v3 has 0"),
        ("resnet18", {"multi_grid": (1, 2, 4)}, "need 3 units; the last stage of timm/resnet18 has 2"),
        ("tf_efficientnet_lite0", {"multi_grid": (1, 2)}, "expected 3 whole numbers"),
        ("tf_efficientnet_lite0", {"output_stride": 64}, "cannot reach output_stride 64; it can reach 4, 8, 16, 32"),
    ],
)
def test_what_a_network_cannot_do_is_said(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, **options)  # type: ignore[arg-type]


def test_mismatch_is_silent_when_all_fits() -> None:
    mismatch({"a": torch.zeros(2)}, {"a": torch.ones(2)}, "these")


@pytest.mark.parametrize("name", ["resnet18d", "regnetx_002"])
def test_a_new_network_lets_every_convolution_reach_its_output(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name).eval()
    out = backbone(torch.randn(1, 3, 65, 65)).out
    out.sum().backward()
    unused = [key for key, p in backbone.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not unused


def test_what_is_learnt_of_a_network_holds_under_another_default_dtype() -> None:
    for learnt in (timm_backbone._without_data, timm_backbone._layers, timm_backbone._padding, timm_backbone._reaches):
        learnt.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert timm_backbone._reaches("lcnet_050", 16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert timm_backbone._reaches("lcnet_050", 8)


def test_networks_that_timm_hooks_are_probed() -> None:
    backbone = TimmBackbone("xception41")
    assert set(backbone.reachable) >= {8, 16, 32}
    assert backbone.eval()(torch.zeros(1, 3, 65, 65)).out.shape[-1] == 5
