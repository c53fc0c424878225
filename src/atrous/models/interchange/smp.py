"""segmentation_models_pytorch's ``DeepLabV3``: a state dict, or the folder of its ``save_pretrained``."""

from __future__ import annotations

from atrous.models.interchange.base import (
    ASPP_OF_TORCHVISION,
    Checkpoint,
    Choices,
    Converted,
    rates_at_16,
    renamed,
    resnet_of,
    under,
)

KEYS = {
    "encoder.model.": "backbone.net.",
    "encoder.": "backbone.",
    **under("decoder.aspp.", ASPP_OF_TORCHVISION),
    "decoder.conv.": "head_conv.0.",
    "decoder.bn.": "head_conv.1.",
    **under("decoder.0.", ASPP_OF_TORCHVISION),  # before its 0.6
    "decoder.1.": "head_conv.0.",
    "decoder.2.": "head_conv.1.",
    "segmentation_head.0.": "classifier.",
}
_OTHERS = {
    "decoder.block1.": "DeepLabV3Plus",
    "decoder.aspp.0.convs.": "DeepLabV3Plus",
    "decoder.blocks.": "Unet or a network like it",
    "decoder.psp.": "PSPNet",
    "decoder.seg_blocks.": "FPN",
}

_MOST_BRANCHES = 16


def read(checkpoint: Checkpoint, choices: Choices) -> Converted | None:
    """A `Reader`. Encoders are ResNets and those of timm (``tu-NAME``)."""
    if not checkpoint.starts("segmentation_head.") or not checkpoint.starts("encoder."):
        return None
    for prefix, name in _OTHERS.items():
        if checkpoint.starts(prefix):
            raise ValueError(f"it is a {name} of segmentation_models_pytorch; expected its DeepLabV3")
    if not checkpoint.has("decoder.aspp.convs.0.0.weight") and not checkpoint.has("decoder.0.convs.0.0.weight"):
        raise ValueError("it is of segmentation_models_pytorch, but no DeepLabV3: the decoder has no ASPP")
    config = checkpoint.meta.get("config") or checkpoint.meta  # Lightning's hyper_parameters may say it, too
    guesses = [] if config else ["no config.json of save_pretrained beside it"]
    stride = choices.output_stride or config.get("encoder_output_stride")
    if not stride:
        stride = 8
        guesses.append("output stride 8, as its default is (--output-stride)")
    rates = choices.aspp_rates or tuple(config.get("decoder_atrous_rates") or ())[:_MOST_BRANCHES]
    if not rates:
        rates = (12, 24, 36)
        guesses.append("ASPP's rates 12, 24, 36, as its default is (--aspp-rates)")
    for key, wanted in {"in_channels": 3, "activation": None, "upsampling": stride}.items():
        value = config.get(key)
        if value not in (None, wanted):
            raise ValueError(f"its {key} is {value!r}; expected {wanted!r}")
    filters = len(checkpoint.tensors["segmentation_head.0.weight"][0])
    arguments = {
        "backbone": _backbone(checkpoint, choices, str(config.get("encoder_name", ""))), "head_conv": True,
        "aspp_rates": rates_at_16(rates, stride), "aspp_filters": filters, "upsampling": "corners",
        "stride_in": "first", "consistent_rates": checkpoint.starts("encoder.model."),
    }  # fmt: skip
    return Converted(
        "segmentation_models_pytorch", arguments, renamed(checkpoint.tensors, KEYS), stride,
        guesses=tuple(guesses),
    )  # fmt: skip


def _backbone(checkpoint: Checkpoint, choices: Choices, encoder: str) -> str:
    if choices.backbone:
        return choices.backbone
    if checkpoint.starts("encoder.model."):
        if not encoder:
            raise ValueError("its encoder is one of timm, and it does not say which; give --backbone timm/NAME")
        return "timm/" + encoder.removeprefix("tu-").removeprefix("timm-")
    try:
        return resnet_of(checkpoint.tensors, "encoder.layer{}.")
    except ValueError:
        what = f"encoder {encoder}" if encoder else "encoder"
        raise ValueError(
            f"its {what} is none of ResNet-18 to 152 nor of timm (tu-NAME), which are known here"
        ) from None
