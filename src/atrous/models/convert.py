"""torchvision's and segmentation_models_pytorch's DeepLabV3 with a ResNet, as our `DeepLabV3`.

    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights="DEFAULT")
    fast = drop_in(theirs)                # images in, the logits that they give out, in less time
    ours, _ = take_over(theirs)           # the network in our conventions, to go on with

torchvision keeps ASPP rates (12, 24, 36) at output stride 8, which are ours, (6, 12, 18) given at 16.
segmentation_models_pytorch keeps (12, 24, 36) at any stride, and dilates the first unit of an atrous stage, too
(``docs/decisions/002-where-the-stride-sits.md``): `as_smp` places that unit as it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrous.models.aspp import ASPP
from atrous.models.deeplab import DeepLabV3
from atrous.models.resnet import UNITS, Bottleneck, ResNet
from atrous.ops.stride import Dial

Library = Literal["torchvision", "smp"]

# Prefix by prefix; the first that matches counts.
_HOMES = {
    "backbone.": "backbone.",  # torchvision
    "classifier.0.": "head.",
    "classifier.1.": "head_conv.0.",
    "classifier.2.": "head_conv.1.",
    "classifier.4.": "classifier.",
    "encoder.": "backbone.",  # segmentation_models_pytorch
    "decoder.aspp.": "head.",
    "decoder.conv.": "head_conv.0.",
    "decoder.bn.": "head_conv.1.",
    "decoder.0.": "head.",  # before its 0.6
    "decoder.1.": "head_conv.0.",
    "decoder.2.": "head_conv.1.",
    "segmentation_head.0.": "classifier.",
}
_BRANCHES = {
    "convs.0.": "pointwise.",
    "convs.1.": "atrous.0.",
    "convs.2.": "atrous.1.",
    "convs.3.": "atrous.2.",
    "convs.4.1.": "image_pooling.project.0.",
    "convs.4.2.": "image_pooling.project.1.",
    "project.": "project.",
}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their keys as ours; an auxiliary head, which serves training alone, is left out.

    Args:
        state: of a DeepLabV3 with a ResNet of either library.

    Raises:
        ValueError: for a key that neither library's DeepLabV3 has.
    """
    return {_home(key): value for key, value in state.items() if not key.startswith("aux_classifier.")}


def as_smp(model: DeepLabV3) -> DeepLabV3:
    """Dilate the first unit of every atrous stage, as segmentation_models_pytorch does; until the dial is set again."""
    assert isinstance(model.backbone, ResNet)
    for block in range(2, 5):
        units = model.backbone.block(block)
        stride = max(units[0].conv1.stride[0], units[0].conv2.stride[0])  # in a basic unit, the first carries it
        units[0].place(stride, units[-1].rate, units[-1].rate)
    return model


