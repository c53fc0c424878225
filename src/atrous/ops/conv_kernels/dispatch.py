"""Fast atrous convolution (equation 1 in section 3.1): one operator, and the rule that chooses among its exact forms.

The forms give the same numbers to rounding:

- ``library``: what PyTorch does;
- ``window``: a matrix product for each tap over the pixels that it sees inside the map (Figure 4; `tap_gemm`);
- ``tap_gemm``: one product for all taps of all branches in the forward pass, otherwise ``window``;
- ``depthwise``: for filters of one channel each (`depthwise`).

Which one runs is a rule of device, dtype, shape and instruction set, one for each of the forward pass and the two
gradients; `docs/decisions/011-kernels.md` says on which machine each form won. No clock is read, so that the same input
gives the same bytes at any load. A form has to pass a trial first (`atrous.ops.trusted`); else the library is taken, as
it is on every device but an x86 processor with oneDNN.

    y6, y12, y18 = atrous_conv2d_fast(x, [w6, w12, w18], [6, 12, 18])
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from atrous.ops.conv_kernels.depthwise import DEPTHWISE, RIGHT_LIBRARY, is_depthwise, is_wrong_in_half, lacks_kernel
from atrous.ops.conv_kernels.tap_gemm import (
    LIBRARY,
    TAP_GEMM,
    WINDOW,
    Pass,
    has_amx,
    has_onednn,
    library_forward,
    order,
    valid_share,
)
from atrous.ops.trusted import Draw, constant_when_compiled, library_only, trusted

FORMS: dict[str, dict[str, Pass]] = {
    "library": RIGHT_LIBRARY,
    "window": WINDOW,
    "tap_gemm": TAP_GEMM,
    "depthwise": DEPTHWISE,
}
"""By name: the forward pass, and the gradients of the input and of the weights."""

SMALL = 10_000_000
"""Multiplications below which the library is taken, whose calls are the fewest."""


def atrous_conv2d_fast(
    x: Tensor, weights: Sequence[Tensor], rates: Sequence[int], form: str | None = None
) -> list[Tensor]:
    """Parallel atrous convolutions of one map, as in ASPP (section 3.3); a single one is a list of one.

    Each equals ``F.conv2d(x, weight, dilation=rate, padding=rate * (side // 2))`` to rounding, and so do its first
    and second derivatives. Under autocast the inputs are cast as ``F.conv2d`` casts them. Memory beyond inputs and
    outputs is about that of one input, one output in float32, and `atrous.ops.conv_kernels.tap_gemm.BLOCK`.

    Args:
        x: B,C,H,W floating point; channels-last is the fast order.
        weights: K,C,h,w each, or all C,1,h,w for a depthwise convolution; h and w odd, of the dtype and device of `x`.
        rates: the atrous rate of each, at least 1.
        form: one of `FORMS`, untried, for tests and benchmarks; None for the rule.

    Returns:
        For each weight B,K,H,W, of the dtype of `x`, and of its memory order where that is one of the two.

    Raises:
        ValueError: shapes, rates or dtypes do not fit, or there is no such form for them.
    """
    weights, rates, device = list(weights), list(rates), x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
    _check(x, weights, rates, form)
    if _is_plain(form, x, weights, rates):
        return library_forward(x, [], weights, rates)
    outputs: list[Tensor] = _convs(x, weights, rates, form or "")
    return outputs


def _check(x: Tensor, weights: list[Tensor], rates: list[int], form: str | None) -> None:
    if form is not None and form not in FORMS:
        raise ValueError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x must be B,C,H,W floating point, not {tuple(x.shape)} {x.dtype}")
    if len(weights) != len(rates) or any(rate < 1 for rate in rates):
        raise ValueError(f"expected one rate of at least 1 for each of {len(weights)} weights, not {rates}")
    depthwise = is_depthwise(x, weights)
    channels = 1 if depthwise else x.shape[1]
    for weight in weights:
        if weight.ndim != 4 or weight.shape[1] != channels or not (weight.shape[2] % 2 and weight.shape[3] % 2):
            raise ValueError(f"a weight must be K,{channels},h,w with odd h and w, not {tuple(weight.shape)}")
        if weight.dtype != x.dtype or weight.device != x.device:
            raise ValueError(f"a weight is {weight.dtype} on {weight.device}, x is {x.dtype} on {x.device}")
    if form not in (None, "library") and (form == "depthwise") != depthwise:
        raise ValueError(
            f"form {form!r} needs filters of {'one channel each' if form == 'depthwise' else 'all channels'}"
        )


# Rule ---------------------------------------------------------------------------------------------------------------


def is_recorded() -> bool:
    """Whether PyTorch records what is computed, to run it elsewhere: an export, or a trace of TorchScript."""
    return torch.compiler.is_exporting() or bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]


def is_transformed() -> bool:
    """Whether a forward derivative or another transform of `torch.func` is computed: operators of ours have none."""
    if torch.compiler.is_compiling():  # which has derivatives of its own, and would record the question
        return False
    dual: int = torch.autograd.forward_ad._current_level
    return dual >= 0 or torch._C._functorch.maybe_current_level() is not None


def _is_plain(form: str | None, x: Tensor, weights: list[Tensor], rates: list[int]) -> bool:
    """Whether every pass is the library's: the operator is then left out, so that compilers see the convolution."""
    if x.numel() == 0 or not weights:
        return True
    if form is None and (is_recorded() or is_transformed()):
        return True
    trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    if trained and is_wrong_in_half(x, weights, rates):
        return False
    if form is not None:
        return form == "library"
    passes = ["forward"]
    if torch.is_grad_enabled():
        passes += ["input"] if x.requires_grad else []
        passes += ["weight"] if any(weight.requires_grad for weight in weights) else []
    return all(_rule(task, x, weights, rates) == "library" for task in passes)


def _rule(task: str, x: Tensor, weights: list[Tensor], rates: list[int]) -> str:
    """The form that won for such a pass wherever it was measured (``benchmarks/conv.py``).

    oneDNN's forward pass and gradient of the input skip what is outside of the map, except with AMX, where atrous
    convolutions in bfloat16 do not reach the matrix units. Its gradient of the weights never skips.
    """
    if x.device.type != "cpu" or not _has_kernels() or _work(x, weights) < SMALL or min(rates) < 2:
        return "library"
    if is_depthwise(x, weights):
        far = any(lacks_kernel(x, weight, rate) for weight, rate in zip(weights, rates, strict=True))
        return "depthwise" if far or task != "forward" else "library"
    if min(rates) < 3:
        return "library"
    if task == "weight":
        return "window"
    if x.dtype != torch.bfloat16 or not has_amx():
        return "library"
    return "tap_gemm" if task == "forward" and _mean_share(x, weights, rates) > 0.6 else "window"


@constant_when_compiled
def _has_kernels() -> bool:
    return has_onednn() and not library_only()


def _work(x: Tensor, weights: list[Tensor]) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3] * sum(weight.numel() for weight in weights)


def _mean_share(x: Tensor, weights: list[Tensor], rates: list[int]) -> float:
    height, width = x.shape[2:]
    shares = [valid_share(height, width, weight.shape[2], rate) for weight, rate in zip(weights, rates, strict=True)]
    return sum(shares) / len(shares)


def forward_form(x: Tensor, weight: Tensor, rate: int) -> str:
    """The form in which `atrous_conv2d_fast` runs one forward pass."""
    return _tried("forward", _rule("forward", x, [weight], [rate]), x, [weight])


def _tried(task: str, form: str, x: Tensor, weights: list[Tensor]) -> str:
    """The form, or ``library`` where it fails its trial."""
    if form == "library":
        return form
    trial = functools.partial(_trial, task, form, is_depthwise(x, weights))
    return form if trusted(f"the {form} form of atrous convolution ({task})", trial, x.device, x.dtype) else "library"


def _trial(task: str, form: str, depthwise: bool, draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass at a rate that fits the map and one that reaches beyond it; side 5 at rate 4 needs `space_to_batch`."""
    rates = [4, 11]
    shape = (16, 1, 5, 5) if depthwise else (24, 16, 3, 3)
    x, weights = draw(2, 16, 19, 10), [draw(*shape, scale=0.1) for _ in rates]
    gradients = [draw(2, shape[0], 19, 10) for _ in rates]
    exact = ([t.double() for t in group] for group in ([x], gradients, weights))
    (wide,), wide_gradients, wide_weights = exact
    ours = FORMS[form][task](x, gradients, weights, rates)
    return zip(ours, LIBRARY[task](wide, wide_gradients, wide_weights, rates), strict=True)


def _run(
    task: str, form: str, x: Tensor, gradients: list[Tensor], weights: list[Tensor], rates: list[int]
) -> list[Tensor]:
    """One pass in a form; in that of the rule, if it has passed its trial, where `form` is empty."""
    form = form or _tried(task, _rule(task, x, weights, rates), x, weights)
    return FORMS[form][task](x, gradients, weights, rates)


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
    results: list[Tensor] = []
    with torch.autocast(x.device.type, enabled=False):
        results += _run("input", form, x, gradients, weights, rates) if of_input else []
        results += _run("weight", form, x, gradients, weights, rates) if of_weights else []
    like = _gradients_like(x, weights, of_input, of_weights)
    return [g.contiguous(memory_format=order(tensor)) for g, tensor in zip(results, like, strict=True)]


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
    results = _convs_backward(gradients, x, weights, ctx.rates, ctx.form, of_input, of_weights)
    of_x = results.pop(0) if of_input else None
    return of_x, results if of_weights else [None] * len(weights), None, None


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
