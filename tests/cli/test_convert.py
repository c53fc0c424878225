"""Checkpoints of other libraries at the command line: converted, told about, trained from, evaluated."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from atrous.cli.parser import main
from atrous.models.weights import digest, load, read_card
from atrous.prediction.predictor import Predictor
from foreign import shaken


def smp_network(classes: int = 4) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch, whose network it is")
    return shaken(
        smp.DeepLabV3(
            "tu-lcnet_050", encoder_weights=None, classes=classes, decoder_channels=16, decoder_atrous_rates=(2, 4, 6)
        )
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs") / "net"
    smp_network().save_pretrained(folder)
    return folder


def test_convert_says_the_difference_and_the_way_back_gives_the_same(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, names = tmp_path / "ours.safetensors", ["ground", "red", "green", "blue"]
    flags = [flag for name in names for flag in ("--name", name)]
    assert main(["convert", str(checkpoint), "--out", str(out), *flags, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["classes"] == names and said["largest_difference"] < 1e-6
    assert said["sha256"] == digest(load(out)[0]) and said["sha256"] in read_card(out).description
    assert main(["convert", str(out), "--to", "smp", "--out", str(tmp_path / "back"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_difference"] < 1e-6
    ours, back = load(out)[0].state_dict(), load(tmp_path / "back")[0].state_dict()
    assert all(torch.equal(ours[key], back[key]) for key in ours)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "x.pth"], "--out is x.pth, expected a file NAME.safetensors"),
        (["--out", "x.safetensors", "--name", "a"], "has 4 classes; expected as many names, found 1"),
        (["--out", "x.safetensors", "--to", "keras"], "there is no way back to 'keras'; there is one to torchvision"),
    ],
)
def test_a_slip_is_one_line(flags: list[str], said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(checkpoint), *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_predicts_and_its_classes_are_named(checkpoint: Path) -> None:
    image = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8).numpy()
    with warnings.catch_warnings(record=True):
        predictor = Predictor.load(checkpoint, names=["ground", "red", "green", "blue"], device="cpu")
    assert predictor(image).mask.shape == (40, 50) and predictor.labels.names == ("ground", "red", "green", "blue")
    with pytest.raises(ValueError, match="has 4 classes, names that differ are 2"):
        Predictor.load(checkpoint, names=["a", "b", "b"])


def test_what_was_assumed_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pth"
    config = {"encoder_name": "tu-lcnet_050", "decoder_atrous_rates": [2, 4, 6]}
    torch.save({"state_dict": smp_network().state_dict(), "config": config}, path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read_card(path)
        load(path)
        load(path)
    told = [str(each.message) for each in said if "assumed" in str(each.message)]
    assert len(told) == 1 and "read as a checkpoint of segmentation_models_pytorch; assumed output stride 8" in told[0]


def test_finetune_and_eval_and_predict_take_a_checkpoint(
    checkpoint: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(checkpoint), "--data", str(tiny_data), "--device", "cpu", "--json", "--ignore-class-names"]
    assert main(words) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["miou"] <= 1
    run = tmp_path / "run"
    words = ["train", "finetune", "--data", str(tiny_data), "--out", str(run), "--weights", str(checkpoint)]
    settings = ["--iterations", "2", "--batch-size", "2", "--set", "crop=33", "--device", "cpu", "--workers", "0"]
    assert main([*words, *settings]) == 0
    assert f"starts from {checkpoint}, as asked for" in " ".join(capsys.readouterr().err.split())
    card = read_card(run / "best" / "model.safetensors")
    arguments = card.arguments
    assert arguments["head_conv"] and arguments["aspp_filters"] == 16 and arguments["backbone"] == "timm/lcnet_050"
    assert arguments["consistent_rates"] and len(card.names) == 4
    photograph = next((tiny_data / "images" / "val").iterdir())
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), str(photograph), "--out", str(out), "--device", "cpu"]) == 0
    assert any(out.rglob("*.png"))


def test_predict_takes_a_pickle_for_the_model_that_it_is(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.pth"
    torch.save({"fc.weight": torch.zeros(1000, 8)}, path)
    photograph = next((tiny_data / "images" / "val").iterdir())
    assert main(["predict", str(path), str(photograph), "--out", str(tmp_path / "out")]) == 2
    assert "a classifier of images, of 1,000 classes" in " ".join(capsys.readouterr().err.split())


@pytest.mark.integration
def test_a_recipe_starts_from_torchvisions_file(tiny_data: Path, tmp_path: Path) -> None:
    from torchvision.models import segmentation

    path = tmp_path / "deeplabv3_resnet50_coco.pth"
    net = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    torch.save(shaken(net).state_dict(), path)
    words = ["train", "finetune", "--data", str(tiny_data), "--out", str(tmp_path / "run"), "--weights", str(path)]
    settings = ["--iterations", "2", "--batch-size", "2", "--set", "crop=33", "--device", "cpu", "--workers", "0"]
    assert main([*words, *settings]) == 0
    arguments = read_card(tmp_path / "run" / "best" / "model.safetensors").arguments
    assert arguments["head_conv"] and arguments["backbone"] == "resnet50" and arguments["stride_in"] == "first"


def test_a_backbone_starts_from_a_classifiers_file(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    path = tmp_path / "lcnet.pth"
    torch.save(shaken(timm.create_model("lcnet_050")).state_dict(), path)
    words = ["train", "finetune", "--data", str(tiny_data), "--out", str(tmp_path / "run"), "--weights", str(path)]
    settings = ["--set", "backbone=timm/lcnet_050", "--set", "multi_grid=null", "--set", "crop=33"]
    assert main([*words, *settings, "--iterations", "1", "--batch-size", "2", "--device", "cpu", "--workers", "0"]) == 0
    assert f"the backbone starts from {path}, a classifier" in " ".join(capsys.readouterr().err.split())
    assert read_card(tmp_path / "run" / "best" / "model.safetensors").arguments["stride_in"] == "first"


def test_a_network_that_the_library_does_not_build_converts_without_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.models import segmentation

    path, out = tmp_path / "net.pth", tmp_path / "ours.safetensors"
    net = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    torch.save(shaken(net).state_dict(), path)
    assert main(["convert", str(path), "--out", str(out), "--aspp-rates", "6", "12", "18"]) == 0
    assert "not compared, for torchvision has no such network: the model has aspp_rates [6, 12, 18]" in " ".join(
        capsys.readouterr().err.split()
    )
    assert read_card(out).arguments["aspp_rates"] == [6, 12, 18]
    assert main(["convert", str(out), "--out", str(tmp_path / "again.safetensors")]) == 2
    assert "is a weight file of atrous; convert --to LIBRARY gives one of that library" in capsys.readouterr().err
    assert main(["convert", str(path), "--out", str(out), "--output-stride", "7"]) == 2
    assert "output_stride is 7, expected one of" in capsys.readouterr().err
