"""The form of a network that is exported: the same logits, nothing that a runtime would compute in vain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from atrous.deployment.network import Interface, WholeNetwork, check_padding, class_map_dtype, lean
from atrous.models.deeplab import DeepLabV3
from atrous.ops.normalization import Normalization


def model_of(backbone: str, classes: int = 3, **options: Any) -> DeepLabV3:
    torch.manual_seed(0)
    model = DeepLabV3(backbone, classes, **options)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as trained ones, so that folding has something to do
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    nn.init.normal_(model.classifier.weight, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("resnet18", {}),
        ("resnet18", {"head": "cascade", "last_block": 5, "output_stride": 8}),
        ("resnet18", {"head_conv": True, "aspp_pointwise": False}),
        ("timm/lcnet_050", {"aspp_rates": ()}),
        ("timm/lcnet_050", {"aspp_rates": (), "last_conv": 72}),
        ("timm/mobilenetv2_035", {"convention": "vainf"}),
        ("timm/tf_efficientnet_lite0", {"output_stride": 8, "image_pooling": False}),
    ],
)
def test_the_lean_form_has_the_same_logits(backbone: str, options: dict[str, Any]) -> None:
    model = model_of(backbone, **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    form = lean(model)
    images = torch.randn(2, 3, 33, 49)
    with torch.no_grad():
        expected, actual = model.network(images), form.network(images)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in form.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_in_bfloat16_becomes_float32() -> None:
    model = model_of("resnet18").bfloat16()
    form = lean(model)
    assert {parameter.dtype for parameter in form.parameters()} == {torch.float32}
    images = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        expected = model.float().network(images)
        torch.testing.assert_close(form.network(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [(33, 49), (40, 50), (1, 17)])
def test_the_whole_network_is_normalisation_logits_and_argmax(size: tuple[int, int]) -> None:
    model = model_of("resnet18")
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(Normalization(model.mean, model.std)(images))
        classes = WholeNetwork(model, Interface())(images.permute(0, 2, 3, 1))
        logits = WholeNetwork(model, Interface(logits=True))(images.permute(0, 2, 3, 1))
        raw = WholeNetwork(model, Interface(raw_input=True))(Normalization(model.mean, model.std)(images))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert classes.dtype == torch.uint8 and torch.equal(classes, logits.argmax(1).to(torch.uint8))
    assert torch.equal(raw, expected.argmax(1).to(torch.uint8))


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(1, torch.uint8), (255, torch.uint8), (256, torch.uint8), (257, torch.int16), (32769, torch.int32)],
)
def test_the_class_map_has_the_smallest_integers_that_hold_it(classes: int, dtype: torch.dtype) -> None:
    assert class_map_dtype(classes) == dtype


def test_padding_by_the_size_of_the_image_is_refused_where_it_would_differ() -> None:
    for upsampling, size, said in [
        ("half_pixel", None, "one above a multiple of 16, such as 513x513"),
        ("half_pixel", (513, 480), "one above a multiple of 16"),
        ("corners", (512, 512), "cannot be exported with the upsampling of its weights, corners"),
    ]:
        model = DeepLabV3("timm/tf_efficientnet_lite0", 3, upsampling=upsampling)
        with pytest.raises(ValueError, match=f"timm/tf_efficientnet_lite0 pads as TensorFlow does.*{said}"):
            check_padding(model, Interface(size=size))
    check_padding(DeepLabV3("timm/tf_efficientnet_lite0", 3, upsampling="half_pixel"), Interface(size=(513, 33)))
    check_padding(DeepLabV3("timm/tf_efficientnet_lite0", 3), Interface())
    check_padding(DeepLabV3("resnet18", 3, upsampling="corners"), Interface())
