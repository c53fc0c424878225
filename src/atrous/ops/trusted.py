"""Try each kernel on a small case before its first use, and take PyTorch's operators where it fails.

A kernel that was right on one machine may be wrong on another, with another version of PyTorch, or not compile there.
So before the first call for a device and a dtype it computes a small case. It is used only if it raises nothing and its
numbers agree with float64; otherwise a warning says so once, and PyTorch's own operators are used for the rest of the
process. A trial looks at numbers, never at a clock: which kernel runs must not depend on the load of the machine.
Which one is faster is a rule of `atrous.ops.conv_kernels.dispatch`, from measurements on record.

``ATROUS_KERNELS=library`` in the environment turns all kernels off.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference from float64 that counts as rounding, relative to the largest number of the result."""

TF32_TOLERANCE = 5e-3

F = TypeVar("F", bound=Callable[..., Any])

Trial = Callable[["Draw"], Iterable[tuple[Tensor, Tensor]]]
"""Computes a small case; pairs of the kernel's result and the exact one, in float64."""

_RESULTS: dict[tuple[Any, ...], bool] = {}


class Draw:
    """Random inputs of a trial, which leave PyTorch's random numbers alone."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator("cpu").manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers, channels-last where there are four dimensions."""
        x = (torch.randn(shape, generator=self._generator, device="cpu") * scale).to(self.device, self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    def classes(self, classes: int, shape: Sequence[int]) -> Tensor:
        """Integers below `classes`, uint8."""
        return torch.randint(0, classes, tuple(shape), generator=self._generator, dtype=torch.uint8, device="cpu").to(
            self.device
        )


def constant_when_compiled(function: F) -> F:
    """Mark a function whose result ``torch.compile`` takes as a constant, as `torch.compiler.assume_constant_result`.

    That decorator does no more than this, but imports the compiler, which takes longer than all that a prediction
    needs.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def library_only() -> bool:
    """Whether ``ATROUS_KERNELS=library`` turns all kernels off.

    Raises:
        ValueError: if the variable holds anything else.
    """
    setting = os.environ.get("ATROUS_KERNELS", "")
    if setting not in ("", "library"):
        raise ValueError(f"ATROUS_KERNELS is {setting!r}, expected 'library' or nothing")
    return setting == "library"


def trusted(kernel: str, trial: Trial, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a kernel may be used: it has passed its trial on this device, in this dtype, in this process.

    Args:
        kernel: its name, for the warning.
        trial: what to run; called at most once for each `kernel`, `device` and `dtype`.
        device: that it will run on.
        dtype: of its input.
    """
    if library_only():
        return False
    key = (kernel, device, dtype)
    if key not in _RESULTS:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # a trial waits for the device, which a capture does not allow
        fault = _fault(trial, device, dtype)
        _RESULTS[key] = not fault
        if fault:
            warnings.warn(
                f"{kernel} on {device} in {str(dtype).removeprefix('torch.')} {fault}, on a trial case with PyTorch "
                f"{torch.__version__}; PyTorch's own operators are used instead, which is slower",
                RuntimeWarning,
                stacklevel=2,
            )
    return _RESULTS[key]


def _fault(trial: Trial, device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with a kernel, or nothing."""
    tf32 = device.type == "cuda" and dtype == torch.float32
    tolerance = TF32_TOLERANCE if tf32 else TOLERANCE[dtype]
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            for result, exact in trial(Draw(device, dtype)):
                error = float((result.double() - exact).abs().max() / exact.abs().max())
                if not error <= tolerance:  # NaN, too
                    return f"differs from the exact result by {error:.1e} of the largest number"
    except Exception as error:  # whatever a compiler, a driver or a missing operator raises
        text = str(error).strip() or "no message"
        return f"fails with {type(error).__name__} ({text.splitlines()[0][:200]})"
    return ""
