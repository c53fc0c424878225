"""`atrous bench`: rows of the runtimes that are here, and one sentence of advice."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from atrous.cli.parser import main
from atrous.deployment.bench import RUNTIMES, Row, _Job, _scored, advice, choose
from atrous.models.weights import load, resolve


def row(name: str, milliseconds: float, miou: float | None) -> Row:
    return Row(name, milliseconds, milliseconds, milliseconds, 10**8, 10**6, miou)


def test_the_fastest_is_shipped_unless_it_loses_accuracy() -> None:
    rows = [row("eager", 40.0, 0.70), row("onnxruntime", 20.0, 0.70), row("onnxruntime-int8", 10.0, 0.65)]
    assert advice(rows, "atrous export runs/mine", "data") == (
        "Ship onnxruntime: 20.0 ms, 2.0 times as fast as eager, 1.0 MB, mIoU 70.0, the best being 70.0; made by: "
        "atrous export runs/mine --format onnx."
    )
    rows[2] = row("onnxruntime-int8", 10.0, 0.695)
    best = advice(rows, "atrous export runs/mine", "data")
    assert best.startswith("Ship onnxruntime-int8: 10.0 ms, 4.0 times as fast as eager")
    assert best.endswith("; made by: atrous export runs/mine --format onnx --int8 --data data.")
    assert advice([row("eager", 40.0, None)], "atrous export runs/mine") == "Ship eager: 40.0 ms, 1.0 MB."


def test_what_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names, skipped = choose(None, None)
    assert {"atrous", "eager"} <= set(names) and set(names) | set(skipped) == set(RUNTIMES)
    assert "needs --data" in skipped["onnxruntime-int8"]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else find_spec(name))
    assert choose(["openvino"], None)[1] == {
        "openvino": "openvino: openvino is not installed: pip install 'atrous[openvino]'"
    }
    assert main(["bench", "objects-mobilenetv2", "--runtimes", "openvino"]) == 2
    assert "pip install 'atrous[openvino]'" in capsys.readouterr().err
    assert main(["bench", "objects-mobilenetv2", "--runtimes", "onnx"]) == 2
    assert "there is no runtime 'onnx'; there are: atrous, eager" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.safetensors"])
def test_a_file_that_is_none_of_ours_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert main(["bench", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and name in error


def test_every_runtime_has_a_miou() -> None:
    """Without one, a compiled network would be advised whatever the others score."""
    model, card = load("objects-mobilenetv2")
    model.longest_side = None
    for name in ("compiled", "eager"):
        job = _Job(name, str(resolve("objects-mobilenetv2")), None, "data", (65, 65), 1)
        scored = _scored(job, model, card)
        assert scored.longest_side == card.longest_side and (scored is model) == (name == "eager")


@pytest.mark.integration
def test_two_runtimes_in_turns(trained: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--runtimes", "eager", "onnxruntime", "--rounds", "3", "--size", "65x65", "--data", str(tiny_data)]
    assert main(["bench", str(trained), *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [each["runtime"] for each in report["rows"]] == ["eager", "onnxruntime"]
    assert report["advice"].startswith("Ship ") and report["size"] == [65, 65]
    first, second = report["rows"]
    assert abs(first["miou"] - second["miou"]) < 0.01
    assert all(each["low"] <= each["milliseconds"] <= each["high"] and each["peak"] > 10**7 for each in report["rows"])
