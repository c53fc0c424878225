"""Files that are none of ours, and what is said of them; files of ours are in tests/deployment/test_export.py."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from atrous.cli.parser import main
from atrous.models import exported
from atrous.models.exported import SUFFIXES, Runtime, is_exported, open_file, openvino_runtime, requirement
from atrous.models.weights import load, read_card


def test_an_exported_file_is_known_by_its_ending() -> None:
    assert all(is_exported(f"a/model{suffix}") for suffix in SUFFIXES) and is_exported("MODEL.ONNX")
    assert not is_exported("model.safetensors") and not is_exported("runs/mine")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime is not installed: pip install 'atrous\[onnx\]'"):
        requirement("onnxruntime", "onnx")
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match="onnxruntime is not installed"):
        load(tmp_path / "model.onnx")


@pytest.mark.integration
@pytest.mark.parametrize("amx", [True, False])
def test_openvino_is_told_of_no_amx_at_its_first_network_alone(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO, which is told")
    told: list[str | None] = []
    compiled = openvino.compile_model
    monkeypatch.setattr(exported, "has_amx", lambda: amx)
    monkeypatch.setattr(exported, "_run_first_network", exported._run_first_network.__wrapped__)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(
        openvino, "compile_model", lambda *given: told.append(os.environ.get("ONEDNN_MAX_CPU_ISA")) or compiled(*given)
    )
    assert openvino_runtime() is openvino
    assert told == (["AVX512_CORE_BF16"] if amx else []) and "ONEDNN_MAX_CPU_ISA" not in os.environ
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # a user's own choice stays
    openvino_runtime()
    assert len(told) == amx and os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_a_litert_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model.tflite is a LiteRT file, which runs whole.*\.onnx, \.xml or \.pt2"):
        load(tmp_path / "model.tflite")


def test_an_exported_file_has_no_weights_to_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model.onnx is an exported file, which can only be run"):
        read_card(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["net.tflite", "net.ONNX", "net.h5", "net.pt2"])
def test_a_file_of_a_network_before_photographs_is_the_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"x")
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
    assert main(["predict", str(tmp_path / name), str(tmp_path / "photo.jpg"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and name in error
    assert "segmenting with" not in error and "not an image" not in error


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a" * 50])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_garbage(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=f"model{suffix} is not a whole {SUFFIXES[suffix]} file") as error:
        load(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_zip_file_that_is_none_of_ours(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/extra/atrous", "{}")
        archive.writestr("model/models/model.json", "{}")
    with pytest.raises(ValueError, match="has no model card of atrous in it"):
        load(tmp_path / "model.pt2")
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_file(tmp_path / "other.pt2")


@pytest.mark.parametrize(
    "info", ["", "[]", "{}", '{"output_stride": 0, "raw_input": 0, "logits": 0, "size": null}',
             '{"output_stride": 16, "raw_input": 0, "logits": 0, "size": 3}', "[" * 100000]
)  # fmt: skip
def test_metadata_that_is_not_well_formed(info: str) -> None:
    with pytest.raises(ValueError, match="is not well formed"):
        Runtime(Path("model.onnx"), {"atrous": "{}", "atrous_export": info}, "00")
