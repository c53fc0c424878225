"""How far converted checkpoints are from the networks that wrote them, for `python -m benchmarks.checkpoints`.

Every network has random weights; it is saved as its library saves it, converted, and both run in float64 on random
images. Prints the largest difference of the logits, relative to the largest logit, one line a network, or why there is
none: the figures of docs/checkpoints.md. Networks of libraries that are not installed here are rebuilt in
tests/helpers/foreign.

    python -m benchmarks.checkpoints [WORD ...]          # those whose names hold all of the words
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrous.models.interchange.base import Choices
from atrous.models.interchange.convert import convert

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import foreign

SIZES = ((97, 129), (96, 128), (80, 115))
MULTIPLES = ((96, 128), (64, 96), (48, 80))
"""For libraries that take no other sizes."""
ON_THE_GRID = ((97, 129), (33, 49), (65, 97))
"""One more than a multiple of the stride, as the authors have them."""
NOT_AFTER_THE_GRID = ((96, 128), (99, 117), (80, 115))
"""VainF's MobileNetV2 has a feature less one or two pixels beyond a multiple of the stride."""
ENCODERS = (
    "resnet18", "resnet50", "tu-lcnet_050", "mobilenet_v2", "efficientnet-b0", "efficientnet-b1", "efficientnet-b2",
    "efficientnet-b3", "efficientnet-b4", "efficientnet-b5", "timm-efficientnet-b0", "timm-tf_efficientnet_lite0",
    "timm-mobilenetv3_small_100", "resnext50_32x4d", "se_resnet50", "mobileone_s0", "dpn68", "timm-skresnet18",
)  # fmt: skip
"""Of segmentation_models_pytorch, those that run on three images; all others that it has on the last of these alone."""
MOBILEVITS: dict[str, dict[str, Any]] = {
    "xxs": {"neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "hidden_sizes": [64, 80, 96], "expand_ratio": 2.0},
    "xs": {"neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384], "hidden_sizes": [96, 120, 144]},
    "s": {},
}


def torchvision(name: str) -> nn.Module:
    from torchvision.models import segmentation

    net: nn.Module = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4, aux_loss=True)
    return net


def smp(encoder: str, stride: int) -> nn.Module:
    import segmentation_models_pytorch

    net: nn.Module = segmentation_models_pytorch.DeepLabV3(
        encoder, encoder_weights=None, classes=4, encoder_output_stride=stride
    )
    return net


def mobilenet(stride: int, tf_padding: bool) -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    config = MobileNetV2Config(num_labels=4, output_stride=stride, tf_padding=tf_padding)
    net: nn.Module = MobileNetV2ForSemanticSegmentation(config)
    return net


def mobilevit(size: str, stride: int) -> nn.Module:
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

    config = MobileViTConfig(num_labels=4, output_stride=stride, **MOBILEVITS[size])
    net: nn.Module = MobileViTForSemanticSegmentation(config)
    return net


Case = tuple[str, Callable[[], nn.Module], Choices, tuple[tuple[int, int], ...]]


def encoders() -> dict[str, tuple[tuple[int, int], ...]]:
    """All encoders of segmentation_models_pytorch, and sizes of images."""
    from segmentation_models_pytorch.encoders import encoders

    return {**dict.fromkeys(encoders, MULTIPLES[-1:]), **dict.fromkeys(ENCODERS, MULTIPLES)}


def cases() -> Iterator[Case]:
    """Name, network, what its checkpoint does not say, and sizes of images."""
    for name in ("deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large"):
        yield f"torchvision {name}", partial(torchvision, name), Choices(), SIZES
    for stride in (8, 16):
        said = Choices(output_stride=stride)
        for encoder, sizes in encoders().items():
            yield f"smp {encoder} at {stride}", partial(smp, encoder, stride), Choices(), sizes
        for depth, kind in (
            (50, "plain"),
            (50, "v1c"),
            (50, "v1d"),
            (101, "v1c"),
            (18, "v1c"),
            (18, "v1d"),
            (34, "v1c"),
        ):
            yield (f"mmsegmentation ResNet-{depth} {kind} at {stride}",
                   partial(foreign.MMSegmentation, kind, output_stride=stride, depth=depth), said, SIZES)  # fmt: skip
        yield f"VainF ResNet-50 at {stride}", partial(foreign.VainF, output_stride=stride), said, SIZES
        yield (f"VainF MobileNetV2 at {stride}", partial(foreign.VainFMobileNet, output_stride=stride), said,
               NOT_AFTER_THE_GRID)  # fmt: skip
        for padding in (True, False):
            yield (f"huggingface MobileNetV2 at {stride}, tf_padding {padding}",
                   partial(mobilenet, stride, padding), Choices(), SIZES)  # fmt: skip
        for size in MOBILEVITS:
            yield (
                f"huggingface MobileViT {size} at {stride}",
                partial(mobilevit, size, stride),
                Choices(),
                SIZES,
            )
    for deep in (True, False):
        yield f"detectron2 deep stem {deep}", partial(foreign.Detectron2, deep), Choices(), MULTIPLES
    yield "research/deeplab MobileNetV2 as .npz", foreign.mobilenet_of_transformers, Choices(), ON_THE_GRID


@torch.no_grad()
def largest_difference(
    name: str, make: Callable[[], nn.Module], choices: Choices, sizes: tuple[tuple[int, int], ...]
) -> float:
    """Of the logits of random images, relative to the largest."""
    images = [torch.rand(1, 3, *size, dtype=torch.float64) * 2 - 1 for size in sizes]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        net = foreign.shaken(make())
        if name.startswith("research"):
            path /= "net.npz"
            np.savez(path, **foreign.tensorflow_names(net))
        elif hasattr(net, "save_pretrained"):
            net.save_pretrained(path)
        else:
            path /= "net.pth"
            torch.save(net.state_dict(), path)
        net = net.double()
        theirs = [_logits(net(image.flip(1) if "MobileViT" in name else image)) for image in images]
        del net  # the largest has 7 GB
        model, _ = convert(path, choices)
    model, differences = model.double(), []
    for image, expected in zip(images, theirs, strict=True):
        if expected.shape[-2:] != image.shape[-2:]:
            corners = name.startswith("research")
            expected = F.interpolate(expected, image.shape[-2:], mode="bilinear", align_corners=corners)
        differences.append(float((model(image) - expected).abs().max() / expected.abs().max()))
    return max(differences)


def _logits(out: Any) -> Tensor:
    logits: Tensor = out["out"] if isinstance(out, dict) and "out" in out else getattr(out, "logits", out)
    return logits


if __name__ == "__main__":
    for name, make, choices, sizes in cases():
        if all(word in name for word in sys.argv[1:]):
            try:
                said = f"{largest_difference(name, make, choices, sizes):.1e}"
            except ValueError as error:  # the library's, which has no such network, or ours, which does not read it
                said = f"refused: {error}"
            print(f"{name}: {said}", flush=True)
