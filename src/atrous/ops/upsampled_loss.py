"""Cross-entropy and argmax of upsampled logits, without full-resolution logits (section 4.1, "Upsampling logits").

`upsampled_cross_entropy_sum` is ``F.cross_entropy(upsample(...), labels, reduction="sum")``, and `upsampled_argmax` is
``upsample(...).argmax(1)``, which `atrous.ops.class_blocks` computes. The loss upsamples the logits tile by tile, a
tile being some rows of pixels that stay in the cache. What makes it fast is that bilinear upsampling by an integer
factor is a product with two small constant matrices, one for rows and one for columns:

- the transposed products carry the gradient back, so the softmax is evaluated once, in the forward pass, and what is
  kept for the backward pass is a gradient of the size of the small logits;
- the largest logit of each feature is subtracted *before* upsampling. An interpolated value is never above the
  interpolated maximum, so no exponential overflows, and the pass over the pixels that looks for the maximum is saved;
- exponentials are powers of two, for which PyTorch has the faster loop, of logits in units of log 2.

On CUDA the loss is one Triton kernel instead (`upsampled_loss_triton`): on an H200 it takes a fourteenth of the time of
PyTorch's operators at output stride 16, where the tiles take 1.7 times as long. Where Triton is missing, or a kernel
fails its trial (`atrous.ops.trusted`), the loss is PyTorch's.

    loss = upsampled_cross_entropy_sum(logits, labels, output_stride=16) / label_weight(labels)
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode

from atrous.ops.class_blocks import Enlargement, interpolation, largest_class
from atrous.ops.conv_kernels.dispatch import is_recorded
from atrous.ops.resize import IGNORE, grid_size, upsample
from atrous.ops.tiled_upsample import Upsampler, class_dtype, compute_dtype, parts
from atrous.ops.trusted import Draw, constant_when_compiled, library_only, trusted

SMALLEST_SUM = 2.0**-90
"""A sum of exponentials below this may lack small terms; its tile is done again with each pixel's own maximum."""


