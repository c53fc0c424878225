"""The whole model: logits at the input's size, the dial, batch norm."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import compiled
from atrous.ops.conv import AtrousConv2d


@pytest.fixture(scope="module")
def small() -> DeepLabV3:
    torch.manual_seed(0)
    return DeepLabV3("resnet18", 4).eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 3), (33, 33), (64, 64), (65, 129), (97, 50)])
@pytest.mark.parametrize("output_stride", [4, 8, 16, 32])
def test_logits_have_the_size_of_the_input(small: DeepLabV3, size: tuple[int, int], output_stride: int) -> None:
    small.output_stride = output_stride
    with torch.no_grad():
        assert small(torch.zeros(2, 3, *size)).shape == (2, 4, *size)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([8, 16]))
def test_any_size(small: DeepLabV3, height: int, width: int, output_stride: int) -> None:
    small.output_stride = output_stride
    with torch.no_grad():
        assert small(torch.zeros(1, 3, height, width)).shape == (1, 4, height, width)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8), (1, 3, 8)])
def test_what_is_no_batch_of_images(small: DeepLabV3, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images have the shape .*, expected B,3,H,W"):
        small(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_images_that_are_not_normalised_are_refused(small: DeepLabV3, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"images are {dtype}, expected floating point, normalised"):
        small(torch.zeros(1, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_of_another_floating_type_are_converted(small: DeepLabV3, dtype: torch.dtype) -> None:
    images = torch.randn(1, 3, 33, 33).to(dtype)
    with torch.no_grad():
        logits, expected = small(images), small(images.float())
    assert logits.dtype == torch.float32 and torch.equal(logits, expected)


def test_the_dial_on_a_built_model_in_either_mode() -> None:
    model = DeepLabV3("resnet50", 21, multi_grid=(1, 2, 4))
    count, keys = sum(p.numel() for p in model.parameters()), list(model.state_dict())
    for mode in (True, False):
        model.train(mode)
        for stride in (8, 4, 32, 16):
            model.output_stride = stride
            assert model.output_stride == stride and model.training is mode
            assert sum(p.numel() for p in model.parameters()) == count and list(model.state_dict()) == keys
    model.output_stride = 8
    rates = sorted({m.rate for m in model.head.modules() if isinstance(m, AtrousConv2d) and m.kernel_size == (3, 3)})
    assert rates == [12, 24, 36]


def test_a_stride_out_of_reach_leaves_the_model_as_it_was(small: DeepLabV3) -> None:
    small.output_stride = 16
    with pytest.raises(ValueError, match="resnet18 cannot reach output_stride 64; it can reach 4, 8, 16, 32"):
        small.output_stride = 64
    assert small.output_stride == 16


def test_weights_loaded_at_one_stride_serve_at_another() -> None:
    one, other = DeepLabV3("resnet18", 3, output_stride=16), DeepLabV3("resnet18", 3, output_stride=8)
    other.load_state_dict(one.state_dict())
    one.output_stride = 8
    image = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(one.eval()(image), other.eval()(image))


@pytest.mark.parametrize("head", ["aspp", "cascade"])
@pytest.mark.parametrize("size", [33, 17])
def test_a_batch_of_one_trains(head: str, size: int) -> None:
    model = DeepLabV3("resnet18", 3, head=head, output_stride=16).train()  # type: ignore[arg-type]
    model(torch.randn(1, 3, size, size)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_cascade_goes_to_block7_and_256_by_default() -> None:
    model = DeepLabV3("resnet18", 5, head="cascade", output_stride=256).eval()
    with torch.no_grad():
        assert model.low_resolution_logits(torch.zeros(1, 3, 513, 513)).shape == (1, 5, 3, 3)
        assert model(torch.zeros(1, 3, 100, 100)).shape == (1, 5, 100, 100)
    assert isinstance(model.head, nn.Identity)


def test_batch_norm_decay_is_pytorchs_momentum() -> None:
    model = DeepLabV3("resnet18", 2)
    model.set_batch_norm_decay(0.9997)
    assert {round(norm.momentum or 0, 10) for norm in model.batch_norms()} == {0.0003}


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_batch_norm_survives_train(affine: bool) -> None:
    model = DeepLabV3("resnet18", 2).train()
    model.freeze_batch_norm(affine=affine)
    model.eval().train()
    before = {
        key: value.clone() for key, value in model.state_dict().items() if "running" in key or "num_batches" in key
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    scales = [norm.weight.clone() for norm in model.batch_norms()]
    model(torch.randn(2, 3, 33, 33)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[key], model.state_dict()[key]) for key in before)
    changed = [not torch.equal(a, norm.weight) for a, norm in zip(scales, model.batch_norms(), strict=True)]
    assert any(changed) is not affine
    copied = copy.deepcopy(model).train()
    assert not any(norm.training for norm in copied.batch_norms())
    model.unfreeze_batch_norm()
    assert all(norm.training and norm.weight.requires_grad for norm in model.batch_norms())


def test_stride_sits_last_without_weights_and_first_with_those_of_imagenet() -> None:
    assert DeepLabV3("resnet18", 2).arguments["stride_in"] == "last"
    assert DeepLabV3("timm/tf_efficientnet_lite0", 2, weights="imagenet").arguments["stride_in"] == "first"


def test_arguments_build_the_same_model_again() -> None:
    model = DeepLabV3("resnet18", 7, head="cascade", last_block=5, multi_grid=(1, 2), stride_in="first")
    again = DeepLabV3(**model.arguments)
    assert again.arguments == model.arguments
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"head": "fcn"}, "head is 'fcn', expected 'aspp' or 'cascade'"),
        ({"backbone": "resnet99"}, "there is no backbone 'resnet99'; there are resnet18, .* timm/NAME"),
        ({"weights": "coco"}, "weights is 'coco', expected None or 'imagenet'"),
        ({"output_stride": 6}, "output_stride is 6, expected one of"),
        ({"aspp_rates": (), "aspp_pointwise": False, "image_pooling": False}, "no branch left"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepLabV3(**{"backbone": "resnet18", **options})  # type: ignore[arg-type]


def test_the_readmes_best_models_of_the_paper_can_be_built() -> None:
    with torch.device("meta"):
        best = DeepLabV3("resnet101", 21, multi_grid=(1, 2, 4), output_stride=16)  # Table 5, last row
        cascade = DeepLabV3("resnet101", 21, head="cascade", last_block=7, multi_grid=(1, 2, 1))  # Table 3
    assert sum(p.numel() for p in best.parameters()) == pytest.approx(58.6e6, rel=0.01)
    assert cascade.backbone.reachable[-1] == 256


@pytest.mark.integration
@pytest.mark.parametrize("frozen", [False, True])
def test_a_compiled_training_step_is_the_same(frozen: bool) -> None:
    """With a backend that compiles nothing: what matters is that the whole network goes through as one graph."""
    torch.manual_seed(0)
    plain = DeepLabV3("resnet18", 3, aspp_rates=(2,)).train()
    if frozen:
        plain.freeze_batch_norm()
    model, images, graphs = copy.deepcopy(plain), torch.randn(2, 3, 49, 33), []

    def backend(graph: Any, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for run in (plain.low_resolution_logits, compiled(model.low_resolution_logits, backend)):
        run(images).square().mean().backward()
    assert len(graphs) == 1
    for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)
    model.eval()(torch.randn(1, 3, 17, 65))  # the model itself is not compiled
    assert len(graphs) == 1
