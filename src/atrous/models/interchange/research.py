"""The authors' own DeepLabv3 with MobileNetV2 (``research/deeplab``, TensorFlow 1), and its ports to Keras.

Its conventions are ours: feature ``j`` on pixel ``output_stride * j``. Its padding, its epsilon and its inputs from -1
to 1 are kept. Besides its checkpoint, the arrays may be in an ``.npz`` file by the names of the variables.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from atrous.models.interchange.base import Checkpoint, Choices, Converted, backbone_in_order
from atrous.models.interchange.tensorflow import names_of_layers

_BACKBONE = "MobilenetV2/"
_SLOTS = ("/Momentum", "/ExponentialMovingAverage", "/Adam", "/Adam_1", "/RMSProp", "/RMSProp_1")
_WIDTHS = {112: "035", 160: "050", 240: "075", 320: "100", 448: "140"}
"""By the channels of the last unit."""
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_HEAD = {"aspp0": "head.pointwise", "image_pooling": "head.image_pooling.project", "concat_projection": "head.project"}
_OTHERS = ("resnet_v1_", "xception_", "MobilenetV3/", "nas_", "MobilenetV1/")


def read(checkpoint: Checkpoint, choices: Choices) -> Converted | None:
    """A `Reader`. The output stride is the setting of a graph, which the variables do not hold."""
    keras = any("concat_projection_BN/" in key for key in checkpoint.tensors)
    if keras:
        checkpoint = replace(checkpoint, tensors=names_of_layers(checkpoint.tensors))
    if not checkpoint.starts("logits/semantic/"):
        return None
    if checkpoint.starts("decoder/", "feature_projection0/"):
        raise ValueError("it is a DeepLabv3+ of research/deeplab; expected its DeepLabv3, without a decoder")
    if not checkpoint.starts(_BACKBONE):
        first = next((key for key in checkpoint.tensors if key.startswith(_OTHERS)), "another backbone")
        raise ValueError(f"its backbone is {first.split('/')[0]} of research/deeplab; MobilenetV2 alone is known here")
    if checkpoint.starts("aspp1"):
        raise ValueError("its ASPP has atrous branches, whose rates the variables do not hold; expected MobileNetV2's")
    tensors = {key: value for key, value in checkpoint.tensors.items() if not key.endswith((*_SLOTS, "global_step"))}
    width = _WIDTHS.get(tensors[f"{_BACKBONE}expanded_conv_16/project/weights"].shape[-1])
    if width is None:
        raise ValueError(f"its MobilenetV2 has a width that is none of {', '.join(_WIDTHS.values())}")
    backbone = f"timm/tf_mobilenetv2_{width}"
    ours = backbone_in_order(
        {f"{_BACKBONE}{i}": value for i, value in enumerate(_layers(tensors))}, _BACKBONE, backbone
    )
    for theirs, place in _HEAD.items():
        ours |= {
            f"{place}.0.weight": _convolution(tensors[f"{theirs}/weights"]),
            **_norm(tensors, theirs, f"{place}.1."),
        }
    pooling, pointwise = torch.chunk(ours["head.project.0.weight"], 2, 1)  # theirs has the pooling first
    ours["head.project.0.weight"] = torch.cat([pointwise, pooling], 1)
    ours["classifier.weight"] = _convolution(tensors["logits/semantic/weights"])
    ours["classifier.bias"] = tensors["logits/semantic/biases"]
    stride, where = (8, "the port to Keras") if keras else (16, "its evaluation")
    guesses = () if choices.output_stride else (f"output stride {stride}, as {where} has by default (--output-stride)",)
    dropped = ("the optimizer's variables",) if len(tensors) < len(checkpoint.tensors) else ()
    half = (0.5, 0.5, 0.5)
    return Converted(
        "research/deeplab", {"backbone": backbone, "aspp_rates": []}, ours, choices.output_stride or stride,
        (0.001, 1e-5), half, half, guesses=guesses, dropped=dropped,
    )  # fmt: skip


def _layers(tensors: dict[str, Tensor]) -> list[Tensor]:
    """The backbone's tensors in the order of its layers."""
    units = len({match[0] for key in tensors if (match := re.match(rf"{_BACKBONE}expanded_conv(_\d+)?/", key))})
    names = [f"{_BACKBONE}Conv"]
    for unit in range(units):
        start = f"{_BACKBONE}expanded_conv{f'_{unit}' if unit else ''}/"
        names += [
            start + layer for layer in ("expand", "depthwise", "project") if f"{start}{layer}/BatchNorm/beta" in tensors
        ]
    layers: list[Tensor] = []
    for name in names:
        depthwise = tensors.get(f"{name}/depthwise_weights")
        weight = tensors[f"{name}/weights"] if depthwise is None else depthwise.transpose(2, 3)
        layers += [_convolution(weight), *_norm(tensors, name, "").values()]
    return layers


def _convolution(weights: Tensor) -> Tensor:
    """Height, width, inputs, outputs to outputs, inputs, height, width."""
    return weights.permute(3, 2, 0, 1).contiguous()


def _norm(tensors: dict[str, Tensor], name: str, prefix: str) -> dict[str, Tensor]:
    norm = {f"{prefix}{ours}": tensors[f"{name}/BatchNorm/{theirs}"] for theirs, ours in _NORM.items()}
    return {**norm, f"{prefix}num_batches_tracked": torch.tensor(0)}
