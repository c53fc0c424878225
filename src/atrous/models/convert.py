"""Weights of torchvision's and segmentation_models_pytorch's DeepLabV3, for our `DeepLabV3` with ``head_conv=True``.

    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights="DEFAULT")
    ours = DeepLabV3("resnet50", 21, output_stride=8, stride_in="first", head_conv=True)
    ours.load_state_dict(convert(theirs.state_dict()))

torchvision keeps ASPP rates (12, 24, 36) at output stride 8, which are ours, (6, 12, 18) given at 16.
segmentation_models_pytorch keeps (12, 24, 36) at any stride, and dilates the first unit of an atrous stage, too
(``docs/decisions/002-where-the-stride-sits.md``): `as_smp` places that unit as it does.

Around the network each library has a convention of its own. ``DropIn(ours.for_inference(), "torchvision")`` gives the
logits that torchvision gives, in less time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from atrous.models.deeplab import DeepLabV3
from atrous.models.resnet import ResNet

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
        """
        logits = self.model.network(images)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=self.align_corners)


def _home(key: str) -> str:
    home = _moved(key, _HOMES)
    rest = home.removeprefix("head.")
    return home if rest == home else "head." + _moved(rest, _BRANCHES)


def _moved(key: str, homes: Mapping[str, str]) -> str:
    for theirs, ours in homes.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    raise ValueError(f"{key!r} is no key of a DeepLabV3 with a ResNet of torchvision or segmentation_models_pytorch")
