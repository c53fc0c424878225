"""LiteRT files: converted by litert-torch, and run by LiteRT without this package.

litert-torch wants older versions of some packages that the other tests need, so that it may have an environment of its
own: ``ATROUS_LITERT_PYTHON`` names the Python of one that has both it and this package.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from atrous.cli.parser import main
from atrous.data.labels import voc_palette
from atrous.deployment.network import Interface, WholeNetwork
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import ModelCard, load, save
from atrous.ops.normalization import Normalization

PYTHON = os.environ.get("ATROUS_LITERT_PYTHON") or (sys.executable if importlib.util.find_spec("litert_torch") else "")
SIZE = (65, 83)


def write_weights(folder: Path, backbone: str, classes: int, head: str) -> Path:
    torch.manual_seed(0)
    options = {"head": "cascade", "last_block": 4} if head == "cascade" else {"aspp_rates": (1, 2)}
    model = DeepLabV3(backbone, classes, **options).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    names = tuple(f"class {i}" for i in range(classes))
    card = ModelCard(model.arguments, names, voc_palette(classes), model.mean, model.std, output_stride=16)
    save(model, folder / "small.safetensors", card)
    return folder / "small.safetensors"


@pytest.mark.integration
@pytest.mark.skipif(not PYTHON, reason="litert-torch is not here, and ATROUS_LITERT_PYTHON names no Python that has it")
@pytest.mark.parametrize(
    ("backbone", "classes", "head", "interface"),
    [
        ("timm/lcnet_050", 21, "aspp", Interface(size=SIZE)),
        ("timm/tf_efficientnet_lite0", 3, "cascade", Interface(raw_input=True, logits=True, size=SIZE)),
    ],
)
def test_a_litert_file(backbone: str, classes: int, head: str, interface: Interface, tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    source, out = write_weights(tmp_path, backbone, classes, head), tmp_path / "small.tflite"
    words = ["export", str(source), "--format", "litert", "--size", "65x83", "--out", str(out), "--json"]
    words += ["--raw-input"] * interface.raw_input + ["--logits"] * interface.logits
    done = subprocess.run([PYTHON, "-m", "atrous", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["parity"]["agreement"] >= 0.999 and report["parity"]["batches"] == [1]
    assert report["about"].startswith("takes float32 1,3,65,83" if interface.raw_input else "takes uint8 RGB 1,65,83,3")
    assert done.stderr.splitlines() == [f"exporting {backbone} at output stride 16"]

    model, card = load(source)
    content = schema.ModelT.InitFromPackedBuf(out.read_bytes(), 0)
    held = {entry.name.decode(): bytes(content.buffers[entry.buffer].data) for entry in content.metadata}
    assert ModelCard.from_json(held["atrous"].decode()) == card
    assert json.loads(held["atrous_export"])["size"] == [65, 83]
    images = torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8)
    if interface.raw_input:
        images = Normalization(model.mean, model.std)(images.permute(0, 3, 1, 2))
    with torch.no_grad():
        expected = WholeNetwork(model, interface).eval()(images).numpy()
    run = Interpreter(str(out)).get_signature_runner()
    actual = run(images=images.numpy())["logits" if interface.logits else "classes"]
    assert actual.dtype == expected.dtype
    if interface.logits:
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))
    else:
        assert (actual == expected).mean() >= 0.999


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a LiteRT file takes images of one size: say which, as in --size 480x640"),
        (["--size", "65x83", "--int8", "--data", "x"], "int8 is for onnx and openvino; found --format litert"),
        (["--size", "65x83"], "litert_torch is not installed: pip install 'atrous[litert]'"),
    ],
)
def test_what_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    source = write_weights(tmp_path, "timm/lcnet_050", 3, "aspp")
    command = ["export", str(source), "--format", "litert", *words, "--out", str(tmp_path / "small.tflite")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == ["small.safetensors"]
