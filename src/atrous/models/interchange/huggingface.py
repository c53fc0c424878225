"""Hugging Face's ``MobileNetV2ForSemanticSegmentation``: the folder of its ``save_pretrained``."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from atrous.models.interchange.base import Checkpoint, Choices, Converted, renamed
from atrous.models.interchange.order import in_order

_WIDTHS = {0.35: "035", 0.5: "050", 0.75: "075", 1.0: "100", 1.4: "140"}
_HEAD = {
    "segmentation_head.conv_aspp.": "head.pointwise.",
    "segmentation_head.conv_pool.": "head.image_pooling.project.",
    "segmentation_head.conv_projection.": "head.project.",
}


def read(checkpoint: Checkpoint, choices: Choices) -> Converted | None:
    """A `Reader`. Its networks need their ``config.json``."""
    if not checkpoint.starts("mobilenet_v2.", "mobilevit.", "segformer.", "segmentation_head.conv_aspp."):
        return None
    if not checkpoint.starts("mobilenet_v2.") or not checkpoint.starts("segmentation_head."):
        kind = checkpoint.meta.get("config", {}).get("architectures", ["another network"])
        raise ValueError(
            f"it is {', '.join(map(str, kind))} of Hugging Face; expected MobileNetV2ForSemanticSegmentation"
        )
    config = checkpoint.meta.get("config")
    if config is None:
        raise ValueError("there is no config.json beside it; expected the folder of save_pretrained")
    width = _WIDTHS.get(float(config.get("depth_multiplier", 1.0)))
    if width is None:
        raise ValueError(f"its depth_multiplier is {config['depth_multiplier']}; expected one of {list(_WIDTHS)}")
    if not config.get("first_layer_is_expansion", True) or config.get("hidden_act", "relu6") != "relu6":
        raise ValueError("its first_layer_is_expansion or hidden_act is not the default, which alone is known here")
    backbone = f"timm/{'tf_' if config.get('tf_padding', True) else ''}mobilenetv2_{width}"
    theirs = {key: value for key, value in checkpoint.tensors.items() if not key.startswith("mobilenet_v2.conv_1x1.")}
    tensors = in_order(_in_definition_order(theirs), "mobilenet_v2.", backbone)
    stride = choices.output_stride or int(config.get("output_stride", 32))
    mean, std = _normalisation(checkpoint.meta.get("preprocessor"))
    arguments = {"backbone": backbone, "aspp_rates": [], "upsampling": "half_pixel"}
    return Converted(
        "Hugging Face", arguments, _with_our_head(tensors), stride, (float(config.get("layer_norm_eps", 0.001)), 1e-5),
        mean, std, _names(config), dropped=("the 1×1 convolution of its classifier",),
    )  # fmt: skip


def _in_definition_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors has its keys in alphabetical order; this is the order of the layers."""
    layers = {"first_conv": 0, "expand_1x1": 1, "conv_3x3": 2, "reduce_1x1": 3}
    parts = {"weight": 0, "bias": 1, "running_mean": 2, "running_var": 3, "num_batches_tracked": 4}

    def place(key: str) -> tuple[int, ...]:
        match = re.match(r"mobilenet_v2\.(?:conv_stem|layer\.(\d+))\.(\w+)\.(convolution|normalization)\.(\w+)$", key)
        if match is None:
            return (1_000,)
        unit = -1 if match[1] is None else int(match[1])
        return unit, layers[match[2]], int(match[3] == "normalization"), parts[match[4]]

    return {key: tensors[key] for key in sorted(tensors, key=place)}


def _with_our_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    keys = {"segmentation_head.classifier.convolution.": "classifier."}
    for theirs, ours in _HEAD.items():
        keys |= {f"{theirs}convolution.": f"{ours}0.", f"{theirs}normalization.": f"{ours}1."}
    moved = renamed(tensors, keys)
    pooling, pointwise = torch.chunk(moved["head.project.0.weight"], 2, 1)  # theirs has the pooling first
    return {**moved, "head.project.0.weight": torch.cat([pointwise, pooling], 1)}


def _names(config: dict[str, Any]) -> tuple[str, ...]:
    labels = config.get("id2label") or {}
    return tuple(str(labels[key]) for key in sorted(labels, key=int))


def _normalisation(preprocessor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of ``preprocessor_config.json``; its MobileNets take -1 to 1."""
    half = (0.5, 0.5, 0.5)
    if not isinstance(preprocessor, dict) or not preprocessor.get("do_normalize", True):
        return half, half
    (r, g, b), (x, y, z) = (preprocessor.get(key, half) for key in ("image_mean", "image_std"))
    return (float(r), float(g), float(b)), (float(x), float(y), float(z))
