"""Fast atrous convolution (equation 1 in section 3.1): one operator, and the choice among its exact forms.

There are several forms of each pass, which give the same numbers to rounding; `taps` has them:

- ``library``: what PyTorch does;
- ``window``: a matrix product for each tap over the pixels that it sees inside the map, and no others (Figure 4);
- ``mirror``: the gradient of the input as the library's forward pass with the filter mirrored; else as ``window``
  for the gradient of the weights, and as ``library`` forward (for filters of one channel each the gradient of the
  weights is the library's in float32, and forward is by phases where the library has no kernel);
- ``gemm``: one product for all taps of all branches, and shifted sums, a block of rows at a time;
- ``phases``: the library's plain convolution on every rate-th pixel (`phases`), for where its atrous one is poor;

and on CUDA ``triton`` (`conv_triton`). For filters of one channel each, ``window`` is that of `depthwise`.

Which one is fastest depends on shape, dtype and machine: the library may run at the speed of the products, or reach a
tenth of it. ``auto`` measures each once for a shape and remembers the fastest. ``model`` estimates instead, and is what
``auto`` means while PyTorch traces and where results have to be deterministic. The forward pass and both gradients are
chosen apart.

    y6, y12, y18 = atrous_conv2d_fast(x, [w6, w12, w18], [6, 12, 18])

The environment variable ``ATROUS_CONV`` sets the form for calls that do not name one, `default_form` for a while.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from atrous.ops.conv_kernels.autotune import fastest, is_recorded
from atrous.ops.conv_kernels.depthwise import (
    DEPTHWISE,
    HALVES,
    LIBRARY_DEPTHWISE,
    MIRROR,
    MIRROR_DEPTHWISE,
    is_depthwise,
    is_wrong_in_half,
    lacks_kernel,
)
from atrous.ops.conv_kernels.space_to_batch import PHASES
from atrous.ops.conv_kernels.tap_gemm import GEMM, LIBRARY, WINDOW, Pass, library_forward, order, valid_share

FORMS = ("library", "mirror", "window", "gemm", "phases", "triton")

FULL_FORMS = ("gemm", "phases", "triton")
"""Those that there are not for filters of one channel each."""

SMALL = 10_000_000
"""Multiplications below which nothing is measured: the library is taken, whose calls are the fewest."""

_default: ContextVar[str] = ContextVar("atrous_conv", default="auto")

CHOICES: dict[tuple[Any, ...], str] = {}
"""What has been measured in this process: pass, shapes, dtype, device and threads to form."""


def atrous_conv2d_fast(
    x: Tensor, weights: Sequence[Tensor], rates: Sequence[int], form: str | None = None
) -> list[Tensor]:
    """Parallel atrous convolutions of one map, as in ASPP (section 3.3); a single one is a list of one.

    Each equals ``F.conv2d(x, weight, dilation=rate, padding=rate * (side // 2))`` to rounding, and so do its first
    and second derivatives. Under autocast the inputs are cast as ``F.conv2d`` casts them. Memory beyond inputs and
    outputs is about that of one input, one output in float32, and `atrous.ops.conv_kernels.tap_gemm.BLOCK`.

    Args:
        x: B,C,H,W floating point; channels-last is the fast order.
        weights: K,C,h,w each, or all C,1,h,w to keep channels apart; h and w odd, of the dtype and device of `x`.
        rates: the atrous rate of each, at least 1.
        form: ``auto``, ``model`` or one of `FORMS`; None is what ``ATROUS_CONV`` says, or else `default_form`, and
            ``auto`` for channels kept apart where that names a form which there is not for them.

    Returns:
        For each weight B,K,H,W, of the dtype of `x`, and of its memory order where that is one of the two.

    Raises:
        ValueError: shapes, rates or dtypes do not fit, or there is no such form on this device.
    """
    # PyTorch 2.10 breaks the graph at a ContextVar; nothing is measured while one is made, in any case.
    default = "model" if torch.compiler.is_compiling() else _default.get()
    weights, rates, device = list(weights), list(rates), x.device.type
    if form is None:
        form = os.environ.get("ATROUS_CONV") or default
        form = "auto" if form in FULL_FORMS and is_depthwise(x, weights) else form
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
    _check(x, weights, rates, form)
    if form == "auto" and not _may_measure(x):
        form = "model"
    if _is_plain(form, x, weights, rates):
        return library_forward(x, [], weights, rates)
    outputs: list[Tensor] = _convs(x, weights, rates, form)
    return outputs


@contextmanager
def default_form(form: str) -> Iterator[None]:
    """Set the form of calls that name none, within the block.

    Training sets ``model``: a choice by the clock may differ from run to run, and with it the last bits of the result.
    """
    token = _default.set(form)
    try:
        yield
    finally:
        _default.reset(token)


def current_form() -> str:
    """What `default_form` has set."""
    return _default.get()


def _check(x: Tensor, weights: list[Tensor], rates: list[int], form: str) -> None:
    if form not in (*FORMS, "auto", "model"):
        raise ValueError(f"form is {form!r}, expected one of {', '.join((*FORMS, 'auto', 'model'))}")
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x must be B,C,H,W floating point, not {tuple(x.shape)} {x.dtype}")
    if len(weights) != len(rates) or any(rate < 1 for rate in rates):
        raise ValueError(f"expected one rate of at least 1 for each of {len(weights)} weights, found {rates}")
    channels = 1 if is_depthwise(x, weights) else x.shape[1]
    for weight in weights:
        if weight.ndim != 4 or weight.shape[1] != channels or not (weight.shape[2] % 2 and weight.shape[3] % 2):
            raise ValueError(f"a weight must be K,{channels},h,w with odd h and w, not {tuple(weight.shape)}")
        if weight.dtype != x.dtype or weight.device != x.device:
            raise ValueError(f"a weight is {weight.dtype} on {weight.device}, x is {x.dtype} on {x.device}")
    if form in FULL_FORMS and is_depthwise(x, weights):
        raise ValueError(f"form {form!r} needs filters of all channels, not of one each")
    if form == "triton" and not _has_triton(x):
        raise ValueError(f"form 'triton' needs CUDA, Triton and half precision or tf32, not {x.dtype} on {x.device}")


# Choice -------------------------------------------------------------------------------------------------------------


def _is_plain(form: str, x: Tensor, weights: list[Tensor], rates: list[int]) -> bool:
    """Whether every pass is the library's: the operator is then left out, so that compilers see the convolution."""
    if x.numel() == 0 or not weights:
        return True
    if form in ("auto", "model") and is_recorded():
        return True
    trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    if trained and is_wrong_in_half(x, weights, rates):
        return False
    if form != "model":
        return form == "library"
    needed = ["forward"]
    if torch.is_grad_enabled():
        needed += ["input"] if x.requires_grad else []
        needed += ["weight"] if any(weight.requires_grad for weight in weights) else []
    return all(_model(task, x, weights, rates) == "library" for task in needed)


def _may_measure(x: Tensor) -> bool:
    """Not while tracing, nor where a result must not depend on the clock, nor where nothing is computed."""
    if torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled():
        return False
    return x.device.type == "cpu" or (x.is_cuda and not torch.cuda.is_current_stream_capturing())


def _work(x: Tensor, weights: list[Tensor]) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3] * sum(weight.numel() for weight in weights)


def _model(task: str, x: Tensor, weights: list[Tensor], rates: list[int]) -> str:
    """The form to expect most of, from what has been measured on a few machines (``benchmarks/conv.py``).

    oneDNN's forward pass and gradient of the input skip what is outside, except with AMX, where dilated convolutions in
    bfloat16 do not reach the matrix units. Its gradient of the weights never skips.
    """
    if x.device.type != "cpu" or _work(x, weights) < SMALL or min(rates) < 2:
        return "library"
    if is_depthwise(x, weights):
        far = any(lacks_kernel(x, weight, rate) for weight, rate in zip(weights, rates, strict=True))
        return {"forward": "mirror" if far else "library", "input": "mirror", "weight": "window"}[task]
    if min(rates) < 3:
        return "library"
    if task == "weight":
        return "window"
    return "window" if x.dtype == torch.bfloat16 and _has_amx() else "library"


@functools.cache
def _has_amx() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def _has_triton(x: Tensor) -> bool:
    if (
        not x.is_cuda
        or importlib.util.find_spec("triton") is None
        or torch.cuda.get_device_capability(x.device) < (8, 0)
    ):
        return False
    tf32 = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    return x.dtype in (torch.bfloat16, torch.float16) or tf32


def _passes(form: str, depthwise: bool) -> dict[str, Pass]:
    if form == "triton":
        from atrous.ops.conv_kernels.triton import TRITON

        return TRITON
    if depthwise:
        return {"library": LIBRARY_DEPTHWISE, "mirror": MIRROR_DEPTHWISE, "window": DEPTHWISE}[form]
    return {"library": LIBRARY, "mirror": MIRROR, "window": WINDOW, "gemm": GEMM, "phases": PHASES}[form]


def _candidates(task: str, x: Tensor, weights: list[Tensor], rates: list[int]) -> list[str]:
    """The forms worth measuring.

    ``gemm`` and ``phases`` compute all taps, and are not where half of them are outside; ``phases`` is not in float32
    on a CPU, where oneDNN's atrous convolution is as good as its plain one.
    """
    height, width = x.shape[2:]
    found = ["library", "window"]
    if is_depthwise(x, weights):
        return [*found, "mirror"]
    shares = [valid_share(height, width, weight.shape[2], rate) for weight, rate in zip(weights, rates, strict=True)]
    if sum(shares) > 0.6 * len(shares):
        found += ["gemm"]
        found += ["phases"] if task != "weight" and (x.device.type != "cpu" or x.dtype in HALVES) else []
    return found + (["triton"] if _has_triton(x) else [])


def _key(task: str, x: Tensor, weights: list[Tensor], rates: list[int]) -> tuple[Any, ...]:
    """Maps of nearly the same size share a choice: else evaluation at many sizes would do little but measure."""
    batch, channels, height, width = x.shape
    size = (batch.bit_length(), channels, -(-height // 8), -(-width // 8))
    sides = tuple((tuple(weight.shape), order(weight)) for weight in weights)
    return task, size, sides, tuple(rates), order(x), x.dtype, x.device, torch.get_num_threads()


def _run(
    task: str, form: str, x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]
) -> list[Tensor]:
    """One pass in a form, which is found first if it is ``auto`` or ``model``."""
    if form == "auto" and _work(x, weights) >= SMALL and _may_measure(x):
        key = _key(task, x, weights, rates)
        if key not in CHOICES:
            CHOICES[key] = _measure(task, x, gradients, weights, rates)
        form = CHOICES[key]
    elif form in ("auto", "model"):
        form = _model(task, x, weights, rates)
    return _passes(form, is_depthwise(x, weights))[task](x, gradients, weights, rates)


def _measure(task: str, x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]) -> str:
    def runner(form: str) -> Callable[[], object]:
        return lambda: _passes(form, is_depthwise(x, weights))[task](x, gradients, weights, rates)

    wait = functools.partial(torch.cuda.synchronize, x.device) if x.is_cuda else None
    return fastest({form: runner(form) for form in _candidates(task, x, weights, rates)}, "library", wait)


def forward_form(x: Tensor, weights: list[Tensor], rates: list[int], library: Callable[[], object]) -> str:
    """The form of the forward pass where something faster, `library`, stands in for the library's convolution.

    Arguments as for `atrous_conv2d_fast`. ``library`` in the result means what stands in for it.
    """
    form = os.environ.get("ATROUS_CONV") or _default.get()
    if form == "model" or (form == "auto" and (_work(x, weights) < SMALL or not _may_measure(x))):
        return _model("forward", x, weights, rates)
    if form != "auto":
        return form
    key = ("stand-in", *_key("forward", x, weights, rates))
    if key not in CHOICES:
        passes = {name: _passes(name, False)["forward"] for name in _candidates("forward", x, weights, rates)[1:]}
        runs = {name: functools.partial(run, x, [], weights, rates) for name, run in passes.items()}
        CHOICES[key] = fastest({"library": library, **runs}, "library")
    return CHOICES[key]


# Operator -----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("atrous::convs", mutates_args=())
def _convs(x: Tensor, weights: list[Tensor], rates: list[int], form: str) -> list[Tensor]:
    # Inside an autocast region the products below would otherwise be cast one by one.
    with torch.autocast(x.device.type, enabled=False):
        outputs = _run("forward", form, x, [], weights, rates)
    return [y.contiguous(memory_format=order(x)) for y in outputs]


@_convs.register_fake
def _(x: Tensor, weights: list[Tensor], rates: list[int], form: str) -> list[Tensor]:
    batch, _, height, width = x.shape
    shapes = [(batch, weight.shape[0], height, width) for weight in weights]
    return [torch.empty(s, dtype=x.dtype, device=x.device, memory_format=order(x)) for s in shapes]


@torch.library.custom_op("atrous::convs_backward", mutates_args=())
def _convs_backward(
    gradients: list[Tensor],
    x: Tensor,
    weights: list[Tensor],
    rates: list[int],
    form: str,
    of_input: bool,
    of_weights: bool,
) -> list[Tensor]:
    """The gradient of the input, if wanted, followed by those of the weights, if wanted."""
    found: list[Tensor] = []
    with torch.autocast(x.device.type, enabled=False):
        found += _run("input", form, x, gradients, weights, rates) if of_input else []
        found += _run("weight", form, x, gradients, weights, rates) if of_weights else []
    like = _gradients_like(x, weights, of_input, of_weights)
    return [g.contiguous(memory_format=order(tensor)) for g, tensor in zip(found, like, strict=True)]


@_convs_backward.register_fake
def _(
    gradients: list[Tensor],
    x: Tensor,
    weights: list[Tensor],
    rates: list[int],
    form: str,
    of_input: bool,
    of_weights: bool,
) -> list[Tensor]:
    like = _gradients_like(x, weights, of_input, of_weights)
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=order(t)) for t in like]


