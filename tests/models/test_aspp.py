"""ASPP: its branches, its rates, a batch of one."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from atrous.models.aspp import ASPP, ImagePooling
from atrous.models.batch_norm import BatchNorm
from atrous.ops.conv import AtrousConv2d


def atrous_rates(head: ASPP) -> list[int]:
    return [module.rate for module in head.atrous.modules() if isinstance(module, AtrousConv2d)]


def test_figure_5() -> None:
    head = ASPP(320)
    convolutions = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    assert sorted(c.kernel_size[0] for c in convolutions) == [1, 1, 1, 3, 3, 3]  # 1x1, pooling, projection; three rates
    assert {c.out_channels for c in convolutions} == {256}
    assert all(c.bias is None for c in convolutions)
    assert len([m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]) == 6
    assert head.project[0].in_channels == 5 * 256
    assert atrous_rates(head) == [6, 12, 18]
    head.set_output_stride(8)
    assert atrous_rates(head) == [12, 24, 36]


@pytest.mark.parametrize("rates", [(), (6,), (6, 12, 18, 24)])
@pytest.mark.parametrize("pointwise", [True, False])
@pytest.mark.parametrize("image_pooling", [True, False])
def test_any_branch_can_be_left_out(rates: tuple[int, ...], pointwise: bool, image_pooling: bool) -> None:
    count = len(rates) + pointwise + image_pooling
    if not count:
        with pytest.raises(ValueError, match="no branch left"):
            ASPP(8, rates, pointwise=pointwise, image_pooling=image_pooling)
        return
    head = ASPP(8, rates, pointwise=pointwise, image_pooling=image_pooling, filters=4).eval()
    assert head.project[0].in_channels == count * 4
    assert head(torch.randn(2, 8, 5, 7)).shape == (2, 4, 5, 7)


def test_image_pooling_is_the_global_mean_everywhere() -> None:
    head = ASPP(8, (), pointwise=False, filters=4).eval()
    assert head.image_pooling is not None
    x = torch.randn(2, 8, 5, 7)
    actual = head.image_pooling(x)
    expected = head.image_pooling.project(x.mean((2, 3), keepdim=True))
    assert actual.shape == (2, 4, 5, 7) and torch.equal(actual, expected.expand_as(actual))


def test_a_rate_beyond_the_map_is_a_pointwise_convolution() -> None:
    # Section 3.3: in the extreme case only the centre weight is left.
    head = ASPP(8, (9,), pointwise=False, image_pooling=False, filters=4)
    conv = head.atrous[0][0]  # type: ignore[index]
    x = torch.randn(1, 8, 7, 7)
    torch.testing.assert_close(conv(x), nn.functional.conv2d(x, conv.weight[:, :, 1:2, 1:2]), rtol=1e-5, atol=1e-5)


def test_what_is_joined_stays_channels_last() -> None:
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    pooled = ImagePooling(8).eval()(x)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled, pooled[..., :1, :1].expand_as(pooled))


def test_a_batch_of_one_trains() -> None:
    head = ASPP(8, filters=4).train()
    head(torch.randn(1, 8, 5, 5)).sum().backward()
    assert head.image_pooling is not None
    grad = head.image_pooling.project[0].weight.grad
    assert grad is not None and torch.isfinite(grad).all()
    head(torch.randn(1, 8, 1, 1)).sum().backward()  # every branch has one value a channel


def test_batch_norm_of_one_value_uses_the_running_statistics() -> None:
    norm = BatchNorm(3).train()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.fill_(4.0)
    x = torch.tensor([3.0, 2.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([1.0, 0.0, -1.0]), rtol=1e-4, atol=1e-4)
    assert norm.running_mean.tolist() == [1.0, 2.0, 3.0]
    larger = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(norm(larger), nn.BatchNorm2d(3).train()(larger))


@pytest.mark.parametrize("rates", [(0,), (-6,), (1.5,)])
def test_rates_that_cannot_be(rates: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="aspp_rates is .*, expected whole numbers of at least 1"):
        ASPP(8, rates)


@pytest.mark.parametrize("training", [False, True])
def test_every_module_is_called_so_that_hooks_run(training: bool) -> None:
    head = ASPP(8, (1, 2), filters=4).train(training)
    names = [name for name, module in head.named_modules() if not isinstance(module, ASPP | nn.ModuleList)]
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        called: set[str] = set()
        if "backward" in register:  # PyTorch has none before a rectifier in place
            names = [name for name in names if isinstance(head.get_submodule(name), nn.Conv2d)]
        handles = [
            getattr(head.get_submodule(name), register)(lambda *_, name=name, called=called: called.add(name))
            for name in names
        ]
        head(torch.randn(2, 8, 5, 5, requires_grad=True)).sum().backward()
        assert called == set(names), register
        for handle in handles:
            handle.remove()


def test_a_hook_for_all_modules_sees_the_convolutions() -> None:
    head, called = ASPP(8, (1, 2), filters=4).eval(), []
    with nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module)):
        head(torch.randn(1, 8, 5, 5))
    assert all(branch in called and branch[0] in called for branch in head.atrous)  # type: ignore[index]


@pytest.mark.parametrize("where", ["atrous.0", "atrous.0.0"])
def test_what_a_hook_changes_is_what_counts(where: str) -> None:
    head = ASPP(8, (1, 2), filters=4).eval()
    x = torch.randn(1, 8, 5, 5)
    before = head(x)
    head.get_submodule(where).register_forward_hook(lambda module, inputs, output: output + 1)
    assert not torch.allclose(head(x), before)


def test_pruned_and_parametrized_convolutions_train() -> None:
    head, x = ASPP(8, (1, 2), filters=4).train(), torch.randn(2, 8, 5, 5)
    prune.l1_unstructured(head.atrous[0][0], "weight", 0.5)  # type: ignore[index]
    weight_norm(head.atrous[1][0])  # type: ignore[index]
    for _ in range(2):
        head(x).square().mean().backward()
    assert head.get_parameter("atrous.0.0.weight_orig").grad is not None
    assert head.get_parameter("atrous.1.0.parametrizations.weight.original1").grad is not None


def test_a_branch_of_another_kind_is_called() -> None:
    head, x = ASPP(8, (1, 2), filters=4).eval(), torch.randn(1, 8, 5, 5)
    expected = head(x)
    inner = head.atrous[0][0]  # type: ignore[index]
    head.atrous[0][0] = nn.Sequential(inner)  # type: ignore[index]  # as adapters wrap a layer
    torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-6)
    inner.forward = lambda y: nn.functional.conv2d(y, inner.weight, padding=1) * 2  # type: ignore[method-assign]
    head.atrous[0][0] = inner  # type: ignore[index]
    assert not torch.allclose(head(x), expected)
