"""segmentation_models_pytorch's ``DeepLabV3``: a state dict, or the folder of its ``save_pretrained``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from atrous.models.backbone import mismatch
from atrous.models.interchange.base import (
    ASPP_OF_TORCHVISION,
    Checkpoint,
    Choices,
    Converted,
    backbone_in_order,
    in_definition_order,
    rates_at_16,
    renamed,
    resnet_of,
    under,
    without,
)
from atrous.models.timm_backbone import tensors_of

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
    "decoder.block1.": "a DeepLabV3Plus",
    "decoder.aspp.0.convs.": "a DeepLabV3Plus",
    "decoder.blocks.": "a Unet or a network like it",
    "decoder.psp.": "a PSPNet or UPerNet",
    "decoder.seg_blocks.": "an FPN",
}

_AUXILIARY = "classification_head."
_MOST_BRANCHES = 16
_KNOWN = "ResNets, ResNeXts, SE- and SK-ResNets, DPNs, MobileNetV2, EfficientNets, MobileOne, and timm's (tu-NAME)"
_GROUPS = "encoder.layer1.0.conv2.weight"
_UNUSED = ("encoder._conv_head.", "encoder._bn1.", "encoder.conv_head.", "encoder.bn2.")
"""Layers behind the features of its EfficientNets."""


@dataclass(frozen=True)
class _Family:
    """Encoders of its own.

    Attributes:
        networks: by the name of the encoder, that of timm's network with the same layers.
        words: of the keys, for `in_definition_order`; empty where timm's network has the same keys.
    """

    networks: dict[str, str]
    words: tuple[str, ...] = ()

    def renamed(self, tensors: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
        """All tensors, those of the encoder with our keys; ValueError if they are those of another network."""
        if self.words:
            return backbone_in_order(in_definition_order(tensors, "encoder.", self.words), "encoder.", network)
        theirs = {key.removeprefix("encoder."): value for key, value in tensors.items() if key.startswith("encoder.")}
        theirs = renamed(theirs, {"features.conv": "features_conv"})  # of its DPNs
        mismatch(tensors_of(network), theirs, f"the tensors of its encoder, as timm/{network}'s,")
        return {**{f"backbone.net.{key}": value for key, value in theirs.items()}, **without(tensors, ["encoder."])}


_FAMILIES = {
    "encoder.features.0.0.": _Family({"mobilenet_v2": "mobilenetv2_100_1280"}, ("features", "conv")),
    "encoder._conv_stem.": _Family(
        {f"efficientnet-b{i}": f"tf_efficientnet_b{i}" for i in range(8)},
        ("_conv_stem", "_expand_conv", "_bn0", "_blocks", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand",
         "_project_conv", "_bn2"),
    ),
    "encoder.conv_stem.": _Family(
        {f"timm-efficientnet-{size}": f"efficientnet_{size}" for size in (*(f"b{i}" for i in range(9)), "l2")}
        | {f"timm-tf_efficientnet_lite{i}": f"efficientnet_lite{i}" for i in range(5)}
    ),
    "encoder.layer0.": _Family(
        {f"se_{name}": f"legacy_se{name}" for name in ("resnet50", "resnet101", "resnet152", "resnext50_32x4d",
                                                       "resnext101_32x4d")} | {"senet154": "legacy_senet154"}
    ),
    "encoder.stage0.": _Family(
        {f"mobileone_s{i}": f"mobileone_s{i}" for i in range(5)},
        (*(f"stage{i}" for i in range(5)), "rbr_skip", "rbr_conv", "rbr_scale", "se", "reduce", "expand", "conv", "bn"),
    ),
    "encoder.conv1.": _Family(
        {name: name for name in ("resnext50_32x4d", *(f"resnext101_32x{width}d" for width in (4, 8, 16, 32, 48)))}
        | {f"timm-{name}": f"{name}_narrow" for name in ("skresnet18", "skresnet34", "skresnext50_32x4d")}
    ),
    "encoder.features.conv1_1.": _Family(
        {f"dpn{size}": f"dpn{size}_normed" for size in ("68", "68b", "92", "98", "107", "131")}
    ),
}  # fmt: skip
"""By how the keys of its first layer start. Its other encoders have no network of timm with the same layers."""
ENCODERS = {f"timm/{network}": encoder for family in _FAMILIES.values() for encoder, network in family.networks.items()}
"""Its own encoders, by our backbone that has their layers."""


def read(checkpoint: Checkpoint, choices: Choices) -> Converted | None:
    """A `Reader`. Encoders are ResNets, those of timm (``tu-NAME``), and its own in `_FAMILIES`."""
    if not checkpoint.starts("segmentation_head.") or not checkpoint.starts("encoder."):
        return None
    for prefix, name in _OTHERS.items():
        if checkpoint.starts(prefix):
            raise ValueError(f"it is {name} of segmentation_models_pytorch; expected its DeepLabV3")
    if not checkpoint.has("decoder.aspp.convs.0.0.weight") and not checkpoint.has("decoder.0.convs.0.0.weight"):
        raise ValueError("it is of segmentation_models_pytorch, but no DeepLabV3: the decoder has no ASPP")
    config = checkpoint.meta.get("config")
    if not isinstance(config, dict) or not config:
        config = checkpoint.meta  # Lightning's hyper_parameters may say it, too
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
    encoder, tensors = _encoder(checkpoint, choices, str(config.get("encoder_name", "")))
    arguments = {
        **encoder, "aspp_rates": rates_at_16(rates, stride), "aspp_filters": filters, "upsampling": "corners",
        "stride_in": "first", "head_conv": True,
    }  # fmt: skip
    epsilon = (0.001, None) if checkpoint.starts("encoder._conv_stem.") else (None, None)
    dropped = ("the classifier of whole images",) if checkpoint.starts(_AUXILIARY) else ()
    return Converted(
        "segmentation_models_pytorch", arguments, tensors, stride, epsilon, guesses=tuple(guesses), dropped=dropped
    )


def _encoder(checkpoint: Checkpoint, choices: Choices, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of the backbone that has the encoder's layers, and all tensors with our keys.

    Args:
        checkpoint: what was read.
        choices: may name the backbone.
        name: of the encoder; empty if the checkpoint does not say.

    Raises:
        ValueError: if there is none.
    """
    theirs = without(checkpoint.tensors, [*_UNUSED, _AUXILIARY])
    tensors = renamed(theirs, KEYS)
    if checkpoint.starts("encoder.model."):
        if not choices.backbone and not name:
            raise ValueError("its encoder is one of timm, and it does not say which; give --backbone timm/NAME")
        # By its older name it takes timm's MobileNetV3 that pads as TensorFlow does.
        network = name.replace("timm-mobilenetv3", "tf_mobilenetv3").removeprefix("tu-").removeprefix("timm-")
        return {"backbone": choices.backbone or f"timm/{network}", "consistent_rates": True}, tensors
    if checkpoint.has("encoder.conv1.weight", _GROUPS) and len(checkpoint.tensors[_GROUPS][0]) >= 64:  # in no groups
        return {"backbone": choices.backbone or resnet_of(checkpoint.tensors, "encoder.layer{}.")}, tensors
    family = next((family for start, family in _FAMILIES.items() if checkpoint.starts(start)), None)
    networks = [] if family is None else [value for key, value in family.networks.items() if name in ("", key)]
    if family and choices.backbone:
        networks = [choices.backbone.removeprefix("timm/")]
    why = ""
    for network in networks:
        assert family is not None
        try:
            ours = family.renamed(theirs, network)
        except ValueError as error:
            why = str(error) if len(networks) == 1 else ""
            continue
        return {"backbone": f"timm/{network}", "convention": "smp"}, renamed(ours, KEYS)
    raise ValueError(why or f"its encoder {name} is none of those that are known here: {_KNOWN}".replace("  ", " "))
