"""Hugging Face's ``MobileNetV2ForSemanticSegmentation`` and ``MobileViTForSemanticSegmentation``, by their folders."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from atrous.models.interchange.base import (
    Checkpoint,
    Choices,
    Colour,
    Converted,
    backbone_in_order,
    colours_reversed,
    in_definition_order,
    rates_at_16,
    renamed,
    without,
)

_WIDTHS = {0.35: "035", 0.5: "050", 0.75: "075", 1.0: "100", 1.4: "140"}
_WORDS = (
    "conv_stem", "layer", "first_conv", "expand_1x1", "conv_3x3", "reduce_1x1", "convolution", "normalization",
)  # fmt: skip
_MOBILENET_HEAD = {"conv_aspp": "head.pointwise", "conv_pool": "head.image_pooling.project",
                   "conv_projection": "head.project"}  # fmt: skip
_MOBILEVIT_HEAD = {
    "aspp.convs.0": "head.pointwise", **{f"aspp.convs.{i + 1}": f"head.atrous.{i}" for i in range(3)},
    "aspp.convs.4.conv_1x1": "head.image_pooling.project", "aspp.project": "head.project",
}  # fmt: skip
_MOBILEVITS = {16: "xxs", 32: "xs"}
"""By the channels of the first stage and, for two of them, of the last: 16 and 80, 32 and 96, 32 and 160."""
_MOBILEVIT_KEYS = (
    (r"mobilevit\.conv_stem\.", "backbone.net.stem."),
    (r"mobilevit\.encoder\.layer\.(\d)\.downsampling_layer\.", r"backbone.net.stages_\1.0."),
    (r"mobilevit\.encoder\.layer\.(\d)\.layer\.(\d+)\.", r"backbone.net.stages_\1.\2."),
    (r"mobilevit\.encoder\.layer\.(\d)\.", r"backbone.net.stages_\1.1."),
    (r"\.conv_1x1\.convolution\.", ".conv_1x1."),
    (r"\.convolution\.", ".conv."), (r"\.normalization\.", ".bn."),
    (r"\.expand_1x1\.", ".conv1_1x1."), (r"\.conv_3x3\.", ".conv2_kxk."), (r"\.reduce_1x1\.", ".conv3_1x1."),
    (r"\.conv_projection\.", ".conv_proj."), (r"\.fusion\.", ".conv_fusion."),
    (r"\.transformer\.layer\.", ".transformer."), (r"\.layernorm\.", ".norm."),
    (r"\.layernorm_before\.", ".norm1."), (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."), (r"\.output\.dense\.", ".mlp.fc2."),
)  # fmt: skip
"""Patterns of their keys and what stands for them in timm's, one after the other."""
_MOBILEVIT_SETTINGS = {
    "num_attention_heads": 4, "patch_size": 2, "mlp_ratio": 2.0, "hidden_act": "silu", "conv_kernel_size": 3,
    "layer_norm_eps": 1e-5, "num_channels": 3,
}  # fmt: skip


def read(checkpoint: Checkpoint, choices: Choices) -> Converted | None:
    """A `Reader`. Its networks need their ``config.json``."""
    config = checkpoint.meta.get("config")
    # Which all of its configurations have, and no other library's; mmsegmentation's is a text.
    kind = config.get("architectures") if isinstance(config, dict) else None
    ours = checkpoint.starts("mobilenet_v2.", "mobilevit.")
    if not ours and not kind and not checkpoint.starts("segformer.", "segmentation_head.conv_aspp."):
        return None
    if not ours or not checkpoint.starts("segmentation_head."):
        raise ValueError(
            f"it is {', '.join(map(str, kind or ['another network']))} of Hugging Face; expected "
            "MobileNetV2ForSemanticSegmentation or MobileViTForSemanticSegmentation"
        )
    if config is None:
        raise ValueError("there is no config.json beside it; expected the folder of save_pretrained")
    read_network = _mobilevit if checkpoint.starts("mobilevit.") else _mobilenet
    return read_network(checkpoint, choices, config, checkpoint.meta.get("preprocessor"))


