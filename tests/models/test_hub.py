"""The Hugging Face hub: what is uploaded comes back, pinned and checked; what cannot be had is one line."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from atrous.models import hub
from atrous.models.deeplab import DeepLabV3
from atrous.models.hub import is_hub_name
from atrous.models.publish import metadata, readme
from atrous.models.weights import ModelCard, load, names, read_card, resolve
from atrous.prediction.predictor import Predictor
from hub_server import Hub

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub, which asks the hub")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        for key, value in {
            "ENDPOINT": server.address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": True,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_TOKEN_PATH": str(tmp_path / "token"), "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
        }.items():  # fmt: skip
            monkeypatch.setattr(f"huggingface_hub.constants.{key}", value)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server
        server.shutdown()


def small() -> tuple[DeepLabV3, ModelCard]:
    torch.manual_seed(0)
    model = DeepLabV3("timm/lcnet_050", 3, aspp_rates=(1,), aspp_pointwise=False, image_pooling=False)
    card = ModelCard(
        model.arguments, ("ground", "tree", "sky"), ((0, 0, 0), (1, 2, 3), (9, 9, 9)), model.mean, model.std,
        metrics={"val, output stride 16": {"miou": 0.5, "pixel_accuracy": 0.75}, "val, flip": {"miou": 0.525}},
        data="Parks: 12 photographs", licence="Apache-2.0", description="what stands in a park",
    )  # fmt: skip
    return model.eval(), card


def test_uploaded_and_fetched_again(server: Hub) -> None:
    model, card = small()
    name = model.push_to_hub("someone/parks", card)
    repo, _, commit = name.partition("@")
    assert repo == "someone/parks" and sorted(server.models[repo][commit]) == ["README.md", "model.safetensors"]
    with pytest.warns(UserWarning, match=f"someone/parks is at {commit} now; someone/parks@{commit} names these"):
        again = DeepLabV3.from_pretrained("someone/parks")
    image = torch.randn(1, 3, 33, 49)
    with torch.no_grad():
        assert (again(image) - model(image)).abs().max() < 1e-2 * model(image).abs().max()
    assert again.card.names == card.names
    asked = len(server.requests)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = Predictor.load(name, device="cpu")
    assert len(server.requests) == asked, "a commit in the cache needs no network"
    assert predictor(np.zeros((20, 30, 3), np.uint8)).mask.shape == (20, 30)


def test_another_librarys_model_is_read_where_it_lies(server: Hub, tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch, whose network it is")
    net = smp.DeepLabV3(
        "tu-lcnet_050", encoder_weights=None, classes=2, decoder_channels=8, decoder_atrous_rates=(2, 4, 6)
    )
    net.save_pretrained(tmp_path / "net")
    commit = server.add("other/net", {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()})
    with warnings.catch_warnings(record=True):
        model, card = load(f"other/net@{commit}")
    assert model.upsampling == "corners" and card.names == ("class 0", "class 1")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("someone/nothing", "there is no model 'someone/nothing' on the hub, or it is private"),
        ("someone/gated", "someone/gated is gated: accept its terms on its page on the hub, then log in"),
        ("someone/empty", "someone/empty on the hub: it holds neither model.safetensors nor pytorch_model.bin"),
        (
            "someone/empty@other",
            "someone/empty on the hub has no revision 'other'; expected a branch, a tag or a commit",
        ),
    ],
)
def test_what_cannot_be_had_is_one_line(name: str, words: str, server: Hub) -> None:
    server.gated.add("someone/gated")
    server.add("someone/empty", {"README.md": b"# nothing"})
    with pytest.raises(ValueError, match=words) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_another_file_than_the_one_listed_is_refused(server: Hub) -> None:
    server.add("someone/forged", {"model.safetensors": b"x" * 100})
    server.wrong_hash = True
    with pytest.raises(ValueError, match=r"model.safetensors of someone/forged@\w+ is not the file that the hub lists"):
        resolve("someone/forged")


def test_a_file_that_was_changed_in_the_cache_is_refused(server: Hub) -> None:
    model, card = small()
    name = model.push_to_hub("someone/parks", card)
    path = resolve(name).resolve()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="is not the file that the hub lists"):
        resolve(name)


def test_without_a_network(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(ValueError, match="the hub cannot be reached for 'someone/parks', which is no path either"):
        resolve("someone/parks")
    with pytest.raises(ValueError, match="the hub cannot be reached"):
        small()[0].push_to_hub("someone/parks")


def test_only_a_name_that_is_no_path_is_one_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "one").mkdir()
    assert is_hub_name("user/name") and is_hub_name("google/deeplabv3_mobilenet_v2_1.0_513@main")
    for word in (
        "name", "a/b/c", "/a", "./a", "../a", "runs/nothing", "mine/typo", "user/net.pth", "user/photo.jpg", "a/b@",
        "one/", "https://x/y", "user/ü", "C:/x",
    ):  # fmt: skip
        assert not is_hub_name(word), word
    assert not is_hub_name(Path("user/name"))
    monkeypatch.setattr(hub, "requirement", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(ValueError, match="there is no weight file, run folder or named model 'mine/typo'"):
        resolve("mine/typo")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"huggingface_hub is not installed: pip install 'atrous\[hub\]'"):
        resolve("user/name")


def test_a_folder_is_written_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    model, card = small()
    model.save_pretrained(tmp_path / "parks", card)
    assert DeepLabV3.from_pretrained(tmp_path / "parks").card.licence == "Apache-2.0"
    bare = DeepLabV3.from_pretrained(tmp_path / "parks")
    bare.save_pretrained(tmp_path / "again")
    assert read_card(tmp_path / "again" / "model.safetensors").names == card.names
    model.save_pretrained(tmp_path / "numbered")
    assert read_card(tmp_path / "numbered" / "model.safetensors").names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("source", ["small", *names()])
def test_the_readme_is_one_by_the_hubs_own_reading(source: str) -> None:
    card = small()[1] if source == "small" else read_card(resolve(source))
    parsed = huggingface_hub.ModelCard(readme(card, "parks"), ignore_metadata_errors=False)
    data = parsed.data.to_dict()
    assert data["library_name"] == "atrous" and data["pipeline_tag"] == "image-segmentation"
    assert data["license"] == ("apache-2.0" if source == "small" else data["license"])
    assert data["license"] != "other" or data["license_name"]
    measured = sum(isinstance(each, dict) and len(each.keys() & {"miou", "pixel_accuracy", "mean_accuracy"})
                   for each in card.metrics.values())  # fmt: skip
    assert len(parsed.data.eval_results) == measured
    result = parsed.data.eval_results[0]
    assert result.task_type == "image-segmentation" and result.dataset_split and result.dataset_type
    assert huggingface_hub.ModelCardData(**metadata(card, "parks")).to_dict()["tags"] == data["tags"]
    for words in ("Predictor.load(", "## Licence", "## Classes", card.names[-1], "| mIoU |"):
        assert words in parsed.text
