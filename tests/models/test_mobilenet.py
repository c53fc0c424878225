"""The networks of the shipped models beside timm's: the same layers, weights and features, without importing timm."""

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from atrous.evaluation.distributed import synchronise_batch_norm
from atrous.models import timm_backbone
from atrous.models.mobilenet import NETWORKS, ActivatedBatchNorm, MobileNet
from atrous.models.output_stride import OUTPUT_STRIDES
from atrous.models.timm_backbone import UNNAMED, TimmBackbone


def of_timm(name: str) -> nn.Module:
    base, changes = UNNAMED.get(name, (name, {}))
    net: nn.Module = timm.create_model(base, features_only=True, **changes)
    return net


@pytest.mark.parametrize(
    "name",
    ["mobilenetv2_035", "efficientnet_lite2", "tf_efficientnet_lite0", "tf_mobilenetv2_050", "mobilenet_edgetpu_075"],
)
def test_it_is_timms_network(name: str) -> None:
    torch.manual_seed(3)
    theirs, next_theirs = of_timm(name), torch.rand(1)
    torch.manual_seed(3)
    ours, next_ours = MobileNet(name), torch.rand(1)
    state = theirs.state_dict()
    assert list(state) == list(ours.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    assert torch.equal(next_ours, next_theirs)  # a head that is built next has the same weights, too
    info = theirs.feature_info
    assert tuple(ours.feature_info) == (info.module_name(), info.channels(), info.reduction())
    assert tuple(ours.pretrained_cfg["mean"]) == tuple(theirs.pretrained_cfg["mean"])
    layers = dict(theirs.named_modules())
    for path, layer in ours.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert [type(layer).__name__, layer.padding] == [type(layers[path]).__name__, layers[path].padding]
            assert (layer.stride, layer.groups) == (layers[path].stride, layers[path].groups)
        if isinstance(layer, ActivatedBatchNorm):
            assert (layer.eps, layer.momentum) == (layers[path].eps, layers[path].momentum)
            assert type(layer.act) is type(layers[path].act)
    if not NETWORKS[name][3]:  # timm's own padding is of its layers, ours of those that stand in for them
        images = torch.rand(2, 3, 65, 97)
        for mode in (True, False):
            pairs = zip(ours.train(mode)(images), theirs.train(mode)(images), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_what_it_says_of_its_strides_is_what_a_run_shows(name: str) -> None:
    assert timm_backbone._layers(name) == MobileNet(name).strides
    assert timm_backbone._padding(name) == 1
    assert all(timm_backbone._reaches(name, stride) for stride in OUTPUT_STRIDES if stride <= 32)


def test_a_synchronised_batch_norm_keeps_its_activation() -> None:
    net = TimmBackbone("mobilenetv2_035").eval()
    images = torch.rand(1, 3, 33, 33)
    with torch.no_grad():
        alone = net(images).out
        for device in ("cpu", "cuda"):  # a device's layers compute on the CPU, too, where they do not train
            twin = TimmBackbone("mobilenetv2_035").eval()
            twin.load_state_dict(net.state_dict())
            assert torch.allclose(synchronise_batch_norm(twin, torch.device(device)).eval()(images).out, alone)


@pytest.mark.integration
def test_a_photograph_is_segmented_without_what_is_slow_to_import() -> None:
    script = """
import sys
from atrous import Predictor
from atrous.prediction.demo import bundled
with bundled("cow.jpg").open("rb") as photograph:
    Predictor.load()(photograph)
slow = {"timm", "torchvision", "torch._dynamo", "sympy", "triton", "tensorboard", "pydantic"}
print(sorted(slow & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
