"""The fused loss and prediction against the plain way of doing it, in float64 and with fresh inputs on every run."""

import importlib.util
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.ops import resize, tiled_upsample, trusted, upsampled_loss
from atrous.ops.upsampled_loss import upsampled_argmax, upsampled_cross_entropy_sum

# output stride, H, W, classes, batch
SHAPES = [
    (16, 33, 49, 21, 2),
    (4, 30, 23, 5, 3),
    (8, 1, 40, 7, 1),
    (8, 40, 1, 7, 2),
    (16, 1, 1, 3, 2),
    (32, 65, 50, 19, 1),
    (16, 17, 17, 1, 2),
    (8, 20, 17, 255, 1),
    (4, 9, 150, 3, 2),
    (4, 5, 129, 4, 1),
    (8, 2, 258, 6, 1),
    (12, 26, 38, 4, 2),
    (1, 5, 6, 4, 2),
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1 << 19, 300], ids=["tile", "small tile"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles hold part of the rows between two features; the default one holds several images."""
    monkeypatch.setattr(tiled_upsample, "TILE", request.param)


def sample(stride: int, height: int, width: int, classes: int, batch: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    h, w = -(-(height - 1) // stride) + 1, -(-(width - 1) // stride) + 1
    labels = torch.randint(0, classes, (batch, height, width))
    labels[torch.rand(labels.shape) < 0.2] = 255
    return torch.randn(batch, classes, h, w) * scale, labels


def plain(logits: Tensor, labels: Tensor, stride: int, weights: Tensor | None = None, ignore: int = 255) -> Tensor:
    up = resize.upsample(logits, (labels.shape[-2], labels.shape[-1]), stride)
    weights = weights.to(up.dtype) if weights is not None else None
    return F.cross_entropy(up, labels.long(), weights, ignore_index=ignore, reduction="sum")


def compare(logits: Tensor, labels: Tensor, stride: int, weights: Tensor | None = None, ignore: int = 255) -> None:
    ours, exact = logits.detach().requires_grad_(), logits.detach().double().requires_grad_()
    loss = upsampled_cross_entropy_sum(ours, labels, stride, weights, ignore)
    expected = plain(exact, labels, stride, weights, ignore)
    loss.backward()
    expected.backward()
    assert ours.grad is not None and exact.grad is not None and ours.grad.dtype == logits.dtype
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-4)
    step = torch.finfo(logits.dtype).eps
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=max(step, 2e-5), atol=2e-6 * stride**2)
    with torch.no_grad():
        torch.testing.assert_close(upsampled_cross_entropy_sum(ours, labels, stride, weights, ignore), loss.detach())


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_plain_loss(shape: tuple[int, int, int, int, int]) -> None:
    logits, labels = sample(*shape)
    compare(logits, labels, shape[0])
    compare(logits, labels.to(torch.uint8), shape[0], torch.rand(shape[3]) + 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = sample(16, 40, 50, 21, 2)
    loss = upsampled_cross_entropy_sum(logits.to(dtype), labels, 16)
    assert loss.dtype == torch.float32
    compare(logits.to(dtype), labels, 16)


def test_a_loss_scale_survives_half_precision() -> None:
    logits, labels = sample(16, 33, 33, 5, 1)
    logits = logits.half().requires_grad_()
    (upsampled_cross_entropy_sum(logits, labels, 16) * 1e-10 * 2.0**24).backward()
    assert logits.grad is not None and logits.grad.abs().max() > 0


def test_strides_of_the_logits_do_not_matter() -> None:
    logits, labels = sample(8, 33, 41, 6, 2)
    compare(logits.contiguous(memory_format=torch.channels_last), labels, 8)
    wide = torch.randn(2, 12, *logits.shape[2:])
    compare(wide[:, ::2], labels.transpose(1, 2).contiguous().transpose(1, 2), 8)


def test_the_callers_logits_are_left_alone() -> None:
    logits, labels = sample(8, 17, 17, 4, 1)
    for given in (logits, logits.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)):
        before = given.clone()
        upsampled_cross_entropy_sum(given, labels, 8)
        upsampled_argmax(given, (17, 17), 8)
        assert torch.equal(given, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_all_ignored_is_zero_with_a_zero_gradient(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 3, 3, requires_grad=True)
    loss = upsampled_cross_entropy_sum(logits, torch.full((2, 17, 17), 255, dtype=dtype), 8)
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("ignore", [-100, 2, 255, 300])
def test_any_label_can_be_the_ignored_one(ignore: int) -> None:
    logits, labels = sample(8, 17, 25, 4, 2)
    compare(logits, labels.masked_fill(labels == 255, ignore), 8, ignore=ignore)
    if ignore == 2:
        compare(logits, labels.masked_fill(labels == 255, ignore).to(torch.uint8), 8, ignore=ignore)


@pytest.mark.parametrize("scale", [30.0, 300.0, 3000.0])
def test_large_logits_neither_overflow_nor_vanish(scale: float) -> None:
    """Features of opposite opinion, so that the common shift leaves every class far below 0 between them."""
    logits, labels = sample(16, 33, 33, 3, 1, scale)
    compare(logits, labels, 16)
    opposite = torch.tensor([[0.0, -scale], [-scale, 0.0]]).view(1, 2, 1, 2).expand(1, 2, 2, 2).contiguous()
    compare(opposite, torch.randint(0, 2, (1, 17, 17)), 16)


def test_a_logit_that_is_not_a_number_shows() -> None:
    logits, labels = sample(8, 17, 17, 3, 1)
    logits[0, 1, 1, 1] = torch.nan
    assert upsampled_cross_entropy_sum(logits, labels, 8).isnan()


def test_gradcheck() -> None:
    logits, labels = sample(4, 8, 10, 3, 2)
    weights = torch.rand(3, dtype=torch.float64)
    exact = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy_sum(x, labels, 4, weights), exact)


def test_the_second_derivative_is_refused() -> None:
    logits, labels = sample(4, 8, 10, 3, 2)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(upsampled_cross_entropy_sum(logits, labels, 4), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [(5, torch.uint8), (200, torch.uint8)]  # -1 as a byte is the ignored label
    + [(wrong, dtype) for wrong in (5, 200, -1) for dtype in (torch.int8, torch.int64)],
)
def test_wrong_labels_are_named(wrong: int, dtype: torch.dtype) -> None:
    labels = torch.zeros(2, 17, 17, dtype=torch.int64)
    labels[1, 16, 16] = wrong
    stored = int(labels.to(dtype)[1, 16, 16])
    for needed in (True, False):
        with pytest.raises(ValueError, match=rf"0 to 4, or 255 .*found \[{stored}\]"):
            upsampled_cross_entropy_sum(torch.randn(2, 5, 3, 3, requires_grad=needed), labels.to(dtype), 8)


def test_wrong_arguments_are_named() -> None:
    logits, labels = torch.randn(2, 5, 3, 3), torch.zeros(2, 17, 17, dtype=torch.uint8)
    with pytest.raises(ValueError, match="17x18 pixels at output stride 8 must be 3x4, not 3x3"):
        upsampled_cross_entropy_sum(logits, torch.zeros(2, 17, 18, dtype=torch.uint8), 8)
    with pytest.raises(ValueError, match="labels must be 2,H,W"):
        upsampled_cross_entropy_sum(logits, labels[:1], 8)
    with pytest.raises(ValueError, match="integers"):
        upsampled_cross_entropy_sum(logits, labels.float(), 8)
    with pytest.raises(ValueError, match="5 elements"):
        upsampled_cross_entropy_sum(logits, labels, 8, torch.ones(4))
    with pytest.raises(ValueError, match="output_stride"):
        upsampled_argmax(logits, (17, 17), 0)
    assert upsampled_argmax(torch.randn(1, 257, 3, 3), (17, 17), 8).dtype == torch.int32


def test_a_batch_of_none() -> None:
    logits, labels = sample(8, 17, 17, 4, 0)
    assert upsampled_cross_entropy_sum(logits, labels, 8) == 0
    assert upsampled_argmax(logits, (17, 17), 8).shape == (0, 17, 17)


def test_autocast_does_not_lower_the_precision() -> None:
    logits, labels = sample(16, 33, 33, 5, 1)
    expected = upsampled_cross_entropy_sum(logits, labels, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsampled_cross_entropy_sum(logits, labels, 16), expected)
        assert torch.equal(upsampled_argmax(logits, (33, 33), 16), upsampled_argmax(logits, (33, 33), 16))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(backend: str) -> None:
    logits, labels = sample(8, 20, 17, 4, 2)

    def loss(x: Tensor) -> Tensor:
        return upsampled_cross_entropy_sum(x * 2, labels, 8) / 3

    compiled, eager = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    torch.compile(loss, fullgraph=True, backend=backend)(compiled).backward()
    loss(eager).backward()
    assert compiled.grad is not None and eager.grad is not None
    torch.testing.assert_close(compiled.grad, eager.grad)
    classes = torch.compile(lambda x: upsampled_argmax(x, (20, 17), 8), fullgraph=True, backend=backend)(logits)
    assert torch.equal(classes, upsampled_argmax(logits, (20, 17), 8))


# NaN, infinity and kernels that fail --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_argmax_of_logits_that_are_not_finite_is_the_plain_one(value: float, everywhere: bool) -> None:
    logits, size = sample(16, 65, 90, 5, 2)[0], (65, 90)
    logits[0, 2 if everywhere else slice(2, 4), slice(None) if everywhere else 2, slice(None) if everywhere else 3] = (
        value
    )
    expected = resize.upsample(logits, size, 16).argmax(1).to(torch.uint8)
    assert torch.equal(upsampled_argmax(logits, size, 16), expected)


def test_the_library_where_kernels_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = sample(8, 33, 41, 6, 2)
    monkeypatch.setenv("ATROUS_KERNELS", "library")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        given = logits.to(dtype).requires_grad_()
        loss = upsampled_cross_entropy_sum(given, labels, 8, torch.rand(6) + 0.1)
        assert "NllLoss" in str(loss.grad_fn) and loss.dtype == (dtype if dtype == torch.float64 else torch.float32)
    monkeypatch.setattr(upsampled_loss, "largest_class", None)  # it is not called
    expected = resize.upsample(logits, (33, 41), 8).argmax(1).to(torch.uint8)
    assert torch.equal(upsampled_argmax(logits, (33, 41), 8), expected)


def lie(*given: object) -> tuple[Tensor, Tensor]:
    loss, gradient = TILES(*given)
    return loss, gradient.roll(1, 0)


def nan(*given: object) -> tuple[Tensor, Tensor]:
    loss, gradient = TILES(*given)
    return loss, gradient * torch.nan


def crash(*given: object) -> tuple[Tensor, Tensor]:
    raise RuntimeError("out of registers")


TILES = upsampled_loss._by_kernel


@pytest.mark.parametrize(("broken", "why"), [(lie, "differs"), (nan, "differs"), (crash, "out of registers")])
def test_a_kernel_that_fails_its_trial_is_not_taken(monkeypatch: pytest.MonkeyPatch, broken: object, why: str) -> None:
    logits, labels = sample(8, 33, 41, 6, 2)
    monkeypatch.setattr(trusted, "_RESULTS", {})
    monkeypatch.setattr(upsampled_loss, "_by_kernel", broken)
    with pytest.warns(RuntimeWarning, match=f"the tiled loss on cpu in float32 .*{why}"):
        loss = upsampled_cross_entropy_sum(logits, labels, 8)
    torch.testing.assert_close(loss, plain(logits, labels, 8))


def test_on_cuda_the_loss_is_triton_or_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, tried = torch.device("cuda"), []
    monkeypatch.setattr(upsampled_loss, "trusted", lambda name, *_: bool(tried.append(name)) or True)
    monkeypatch.setattr(upsampled_loss, "_has_triton", lambda: False)
    assert not upsampled_loss._has_kernel(cuda, torch.float32) and not tried
    monkeypatch.setattr(upsampled_loss, "_has_triton", lambda: True)
    assert upsampled_loss._has_kernel(cuda, torch.float32) and tried == ["the Triton kernel of the loss"]
    assert not upsampled_loss._has_kernel(cuda, torch.float64)
    assert not upsampled_loss._has_kernel(torch.device("mps"), torch.float32)


def test_operators_keep_their_contract() -> None:
    logits, labels = sample(8, 17, 17, 3, 1)
    # Not the check through AOT autograd: it differentiates the gradient, too, which is refused.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for given in (logits.requires_grad_(), logits.detach().contiguous(memory_format=torch.channels_last)):
        arguments = (given, labels, None, 8, 255, given.requires_grad)
        torch.library.opcheck(upsampled_loss._cross_entropy, arguments, test_utils=checks)
    torch.library.opcheck(upsampled_loss._argmax_operator, (logits.detach(), 17, 17, 8))


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[3] <= 256])
def test_argmax_equals_the_plain_one(shape: tuple[int, int, int, int, int], device: str) -> None:
    stride, height, width, *_ = shape
    logits = sample(*shape)[0].to(device)
    ours = upsampled_argmax(logits, (height, width), stride)
    expected = resize.upsample(logits, (height, width), stride).argmax(1).to(torch.uint8)
    assert ours.dtype == torch.uint8 and ours.shape == expected.shape
    up = resize.upsample(logits.double(), (height, width), stride)
    distance = up.gather(1, ours[:, None].long()) - up.gather(1, expected[:, None].long())
    assert distance.abs().max() < 1e-5


def test_equal_logits_give_the_first_class() -> None:
    logits = torch.randn(1, 3, 3, 3)[:, [0, 1, 2, 2, 1, 0]]
    assert upsampled_argmax(logits, (17, 17), 8).max() <= 2
    assert not upsampled_argmax(torch.zeros(1, 256, 3, 3), (17, 17), 8).any()


@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_the_kernel_in_the_interpreter() -> None:
    """In a process of its own, for Triton decides on import whether it interprets."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "import test_upsampled_loss as t; t.interpreted()"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("shape", ["21 classes, stride 16", "21 classes, stride 8"])
def test_the_kernel_compiles_for_gpus_that_are_not_here(shape: str, capability: int) -> None:
    """And what a thread holds fits into its registers, but for four at most, of as many as leave room for 16 warps."""
    kernels = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "kernels.py"))
    actual = kernels["compiled"](kernels["CALLS"][f"loss and gradient, {shape}"], capability)
    assert len(actual) == 4  # cells of even and odd row and column
    assert all(kernel.spilled <= 16 and kernel.resident_warps >= 16 for kernel in actual)


