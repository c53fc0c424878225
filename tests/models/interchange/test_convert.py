"""Checkpoints of other libraries give the logits of the networks that wrote them, in float64."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import segmentation

from atrous.models.interchange.base import Choices
from atrous.models.interchange.convert import convert
from atrous.models.interchange.libraries import largest_difference
from foreign import (
    Detectron2,
    MMSegmentation,
    VainF,
    VainFMobileNet,
    mobilenet_of_transformers,
    shaken,
    tensorflow_names,
)

SIZES = ((32, 48), (33, 65), (40, 57))
MULTIPLES = ((32, 48), (32, 64), (48, 32))
LARGE = ((192, 256), (193, 225), (160, 203))
"""Maps of more features than rates, so that every branch sees more than its own place."""


def near(*values: Any) -> Any:
    """A case that another one of the same test comes near to."""
    return pytest.param(*values, marks=pytest.mark.integration)


@torch.no_grad()
def compare(net: nn.Module, path: Path, content: Any = None, sizes=SIZES, choices: Choices | None = None) -> Any:
    torch.save(net.state_dict() if content is None else content, path)
    model, converted = convert(path, choices or Choices())
    for size in sizes:
        image = torch.randn(1, 3, *size, dtype=torch.float64)
        expected = net.double()(image)
        expected = expected["out"] if isinstance(expected, dict) else expected
        logits = model.double()(image)
        assert logits.shape == expected.shape
        assert (logits - expected).abs().max() < 1e-6 * expected.abs().max(), size
    return model, converted


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_torchvision(name: str, tmp_path: Path) -> None:
    net = shaken(getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4, aux_loss=True))
    wrapped = {f"module._orig_mod.{key}": value for key, value in net.state_dict().items()}
    model, converted = compare(net, tmp_path / "net.pth", {"model": wrapped, "epoch": 3})
    assert converted.library == "torchvision" and converted.dropped
    assert model.output_stride == (8 if "resnet" in name else 16)


class HistoryBuffer:
    """mmengine's, which its checkpoints hold beside the weights."""

    def __init__(self) -> None:
        self.max_length, self._log_history = 10, np.arange(3.0)


HistoryBuffer.__module__ = "mmengine.logging.history_buffer"


@pytest.mark.parametrize(
    ("kind", "output_stride", "depth"),
    [
        near("plain", 8, 50),
        near("v1c", 16, 50),
        ("v1d", 8, 50),
        ("v1c", 8, 18),
        near("v1d", 16, 18),
        near("plain", 16, 18),
    ],
)
def test_mmsegmentation(
    kind: str, output_stride: int, depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = shaken(MMSegmentation(kind, channels=16, output_stride=output_stride, depth=depth))
    strides, rates = ("(1, 2, 1, 1)", "(1, 12, 24, 36)") if output_stride == 8 else ("(1, 2, 2, 1)", "(1, 6, 12, 18)")
    config = f"model = dict(backbone=dict(type='ResNetV1c', strides={strides}), decode_head=dict(dilations={rates}))"
    for module in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, module, sys.modules[__name__])
    history = {"log_scalars": {"loss": HistoryBuffer()}, "iteration": np.int64(3)}
    meta = {"config": config, "CLASSES": ("road", "car", "tree", "sky", "pole"), "PALETTE": [[1, 2, 3]] * 5}
    model, converted = compare(
        net, tmp_path / "iter.pth", {"state_dict": net.state_dict(), "meta": meta, "message_hub": history}
    )
    assert model.output_stride == output_stride and not converted.guesses
    assert converted.names == ("road", "car", "tree", "sky", "pole") and converted.palette[0] == (1, 2, 3)


@pytest.mark.parametrize("deep", [True, near(False)])
def test_detectron2(deep: bool, tmp_path: Path) -> None:
    net = shaken(Detectron2(deep))
    model, converted = compare(net, tmp_path / "model_final.pth", {"model": net.state_dict()}, MULTIPLES)
    assert "multi-grid 1, 2, 4" in converted.guesses[0]
    # As its model zoo has them.
    zoo = {"model": {key: value.float().numpy() for key, value in net.state_dict().items()}, "__author__": "third"}
    for protocol in (2, 3):
        (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(zoo, protocol))
        again, _ = convert(tmp_path / "zoo.pkl")
        assert all(value.equal(again.state_dict()[key]) for key, value in model.float().state_dict().items())


