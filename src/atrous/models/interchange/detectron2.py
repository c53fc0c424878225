"""DeepLabV3 of detectron2's project DeepLab, with a ResNet."""

from __future__ import annotations

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
)

_STAGES = {f"backbone.res{number + 1}.": f"backbone.layer{number}." for number in range(1, 5)}
_HEAD = {
    "sem_seg_head.aspp.convs.0.": "head.pointwise.",
    "sem_seg_head.aspp.convs.1.": "head.atrous.0.",
    "sem_seg_head.aspp.convs.2.": "head.atrous.1.",
    "sem_seg_head.aspp.convs.3.": "head.atrous.2.",
    "sem_seg_head.aspp.project.": "head.project.",
}
_POOLING = "sem_seg_head.aspp.convs.4.1."


def read(checkpoint: Checkpoint, choices: Choices) -> Converted | None:
    """A `Reader`. Multi-grid 1, 2, 4 and output stride 16 are its configuration's, which the file does not hold."""
    if not checkpoint.starts("sem_seg_head.", "backbone.res2."):
        return None
    if checkpoint.starts("sem_seg_head.decoder."):
        raise ValueError("it is a DeepLabV3+ of detectron2; expected its DeepLabV3 (DeepLabV3Head)")
    if not checkpoint.has("sem_seg_head.aspp.convs.0.weight", "sem_seg_head.predictor.weight", f"{_POOLING}bias"):
        raise ValueError("it is a network of detectron2, but not its DeepLabV3 (DeepLabV3Head)")
    theirs = {key: value for key, value in checkpoint.tensors.items() if not key.startswith("pixel_")}
    tensors = _ours(theirs)
    stride, guesses = choices.output_stride or 16, ["multi-grid 1, 2, 4, as its configurations have"]
    if not choices.output_stride:
        guesses.append("output stride 16, as its configurations have (--output-stride)")
    guesses.append("pooling over the whole map, where its training pools over the crop")
    rates = rates_at_16(choices.aspp_rates or [rate * 16 // stride for rate in (6, 12, 18)], stride)
    arguments = {
        "backbone": resnet_of(tensors), "aspp_rates": rates, "multi_grid": [1, 2, 4], "upsampling": "half_pixel",
        "aspp_filters": len(tensors["head.project.0.weight"]), "stride_in": "first",
    }  # fmt: skip
    if "backbone.conv1.0.weight" in tensors:
        arguments["stem"] = [len(tensors[f"backbone.conv1.{place}.weight"]) for place in (0, 3, 6)]
    mean, std = _normalisation(checkpoint.tensors)
    if mean[0] < mean[2]:  # ImageNet's mean, blue first
        tensors, mean, std = colours_reversed(tensors), mean[::-1], std[::-1]
    return Converted("detectron2", arguments, tensors, stride, mean=mean, std=std, guesses=tuple(guesses))


def _ours(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    deep = "backbone.stem.conv2.weight" in theirs
    stem = {"backbone.stem.conv1.norm.": "backbone.bn1.", "backbone.stem.conv1.": "backbone.conv1."}
    if deep:
        stem = {
            "backbone.stem.conv1.norm.": "backbone.conv1.1.", "backbone.stem.conv1.": "backbone.conv1.0.",
            "backbone.stem.conv2.norm.": "backbone.conv1.4.", "backbone.stem.conv2.": "backbone.conv1.3.",
            "backbone.stem.conv3.norm.": "backbone.bn1.", "backbone.stem.conv3.": "backbone.conv1.6.",
        }  # fmt: skip
    tensors = {}
    for key, value in renamed(theirs, {**stem, **_STAGES}).items():
        for part, (conv, norm) in {
            "shortcut": ("downsample.0", "downsample.1"), "conv1": ("conv1", "bn1"), "conv2": ("conv2", "bn2"),
            "conv3": ("conv3", "bn3"),
        }.items():  # fmt: skip
            if key.startswith("backbone.layer"):
                key = key.replace(f".{part}.norm.", f".{norm}.").replace(f".{part}.weight", f".{conv}.weight")
        tensors[key] = value
    for prefix, ours in _HEAD.items():
        for key in [key for key in tensors if key.startswith(prefix)]:
            rest = key.removeprefix(prefix)
            place = f"1.{rest.removeprefix('norm.')}" if rest.startswith("norm.") else f"0.{rest}"
            tensors[ours + place] = tensors.pop(key)
    weight, bias = tensors.pop(f"{_POOLING}weight"), tensors.pop(f"{_POOLING}bias")
    pooling = "head.image_pooling.project."
    tensors |= _norm_of_bias(f"{pooling}1.", bias) | {f"{pooling}0.weight": weight}
    return renamed(tensors, {"sem_seg_head.predictor.": "classifier."})


def _norm_of_bias(prefix: str, bias: Tensor, epsilon: float = 1e-5) -> dict[str, Tensor]:
    """A batch norm that adds a bias: their image-level features have one in place of batch norm."""
    ones = torch.ones_like(bias)
    return {
        f"{prefix}weight": ones, f"{prefix}bias": bias, f"{prefix}running_mean": torch.zeros_like(bias),
        f"{prefix}running_var": ones - epsilon, f"{prefix}num_batches_tracked": torch.tensor(0),
    }  # fmt: skip


def _normalisation(tensors: dict[str, Tensor]) -> tuple[Colour, Colour]:
    """Mean and standard deviation, white being 1, in the order of the channels that the network reads."""
    mean, std = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # its DeepLab configurations', red first
    if "pixel_mean" in tensors and "pixel_std" in tensors:
        mean, std = (_three(tensors[key]) for key in ("pixel_mean", "pixel_std"))
    return _three(torch.tensor(mean, dtype=torch.float64) / 255), _three(torch.tensor(std, dtype=torch.float64) / 255)


def _three(values: Tensor) -> Colour:
    red, green, blue = values.flatten().double().tolist()
    return red, green, blue