def _gradients_like(x: Tensor, weights: list[Tensor], of_input: bool, of_weights: bool) -> list[Tensor]:
    return [x] * of_input + weights * of_weights


def _keep(ctx: Any, inputs: tuple[Tensor, list[Tensor], list[int], str], output: list[Tensor]) -> None:
    x, weights, ctx.rates, ctx.form = inputs
    ctx.save_for_backward(x, *weights)


def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    x, *weights = ctx.saved_tensors
    of_input, of_weights = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1])
    found = _convs_backward(gradients, x, weights, ctx.rates, ctx.form, of_input, of_weights)
    of_x = found.pop(0) if of_input else None
    return of_x, found if of_weights else [None] * len(weights), None, None


_convs.register_autograd(_backward, setup_context=_keep)


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    gradients, x, weights, ctx.rates, ctx.form, ctx.of_input, ctx.of_weights = inputs
    ctx.count = len(weights)
    ctx.save_for_backward(x, *gradients, *weights)


def _backward_twice(ctx: Any, seconds: list[Tensor]) -> tuple[Any, ...]:
    """The gradients are bilinear too: with u for x and v for the weights, each term is a pass of the same operator."""
    x, *rest = ctx.saved_tensors
    gradients, weights = rest[: ctx.count], rest[ctx.count :]
    u, vs = (seconds[0] if ctx.of_input else None), (seconds[ctx.of_input :] if ctx.of_weights else None)
    of_gradients = of_x = of_weights = None
    if u is not None:
        of_gradients = _convs(u, weights, ctx.rates, ctx.form)
        of_weights = _convs_backward(gradients, u, weights, ctx.rates, ctx.form, False, True)
    if vs is not None:
        terms = _convs(x, vs, ctx.rates, ctx.form)
        of_gradients = terms if of_gradients is None else [a + b for a, b in zip(of_gradients, terms, strict=True)]
        (of_x,) = _convs_backward(gradients, x, vs, ctx.rates, ctx.form, True, False)
    nothing = [None] * ctx.count
    return of_gradients or nothing, of_x, of_weights or nothing, None, None, None, None


_convs_backward.register_autograd(_backward_twice, setup_context=_keep_all)