def _mobilenet(checkpoint: Checkpoint, choices: Choices, config: dict[str, Any], preprocessor: Any) -> Converted:
    width = _WIDTHS.get(float(config.get("depth_multiplier", 1.0)))
    if width is None:
        raise ValueError(f"its depth_multiplier is {config['depth_multiplier']}; expected one of {list(_WIDTHS)}")
    if not config.get("first_layer_is_expansion", True) or config.get("hidden_act", "relu6") != "relu6":
        raise ValueError("its first_layer_is_expansion or hidden_act is not the default, which alone is known here")
    backbone = f"timm/{'tf_' if config.get('tf_padding', True) else ''}mobilenetv2_{width}"
    theirs = in_definition_order(without(checkpoint.tensors, ["mobilenet_v2.conv_1x1."]), "mobilenet_v2.", _WORDS)
    tensors = _with_head(backbone_in_order(theirs, "mobilenet_v2.", backbone), _MOBILENET_HEAD)
    pooling, pointwise = torch.chunk(tensors["head.project.0.weight"], 2, 1)  # theirs has the pooling first
    tensors["head.project.0.weight"] = torch.cat([pointwise, pooling], 1)
    stride = choices.output_stride or int(config.get("output_stride", 32))
    half = (0.5, 0.5, 0.5)
    mean, std = (half, half) if preprocessor is None else _normalisation(preprocessor, half)
    arguments = {"backbone": backbone, "aspp_rates": [], "upsampling": "half_pixel"}
    return Converted(
        "Hugging Face", arguments, tensors, stride, (float(config.get("layer_norm_eps", 0.001)), 1e-5),
        mean, std, _names(config), dropped=("the 1×1 convolution of its classifier",),
    )  # fmt: skip


def _mobilevit(checkpoint: Checkpoint, choices: Choices, config: dict[str, Any], preprocessor: Any) -> Converted:
    other = {key: config[key] for key, value in _MOBILEVIT_SETTINGS.items() if config.get(key, value) != value}
    if other or not config.get("qkv_bias", True):
        raise ValueError(f"its {', '.join(other) or 'qkv_bias'} is not the default, which alone is known here")
    tensors = _with_head(checkpoint.tensors, _MOBILEVIT_HEAD)
    for pattern, ours in _MOBILEVIT_KEYS:
        tensors = {re.sub(pattern, ours, key) if "net." in key or "mobilevit." in key else key: value
                   for key, value in tensors.items()}  # fmt: skip
    for key in [key for key in tensors if ".attention.attention.query." in key]:
        parts = [tensors.pop(key.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        tensors[key.replace(".attention.attention.query.", ".attn.qkv.")] = torch.cat(parts)
    first = len(tensors["backbone.net.stages_0.0.conv3_1x1.conv.weight"])
    last = len(tensors["backbone.net.stages_4.0.conv3_1x1.conv.weight"])
    backbone = f"timm/mobilevit_{'s' if (first, last) == (32, 160) else _MOBILEVITS.get(first, 's')}"
    stride = choices.output_stride or int(config.get("output_stride", 32))
    guesses: tuple[str, ...] = ()
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if preprocessor is None:
        preprocessor = {"do_flip_channel_order": True}
        guesses = ("images of 0 to 1, blue first, as its processor makes them (preprocessor_config.json)",)
    elif preprocessor.get("do_normalize"):
        mean, std = _normalisation(preprocessor, (0.5, 0.5, 0.5))
    if preprocessor.get("do_flip_channel_order", "MobileViT" in str(preprocessor.get("image_processor_type"))):
        tensors, mean, std = colours_reversed(tensors, "backbone.net.stem.conv.weight"), mean[::-1], std[::-1]
    rates = choices.aspp_rates or config.get("atrous_rates", (6, 12, 18))
    if len(rates) != 3:
        raise ValueError(f"its atrous_rates are {len(rates)}; expected 3")
    arguments = {
        "backbone": backbone, "convention": "huggingface", "upsampling": "half_pixel",
        "aspp_rates": rates_at_16(rates, stride),
        "aspp_filters": len(tensors["head.project.0.weight"]),
    }  # fmt: skip
    return Converted(
        "Hugging Face", arguments, tensors, stride, mean=mean, std=std, names=_names(config), guesses=guesses
    )


def _with_head(tensors: dict[str, Tensor], head: dict[str, str]) -> dict[str, Tensor]:
    keys = {"segmentation_head.classifier.convolution.": "classifier."}
    for theirs, ours in head.items():
        keys |= {f"segmentation_head.{theirs}.convolution.": f"{ours}.0.",
                 f"segmentation_head.{theirs}.normalization.": f"{ours}.1."}  # fmt: skip
    return renamed(tensors, keys)


def _names(config: dict[str, Any]) -> tuple[str, ...]:
    labels = config.get("id2label") or {}
    return tuple(str(labels[key]) for key in sorted(labels, key=int))


def _normalisation(preprocessor: dict[str, Any], default: Colour) -> tuple[Colour, Colour]:
    """Mean and standard deviation of ``preprocessor_config.json``."""
    if not preprocessor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    (r, g, b), (x, y, z) = (preprocessor.get(key, default) for key in ("image_mean", "image_std"))
    return (float(r), float(g), float(b)), (float(x), float(y), float(z))
