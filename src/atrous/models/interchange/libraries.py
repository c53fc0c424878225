"""Networks of the libraries themselves, where they are installed: to compare a conversion with, and to convert back to.

net = build("torchvision", model)                         # random weights, with the layers that the model needs
put_back(model, net, "torchvision")                       # the model's weights, under the library's keys
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrous.models.aspp import FILTERS
from atrous.models.batch_norm import batch_norms_of
from atrous.models.deeplab import DeepLabV3
from atrous.models.interchange.base import Checkpoint, Choices, Converted, Reader
from atrous.models.interchange.convert import READERS
from atrous.models.interchange.smp import ENCODERS
from atrous.models.output_stride import Dial

PACKAGES = {"torchvision": "torchvision", "smp": "segmentation_models_pytorch", "huggingface": "transformers"}
"""By the word that `atrous convert --to` takes."""
_READS = {"torchvision": "torchvision", "smp": "segmentation_models_pytorch", "huggingface": "Hugging Face"}
_INSTALL = {"smp": "segmentation-models-pytorch", "huggingface": "transformers"}


def library_word(name: str) -> str | None:
    """The key of `PACKAGES` for a key of `READERS`, if that library is installed."""
    word = next((word for word, reader in _READS.items() if reader == name), None)
    return word if word and importlib.util.find_spec(PACKAGES[word]) else None


def build(library: str, model: DeepLabV3) -> nn.Module:
    """The network of a library that has the layers of a model, with random weights, in ``eval()``.

    Raises:
        ValueError: if the library has no such network, with what it has; or is not installed.
    """
    if library not in PACKAGES:
        raise ValueError(f"there is no way back to {library!r}; there is one to {', '.join(PACKAGES)}")
    if importlib.util.find_spec(PACKAGES[library]) is None:
        raise ValueError(f"{PACKAGES[library]} is not installed: pip install {_INSTALL.get(library, library)}")
    arguments = model.arguments
    expected = {"head": "aspp", "last_block": 4, "aspp_pointwise": True, "image_pooling": True, "aspp_projection": 1}
    different = [
        f"{key} {arguments[key]!r}, not {value!r}" for key, value in expected.items() if arguments[key] != value
    ]
    if arguments["convention"] not in ("", library):
        different.append(f"convention {arguments['convention']!r}")
    try:
        return _BUILDERS[library](model, different).eval()
    except _NoSuchNetwork as error:
        raise ValueError(f"{library} has no such network: the model has {error}") from None


class _NoSuchNetwork(Exception):
    """What a model has that a library's network has not."""


def _require(different: list[str], arguments: Mapping[str, Any], **expected: Any) -> None:
    different = different + [
        f"{key} {arguments[key]!r}, not {value!r}" for key, value in expected.items() if arguments[key] != value
    ]
    if different:
        raise _NoSuchNetwork(", ".join(different))


def _torchvision(model: DeepLabV3, different: list[str]) -> nn.Module:
    from torchvision.models import segmentation

    arguments, backbone = model.arguments, str(model.arguments["backbone"])
    names = {"resnet50": "deeplabv3_resnet50", "resnet101": "deeplabv3_resnet101"}
    names |= {"timm/mobilenetv3_large_100": "deeplabv3_mobilenet_v3_large"}
    if backbone not in names:
        raise _NoSuchNetwork(f"the backbone {backbone}, not one of {', '.join(names)}")
    mobile = "mobile" in backbone
    layout: dict[str, Any] = {"multi_grid": None, "consistent_rates": True, "stem": []}
    layout = {"multi_grid": [1, 1, 1]} if mobile else layout
    rates = [12, 24, 36] if mobile else [6, 12, 18]
    _require(different, arguments, head_conv=True, aspp_filters=FILTERS, aspp_rates=rates, **layout)
    net: nn.Module = getattr(segmentation, names[backbone])(
        weights=None, weights_backbone=None, num_classes=model.num_classes, aux_loss=False
    )
    return net


def _smp(model: DeepLabV3, different: list[str]) -> nn.Module:
    import segmentation_models_pytorch as smp

    arguments, stride = model.arguments, model.output_stride
    backbone = str(arguments["backbone"])
    ours = backbone.startswith("resnet")
    layout = {"stem": [], "average_shortcut": False, "consistent_rates": False} if ours else {"consistent_rates": True}
    layout = {} if arguments["convention"] else layout
    encoder = ENCODERS.get(backbone) if arguments["convention"] else f"tu-{backbone.removeprefix('timm/')}"
    if encoder is None:
        raise _NoSuchNetwork(f"the backbone {backbone}, not one of {', '.join(ENCODERS)}")
    _require(different, arguments, head_conv=True, multi_grid=None, **layout)
    if len(arguments["aspp_rates"]) != 3 or stride not in (8, 16):
        raise _NoSuchNetwork(f"ASPP's rates {arguments['aspp_rates']} at output stride {stride}")
    net: nn.Module = smp.DeepLabV3(
        backbone if ours else encoder, encoder_weights=None, classes=model.num_classes,
        encoder_output_stride=stride, decoder_channels=arguments["aspp_filters"],
        decoder_atrous_rates=Dial(stride).aspp_rates(arguments["aspp_rates"]),
    )  # fmt: skip
    return net


