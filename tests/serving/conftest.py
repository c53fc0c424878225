"""One service of the everyday objects for all tests of this folder that do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
import torch

from atrous.data.labels import Labels, voc_palette
from atrous.models.deeplab import DeepLabV3

pytest.importorskip("fastapi", reason="the server needs pip install 'atrous[serve]'")

from atrous.prediction.predictor import Predictor  # noqa: E402
from atrous.serving.served import ServedModel  # noqa: E402
from serving import Running, running  # noqa: E402

NAME = "objects-mobilenetv2"


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return Predictor.load(NAME, device="cpu")


@pytest.fixture(scope="session")
def models(predictor: Predictor) -> dict[str, ServedModel]:
    first = ServedModel.of(NAME, predictor)
    return {NAME: first, "second": replace(first, name="second")}


@pytest.fixture(scope="session")
def server(models: dict[str, ServedModel]) -> Iterator[Running]:
    with running(models, hosts={"127.0.0.1"}) as here:
        yield here


@pytest.fixture(scope="session")
def many() -> Iterator[tuple[Running, Predictor]]:
    """A service of 300 classes, whose ids take two bytes, and its predictor."""
    torch.manual_seed(0)
    model = DeepLabV3("timm/lcnet_050", 300).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    with torch.no_grad():
        model.classifier.bias[:200] -= 100
    labels = Labels(tuple(f"class {i}" for i in range(300)), voc_palette(256) + voc_palette(44), ignore=65535)
    predictor = Predictor(model, labels, device="cpu")
    with running({"many": ServedModel("many", predictor, "1", False)}, hosts={"127.0.0.1"}) as here:
        yield here, predictor


@pytest.fixture(scope="session")
def client(server: Running) -> httpx.Client:
    return server.client
