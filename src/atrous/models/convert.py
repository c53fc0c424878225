"""Convert DeepLabV3 with a ResNet of torchvision and segmentation_models_pytorch to `DeepLabV3`.

    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights="DEFAULT")
    fast = drop_in(theirs)                # the same logits as theirs, in less time
    ours, _ = take_over(theirs)           # the same, to train on or to save

torchvision has ASPP rates (12, 24, 36) at output stride 8, which are (6, 12, 18) given at 16, as here.
segmentation_models_pytorch has (12, 24, 36) at any stride, and one rate for all units of a stage, as the paper has;
torchvision's first unit keeps the rate of its input: ``consistent_rates``
(``docs/decisions/002-where-the-stride-sits.md``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from atrous.models.aspp import ASPP
from atrous.models.deeplab import DeepLabV3
from atrous.models.interchange import smp, torchvision
from atrous.models.interchange.base import replace_prefix, resnet_of
from atrous.models.output_stride import Dial
from atrous.models.weights import unwrapped
from atrous.ops.resize import Upsampling

Library = Literal["torchvision", "smp"]

UPSAMPLING: dict[Library, Upsampling] = {"torchvision": "half_pixel", "smp": "corners"}
"""How each library upsamples logits."""

ROUNDING = {torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative error allowed where another epsilon has moved into variances of a dtype; 1e-5 elsewhere."""

_WITHOUT_WEIGHTS = (
    nn.Identity, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Dropout2d, nn.Upsample,
)  # fmt: skip
"""Layers of the two libraries that have no weights."""

_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")

