"""What decides how a network is quantised: the draw of the images, the order of the layers, the loss allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atrous.data.datasets.dataset import open_dataset
from atrous.deployment.network import lean
from atrous.deployment.quantize import Loss, LossError, draw, ranked
from atrous.models.deeplab import DeepLabV3


def test_the_draw_is_seeded_and_its_parts_are_apart(tiny_data: Path) -> None:
    train = open_dataset(str(tiny_data), "train")
    shown, judged = draw(train)
    assert (shown.names, judged.names) == tuple(part.names for part in draw(train))
    assert len(shown) == 6 and len(judged) == 2 and not set(shown.names) & set(judged.names)
    assert shown.names != train.names[:6]
    single = train.with_items(train.items[:1])
    assert [part.names for part in draw(single)] == [single.names] * 2
    with pytest.raises(ValueError, match="train split is empty"):
        draw(train.with_items(()))


def test_the_layer_with_the_widest_weights_is_harmed_most() -> None:
    torch.manual_seed(0)
    form = lean(DeepLabV3("resnet18", 3, aspp_rates=(1,)).eval())
    layer = form.backbone.layer2[0].conv2
    with torch.no_grad():  # weights of a channel that is always 0 change nothing, but widen the range of the others
        form.backbone.layer2[0].conv1.weight[0] = 0
        form.backbone.layer2[0].conv1.bias[0] = 0
        layer.weight[:, 0] = 300 * layer.weight.abs().amax()
    before, said = layer.weight.clone(), list[str]()
    images = [torch.randn(1, 3, 33, 49)]
    order = ranked(form, images, 60.0, said.append)
    assert order[0] == "backbone.layer2.0.conv2" and torch.equal(layer.weight, before)
    assert said == [f"{len(order)} of {len(order)} layers tried alone"]
    assert ranked(form, images, -1.0, said.append) == [] and said[-1].startswith("0 of ")


def test_the_loss_allowed() -> None:
    Loss(0.700, 0.695).require(1.0, "mine.onnx")
    Loss(0.700, 0.710).require(0.0, "mine.onnx")
    with pytest.raises(LossError, match=r"loses 2.00 points of mIoU on val \(70.00 to 68.00\); --max-loss 1 allows"):
        Loss(0.70, 0.68).require(1.0, "mine.onnx")
    with pytest.raises(LossError):
        Loss(0.70, float("nan")).require(1.0, "mine.onnx")