def upsampled_cross_entropy_sum(
    logits: Tensor, labels: Tensor, output_stride: int, class_weights: Tensor | None = None, ignore: int = IGNORE
) -> Tensor:
    """Cross-entropy of bilinearly upsampled logits, summed over the valid pixels (section 4.1, "Upsampling logits").

    Extra memory is of the order of `logits`.
    The gradient can be taken once: there is no second derivative.

    Args:
        logits: B,K,h,w float, h = ceil((H - 1) / output_stride) + 1 and w alike. Half precision is computed in float32.
        labels: B,H,W integer, class ids or `ignore`.
        output_stride: pixels from one feature to the next.
        class_weights: K float, or None for ones. Not differentiated.
        ignore: the label that does not count.

    Returns:
        A scalar, float32 (float64 for float64 logits). Without a valid pixel it is 0, and its gradient too.

    Raises:
        ValueError: shapes or dtypes do not fit, or (on CPU) a label is neither a class nor `ignore`. On CUDA such a
            label is a device-side assertion, as in `torch.nn.functional.cross_entropy`: a look at the labels would wait
            for the device.
    """
    _check_grid(logits, (labels.shape[-2], labels.shape[-1]), output_stride)
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(f"labels must be {logits.shape[0]},H,W for logits {_text(logits)}, not {_text(labels)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    if class_weights is not None:
        if class_weights.shape != logits.shape[1:2]:
            raise ValueError(
                f"class_weights must have {logits.shape[1]} elements, not the shape {_text(class_weights)}"
            )
        class_weights = class_weights.detach()
    if not _has_kernel(logits.device, logits.dtype):
        return _by_library(logits, labels, output_stride, class_weights, ignore)
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    loss: Tensor = _cross_entropy(logits, labels, class_weights, output_stride, ignore, with_gradient)[0]
    return loss


def upsampled_argmax(logits: Tensor, size: tuple[int, int], output_stride: int) -> Tensor:
    """The class of every pixel, from bilinearly upsampled logits that are never held for all rows at once.

    Where the two largest logits of a pixel are equal to rounding, either class may be returned; exactly equal ones give
    the smaller class. NaN counts as the largest, as for `torch.argmax`.

    Args:
        logits: B,K,h,w float, h = ceil((H - 1) / output_stride) + 1 and w alike.
        size: H, W of the pixels.
        output_stride: pixels from one feature to the next.

    Returns:
        B,H,W uint8, or int32 for more than 256 classes.

    Raises:
        ValueError: shapes do not fit.
    """
    _check_grid(logits, size, output_stride)
    watched = is_recorded() or torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
    if type(logits) is Tensor and not (logits.is_meta or watched or peek_interpreter_stack() is not None):
        with torch.no_grad():  # the first call of an operator imports the compiler: a second, and 80 MB
            return _argmax(logits, size[0], size[1], output_stride)
    classes: Tensor = _argmax_operator(logits, size[0], size[1], output_stride)
    return classes


def _text(tensor: Tensor) -> str:
    return ",".join(map(str, tensor.shape))


def _check_grid(logits: Tensor, size: tuple[int, int], stride: int) -> None:
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape[1:]:
        raise ValueError(f"logits must be B,K,h,w float, not {_text(logits)} {logits.dtype}")
    if stride < 1 or min(size) < 1:
        raise ValueError(f"output_stride and the size must be positive, not {stride} and {tuple(size)}")
    expected = tuple((grid_size(length, stride) - 1) // stride + 1 for length in size)
    if tuple(logits.shape[-2:]) != expected:
        raise ValueError(
            f"logits of {size[0]}x{size[1]} pixels at output stride {stride} must be {expected[0]}x{expected[1]}, "
            f"not {logits.shape[-2]}x{logits.shape[-1]}"
        )


# Cross-entropy ------------------------------------------------------------------------------------------------------


@constant_when_compiled
def _has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the loss is ours on a device: tiles on a CPU, Triton on CUDA; both have to pass a trial."""
    if device.type == "meta":
        return True
    if device.type == "cpu":
        return trusted("the tiled loss", _trial, device, dtype)
    if device.type != "cuda" or dtype == torch.float64 or not _has_triton():
        return False
    return trusted("the Triton kernel of the loss", _trial, device, dtype)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _trial(draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    logits, labels, class_weights = draw(2, 7, 5, 4, scale=3.0), draw.classes(7, (2, 31, 25)), draw(7).float().abs()
    labels[:, :3] = IGNORE
    for weights in (None, class_weights):
        loss, gradient = _by_kernel(logits, labels, weights, 8, IGNORE, True)
        exact = logits.to(torch.float64, copy=True).requires_grad_()
        with torch.enable_grad():
            exact_loss = _by_library(exact, labels, 8, weights, IGNORE)
            exact_loss.backward()
        assert exact.grad is not None
        yield loss, exact_loss.detach()
        yield gradient, exact.grad


def _by_library(logits: Tensor, labels: Tensor, stride: int, class_weights: Tensor | None, ignore: int) -> Tensor:
    dtype = compute_dtype(logits)
    large = upsample(logits.to(dtype), (labels.shape[-2], labels.shape[-1]), stride)
    weights = None if class_weights is None else class_weights.to(dtype)
    return F.cross_entropy(large, labels.long(), weights, ignore_index=ignore, reduction="sum")


@torch.library.custom_op("atrous::upsampled_cross_entropy", mutates_args=())
def _cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, output_stride: int, ignore: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The loss and, `with_gradient`, its gradient in the shape of the logits; empty otherwise."""
    return _by_kernel(logits, labels, class_weights, output_stride, ignore, with_gradient)


def _by_kernel(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, stride: int, ignore: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    if logits.is_cuda:
        from atrous.ops.upsampled_loss_triton import cross_entropy

        return cross_entropy(logits, labels, class_weights, stride, ignore, with_gradient)
    # Inside an autocast region the operators below would otherwise be cast to half precision one by one.
    with torch.autocast(logits.device.type, enabled=False):
        return _cross_entropy_by_tiles(logits, labels, class_weights, stride, ignore, with_gradient)


def _cross_entropy_by_tiles(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, stride: int, ignore: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(logits)
    gradient = torch.empty_like(logits if with_gradient else logits.new_empty(0), dtype=dtype)
    truth = _Labels(labels, logits.shape[1], class_weights, ignore, dtype)
    size = (labels.shape[-2], labels.shape[-1])
    total = 0.0
    for images, small, rows in parts(logits, size, stride):
        small -= small.amax(2, keepdim=True)
        upsampler = Upsampler(small.mul_(1 / math.log(2)), size, stride, rows)
        total += _CrossEntropy(upsampler, truth, images).run(with_gradient)
        if with_gradient:
            gradient[images] = upsampler.gradient.view_as(small).permute(1, 2, 0, 3)
    if math.isnan(total):
        truth.check()
    return torch.tensor(total * math.log(2), dtype=dtype, device=logits.device), gradient


class _Labels:
    """Labels as codes that index a table of weights, in which a wrong label's weight is NaN.

    Wrong labels then cost nothing to find: the loss is NaN, and only then are they looked for.
    """

    def __init__(
        self, labels: Tensor, classes: int, class_weights: Tensor | None, ignore: int, dtype: torch.dtype
    ) -> None:
        self.labels, self.classes, self.ignore = labels, classes, ignore
        byte = labels.dtype == torch.uint8
        weights = torch.full(
            (max(256, classes) if byte else classes + 2,), torch.nan, dtype=dtype, device=labels.device
        )
        weights[:classes] = 1 if class_weights is None else class_weights
        if not byte:
            weights[classes + 1] = 0
        elif 0 <= ignore <= 255:
            weights[ignore] = 0
        self.weights = weights

    def codes(self, images: slice, pixels: slice) -> Tensor:
        """Some rows of labels, r,n,W int64: classes, and above them what is to be ignored and what is wrong."""
        labels = self.labels[images, pixels].transpose(0, 1).long().contiguous()
        if self.labels.dtype == torch.uint8:
            return labels
        codes = labels.clamp(max=self.classes).masked_fill_(labels < 0, self.classes)
        return codes.masked_fill_(labels == self.ignore, self.classes + 1)

    def check(self) -> None:
        """Raise ValueError if there is a wrong label."""
        labels = self.labels.long()
        wrong = (labels >= self.classes) | (labels < 0)
        values = sorted(set(labels[wrong & (labels != self.ignore)].tolist()))[:8]
        if values:
            raise ValueError(f"labels must be 0 to {self.classes - 1}, or {self.ignore} to be ignored; found {values}")


class _CrossEntropy:
    """Loss and gradient of some images, in units of log 2 as their logits are."""

    def __init__(self, upsampler: Upsampler, labels: _Labels, images: slice) -> None:
        self.upsampler, self.labels, self.images = upsampler, labels, images
        rows, n, classes, width = upsampler.tile.shape
        line = torch.arange(rows * n, device=upsampler.tile.device).view(rows, n, 1)
        self.first = line * (classes * width) + torch.arange(width, device=upsampler.tile.device)
        self.sums = upsampler.tile.new_empty(rows, n, 1, width)

    def run(self, with_gradient: bool) -> float:
        """The loss; the gradient is left in the upsampler."""
        total = 0.0
        for pixels, tile in self.upsampler.tiles():
            codes = self.labels.codes(self.images, pixels)
            weights = self.labels.weights.index_select(0, codes.view(-1))
            if float(weights.amax()) != 0:
                total += self._tile(pixels, tile, codes, weights, with_gradient)
        return total

    def _tile(self, pixels: slice, tile: Tensor, codes: Tensor, weights: Tensor, with_gradient: bool) -> float:
        """Loss of a tile, whose values are overwritten; `codes` are r,n,W, too, and `weights` one for each of them."""
        classes, width = tile.shape[2:]
        places = torch.add(self.first[: len(tile)], codes.clamp_(max=classes - 1), alpha=width).view(-1)
        own, sums = self._exponentials(pixels, tile, places)
        if with_gradient:
            tile *= (weights / sums).view(len(tile), -1, 1, width)
            tile.view(-1).index_add_(0, places, weights, alpha=-1)
            self.upsampler.add_gradient(pixels, tile)
        return float(torch.dot(weights, sums.log2_().sub_(own)))

    def _exponentials(self, pixels: slice, tile: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Put 2 to the values into the tile. Returns the values of the true classes and the sums over the classes."""
        own = tile.view(-1).index_select(0, places)
        sums = torch.sum(tile.exp2_(), 2, keepdim=True, out=self.sums[: len(tile)]).view(-1)
        if not float(sums.amin()) > SMALLEST_SUM:
            self.upsampler.values(pixels)
            tile -= tile.amax(2, keepdim=True)
            own = tile.view(-1).index_select(0, places)
            torch.sum(tile.exp2_(), 2, keepdim=True, out=self.sums[: len(tile)])
        return own, sums


@_cross_entropy.register_fake
def _(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, output_stride: int, ignore: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(logits)
    gradient = torch.empty_like(logits if with_gradient else logits.new_empty(0), dtype=dtype)
    return logits.new_empty((), dtype=dtype), gradient


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _scale_gradient(ctx: Any, loss_gradient: Tensor | None, again: Tensor | None) -> tuple[Tensor | None, ...]:
    if again is not None:
        raise NotImplementedError("upsampled_cross_entropy_sum has no second derivative")
    if loss_gradient is None:
        return (None,) * 6
    (gradient,) = ctx.saved_tensors
    # Cast last: a loss scale has then been applied before half precision could underflow.
    return ((gradient * loss_gradient).to(ctx.dtype), None, None, None, None, None)


_cross_entropy.register_autograd(_scale_gradient, setup_context=_keep_gradient)


# Prediction ---------------------------------------------------------------------------------------------------------


def _argmax(logits: Tensor, height: int, width: int, output_stride: int) -> Tensor:
    # The matrices multiply far features by 0, so that one NaN would reach pixels that are not beside it.
    if library_only() or not bool(logits.isfinite().all()):
        return upsample(logits, (height, width), output_stride).argmax(1).to(class_dtype(logits.shape[1]))
    rows, columns = (
        interpolation(pixels, pixels, features, output_stride)
        for pixels, features in zip((height, width), logits.shape[-2:], strict=True)
    )
    with torch.autocast(logits.device.type, enabled=False):
        return largest_class([Enlargement(logits.to(compute_dtype(logits)), rows, columns)])


_argmax_operator = torch.library.custom_op("atrous::upsampled_argmax", _argmax, mutates_args=())


@_argmax_operator.register_fake
def _(logits: Tensor, height: int, width: int, output_stride: int) -> Tensor:
    return logits.new_empty((logits.shape[0], height, width), dtype=class_dtype(logits.shape[1]))
