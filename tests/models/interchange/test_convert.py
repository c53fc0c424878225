"""Checkpoints of other libraries give the logits of the networks that wrote them, in float64."""

from __future__ import annotations

import json
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
from foreign import Detectron2, MMSegmentation, VainF, shaken

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


@pytest.mark.parametrize(("kind", "output_stride"), [near("plain", 8), ("v1c", 16), ("v1d", 8)])
def test_mmsegmentation(kind: str, output_stride: int, tmp_path: Path) -> None:
    net = shaken(MMSegmentation(kind, channels=16, output_stride=output_stride))
    strides, rates = ("(1, 2, 1, 1)", "(1, 12, 24, 36)") if output_stride == 8 else ("(1, 2, 2, 1)", "(1, 6, 12, 18)")
    config = f"model = dict(backbone=dict(type='ResNetV1c', strides={strides}), decode_head=dict(dilations={rates}))"
    meta = {"config": config, "CLASSES": ("road", "car", "tree", "sky", "pole"), "PALETTE": [[1, 2, 3]] * 5}
    model, converted = compare(net, tmp_path / "iter.pth", {"state_dict": net.state_dict(), "meta": meta})
    assert model.output_stride == output_stride and not converted.guesses
    assert converted.names == ("road", "car", "tree", "sky", "pole") and converted.palette[0] == (1, 2, 3)


@pytest.mark.parametrize("deep", [True, near(False)])
def test_detectron2(deep: bool, tmp_path: Path) -> None:
    net = shaken(Detectron2(deep))
    model, converted = compare(net, tmp_path / "model_final.pth", {"model": net.state_dict()}, MULTIPLES)
    assert "multi-grid 1, 2, 4" in converted.guesses[0]


@pytest.mark.parametrize(("stride", "tf_padding"), [(8, True), near(16, False)])
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
    content = {"cur_itrs": 3, "best_score": 0.5}
    net = shaken(VainF())
    model, converted = compare(net, tmp_path / "best.pth", {**content, "model_state": net.state_dict()})
    assert converted.library == "VainF" and "output stride 16" in converted.guesses[0]
    assert model.output_stride == 16 and model.arguments["aspp_rates"] == [6, 12, 18]


@pytest.mark.parametrize(
    ("encoder", "stride", "rates"),
    [("resnet18", 16, (2, 4, 6)), ("resnet18", 8, (2, 4, 6)), ("tu-lcnet_050", 16, (1, 2, 3))],
)
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
    backbone = f"timm/{encoder.removeprefix('tu-')}" if encoder.startswith("tu-") else None
    compare(net.float(), tmp_path / "net.pth", None, ((32, 64),), Choices(backbone, stride, rates))


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


def tensorflow_names(net: nn.Module) -> dict[str, np.ndarray]:
    """The variables of the authors' graph for a network of transformers, which was made from them."""
    layers = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}
    head = {"conv_pool": "image_pooling", "conv_aspp": "aspp0", "conv_projection": "concat_projection"}
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    variables = {}
    for key, value in net.state_dict().items():
        *place, kind, part = key.split(".")
        if part == "num_batches_tracked" or "conv_1x1" in place:
            continue
        if place == ["segmentation_head", "classifier"]:
            name = "logits/semantic"
        elif place[0] == "segmentation_head":
            name = head[place[1]]
        elif place[-1] == "first_conv":
            name = "MobilenetV2/Conv"
        else:  # what transformers calls the stem has the first unit's two layers
            unit = 0 if place[1] == "conv_stem" else int(place[2]) + 1
            name = f"MobilenetV2/expanded_conv{f'_{unit}' if unit else ''}/{layers[place[-1]]}"
        if kind == "normalization":
            variables[f"{name}/BatchNorm/{norm[part]}"] = value
        elif part == "bias":
            variables[f"{name}/biases"] = value
        elif name.endswith("depthwise"):
            variables[f"{name}/depthwise_weights"] = value.permute(2, 3, 0, 1)
        else:
            variables[f"{name}/weights"] = value.permute(2, 3, 1, 0)
    variables["MobilenetV2/Conv/weights/Momentum"] = variables["MobilenetV2/Conv/weights"]
    variables["global_step"] = torch.tensor(3)
    return {name: value.numpy() for name, value in variables.items()}


@torch.no_grad()
def test_research_deeplab(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, whose network is the authors'")
    config = transformers.MobileNetV2Config(num_labels=4, output_stride=16, depth_multiplier=0.5, tf_padding=True)
    net = shaken(transformers.MobileNetV2ForSemanticSegmentation(config))
    np.savez_compressed(tmp_path / "net.npz", **tensorflow_names(net))
    model, converted = convert(tmp_path / "net.npz")
    assert converted.library == "research/deeplab" and converted.dropped and "output stride 16" in converted.guesses[0]
    assert model.upsampling == "grid" and model.mean == (0.5, 0.5, 0.5)
    for size in ((33, 49), (65, 97), (49, 81)):  # one more than a multiple of the stride, as the authors have them
        image = torch.rand(1, 3, *size, dtype=torch.float64) * 2 - 1
        logits = net.double()(image).logits
        expected = F.interpolate(logits, size, mode="bilinear", align_corners=True)
        assert (model.double()(image) - expected).abs().max() < 1e-6 * expected.abs().max(), size