@pytest.mark.integration
@pytest.mark.parametrize(("stride", "tf_padding"), [(8, True), (16, False)])
@torch.no_grad()
def test_huggingface(stride: int, tf_padding: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(
        num_labels=4, output_stride=stride, depth_multiplier=0.5, tf_padding=tf_padding,
        id2label={0: "ground", 1: "yes", 2: "1e3", 3: "sky, clear"},
    )  # fmt: skip
    net = shaken(transformers.MobileNetV2ForSemanticSegmentation(config))
    net.save_pretrained(tmp_path)
    model, converted = convert(tmp_path)
    assert converted.names == ("ground", "yes", "1e3", "sky, clear") and model.mean == (0.5, 0.5, 0.5)
    for size in SIZES:
        image = torch.rand(1, 3, *size, dtype=torch.float64) * 2 - 1
        logits = net.double()(image).logits
        expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        assert (model.double()(image) - expected).abs().max() < 1e-6 * expected.abs().max(), size


def test_vainf(tmp_path: Path) -> None:
    content = {"cur_itrs": 3, "best_score": np.float64(0.5)}
    net = shaken(VainF())
    model, converted = compare(net, tmp_path / "best.pth", {**content, "model_state": net.state_dict()})
    assert converted.library == "VainF" and "output stride 16" in converted.guesses[0]
    assert model.output_stride == 16 and model.arguments["aspp_rates"] == [6, 12, 18]


@pytest.mark.parametrize("stride", [16, near(8)])
def test_vainfs_mobilenet(stride: int, tmp_path: Path) -> None:
    """It has a feature less where a side is one or two pixels beyond a multiple of the stride; not compared there."""
    net = shaken(VainFMobileNet(output_stride=stride))
    sizes = ((64, 96), (99, 117), (80, 115))
    model, _ = compare(net, tmp_path / "best.pth", {"model_state": net.state_dict()}, sizes, Choices(None, stride))
    image = torch.randn(1, 3, 35, 70)
    fast = model.float().for_inference(dtype=torch.float32)
    other = 24 - stride
    for form in (model, fast):
        form.output_stride = other
    assert (fast(image) - model(image)).abs().max() < 1e-4 * model(image).abs().max()
    again = VainFMobileNet(output_stride=other).double().eval()
    again.load_state_dict(net.state_dict())
    assert (model.double()(image.double()) - again(image.double())).abs().max() < 1e-6
    assert model(torch.randn(1, 3, 1, 33, dtype=torch.float64)).shape == (1, 4, 1, 33)


@pytest.mark.integration
@pytest.mark.parametrize(("size", "stride"), [("xxs", 16), ("xs", 8), ("s", 16), ("s", 8), ("xxs", 8), ("xxs", 32)])
@torch.no_grad()
def test_mobilevit(size: str, stride: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    widths: dict[str, Any] = {
        "xxs": {"neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "hidden_sizes": [64, 80, 96], "expand_ratio": 2.0},
        "xs": {"neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384], "hidden_sizes": [96, 120, 144]},
    }
    config = transformers.MobileViTConfig(
        num_labels=4, output_stride=stride, aspp_out_channels=16, atrous_rates=(2, 4, 6), **widths.get(size, {})
    )
    net = shaken(transformers.MobileViTForSemanticSegmentation(config))
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.normal_(layer.bias, std=0.1)
    net.save_pretrained(tmp_path)
    model, converted = convert(tmp_path)
    assert model.mean == (0, 0, 0) and model.std == (1, 1, 1) and "blue first" in converted.guesses[0]
    for height, width in SIZES:
        image = torch.rand(1, 3, height, width, dtype=torch.float64)
        logits = net.double()(image.flip(1)).logits  # its processor gives blue first
        expected = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        assert (model.double()(image) - expected).abs().max() < 1e-6 * expected.abs().max(), (height, width)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_flip_channel_order": False}))
    reads_red_first, converted = convert(tmp_path)
    image = torch.rand(1, 3, 32, 48)
    assert not converted.guesses and (reads_red_first(image) - model.float()(image.flip(1))).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("encoder", "stride", "rates"),
    [("resnet18", 16, (2, 4, 6)), near("resnet18", 8, (2, 4, 6)), ("tu-lcnet_050", 16, (1, 2, 3)),
     near("mobilenet_v2", 16, (1, 2, 3)), near("efficientnet-b0", 8, (2, 4, 6)), near("mobilenet_v2", 8, (2, 4, 6)),
     *(near(name, stride, (2, 4, 6)) for stride in (8, 16) for name in (
        "efficientnet-b1", "efficientnet-b2", "efficientnet-b3", "efficientnet-b5", "timm-efficientnet-b0",
        "timm-tf_efficientnet_lite0", "resnext50_32x4d", "se_resnet50", "se_resnext50_32x4d", "mobileone_s0",
        "mobileone_s1", "mobileone_s4", "timm-mobilenetv3_small_100", "timm-skresnet18", "dpn68", "dpn68b"))],
)  # fmt: skip
def test_smp(encoder: str, stride: int, rates: tuple[int, ...], tmp_path: Path) -> None:
    """The folder of its `save_pretrained`; and its state dict alone, with what the folder says given by hand."""
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch, whose network it is")
    net = smp.DeepLabV3(
        encoder, encoder_weights=None, classes=4, encoder_output_stride=stride, decoder_channels=16,
        decoder_atrous_rates=rates,
    )  # fmt: skip
    shaken(net)
    net.save_pretrained(tmp_path / "folder")
    model, converted = convert(tmp_path / "folder")
    assert not converted.guesses and model.output_stride == stride
    images = [torch.randn(1, 3, *size, dtype=torch.float64) for size in ((32, 48), (64, 32), (48, 80))]
    assert largest_difference(model, net, images) < 1e-6
    lightning = {"state_dict": {f"model.{key}": value for key, value in net.float().state_dict().items()}}
    torch.save({**lightning, "hyper_parameters": json.loads((tmp_path / "folder/config.json").read_text())},
               tmp_path / "last.ckpt")  # fmt: skip
    assert not convert(tmp_path / "last.ckpt")[1].guesses
    backbone = model.arguments["backbone"] if "encoder.model" in next(iter(net.state_dict())) else None
    compare(net.float(), tmp_path / "net.pth", None, ((32, 64),), Choices(backbone, stride, rates))


@torch.no_grad()
def test_one_logit_is_two_classes(tmp_path: Path) -> None:
    """smp's own default: the class where the logit is above 0. And its classifier of whole images is left out."""
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch, whose network it is")
    net = shaken(smp.DeepLabV3("tu-lcnet_050", encoder_weights=None, decoder_channels=8, aux_params={"classes": 3}))
    net.save_pretrained(tmp_path)
    model, converted = convert(tmp_path)
    assert converted.names == ("background", "foreground") and "classifier of whole images" in converted.dropped[0]
    assert "one logit" in converted.guesses[0]
    image = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    background, logit = model.double()(image).unbind(1)
    assert not background.any() and (logit - net.double()(image)[0][:, 0]).abs().max() < 1e-6 * logit.abs().max()
    for given in (("tree",), ("ground", "tree")):
        assert convert(tmp_path, Choices(names=given))[1].names == (("background", "ground")[len(given) - 1], "tree")
    with pytest.raises(ValueError, match="has 2 classes; expected as many names, found 3"):
        convert(tmp_path, Choices(names=("a", "b", "c")))


@pytest.mark.integration
@pytest.mark.parametrize("stride", [8, 16])
def test_maps_larger_than_the_rates(stride: int, tmp_path: Path) -> None:
    """Every library's conventions again, where each branch of ASPP sees more than its own place."""
    choices = Choices(output_stride=stride)
    compare(shaken(VainF(output_stride=stride)), tmp_path / "vainf.pth", None, LARGE, choices)
    net = shaken(MMSegmentation("v1c", channels=32, output_stride=stride))
    compare(net, tmp_path / "mmseg.pth", None, LARGE, choices)
    if stride == 8:
        compare(shaken(segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)), tmp_path / "tv.pth",
                None, LARGE)  # fmt: skip
    else:
        multiples = tuple((h // 16 * 16, w // 16 * 16) for h, w in LARGE)
        net = shaken(Detectron2())
        compare(net, tmp_path / "d2.pth", {"model": net.state_dict()}, multiples)


@pytest.mark.integration
@torch.no_grad()
def test_research_deeplab(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers, whose network is the authors'")
    net = mobilenet_of_transformers()
    np.savez_compressed(tmp_path / "net.npz", **tensorflow_names(net))
    model, converted = convert(tmp_path / "net.npz")
    assert converted.library == "research/deeplab" and converted.dropped and "output stride 16" in converted.guesses[0]
    assert model.upsampling == "grid" and model.mean == (0.5, 0.5, 0.5)
    for size in ((33, 49), (65, 97), (49, 81)):  # one more than a multiple of the stride, as the authors have them
        image = torch.rand(1, 3, *size, dtype=torch.float64) * 2 - 1
        logits = net.double()(image).logits
        expected = F.interpolate(logits, size, mode="bilinear", align_corners=True)
        assert (model.double()(image) - expected).abs().max() < 1e-6 * expected.abs().max(), size
