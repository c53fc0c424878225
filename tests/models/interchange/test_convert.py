"""Checkpoints of other libraries give the logits of the networks that wrote them, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import segmentation

from atrous.models.interchange.base import Choices
from atrous.models.interchange.convert import convert
from foreign import Detectron2, MMSegmentation, shaken

SIZES = ((64, 96), (97, 129), (80, 115))
MULTIPLES = ((64, 96), (96, 128), (80, 112))


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


@pytest.mark.parametrize("kind", ["plain", "v1c", "v1d"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_mmsegmentation(kind: str, output_stride: int, tmp_path: Path) -> None:
    net = shaken(MMSegmentation(kind, channels=64, output_stride=output_stride))
    strides, rates = ("(1, 2, 1, 1)", "(1, 12, 24, 36)") if output_stride == 8 else ("(1, 2, 2, 1)", "(1, 6, 12, 18)")
    config = f"model = dict(backbone=dict(type='ResNetV1c', strides={strides}), decode_head=dict(dilations={rates}))"
    meta = {"config": config, "CLASSES": ("road", "car", "tree", "sky", "pole"), "PALETTE": [[1, 2, 3]] * 5}
    model, converted = compare(net, tmp_path / "iter.pth", {"state_dict": net.state_dict(), "meta": meta})
    assert model.output_stride == output_stride and not converted.guesses
    assert converted.names == ("road", "car", "tree", "sky", "pole") and converted.palette[0] == (1, 2, 3)


@pytest.mark.parametrize("deep", [True, False])
def test_detectron2(deep: bool, tmp_path: Path) -> None:
    net = shaken(Detectron2(deep))
    model, converted = compare(net, tmp_path / "model_final.pth", {"model": net.state_dict()}, MULTIPLES)
    assert "multi-grid 1, 2, 4" in converted.guesses[0]


@pytest.mark.parametrize(("stride", "tf_padding"), [(16, True), (8, True), (16, False)])
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
