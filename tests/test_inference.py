"""The inference form computes what the model computes."""

import pytest
import torch
from torch import nn

from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import fold_batch_norm, native_dtype


def shaken(backbone: str, **options: object) -> DeepLabV3:
    """A model whose batch norms are far from the identity, with logits of some size."""
    torch.manual_seed(0)
    model = DeepLabV3(backbone, 5, **options)  # type: ignore[arg-type]
    for norm in model.batch_norms():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    nn.init.normal_(model.classifier.weight, std=0.1)
    model.train()
    for _ in range(3):  # statistics of its own activations
        model.set_batch_norm_decay(0.3)
        with torch.no_grad():
            model(torch.randn(4, 3, 65, 65))
    return model.eval()


BACKBONES = ["resnet18", "resnet50", "timm/tf_efficientnet_lite0", "timm/convnext_atto", "timm/densenet121"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_are_the_same_and_the_dial_stays(backbone: str) -> None:
    model = shaken(backbone).double()  # random layers multiply rounding: in double precision none of it shows
    form = model.for_inference(dtype=torch.float64)
    image = torch.randn(1, 3, 97, 70, dtype=torch.float64)
    for stride in (16, 8):
        model.output_stride = form.output_stride = stride
        with torch.inference_mode():
            expected, found = model(image), form(image)
        assert (found - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("backbone", ["resnet18", "timm/tf_efficientnet_lite0"])
def test_no_batch_norm_is_left(backbone: str) -> None:
    model = shaken(backbone)
    count = len(list(model.batch_norms()))
    form = model.for_inference(dtype=torch.float32)
    assert not list(form.batch_norms()) and not form.training
    assert len(list(model.batch_norms())) == count, "the model itself is left alone"
    assert not any(parameter.requires_grad for parameter in form.parameters())


def test_a_batch_norm_before_its_convolution_stays() -> None:
    model = shaken("timm/densenet121")  # its layers normalise first
    total = len(list(model.batch_norms()))
    folded = fold_batch_norm(model)
    assert 0 < folded < total and len(list(model.batch_norms())) == total - folded


def test_bf16_takes_and_gives_float32_and_rounds_as_autocast_does() -> None:
    model = shaken("resnet18")
    form = model.for_inference(dtype=torch.bfloat16)
    image = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        expected, found = model(image), form(image)
        with torch.autocast("cpu", torch.bfloat16):
            usual = model(image)
    assert found.dtype == torch.float32 and form.classifier.weight.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 2 * (usual - expected).abs().mean()


def test_the_format_is_one_that_the_machine_multiplies() -> None:
    assert native_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)