# Few cells, for the interpreter takes milliseconds for each; the last row and column of cells is cut, or the only one.
INTERPRETED = [
    (16, 17, 40, 21, 2),
    (4, 6, 7, 255, 1),
    (8, 1, 30, 7, 1),
    (12, 26, 1, 3, 2),
    (32, 20, 33, 1, 1),
    (16, 1, 1, 2, 1),
]


def interpreted() -> None:
    from atrous.ops.upsampled_loss_triton import cross_entropy

    for number, shape in enumerate(INTERPRETED):
        logits, labels = sample(*shape)
        weights = torch.rand(shape[3]) + 0.1 if number % 2 else None
        compare_kernel(logits.to((torch.float32, torch.bfloat16, torch.float16)[number % 3]), labels, shape[0], weights)
        compare_kernel(
            logits.contiguous(memory_format=torch.channels_last), labels.to(torch.uint8), shape[0], weights, False
        )
    compare_kernel(torch.randn(1, 3, 2, 2), torch.full((1, 9, 9), 255), 8, None)
    try:
        cross_entropy(torch.randn(1, 3, 2, 2), torch.full((1, 9, 9), 3), None, 8, 255, True)
    except RuntimeError as error:
        assert "labels must be 0 to 2" in str(error)
    else:
        raise AssertionError("a wrong label was not found")


