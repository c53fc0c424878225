"""mmsegmentation's DeepLabV3: ResNets, plain, v1c and v1d, with its ``ASPPHead``."""

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
    colours_reversed,
    rates_at_16,
    renamed,
    resnet_of,
    without,
)
from atrous.ops.normalization import IMAGENET

AUXILIARY = "auxiliary_head."
_HEADS = {
    "decode_head.c1_bottleneck.": "a DeepLabV3+",
    "decode_head.psp_modules.": "a PSPNet or UPerNet",
    "decode_head.aspp_modules.1.depthwise_conv.": "a DeepLabV3+ with separable convolutions",
    "decode_head.conv_seg.": "another head",
}

_MOST_TEXT = 100_000
"""Characters of a configuration that are searched."""


def read(checkpoint: Checkpoint, choices: Choices) -> Converted | None:
    """A `Reader`. Output stride and rates are read from the configuration in ``meta`` where it is there."""
    if not checkpoint.starts("decode_head."):
        return None
    head = next((name for key, name in _HEADS.items() if checkpoint.starts(key)), "another head")
    if "separable" in head or "DeepLabV3+" in head or not checkpoint.has("decode_head.bottleneck.conv.weight"):
        raise ValueError(f"it is {head} of mmsegmentation; expected its DeepLabV3 (ASPPHead)")
    if checkpoint.starts("backbone.stage", "backbone.layers.", "backbone.conv0.") or not checkpoint.starts(
        "backbone.layer4."
    ):
        raise ValueError("its backbone is no ResNet of mmsegmentation, which alone is known here")
    tensors = without(checkpoint.tensors, [AUXILIARY])
    dropped = ("the auxiliary head, which serves training alone",) if checkpoint.starts(AUXILIARY) else ()
    backbone = resnet_of(tensors)
    text = checkpoint.meta.get("config") or checkpoint.meta.get("cfg")
    text = text[:_MOST_TEXT] if isinstance(text, str) else ""
    guesses: list[str] = []
    stride = choices.output_stride or _stride(text)
    if not stride:
        stride = 8
        guesses.append("output stride 8, as most of its configurations have (--output-stride)")
    count = len({key.split(".")[2] for key in tensors if key.startswith("decode_head.aspp_modules.")})
    rates = choices.aspp_rates or _rates(text, count)
    if not rates:
        rates = tuple(rate * 8 // stride for rate in (12, 24, 36))
        guesses.append(f"ASPP's rates {', '.join(map(str, rates))}, as its configurations have (--aspp-rates)")
    filters = len(tensors["decode_head.bottleneck.conv.weight"])
    average = "backbone.layer2.0.downsample.1.running_mean" not in tensors
    arguments: dict[str, Any] = {
        "backbone": backbone, "aspp_rates": rates_at_16(rates, stride), "aspp_filters": filters, "aspp_projection": 3,
        "upsampling": "half_pixel", "stride_in": "first", "consistent_rates": True,
    }  # fmt: skip
    if checkpoint.starts("backbone.stem."):
        arguments["stem"] = [len(tensors[f"backbone.stem.{place}.weight"]) for place in (0, 3, 6)]
    if average:
        arguments["average_shortcut"] = True
    if "backbone.layer4.0.conv3.weight" not in tensors:
        arguments["convention"] = "mmsegmentation"
    names, palette = _classes(checkpoint.meta)
    ours, mean, std = _ours(tensors, count, filters), *_normalisation(text)
    if re.search(r"to_rgb['\"]?\s*[=:]\s*False", text):
        ours, mean, std = colours_reversed(ours), mean[::-1], std[::-1]
    return Converted(
        "mmsegmentation", arguments, ours, stride, mean=mean, std=std, names=names, palette=palette,
        guesses=tuple(guesses), dropped=dropped,
    )  # fmt: skip


def _ours(tensors: dict[str, Tensor], count: int, filters: int) -> dict[str, Tensor]:
    branches = ["pointwise", *(f"atrous.{i}" for i in range(count - 1))]
    places = {f"aspp_modules.{i}": branch for i, branch in enumerate(branches)}
    places |= {"image_pool.1": "image_pooling.project", "bottleneck": "project"}
    keys = {"decode_head.conv_seg.": "classifier."}
    for theirs, ours in places.items():
        keys |= {f"decode_head.{theirs}.conv.": f"head.{ours}.0.", f"decode_head.{theirs}.bn.": f"head.{ours}.1."}
    keys |= {"backbone.stem.7.": "backbone.bn1.", "backbone.stem.": "backbone.conv1."}
    moved = renamed(tensors, keys)
    # v1d: the average before a strided shortcut has a place of its own among its layers, and no parameters.
    moved = {re.sub(r"(\.downsample)\.([12])\.", _shifted(tensors), key): value for key, value in moved.items()}
    pooling, rest = torch.split(moved["head.project.0.weight"], [filters, count * filters], 1)  # theirs comes first
    return {**moved, "head.project.0.weight": torch.cat([rest, pooling], 1)}


def _shifted(tensors: dict[str, Tensor]) -> Any:
    """A replacement for `re.sub`: the place of a layer in a shortcut, without the average's."""

    def place(match: re.Match[str]) -> str:
        start = match.string[: match.start()]
        has_average = f"{start}.downsample.2.running_mean" in tensors
        return f"{match[1]}.{int(match[2]) - has_average}."

    return place


def _stride(config: str) -> int | None:
    """The output stride in the text of a configuration: 4, and a factor for each stage."""
    match = re.search(r"backbone=.*?strides=\((\d), (\d), (\d), (\d)\)", config, re.DOTALL)
    if match is None:
        return None
    stride = 4
    for factor in match.groups():
        stride *= int(factor)
    return stride if stride in (8, 16, 32) else None


def _rates(config: str, count: int) -> tuple[int, ...]:
    match = re.search(r"decode_head=.*?dilations=\(([\d, ]+)\)", config, re.DOTALL)
    rates = tuple(int(word) for word in match[1].split(",") if word.strip()) if match else ()
    return rates[1:] if len(rates) == count and rates[0] == 1 else ()


def _normalisation(config: str) -> tuple[Colour, Colour]:
    """Mean and standard deviation in the text of a configuration, else ImageNet's; white is 1."""
    matches = [re.search(rf"\b{key}=\[([\d., ]+)\]", config) for key in ("mean", "std")]
    values = [[float(word) / 255 for word in match[1].split(",") if word.strip()] for match in matches if match]
    if [len(value) for value in values] != [3, 3] or min(values[1]) <= 0:
        return IMAGENET.mean, IMAGENET.std
    (red, green, blue), (r, g, b) = values
    return (red, green, blue), (r, g, b)


def _classes(meta: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    dataset = meta.get("dataset_meta") or meta
    names = dataset.get("classes") or dataset.get("CLASSES") or ()
    palette = dataset.get("palette") or dataset.get("PALETTE") or ()
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError("the names of its classes are no list of words")
    return tuple(names), tuple((int(r), int(g), int(b)) for r, g, b in palette)