def take_over(theirs: nn.Module) -> tuple[DeepLabV3, Library]:
    """Their network as ours, with its weights, in ``eval()``, and whose it was.

    Depth, classes, rates and output stride are read off its layers. Images that are no multiple of the stride are
    padded by ours, and logits upsampled by our convention; `DropIn` keeps theirs.

    Args:
        theirs: ``torchvision.models.segmentation.deeplabv3_resnet50`` or ``101``, or
            ``segmentation_models_pytorch.DeepLabV3`` with a ResNet from 18 to 152; on its device, in its dtype.

    Raises:
        ValueError: for any other network.
    """
    state = theirs.state_dict()
    convs = {name: module for name, module in theirs.named_modules() if isinstance(module, nn.Conv2d)}
    library: Library = "torchvision" if any(key.startswith("backbone.") for key in state) else "smp"
    weights = convert(state)
    output_stride = 4 * prod(conv.stride[0] for name, conv in convs.items() if ".downsample." in name)
    dilations = [conv.dilation[0] for name, conv in convs.items() if re.search(r"\.convs\.[123]\.0$", name)]
    rates = [rate * output_stride // 16 for rate in dilations]
    try:
        ours = DeepLabV3(
            f"resnet{_depth(weights)}", len(weights["classifier.weight"]), aspp_rates=rates, head_conv=True,
            stride_in="first", output_stride=output_stride,
        )  # fmt: skip
        ours.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[:2][-1].strip()  # of a hundred keys that do not fit, the first
        raise ValueError(f"{type(theirs).__name__} is no DeepLabV3 with a ResNet that is known here: {why}") from error
    assert isinstance(ours.head, ASPP)
    if list(Dial(output_stride).aspp_rates(ours.head.rates)) != dilations:
        raise ValueError(f"rates {dilations} at output stride {output_stride} are not those of whole rates at 16")
    first = next(theirs.parameters())
    ours = ours.to(first.device, first.dtype).eval()
    return (as_smp(ours) if library == "smp" else ours), library


def _depth(weights: Mapping[str, Tensor]) -> int:
    layers = [f"backbone.layer{number}." for number in range(1, 5)]
    counts = tuple(len({key.split(".")[2] for key in weights if key.startswith(layer)}) for layer in layers)
    bottleneck = "backbone.layer1.0.conv3.weight" in weights
    for depth, (unit, units) in UNITS.items():
        if units == counts and (unit is Bottleneck) == bottleneck:
            return depth
    raise ValueError(f"its stages have {counts} units")


def drop_in(theirs: nn.Module, dtype: torch.dtype | None = None) -> DropIn:
    """What stands in for another library's network: its inference form here, with its logits for every pixel.

    Args:
        theirs: see `take_over`.
        dtype: as for `DeepLabV3.for_inference`; ``torch.float32`` for the same numbers to rounding.

    Raises:
        ValueError: as `take_over`, and for a network of segmentation_models_pytorch that gives anything but logits at
            the size of the image.
    """
    ours, library = take_over(theirs)
    head = getattr(theirs, "segmentation_head", [None, None, None])
    scale, activation = getattr(head[1], "scale_factor", None), getattr(head[2], "activation", None)
    if library == "smp" and (scale != ours.output_stride or not isinstance(activation, nn.Identity)):
        raise ValueError(f"it upsamples by {scale} at output stride {ours.output_stride}, followed by {activation}")
    return DropIn(ours.for_inference(dtype=dtype), library)


class DropIn(nn.Module):
    """A `DeepLabV3` that stands in for another library's: the same logits for every pixel, up to rounding.

    Ours pads images to the grid and keeps every feature on its pixel (``docs/decisions/001-align-corners.md``). These
    libraries pad nothing; torchvision upsamples with corners that are not aligned, segmentation_models_pytorch with
    aligned ones. Weights trained in one of these ways do best in the same.

    Args:
        model: with converted weights; a form ``for_inference`` is the fast one. Placed by `as_smp` for ``smp``.
        library: ``torchvision`` or ``smp``.

    Raises:
        ValueError: for any other library.
    """

    def __init__(self, model: DeepLabV3, library: Library) -> None:
        super().__init__()
        if library not in get_args(Library):
            raise ValueError(f"library is {library!r}, expected one of {', '.join(get_args(Library))}")
        self.model = as_smp(model) if library == "smp" else model
        self.align_corners = library == "smp"

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, B,3,H,W float, to logits, B,K,H,W float32, or float64 from such a model.

        For ``smp``, H and W must be multiples of the output stride, as they must there.

        Raises:
            ValueError: if `images` is not B,3,H,W, or for ``smp`` of another size.
        """
        stride, size = self.model.output_stride, images.shape[-2:]
        if self.align_corners and any(side % stride for side in size):
            raise ValueError(f"images are {tuple(size)} pixels, expected multiples of {stride}, as for theirs")
        logits = self.model.network(images)
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)


def _home(key: str) -> str:
    home = _moved(key, _HOMES)
    rest = home.removeprefix("head.")
    return home if rest == home else "head." + _moved(rest, _BRANCHES)


def _moved(key: str, homes: Mapping[str, str]) -> str:
    for theirs, ours in homes.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    raise ValueError(f"{key!r} is no key of a DeepLabV3 with a ResNet of torchvision or segmentation_models_pytorch")
