"""Compare an exported file with the model that it came from, on real photographs, before it is put in place.

The classes must be the same for `AGREEMENT` of the pixels, and the network's logits within `TOLERANCE` of the largest
one. Otherwise `ParityError` names the first layer whose output differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atrous.data.images.image_io import read_image, to_tensor
from atrous.data.resize import shrunk
from atrous.deployment.formats import Whole
from atrous.deployment.network import Interface
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import Runtime
from atrous.ops.normalization import Normalization
from atrous.ops.resize import pad_image, resize, upsample

AGREEMENT = 0.999
"""Least share of the pixels that must have the same class."""

TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest absolute one."""

PHOTOGRAPHS = {"cow.jpg": (241, 319), "aeroplane.jpg": (198, 263), "terrace.jpg": (333, 250)}
"""Photographs of the package and the odd sizes, H and W, at which they are compared."""

BATCHES = (1, 2)


class ParityError(RuntimeError):
    """The file and the model disagree."""

    status = 1


@dataclass(frozen=True)
class Parity:
    """How near a file is to its model.

    Attributes:
        agreement: share of the pixels with the same class, on the photograph with the fewest.
        error: largest difference of a logit, as a share of the largest absolute one; None where it was not measured.
        sizes: H and W of the photographs.
        batches: images in a call.
    """

    agreement: float
    error: float | None
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...] = BATCHES


def photographs(size: tuple[int, int] | None) -> Iterator[Tensor]:
    """The photographs, uint8 3,H,W, at odd sizes or all at `size`."""
    for name, odd in PHOTOGRAPHS.items():
        image = to_tensor(read_image(Path(str(resources.files("atrous") / "prediction" / "assets" / name))))
        height, width = size or odd
        smaller = height <= image.shape[1] and width <= image.shape[2]
        larger = resize(image[None].float(), (height, width))[0].round().to(torch.uint8)
        yield shrunk(image, (height, width)) if smaller else larger


def inputs_of(images: Tensor, model: DeepLabV3, interface: Interface) -> Tensor:
    """Photographs, uint8 B,3,H,W, as a file takes them."""
    if interface.raw_input:
        return Normalization(model.mean, model.std)(images)
    return images.permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def measure(
    model: DeepLabV3,
    runtime: Runtime | Whole,
    interface: Interface,
    *,
    batches: tuple[int, ...] = BATCHES,
    reference: Callable[[Tensor], Tensor] | None = None,
) -> Parity:
    """Compare a file with its model.

    Args:
        model: as it was loaded, in float32 on the CPU.
        runtime: the opened file. Its network's logits are compared, too, unless it runs whole alone.
        interface: what it takes and gives.
        batches: images in a call.
        reference: gives the small logits of padded images; None for the model's network.
    """
    agreement, error, sizes = 1.0, 0.0, []
    for photograph in photographs(interface.size):
        sizes.append((photograph.shape[1], photograph.shape[2]))
        for batch in batches:
            images = torch.stack([photograph, photograph.flip(-1)][:batch])
            seen = seen_by_network(images, model)
            small = (reference or model.network)(seen)
            logits = upsample(small, (photograph.shape[1], photograph.shape[2]), model.output_stride, model.upsampling)
            actual = runtime.run(inputs_of(images, model, interface))
            expected = logits if interface.logits else logits.argmax(1)
            if expected.shape != actual.shape:
                raise ParityError(f"the file gives {tuple(actual.shape)} where the model gives {tuple(expected.shape)}")
            if interface.logits:
                error = max(error, _difference(expected, actual))
                expected, actual = expected.argmax(1), actual.argmax(1)
            agreement = min(agreement, float((expected == actual).float().mean()))
            if isinstance(runtime, Runtime):
                error = max(error, _difference(small, runtime.network(seen)))
    return Parity(agreement, error if isinstance(runtime, Runtime) or interface.logits else None, tuple(sizes), batches)


def seen_by_network(images: Tensor, model: DeepLabV3) -> Tensor:
    """Photographs, uint8 B,3,H,W, as the network alone takes them: normalised and padded to the grid."""
    return pad_image(Normalization(model.mean, model.std)(images), model.output_stride, model.upsampling)


def require(parity: Parity, what: str, culprit: Callable[[], str]) -> None:
    """Refuse a file that is too far from its model.

    Args:
        parity: see `measure`.
        what: the file, for the message.
        culprit: finds the first layer that differs.

    Raises:
        ParityError: with the figures and the layer.
    """
    if parity.agreement >= AGREEMENT and (parity.error is None or parity.error <= TOLERANCE):
        return
    logits = "" if parity.error is None else f", logits differ by {parity.error:.1e} of the largest ({TOLERANCE:g})"
    raise ParityError(
        f"{what} is not written: it gives the model's class for {parity.agreement:.2%} of the pixels "
        f"(expected {AGREEMENT:.1%}){logits}; {culprit()}"
    )


Taps = Callable[[Sequence[str], Tensor], Mapping[str, Tensor]]
"""From modules' paths and images, as the network takes them, to the outputs of these modules in the exported file."""


@torch.no_grad()
def first_difference(model: DeepLabV3, layers: Sequence[str], taps: Taps) -> str:
    """Say which layer's output differs first between a model and an exported file.

    Args:
        model: in the form that was exported.
        layers: paths of the modules whose outputs the file can give.
        taps: gives them.
    """
    images = seen_by_network(next(photographs(None))[None], model)
    outputs: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            outputs.setdefault(path, output.clone())  # a rectifier may write over it

        return hook

    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in layers]
    model.network(images)
    for handle in handles:
        handle.remove()
    ran = list(outputs)  # in the order in which they were called
    actual = taps(ran, images)
    for path in ran:
        if path in actual and (actual[path].shape != outputs[path].shape
                               or _difference(outputs[path], actual[path]) > TOLERANCE):  # fmt: skip
            return f"the first layer that differs is {path} ({type(model.get_submodule(path)).__name__})"
    return "no convolution differs: it is what lies around the network (normalisation, upsampling, argmax)"


def _difference(expected: Tensor, actual: Tensor) -> float:
    if not bool(actual.isfinite().all()):
        return float("inf")
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-12))