def compare_kernel(logits: Tensor, labels: Tensor, stride: int, weights: Tensor | None, forward: bool = True) -> None:
    from atrous.ops.upsampled_loss_triton import cross_entropy

    exact = logits.double().requires_grad_()
    expected = plain(exact, labels, stride, weights)
    (slope,) = torch.autograd.grad(expected, exact)
    loss, gradient = cross_entropy(logits, labels, weights, stride, 255, True)
    assert gradient.stride() == logits.stride() and gradient.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=1e-4)
    torch.testing.assert_close(gradient.double(), slope, rtol=2e-5, atol=2e-6 * stride**2)
    if forward:
        loss, gradient = cross_entropy(logits, labels, weights, stride, 255, False)
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=1e-4)
        assert gradient.numel() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_on_a_gpu(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    logits, labels = (x.to("cuda") for x in sample(*shape))
    compare(logits.to(dtype), labels, shape[0])
    compare(logits.to(dtype).contiguous(memory_format=torch.channels_last), labels.to(torch.uint8), shape[0])


def test_the_argmax_is_traced_and_mapped_as_one_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    logits = torch.randn(2, 3, 3, 4)
    expected = upsampled_argmax(logits, (17, 25), 8)
    traced = make_fx(lambda x: upsampled_argmax(x, (17, 25), 8))(logits)
    assert torch.equal(traced(logits), expected)
    mapped = torch.func.vmap(lambda x: upsampled_argmax(x[None], (17, 25), 8)[0])(logits)
    assert torch.equal(mapped, expected)
