"""A checkpoint that is not what is expected: one message with all differences, and what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import segmentation

from atrous.models.interchange.base import Choices
from atrous.models.interchange.convert import convert
from atrous.models.weights import load
from foreign import shaken

ONE = torch.zeros(1)
FILTER = torch.zeros(2, 2, 1, 1)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return shaken(
        segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    ).state_dict()


def saved(tensors: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "net.pth"
    torch.save(tensors, path)
    return path


ENCODER, STAGE = {"encoder.conv1.weight": ONE}, {"backbone.layer4.0.conv1.weight": ONE}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {**ENCODER, "segmentation_head.0.weight": ONE, "decoder.aspp.0.convs.0.0.weight": ONE},
            "it is a DeepLabV3Plus of segmentation_models_pytorch; expected its DeepLabV3",
        ),
        (
            {**ENCODER, "segmentation_head.0.weight": ONE, "decoder.blocks.0.conv1.0.weight": ONE},
            "it is a Unet or a network like it of segmentation_models_pytorch",
        ),
        (
            {**ENCODER, "segmentation_head.0.weight": ONE, "decoder.psp.blocks.0.pool.1.0.weight": ONE},
            "it is a PSPNet or UPerNet of segmentation_models_pytorch",
        ),
        (
            {**STAGE, "decode_head.conv_seg.weight": ONE, "decode_head.c1_bottleneck.conv.weight": ONE},
            r"it is a DeepLabV3\+ of mmsegmentation; expected its DeepLabV3 \(ASPPHead\)",
        ),
        (
            {**STAGE, "decode_head.conv_seg.weight": ONE, "decode_head.psp_modules.0.1.conv.weight": ONE},
            "it is a PSPNet or UPerNet of mmsegmentation",
        ),
        ({**STAGE, "classifier.classifier.3.weight": ONE, "classifier.aspp.convs.0.0.weight": ONE}, "VainF's"),
        (
            {"backbone.res2.0.conv1.weight": ONE, "sem_seg_head.decoder.res2.project_conv.weight": ONE},
            r"it is a DeepLabV3\+ of detectron2; expected its DeepLabV3 \(DeepLabV3Head\)",
        ),
        ({"backbone.conv1.weight": ONE, "classifier.0.weight": FILTER}, "it is an FCN of torchvision"),
        ({"backbone.0.0.weight": ONE, "classifier.low_classifier.weight": ONE}, "it is an LR-ASPP of torchvision"),
        ({"logits/semantic/weights": ONE, "decoder/x": ONE}, r"it is a DeepLabv3\+ of research/deeplab"),
        ({"logits/semantic/weights": ONE, "xception_65/x": ONE}, "its backbone is xception_65 of research/deeplab"),
        (
            {"segformer.encoder.weight": ONE, "decode_head.classifier.weight": FILTER},
            "expected MobileNetV2ForSemanticSegmentation or MobileViT",
        ),
        (
            {"encoder.patch_embed1.proj.weight": ONE, "segmentation_head.0.weight": FILTER,
             "decoder.aspp.convs.0.0.weight": ONE},
            "its encoder is none of those that are known here: ResNets, ResNeXts, .*, and timm's .tu-NAME.",
        ),
        (
            {"backbone.stage4.0.weight": ONE, "classifier.classifier.4.weight": FILTER},
            "its backbone is HRNet; expected a ResNet or MobileNetV2",
        ),
        (
            {"conv1.weight": FILTER, "fc.weight": torch.zeros(1000, 2)},
            "a classifier of images, of 1,000 classes; expected a DeepLabv3; a backbone starts from it by --set",
        ),
        ({"what.weight": ONE, "ever.bias": ONE}, "a DeepLabv3 of none of torch.*it has 2 tensors, the first what"),
    ],
)  # fmt: skip
def test_another_network_is_named(tensors: dict[str, Tensor], words: str, tmp_path: Path) -> None:
    path = saved(tensors, tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        convert(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_all_differences_are_in_one_message(state: dict[str, Tensor], tmp_path: Path) -> None:
    changed = dict(state)
    del changed["classifier.1.weight"]
    changed["classifier.9.weight"] = ONE
    changed["classifier.2.weight"] = torch.zeros(7)
    changed["classifier.4.bias"] = torch.tensor([1.0, float("nan"), 0.0])
    with pytest.raises(ValueError, match="net.pth has 3 classes; expected as many names, found 2") as caught:
        convert(saved(changed, tmp_path), Choices(names=("a", "b")))
    for words in (
        "1 missing (head_conv.0.weight)", "1 unexpected (classifier.9.weight)",
        "1 of another shape (head_conv.1.weight (7,) for (256,))", "NaN or infinity in classifier.bias",
    ):  # fmt: skip
        assert words in str(caught.value), words
    with pytest.raises(ValueError, match="several classes named a; expected different names"):
        convert(saved(state, tmp_path), Choices(names=("a", "a", "b")))


def test_a_broken_or_missing_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"net\.pth"):
        convert(path)
    with pytest.raises(FileNotFoundError, match="no such file; expected a checkpoint"):
        convert(tmp_path / "none.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors nor pytorch_model.bin"):
        convert(tmp_path / "empty")
    with pytest.raises(ValueError, match="holds neither model.safetensors nor best/model.safetensors"):
        load(tmp_path / "empty")
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds list, expected a dictionary of tensors"):
        convert(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds no tensors; found epoch"):
        convert(path)
