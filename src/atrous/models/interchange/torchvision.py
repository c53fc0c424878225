"""torchvision's ``deeplabv3_resnet50``, ``deeplabv3_resnet101`` and ``deeplabv3_mobilenet_v3_large``."""

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
    without,
)

AUXILIARY = "aux_classifier."
KEYS = {
    **under("classifier.0.", ASPP_OF_TORCHVISION),
    "classifier.1.": "head_conv.0.",
    "classifier.2.": "head_conv.1.",
    "classifier.4.": "classifier.",
}
_OTHERS = {"classifier.low_classifier.weight": "an LR-ASPP", "classifier.0.weight": "an FCN"}


def read(checkpoint: Checkpoint, choices: Choices) -> Converted | None:
    """A `Reader`. Its ResNets have output stride 8, its MobileNet 16; ASPP's rates are 12, 24, 36 at either."""
    for key, name in _OTHERS.items():
        if checkpoint.has(key) and checkpoint.starts("backbone."):
            raise ValueError(f"it is {name} of torchvision; expected its DeepLabV3")
    if not checkpoint.has("classifier.0.convs.0.0.weight", "classifier.4.weight") or not checkpoint.starts("backbone."):
        return None
    tensors = renamed(without(checkpoint.tensors, [AUXILIARY]), KEYS)
    dropped = ("the auxiliary classifier, which serves training alone",) if checkpoint.starts(AUXILIARY) else ()
    mobile = checkpoint.has("backbone.0.0.weight")
    stride = choices.output_stride or (16 if mobile else 8)
    rates = rates_at_16(choices.aspp_rates or (12, 24, 36), stride)
    arguments = {"aspp_rates": rates, "head_conv": True, "upsampling": "half_pixel"}
    if mobile:
        backbone = "timm/mobilenetv3_large_100"
        # In the order of their definition both have the same layers. All units of the last stage have one rate.
        tensors = backbone_in_order(tensors, "backbone.", backbone)
        return Converted(
            "torchvision", {**arguments, "backbone": backbone, "multi_grid": [1, 1, 1]}, tensors, stride, (0.001, 1e-5),
            dropped=dropped,
        )  # fmt: skip
    arguments |= {"backbone": resnet_of(tensors), "stride_in": "first", "consistent_rates": True}
    guesses = () if choices.output_stride else ("output stride 8, as its own builders have it (--output-stride)",)
    return Converted("torchvision", arguments, tensors, stride, guesses=guesses, dropped=dropped)
