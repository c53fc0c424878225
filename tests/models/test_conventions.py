"""Backbones with the rates and padding of other libraries: kept by the weight file, refused where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from atrous.models.conventions import padding_without_a_stem
from atrous.models.deeplab import DeepLabV3
from atrous.models.publish import save_pretrained
from atrous.models.weights import load
from foreign import shaken


@pytest.mark.parametrize(
    ("backbone", "options", "words"),
    [
        ("resnet18", {"convention": "smp"}, "convention is 'smp', expected one of '', 'mmsegmentation'"),
        ("timm/lcnet_050", {"convention": "mine"}, "convention is 'mine', expected one of '', 'smp', 'hugging"),
        ("timm/lcnet_050", {"convention": "vainf"}, "'vainf' is for timm/mobilenetv2_..., not timm/lcnet_050"),
        (
            "timm/lcnet_050", {"convention": "smp", "multi_grid": (1, 2, 4)},
            "multi_grid and the cascade have rates of their own, and convention is 'smp'",
        ),
    ],
)  # fmt: skip
def test_a_convention_that_a_network_has_not_is_refused(backbone: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DeepLabV3(backbone, 2, **options)


def test_it_is_kept_by_the_weight_file(tmp_path: Path) -> None:
    model = shaken(DeepLabV3("timm/lcnet_050", 2, convention="smp", aspp_filters=8))
    save_pretrained(model, tmp_path, half=False)
    again, card = load(tmp_path)
    image = torch.randn(1, 3, 65, 97)
    assert card.arguments["convention"] == "smp"
    assert torch.equal(again(image), model(image))
    plain = DeepLabV3("timm/lcnet_050", 2, aspp_filters=8).eval()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain(image), model(image))


def test_an_image_is_padded_to_as_many_features_as_with_a_padded_stem() -> None:
    for stride in (8, 16, 32):
        for side in range(1, 100):
            padded = side + padding_without_a_stem(side, stride)
            assert -(-((padded - 3) // 2 + 1) // (stride // 2)) == -(-side // stride)
            assert padded - side == max(0, 2 - (side - 1) % stride)