_KEYS = {**torchvision.KEYS, **smp.KEYS, "backbone.": "backbone."}
"""Their prefix to ours; the first that matches counts."""


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict with our keys; the auxiliary head, which serves training alone, is left out.

    Args:
        state: of a DeepLabV3 with a ResNet of either library.

    Raises:
        ValueError: for a key that neither library's DeepLabV3 has.
    """
    return {_our_key(key): value for key, value in state.items() if not key.startswith(torchvision.AUXILIARY)}


def take_over(theirs: nn.Module) -> tuple[DeepLabV3, Library]:
    """Their network as a `DeepLabV3` with a copy of its weights, in ``eval()``, and the library that it is of.

    Depth, classes, rates and output stride are read from its layers, and both are run once on a small image in float64
    to compare them. What is frozen and batch norm's momentum are theirs; another epsilon than ours is moved into the
    variances; there is no dropout. Images are padded and logits upsampled as the library does
    (`DeepLabV3.upsampling`). At another output stride ours scales ASPP's rates, as the paper does;
    segmentation_models_pytorch does not.

    Args:
        theirs: ``torchvision.models.segmentation.deeplabv3_resnet50`` or ``101``, or
            ``segmentation_models_pytorch.DeepLabV3`` with a ResNet from 18 to 152 for images of three channels; on its
            device, in its dtype. ``DataParallel`` and ``torch.compile`` are unwrapped.

    Raises:
        ValueError: for any other network, or one that returns anything but logits at the size of the image.
    """
    if not isinstance(theirs, nn.Module):
        raise ValueError(f"expected a network, nn.Module, not {type(theirs).__name__}")
    theirs = unwrapped(theirs)
    weights = convert(theirs.state_dict())
    convs = {name: module for name, module in theirs.named_modules() if isinstance(module, nn.Conv2d)}
    library: Library = "torchvision" if any(name.startswith("backbone.") for name in convs) else "smp"
    output_stride = 4 * prod(conv.stride[0] for name, conv in convs.items() if ".downsample." in name)
    dilations = [conv.dilation[0] for name, conv in convs.items() if re.search(r"\.convs\.[123]\.0$", name)]
    rates = [rate * output_stride // 16 for rate in dilations]
    try:
        ours = DeepLabV3(
            resnet_of(weights), len(weights["classifier.weight"]), aspp_rates=rates, head_conv=True,
            stride_in="first", consistent_rates=library == "torchvision", output_stride=output_stride,
            upsampling=UPSAMPLING[library],
        )  # fmt: skip
        ours.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[:2][-1].strip()  # of a hundred keys that do not fit, the first
        raise _unknown(theirs, why) from error
    assert isinstance(ours.head, ASPP)
    if list(Dial(output_stride).aspp_rates(ours.head.rates)) != dilations:
        raise _unknown(theirs, f"rates {dilations} at output stride {output_stride} are not those of whole rates at 16")
    moved = _take_settings(theirs, ours)
    first = next(theirs.parameters())
    ours = ours.to(first.device, first.dtype).eval()
    _compare(theirs, ours, ROUNDING.get(first.dtype, 1e-5) if moved else 1e-5)
    return ours, library


def _take_settings(theirs: nn.Module, ours: DeepLabV3) -> bool:
    """What their layers have beside weights; whether an epsilon is another than ours.

    Raises:
        ValueError: for a layer that ours does not have, or has otherwise.
    """
    moved = False
    for name, layer in theirs.named_modules():
        if name.startswith(torchvision.AUXILIARY) or any(layer.children()):
            continue
        if not layer.state_dict():
            if not isinstance(layer, _WITHOUT_WEIGHTS):
                raise _unknown(theirs, f"{name} is {type(layer).__name__}")
            continue
        match = ours.get_submodule(_our_key(f"{name}.").removesuffix("."))
        for key, parameter in layer.named_parameters(recurse=False):
            getattr(match, key).requires_grad_(parameter.requires_grad)
        for key in _SETTINGS if isinstance(layer, nn.Conv2d) else ():
            one_tap = key == "dilation" and layer.kernel_size == (1, 1)  # smp sets it everywhere
            if getattr(layer, key) != getattr(match, key) and not one_tap:
                raise _unknown(theirs, f"{name} has {key} {getattr(layer, key)}, not {getattr(match, key)}")
        if isinstance(layer, nn.BatchNorm2d) and isinstance(match, nn.BatchNorm2d):
            moved = _take_norm(layer, match) or moved
            if match.running_var is not None and bool((match.running_var < 0).any()):
                raise _unknown(theirs, f"{name} has eps {layer.eps}, and a variance that is smaller than {match.eps}")
    return moved


def _take_norm(theirs: nn.BatchNorm2d, ours: nn.BatchNorm2d) -> bool:
    """Momentum, and what they add to the variance beyond what ours adds; whether there was any."""
    ours.momentum = theirs.momentum
    if ours.running_var is not None:
        ours.running_var += theirs.eps - ours.eps
    return theirs.eps != ours.eps


def _unknown(theirs: nn.Module, why: str) -> ValueError:
    return ValueError(f"{type(theirs).__name__} is no DeepLabV3 with a ResNet that is known here: {why}")


@torch.no_grad()
def _compare(theirs: nn.Module, ours: DeepLabV3, rounding: float) -> None:
    """Run both once: layers may have been changed in ways that weights and settings do not show."""
    side = 4 * ours.output_stride
    with torch.random.fork_rng(devices=[]):
        images = torch.randn(1, 3, side, side + ours.output_stride, dtype=torch.float64)
    given, logits = (copy.deepcopy(net).eval().to("cpu", torch.float64)(images) for net in (theirs, ours))
    expected = logits_of(given)
    if logits.shape != expected.shape:
        raise _unknown(theirs, f"it gives {tuple(expected.shape)} for images of {tuple(images.shape)}")
    spread = expected - expected.mean((2, 3), keepdim=True)  # a large bias would hide a difference
    error = float((logits - expected).norm() / spread.norm())
    if not error <= rounding:
        raise _unknown(theirs, f"what it gives for an image differs by {error:.1e} from what these weights give in one")


def logits_of(out: Tensor | dict[str, Tensor]) -> Tensor:
    """The logits in the output of a library's network: torchvision's is a dict."""
    return out["out"] if isinstance(out, dict) else out


def drop_in(theirs: nn.Module, dtype: torch.dtype | None = None) -> DeepLabV3:
    """A fast replacement for another library's network: an inference form with the same logits for every pixel.

    Args:
        theirs: see `take_over`.
        dtype: as for `DeepLabV3.for_inference`: None is bfloat16 where the machine multiplies that, with two or three
            digits; ``torch.float32`` gives the same numbers.

    Returns:
        A model: normalised images to logits, a tensor (torchvision's network gives a dict of it). Images that
            segmentation_models_pytorch refuses, for the output stride does not divide them, are padded.

    Raises:
        ValueError: as `take_over`.
    """
    return take_over(theirs)[0].for_inference(dtype=dtype)


def _our_key(key: str) -> str:
    if ours := replace_prefix(key, _KEYS):
        return ours
    raise ValueError(f"{key!r} is no key of a DeepLabV3 with a ResNet of torchvision or segmentation_models_pytorch")
