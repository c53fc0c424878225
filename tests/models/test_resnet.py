"""The atrous ResNet: its layout, the dial on it, its replicas, ImageNet weights."""

import pytest
import torch
import torchvision
from torch import Tensor

from atrous.models.output_stride import OUTPUT_STRIDES
from atrous.models.resnet import UNITS, ResNet, StrideIn
from shaken import shake

LAYOUTS: tuple[StrideIn, ...] = ("first", "last")


def rates(net: ResNet, block: int) -> list[int]:
    return [unit.rate for unit in net.block(block)]


def strides(net: ResNet) -> list[int]:
    """Map size of each block on an input of 256 + 1 pixels, as the stride that it stands for."""
    with torch.no_grad():
        stages = net.eval()(torch.zeros(1, 3, 257, 257)).stages
    return [256 // (stages[f"block{block}"].shape[-1] - 1) for block in range(1, net.last_block + 1)]


@pytest.mark.parametrize("depth", UNITS)
def test_keys_and_shapes_are_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"resnet{depth}").state_dict()
        ours = ResNet(depth).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items() if not key.startswith("fc.")
    }


def test_block_strides_of_figure_3a_reach_256() -> None:
    assert strides(ResNet(18, last_block=7, output_stride=256, stride_in="last")) == [8, 16, 32, 64, 128, 256, 256]
    assert strides(ResNet(18, last_block=7, output_stride=256, stride_in="first")) == [4, 8, 16, 32, 64, 128, 256]


def test_block_strides_of_figure_3b() -> None:
    net = ResNet(18, last_block=7, output_stride=16, stride_in="last")
    assert strides(net) == [8, 16, 16, 16, 16, 16, 16]
    assert [rates(net, block)[0] for block in range(1, 8)] == [1, 1, 1, 2, 4, 8, 16]


@pytest.mark.parametrize("stride_in", LAYOUTS)
@pytest.mark.parametrize("depth", [50, 101, 152])
@pytest.mark.parametrize("grid", [None, (1, 1, 1), (1, 2, 1), (1, 2, 4), (2, 2, 2)])
def test_rates_of_the_paper(depth: int, stride_in: StrideIn, grid: tuple[int, ...] | None) -> None:
    with torch.device("meta"):
        net = ResNet(depth, multi_grid=grid, stride_in=stride_in, last_block=7)
    unit_rates = grid or (1, 1, 1)
    for stride in (16, 8):
        net.set_output_stride(stride)
        for block in (4, 5, 6, 7):  # section 3.2.1: 2 * (1, 2, 4) in block4 at 16
            assert rates(net, block) == [2 ** (block - 3) * 16 // stride * unit for unit in unit_rates]
        assert set(rates(net, 3)) == {16 // stride}  # section 4: block3 has rate 2 at 8
        assert set(rates(net, 2)) == {1}


@pytest.mark.parametrize("grid", [None, (1, 1, 1), (1, 2, 4)])
def test_consistent_rates_leave_the_first_unit_its_own_unless_there_is_multi_grid(grid: tuple[int, ...] | None) -> None:
    with torch.device("meta"):
        net = ResNet(50, multi_grid=grid, stride_in="first", consistent_rates=True)
    assert rates(net, 4) == ([2, 4, 8] if grid == (1, 2, 4) else [1, 2, 2])
    net.set_output_stride(8)
    assert rates(net, 4) == ([4, 8, 16] if grid == (1, 2, 4) else [2, 4, 4])
    assert rates(net, 3) == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("depth", UNITS)
@pytest.mark.parametrize("last_block", [4, 5, 6, 7])
def test_reachable_strides(depth: int, last_block: int) -> None:
    with torch.device("meta"):
        net = ResNet(depth, last_block=last_block)
    assert net.reachable == OUTPUT_STRIDES[:last_block]
    with pytest.raises(ValueError, match=f"resnet{depth} cannot reach output_stride 512|output_stride is 512"):
        net.set_output_stride(512)


def test_unreachable_stride_says_which_are() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match="resnet50 cannot reach output_stride 64; it can reach 4, 8, 16, 32"),
    ):
        ResNet(50, output_stride=64)


@pytest.mark.parametrize("stride_in", LAYOUTS)
@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.integration)])
def test_atrous_consistency(depth: int, stride_in: StrideIn) -> None:
    """Section 3.1: denser features, subsampled, are the features of the strided network."""
    net = shake(ResNet(depth, stride_in=stride_in, consistent_rates=True, last_block=5).eval().double())
    assert isinstance(net, ResNet)
    image = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    actual: dict[int, Tensor] = {}
    with torch.no_grad():
        for stride in net.reachable:
            net.set_output_stride(stride)
            actual[stride] = net(image).out
    for stride in net.reachable[:-1]:
        torch.testing.assert_close(actual[stride][..., ::2, ::2], actual[2 * stride], rtol=1e-9, atol=1e-9)


def test_the_dial_changes_no_parameter() -> None:
    net = ResNet(18, last_block=7)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parameters = list(net.parameters())
    for stride in net.reachable:
        net.set_output_stride(stride)
        assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("stride_in", LAYOUTS)
def test_replicas_start_from_block4(stride_in: StrideIn) -> None:
    net = ResNet(50, last_block=7, stride_in=stride_in)
    net.load_imagenet(torchvision.models.resnet50().state_dict())
    for block in ("layer5", "layer6", "layer7"):
        ours, source = net.get_submodule(block).state_dict(), net.get_submodule("layer4").state_dict()
        # A replica's first unit reads 2048 channels, not 1024: its first convolution cannot be copied, and it needs no
        # projection.
        own = {key for key in ours if key not in source or ours[key].shape != source[key].shape}
        assert own == {"0.conv1.weight"}
        assert all(torch.equal(ours[key], source[key]) for key in ours.keys() - own)
        assert len(net.block(int(block[-1]))) == 3


def test_imagenet_weights_that_do_not_fit_are_named_together() -> None:
    state = torchvision.models.resnet18().state_dict()
    del state["layer1.0.conv1.weight"], state["bn1.weight"]
    state["extra"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(1)
    with pytest.raises(
        ValueError, match=r"resnet18 do not fit: 2 missing \(.*\); 1 unexpected \(extra\); 1 of another shape"
    ):
        ResNet(18).load_imagenet(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "there is no ResNet-20; there are 18, 34, 50, 101, 152"),
        ({"depth": 18, "last_block": 8}, "last_block is 8"),
        (
            {"depth": 18, "multi_grid": (1, 2, 4)},
            r"multi_grid is \(1, 2, 4\), expected 2 whole numbers .* block4 of resnet18",
        ),
        ({"depth": 18, "stride_in": "middle"}, "stride_in is 'middle', expected one of first, last"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(**options)  # type: ignore[arg-type]
