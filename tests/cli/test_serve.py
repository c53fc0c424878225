"""`atrous serve`: its mistakes, and the names of its models. What it serves is tested in tests/serving."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the server needs pip install 'atrous[serve]'")

from atrous.cli import serve  # noqa: E402
from atrous.cli.parser import main  # noqa: E402
from atrous.data.labels import voc_palette  # noqa: E402
from atrous.deployment.export import export  # noqa: E402
from atrous.deployment.network import Interface  # noqa: E402
from atrous.models.deeplab import DeepLabV3  # noqa: E402
from atrous.models.weights import ModelCard, save  # noqa: E402
from atrous.serving.errors import Problem  # noqa: E402


@pytest.mark.parametrize(("arguments", "said"), [
    (["object"], "there is no weight file, run folder or named model 'object'"),
    (["a=objects-mobilenetv2", "a=objects-mobilenetv2"], "two models are named a"),
    (["--port", "99999"], "--port is 99999, expected 0 to 65535"),
    (["--port", "-1"], "--port is -1, expected 0 to 65535"),
    (["--queue", "0"], "queue is 0, expected a number above 0"),
    (["--workers", "0"], "--workers is 0, expected at least 1"),
    (["--label-studio-files", "nowhere"], "there is no folder nowhere"),
    (["a/b=objects-mobilenetv2"], "'a/b' is no name for a model"),
])  # fmt: skip
def test_mistakes_are_one_line(capsys: Any, arguments: list[str], said: str) -> None:
    port = [] if "--port" in arguments else ["--port", "0"]
    assert main(["serve", *arguments, *port]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0], lines


def test_without_the_extra_it_says_what_to_install(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "pip install 'atrous[serve]'" in capsys.readouterr().err


def test_names(tmp_path: Path) -> None:
    weights = tmp_path / "runs" / "mine" / "best" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    for word in (weights, weights.parent, weights.parent.parent):
        assert serve._name_and_source(str(word)) == ("mine", str(word))
    assert serve._name_and_source("objects-mobilenetv2") == ("objects-mobilenetv2", "objects-mobilenetv2")
    assert serve._name_and_source(f"street={weights}") == ("street", str(weights))


@pytest.mark.integration
def test_an_exported_file_is_served_with_its_cards_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DeepLabV3("timm/lcnet_050", 3).eval()
    card = ModelCard(model.arguments, ("a", "b", "c"), voc_palette(3), model.mean, model.std,
                     output_stride=16, licence="CC0", description="three things")  # fmt: skip
    save(model, tmp_path / "small.safetensors", card)
    file = export(tmp_path / "small.safetensors", tmp_path / "small.pt2", format="torch").path
    args = argparse.Namespace(models=[str(file)], device="cpu", output_stride=None, longest_side=None)
    [served] = serve._load(args, 10**6).values()
    assert (served.name, served.description, served.licence) == ("small", "three things", "CC0")


@pytest.mark.integration
def test_an_exported_file_of_one_size_is_served(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the runtime needs pip install 'atrous[onnx]'")
    torch.manual_seed(0)
    model = DeepLabV3("timm/lcnet_050", 3).eval()
    card = ModelCard(model.arguments, ("a", "b", "c"), voc_palette(3), model.mean, model.std, output_stride=16)
    save(model, tmp_path / "small.safetensors", card)
    file = export(tmp_path / "small.safetensors", tmp_path / "small.onnx", interface=Interface(size=(40, 51))).path
    args = argparse.Namespace(models=[str(file)], device="cpu", output_stride=None, longest_side=None)
    [served] = serve._load(args, 10**6).values()
    assert not served.batches and served.together((40, 51), None) is None
    photograph = io.BytesIO()
    Image.effect_noise((51, 40), 90).convert("RGB").save(photograph, "PNG")
    [result] = served.segment([photograph.getvalue()])
    assert result.mask.shape == (40, 51)
    served.check_size((40, 51), "body")
    with pytest.raises(Problem) as caught:
        served.check_size((64, 96), "inputs.0.data.1")
    assert caught.value.as_dict() == {
        "error": "this model takes images of one size", "status": 422, "field": "inputs.0.data.1", "found": "96x64",
        "expected": "51x40, or a model exported with --size dynamic",
    }  # fmt: skip


def test_limits_are_those_of_the_flags() -> None:
    args = argparse.Namespace(max_pixels=5, queue=None, deadline=2.5, grace=None, max_body=1.5)
    limits = serve._limits(args)
    assert (limits.pixels, limits.deadline, limits.body_bytes, limits.queue) == (5, 2.5, 1_500_000, 64)


@pytest.mark.parametrize(("host", "address"), [
    ("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://localhost:80"), ("::1", "http://[::1]:80"),
])  # fmt: skip
def test_the_address_can_be_clicked(host: str, address: str) -> None:
    assert serve._address(host, 80) == address
