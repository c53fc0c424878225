"""Trials of kernels: what passes, what fails, one warning, and random numbers that are left alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from atrous.ops import trusted
from atrous.ops.trusted import Draw

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trusted, "_RESULTS", {})


def right(draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    x = draw(2, 3, 4, 5)
    yield x * 3, x.double() * 3


def lie(draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    yield from right(draw)
    x = draw(2, 3)
    yield x * 1.1, x.double()


def nan(draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    x = draw(2, 3)
    yield torch.cat([x, x[:1] * torch.nan]), torch.cat([x, x[:1]]).double()


def crash(draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    raise RuntimeError("no such instruction\nat address 0")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_right_kernel_is_trusted_after_one_trial(dtype: torch.dtype) -> None:
    tried = []

    def counted(draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
        tried.append(draw.dtype)
        return right(draw)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(trusted.trusted("it", counted, CPU, dtype) for _ in range(3))
    assert tried == [dtype]


@pytest.mark.parametrize(
    ("trial", "why"), [(lie, "differs from"), (nan, "differs from the exact result by nan"), (crash, "no such instr")]
)
def test_a_kernel_that_lies_crashes_or_returns_nan_warns_once(trial: trusted.Trial, why: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"a kernel on cpu in float32 .*{why}.*PyTorch's own operators are used"):
        assert not trusted.trusted("a kernel", trial, CPU, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not trusted.trusted("a kernel", trial, CPU, torch.float32)
        assert trusted.trusted("a kernel", right, CPU, torch.float64), "each dtype has a trial of its own"


def test_the_variable_turns_all_off_and_a_typing_error_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trusted.trusted("it", right, CPU, torch.float32)
    monkeypatch.setenv("ATROUS_KERNELS", "library")
    assert not trusted.trusted("it", right, CPU, torch.float32)
    monkeypatch.setenv("ATROUS_KERNELS", "libary")
    with pytest.raises(ValueError, match="ATROUS_KERNELS is 'libary', expected 'library'"):
        trusted.trusted("it", right, CPU, torch.float32)


def test_a_trial_takes_no_random_number_and_no_setting_of_its_caller() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)

    def product(draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
        x = draw(8, 8)
        exact = x.double().requires_grad_()
        with torch.enable_grad():
            (exact @ exact).sum().backward()
        yield x @ x, exact.detach() @ exact.detach()

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert trusted.trusted("it", product, CPU, torch.float32)
    assert torch.equal(torch.rand(1), expected)


def test_a_trial_runs_on_the_cpu_whatever_the_default_device_is() -> None:
    with torch.device("meta"):
        draw = Draw(CPU, torch.float32)
        assert draw(2, 3).device.type == draw.classes(3, (2, 2)).device.type == "cpu"
