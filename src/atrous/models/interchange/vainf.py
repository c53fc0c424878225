"""DeepLabV3 of VainF's DeepLabV3Plus-Pytorch, with a ResNet or its MobileNetV2."""

from __future__ import annotations

from atrous.models.interchange.base import (
    ASPP_OF_TORCHVISION,
    Checkpoint,
    Choices,
    Converted,
    backbone_in_order,
    rates_at_16,
    renamed,
    resnet_of,
    under,
)

KEYS = {
    **under("classifier.classifier.0.", ASPP_OF_TORCHVISION),
    "classifier.classifier.1.": "head_conv.0.",
    "classifier.classifier.2.": "head_conv.1.",
    "classifier.classifier.4.": "classifier.",
}


def read(checkpoint: Checkpoint, choices: Choices) -> Converted | None:
    """A `Reader`. ASPP's rates are 6, 12, 18 at output stride 16 and twice as large at 8, as here."""
    if not checkpoint.starts("classifier.classifier."):
        return None
    if checkpoint.starts("classifier.aspp."):
        raise ValueError("it is a DeepLabV3+ of VainF's; expected its DeepLabV3")
    mobile = checkpoint.starts("backbone.high_level_features.")
    if not mobile and not checkpoint.starts("backbone.layer4."):
        kind = "HRNet" if checkpoint.starts("backbone.stage4.") else "Xception or another network"
        raise ValueError(f"its backbone is {kind}; expected a ResNet or MobileNetV2")
    stride, guesses = choices.output_stride or 16, []
    if not choices.output_stride:
        guesses.append("output stride 16, as its training has by default (--output-stride)")
    rates = rates_at_16(choices.aspp_rates or [rate * 16 // stride for rate in (6, 12, 18)], stride)
    arguments = {"aspp_rates": rates, "head_conv": True, "upsampling": "half_pixel"}
    tensors = renamed(checkpoint.tensors, KEYS)
    if mobile:
        arguments |= {"backbone": "timm/mobilenetv2_100", "convention": "vainf"}
        tensors = backbone_in_order(tensors, "backbone.", "timm/mobilenetv2_100")
    else:
        arguments |= {"backbone": resnet_of(tensors), "stride_in": "first", "consistent_rates": True}
    return Converted("VainF", arguments, tensors, stride, guesses=tuple(guesses))
