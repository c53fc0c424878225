"""The Triton kernel against equation 1 in float64: in the interpreter on any machine, and on a GPU."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atrous.ops.conv import atrous_conv2d

pytest.importorskip("triton")

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # The first as tf32.

KERNELS = Path(__file__).parents[3] / "benchmarks" / "kernels.py"

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a program may have, by compute capability: CUDA's programming guide."""

# Size, filters, side, rates: odd sizes, channels and filters that fill no block, rates at the edge and beyond the map.
CASES = [
    ((1, 17, 9, 11), 5, 3, [2, 8]),
    ((2, 16, 5, 10), 18, 3, [4, 40]),
    ((1, 3, 1, 1), 2, 3, [1]),
    ((2, 5, 7, 5), 3, 5, [3]),
    ((1, 4, 6, 6), 3, 1, [1]),
]


def check(device: str) -> None:
    """Raise if a pass is further from float64 than its dtype allows."""
    from atrous.ops.conv_kernels import triton

    if device == "cpu":  # The interpreter takes milliseconds for every tap: small blocks, so that there are several.
        triton.BLOCKS = triton.BLOCKS_TF32 = triton.Blocks(4, 8, 16, 16)
    for case in CASES:
        check_case(device, torch.float32, torch.channels_last, *case)
    for dtype in (torch.float16, torch.bfloat16):
        check_case(device, dtype, torch.contiguous_format, *CASES[3])


def check_case(
    device: str, dtype: torch.dtype, order: torch.memory_format, size: tuple, filters: int, side: int, rates: list[int]
) -> None:
    from atrous.ops.conv_kernels.triton import TRITON

    x = torch.randn(size, device=device).to(dtype).to(memory_format=order)
    weights = [
        torch.randn(filters, size[1], side, side, device=device).to(dtype).to(memory_format=order) for _ in rates
    ]
    exact, *exact_weights = (tensor.double().requires_grad_() for tensor in (x, *weights))
    outputs = [atrous_conv2d(exact, w, rate) for w, rate in zip(exact_weights, rates, strict=True)]
    upstream = [torch.randn_like(y).to(dtype) for y in outputs]
    gradients = torch.autograd.grad(outputs, [exact, *exact_weights], [u.double() for u in upstream])
    found = [
        *TRITON["forward"](x, [], weights, rates),
        *TRITON["input"](x, upstream, weights, rates),
        *TRITON["weight"](x, upstream, weights, rates),
    ]
    for ours, true in zip(found, [*outputs, *gradients], strict=True):
        assert ours.dtype == dtype and ours.shape == true.shape
        error = (ours.double() - true.detach()).norm() / true.detach().norm()
        assert error < TOLERANCE[dtype], (dtype, order, size, rates, float(error))


def test_kernel_in_the_interpreter() -> None:
    # Triton reads the variable when it is imported, and other tests may have imported it.
    code = "import test_triton as t; t.check('cpu'); print('agreed')"
    paths = [os.path.dirname(__file__), *sys.path]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of Triton 3.6 and before cannot count to a number with NumPy 2.4 and after")
    assert done.returncode == 0 and "agreed" in done.stdout, done.stderr


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("call", ["forward, bfloat16", "gradient of the input, float16", "gradient of the input, tf32"])
def test_kernel_compiles_for_gpus_that_are_not_here(call: str, capability: int) -> None:
    """Onto the matrix units, fed 16 bytes at a time, with nothing that falls out of the registers."""
    kernels = runpy.run_path(str(KERNELS))
    (found,) = kernels["compiled"](kernels["CALLS"][f"convolution, {call}"], capability)
    assert found.tensor_cores > 0 and found.wide_loads == 1 and found.spilled == 0
    assert found.shared <= SHARED[capability]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernel_on_a_gpu() -> None:
    check("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_operator_takes_the_kernel() -> None:
    from atrous.ops.conv_kernels.dispatch import atrous_conv2d_fast

    x = torch.randn(2, 64, 33, 33, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weights = [torch.randn(32, 64, 3, 3, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    found = atrous_conv2d_fast(x, weights, [6, 18], "triton")
    expected = atrous_conv2d_fast(x, weights, [6, 18], "library")
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0.2)
    sum(y.sum() for y in found).backward()
    assert x.grad is not None