def _huggingface(model: DeepLabV3, different: list[str]) -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    arguments = model.arguments
    backbone = str(arguments["backbone"])
    if arguments["convention"] == "huggingface":
        return _mobilevit(model, different)
    if different:
        raise _NoSuchNetwork(", ".join(different))
    if "mobilenetv2_" not in backbone or backbone[-3:] not in ("035", "050", "075", "100", "140"):
        raise _NoSuchNetwork(
            f"the backbone {backbone}, not a timm/mobilenetv2_... or timm/tf_mobilenetv2_..., nor a MobileViT of its"
        )
    _require(different, arguments, head_conv=False, aspp_rates=[], multi_grid=None, aspp_filters=FILTERS)
    eps = next(batch_norms_of(model.backbone)).eps
    config = MobileNetV2Config(
        num_labels=model.num_classes, depth_multiplier=int(backbone[-3:]) / 100, output_stride=model.output_stride,
        tf_padding="tf_" in backbone, layer_norm_eps=eps,
    )  # fmt: skip
    net: nn.Module = MobileNetV2ForSemanticSegmentation(config)
    return net


def _mobilevit(model: DeepLabV3, different: list[str]) -> nn.Module:
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

    arguments, state = model.arguments, model.state_dict()
    _require(different, arguments, head_conv=False, multi_grid=None)
    if len(arguments["aspp_rates"]) != 3:
        raise _NoSuchNetwork(f"ASPP's rates {arguments['aspp_rates']}")
    stages = [state[f"backbone.net.stages_{i}.0.conv3_1x1.conv.weight"] for i in range(5)]
    widths = [len(state["backbone.net.stem.conv.weight"]), *map(len, stages)]
    config = MobileViTConfig(
        num_labels=model.num_classes, output_stride=model.output_stride, neck_hidden_sizes=[*widths, 4 * widths[-1]],
        hidden_sizes=[len(state[f"backbone.net.stages_{i}.1.norm.weight"]) for i in (2, 3, 4)],
        expand_ratio=stages[4].shape[1] / widths[-2], aspp_out_channels=arguments["aspp_filters"],
        atrous_rates=list(Dial(model.output_stride).aspp_rates(arguments["aspp_rates"])),
    )  # fmt: skip
    net: nn.Module = MobileViTForSemanticSegmentation(config)
    return net


_BUILDERS: dict[str, Callable[[DeepLabV3, list[str]], nn.Module]] = {
    "torchvision": _torchvision,
    "smp": _smp,
    "huggingface": _huggingface,
}


@torch.no_grad()
def put_back(model: DeepLabV3, net: nn.Module, library: str) -> None:
    """Load a model's weights into the network of a library.

    The library's reader is run on numbers that say where each weight came from, and is then followed backwards: so the
    way there and the way back are one.

    Args:
        model: in float32.
        net: from `build`.
        library: a key of `PACKAGES`.
    """
    state = net.state_dict()
    places, start = {}, 0
    for key, value in state.items():
        places[key] = torch.arange(start, start + value.numel(), dtype=torch.float64).view(value.shape)
        start += value.numel()
    converted = _read(READERS[_READS[library]], places, net, model)
    flat = torch.cat([value.flatten().double() for value in state.values()])
    for key, value in _with_their_epsilon(model, converted).items():
        flat[converted.tensors[key].flatten().long()] = value.flatten().double()
    net.load_state_dict(
        {
            key: flat[place.flatten().long()].view(place.shape).to(state[key].dtype)
            for key, place in places.items()
        }
    )  # fmt: skip


def _read(read: Reader, tensors: dict[str, Tensor], net: nn.Module, model: DeepLabV3) -> Converted:
    config: Any = getattr(net, "config", None)
    meta: dict[str, Any] = {}
    if hasattr(config, "to_dict"):  # with a processor that gives red first, as is written beside it
        meta = {"config": config.to_dict(), "preprocessor": {"do_flip_channel_order": False}}
    choices = Choices(backbone=str(model.arguments["backbone"]), output_stride=model.output_stride)
    converted = read(Checkpoint(Path("the network"), tensors, meta), choices)
    assert converted is not None
    return converted


def _with_their_epsilon(model: DeepLabV3, converted: Converted) -> dict[str, Tensor]:
    """The model's tensors, with variances for what the library's batch norm adds to them."""
    state = dict(model.state_dict())
    for part, theirs in zip(("backbone", "head", "head_conv"), (*converted.epsilon, converted.epsilon[1]), strict=True):
        module = model.get_submodule(part)
        for name, norm in module.named_modules():
            if theirs is not None and isinstance(norm, nn.modules.batchnorm._BatchNorm):
                key = f"{part}.{name}.running_var"
                state[key] = state[key] + norm.eps - theirs
    return {key: value for key, value in state.items() if key in converted.tensors}


@torch.no_grad()
def largest_difference(model: DeepLabV3, net: nn.Module, images: list[Tensor]) -> float:
    """Of the logits of two networks, relative to the largest, in float64.

    Args:
        model: ours.
        net: the library's.
        images: normalised, 1,3,H,W.
    """
    largest = 0.0
    ours, theirs = model.double(), net.double()
    for image in images:
        out = theirs(image.double())
        expected = out["out"] if isinstance(out, dict) and "out" in out else getattr(out, "logits", out)
        expected = (
            F.interpolate(expected, image.shape[-2:], mode="bilinear", align_corners=False)
            if (expected.shape[-2:] != image.shape[-2:])
            else expected
        )
        largest = max(largest, float((ours(image.double()) - expected).abs().max() / expected.abs().max()))
    model.float(), net.float()
    return largest
