"""Rates and padding of backbones as other libraries have them, where section 3.1 or this package has others.

A network that was trained with them needs them; they follow the dial as the library's own would. Names of `Convention`:

- ``smp``: a stage whose stride was removed has one rate, its first unit as well (segmentation_models_pytorch's own
  encoders), whatever rate a layer has of its own. Its EfficientNets pad as they would for their nominal size.
- ``mmsegmentation``: of a unit of two 3×3 convolutions the first alone is atrous (ResNet-18 and 34).
- ``huggingface``: of a stage the convolution that has lost its stride alone is atrous (MobileViT).
- ``vainf``: a unit pads what it reads, before it is expanded, and the image is not padded (MobileNetV2).
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from atrous.models.output_stride import Dial, StrideAndRate
from atrous.ops.conv import AtrousConv2d, AtrousPool2d

Convention = Literal["", "smp", "mmsegmentation", "huggingface", "vainf"]

OF_RESNETS = ("", "mmsegmentation")
OF_TIMM = ("", "smp", "huggingface", "vainf")

_COARSER = {"tf_efficientnet_b0": ("blocks.4.1.", "blocks.4.2.")}
"""Units that segmentation_models_pytorch counts to the next stage."""
_CENTRED = {
    "tf_efficientnet_b2": ("blocks.2.0.conv_dw", "blocks.3.0.conv_dw"),
    "tf_efficientnet_b3": ("blocks.2.0.conv_dw",),
    "tf_efficientnet_b4": ("blocks.2.0.conv_dw",),
    "tf_efficientnet_b5": ("blocks.3.0.conv_dw",),
    "tf_efficientnet_b7": ("blocks.3.0.conv_dw",),
}
"""Strided layers that it pads on both sides: their map has an odd side at the network's nominal size."""


def stride_and_rate(
    convention: Convention, name: str, path: str, native: tuple[int, int], own: int, dial: Dial
) -> StrideAndRate:
    """Of a layer of a network of timm.

    Args:
        convention: whose.
        name: of the network.
        path: of the layer.
        native: strides of the maps that it reads and writes.
        own: its atrous rate at them.
        dial: what is asked for.
    """
    stride, rate = dial.stride_and_rate(*native)
    rate *= own
    if convention == "smp":
        coarser = 2 if path.startswith(_COARSER.get(name, "-")) else 1
        rate = dial.rate(coarser * native[1])
        rate = own if rate == 1 else rate
    elif convention == "huggingface" and native[0] == native[1]:
        rate = 1
    return StrideAndRate(stride, rate)


def prepare(net: Any, convention: Convention, name: str) -> None:
    """Give the layers of a network of timm the kinds that the convention needs, in place.

    Raises:
        ValueError: if the network is none that the convention is for.
    """
    for_it = {"smp": "", "huggingface": "mobilevit_", "vainf": "mobilenetv2_"}.get(convention, "")
    if not name.startswith(for_it):
        raise ValueError(f"convention {convention!r} is for timm/{for_it}..., not timm/{name}")
    if convention == "huggingface":  # its DeepLabv3 has no convolution behind the last stage
        net.feature_info.info[-1]["num_chs"] = net.final_conv.conv.in_channels
        net.final_conv = nn.Identity()
    if convention == "smp":  # as it is, not centred
        for path, layer in list(net.named_modules()):
            if isinstance(layer, nn.MaxPool2d) and layer.padding == 0:
                _put(net, path, AtrousPool2d(layer))
    for path in _CENTRED.get(name, ()) if convention == "smp" else ():
        _put(net, path, AtrousConv2d.over(net.get_submodule(path)))


def _put(net: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(net.get_submodule(parent), leaf, layer)


def pad_units(net: nn.Module) -> None:
    """Move the padding of every unit before its first convolution, and take the stem's away: ``vainf``, in place."""
    for unit in net.modules():
        if isinstance(getattr(unit, "conv_pwl", None), nn.Conv2d):  # an inverted residual
            expand, depthwise = unit.get_submodule("conv_pw"), unit.get_submodule("conv_dw")
            assert isinstance(expand, nn.Conv2d) and isinstance(depthwise, nn.Conv2d)
            expand.padding, depthwise.padding = depthwise.dilation, (0, 0)
    stem = net.get_submodule("conv_stem")
    assert isinstance(stem, nn.Conv2d)
    stem.padding = (0, 0)


def padding_without_a_stem(side: int, output_stride: int) -> int:
    """Pixels that an image lacks, below or on the right, to have as many features as with a padded stem."""
    return max(0, 3 - ((side - 1) % output_stride + 1))
