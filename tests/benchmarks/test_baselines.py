"""The candidates of `python -m benchmarks infer` and `train` compute the same network; a small one, to be quick."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import pytest
import torch

from atrous.training.state import State
from benchmarks import baselines
from benchmarks.baselines import CLASSES, NEEDS, Pair
from benchmarks.timing import Candidate, Row

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("segmentation_models_pytorch") is None,
        reason="segmentation_models_pytorch, the peer at output stride 16",
    ),
]

CPU = torch.device("cpu")


@cache
def pair() -> Pair:
    return Pair("resnet18", 16, "smp")


@pytest.fixture
def one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests share a network, and so its export."""
    made = pair()
    monkeypatch.setattr(Pair, "__init__", lambda self, *_: setattr(self, "__dict__", made.__dict__))


def infer(names: list[str], fp32: bool = False) -> dict[str, Candidate | Row]:
    actual = baselines.infer(
        backbone="resnet18", output_stride=16, size=64, batch=1, peers=names, device=CPU, fp32=fp32
    )
    return {candidate.name: candidate for candidate in actual}


def logits(candidate: Candidate | Row) -> torch.Tensor:
    assert isinstance(candidate, Candidate)
    actual = candidate.run()
    actual = actual[0] if not isinstance(actual, torch.Tensor) else actual
    return torch.as_tensor(actual)


@pytest.mark.usefixtures("one_pair")
def test_ours_and_the_librarys_forms_agree() -> None:
    actual = infer(["smp", "torchvision"])
    padded = "atrous, padded to its own grid"
    assert list(actual) == ["atrous", "atrous fp32", "atrous bf16", padded, "smp", "smp bf16 autocast", "torchvision"]
    assert actual[padded].agreement is None and "another convention" in actual[padded].note
    for name, limit in {"atrous fp32": 1e-4, "atrous bf16": 0.3, "smp bf16 autocast": 0.3}.items():
        candidate = actual[name]
        assert candidate.agreement is not None and candidate.agreement < limit
        assert isinstance(candidate, Candidate) and candidate.gflop > 0.1
        assert logits(candidate).shape == (1, CLASSES, 64, 64)
    assert actual["smp"].agreement is None
    other = actual["torchvision"]
    assert isinstance(other, Row) and other.skipped and "smp's network" in other.note


@pytest.mark.usefixtures("one_pair")
@pytest.mark.parametrize(("peer", "name"), [("onnxruntime", "onnxruntime fp32"), ("openvino", "openvino f32")])
def test_the_exported_forms_agree(peer: str, name: str) -> None:
    for module in NEEDS[peer]:
        pytest.importorskip(module)
    actual = infer([peer], fp32=True)
    assert list(actual) == ["atrous fp32", "atrous fp32, padded to its own grid", name]
    assert actual[name].agreement is not None and actual[name].agreement < 1e-4
    assert logits(actual[name]).shape == (1, CLASSES, 64, 64)


@pytest.mark.usefixtures("one_pair")
def test_a_training_step_runs_and_who_does_not_train_says_so() -> None:
    actual = baselines.train(
        backbone="resnet18", output_stride=16, size=64, batch=2, peers=["smp", "openvino", "torchvision"], device=CPU
    )
    ran = [row.name for row in actual if isinstance(row, Candidate)]
    assert ran == ["atrous bf16", "atrous fp32", "smp bf16 autocast", "smp"]
    for row in actual:
        if isinstance(row, Candidate) and "bf16" not in row.name:
            row.run()
    assert [row.dtype for row in actual if isinstance(row, Candidate)] == [torch.bfloat16, torch.float32] * 2
    notes = {row.name: row.note for row in actual if isinstance(row, Row)}
    assert notes == {"openvino": "skipped: does not train", "torchvision": "skipped: compared on smp's network"}


@pytest.mark.usefixtures("one_pair")
def test_our_training_step_is_that_of_atrous_train(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []

    def noted(state: State, *given: Any) -> float:
        losses.append(take_step(state, *given))
        return losses[-1]

    take_step = State.take_step
    monkeypatch.setattr(State, "take_step", noted)
    rows = baselines.train(backbone="resnet18", output_stride=16, size=64, batch=2, peers=[], device=CPU)
    ours = next(row for row in rows if row.name == "atrous fp32")
    assert isinstance(ours, Candidate)
    for _ in range(2):
        ours.run()
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.usefixtures("one_pair")
def test_all_training_steps_are_compiled_or_none() -> None:
    actual = baselines.train(
        backbone="resnet18", output_stride=16, size=64, batch=2, peers=["smp"], device=CPU, compile="eager"
    )
    names = ["atrous bf16 compiled", "atrous fp32 compiled", "smp bf16 autocast compiled", "smp compiled"]
    assert [row.name for row in actual] == names
    for row in (actual[1], actual[3]):
        assert isinstance(row, Candidate)
        row.run()


def test_a_library_that_lacks_the_network_is_a_users_mistake() -> None:
    with pytest.raises(ValueError, match="torchvision has no DeepLabV3 with resnet18 at output stride 8"):
        Pair("resnet18", 8, "torchvision")
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(ValueError, match="segmentation_models_pytorch has no encoder 'timm/lcnet_050'"):
        Pair("timm/lcnet_050", 16, "smp")
    with pytest.raises(ValueError, match="size is 100, expected a multiple of 16"):
        baselines.infer(
            backbone="resnet18", output_stride=16, size=100, batch=1, peers=["smp"], device=CPU, fp32=True
        )  # fmt: skip


def test_a_setting_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEEDS, "smp", ("no_such_module",))
    with pytest.raises(ValueError, match="output stride 16 is compared on smp's weights: .*no_such_module"):
        infer(["smp"])
