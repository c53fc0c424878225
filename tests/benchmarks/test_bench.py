"""`python -m benchmarks`: what is compared with what, on small cases, and what it says to a mistake."""

from __future__ import annotations

import json

import pytest

from benchmarks import baselines, timing
from benchmarks.__main__ import main, parser
from benchmarks.bench import WHAT, bench
from benchmarks.timing import Result

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "matrix_peak", lambda *_: 100.0)


def check(result: Result, names: list[str]) -> None:
    assert [row.name for row in result.rows] == names
    assert all(row.seconds > 0 and row.ratio > 0 for row in result.rows)
    assert result.rows[0].ratio == 1


def test_the_loss_agrees_with_interpolate_and_cross_entropy() -> None:
    result = bench("loss", size=65, batch=1, rounds=1, device="cpu")
    check(result, ["atrous, fused", "interpolate and cross_entropy"])
    assert result.rows[0].agreement is not None and result.rows[0].agreement < 1e-5
    assert result.setting["size"] == "65" and result.setting["batch"] == "1"


def test_the_forms_of_the_atrous_convolutions_agree() -> None:
    result = bench("conv", size=33, output_stride=16, rounds=1, device="cpu", fp32=True)
    check(result, ["rule float32", "window float32", "tap_gemm float32", "library float32"])
    assert all(row.agreement is None or row.agreement < 1e-4 for row in result.rows)
    assert all(row.gflop_per_second > 0 for row in result.rows)


def test_the_crops_are_compared_with_torchvisions_pipeline() -> None:
    names = ["atrous", "atrous, images cached", "torchvision reference", "Pillow, decoding alone"]
    check(bench("data", rounds=1, device="cpu"), names)


def test_a_peer_that_is_not_installed_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    monkeypatch.setitem(baselines.NEEDS, "openvino", ("no_such_module",))
    result = bench(
        "infer", peers=["openvino"], backbone="resnet18", output_stride=16, size=64, rounds=1, device="cpu", fp32=True
    )
    ours, padded, theirs = result.rows
    assert ours.name == "atrous fp32" and not ours.skipped and padded.note == "another convention"
    assert theirs.skipped and theirs.note == "skipped: no_such_module not installed"


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="no benchmark 'inference'; there are infer, train, loss, data, conv"):
        bench("inference")
    with pytest.raises(ValueError, match="no peer 'onnx'; there are torchvision, smp"):
        bench("infer", peers=["onnx"])
    with pytest.raises(ValueError, match="compile is for 'train', not 'loss'"):
        bench("loss", compile=True)
    for wrong in ({"rounds": 0}, {"batch": 0}, {"size": 32}):
        with pytest.raises(ValueError, match="must be at least"):
            bench("loss", **wrong)  # type: ignore[arg-type]
    assert set(WHAT) == {"infer", "train", "loss", "data", "conv"}


def test_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # noqa: ANN001
    out = tmp_path / "loss.json"
    arguments = ["loss", "--size", "33", "--batch", "1", "--rounds", "1", "--device", "cpu"]
    assert main([*arguments, "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads(out.read_text()) and printed["what"] == "loss" and len(printed["rows"]) == 2
    assert printed["machine"]["threads"] == 1 and printed["setting"]["clock"] == "processor"
    assert main(["infer", "--peers", "tensorflow"]) == 2
    assert "there is no peer 'tensorflow'" in capsys.readouterr().err


def test_the_flags_are_these() -> None:
    assert sorted(parser()._option_string_actions) == [
        "--backbone", "--batch", "--compile", "--device", "--fp32", "--help", "--json", "--out", "--output-stride",
        "--peers", "--rounds", "--size", "-b", "-h",
    ]  # fmt: skip
