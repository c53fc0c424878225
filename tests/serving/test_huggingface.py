"""Hugging Face's form: by hand, and by their own client."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.datastructures import Headers

from atrous.prediction.predictor import Predictor
from atrous.serving.errors import Problem
from atrous.serving.huggingface import image_and_threshold
from serving import Running, photograph

NAME = "objects-mobilenetv2"
PHOTO = photograph()


def test_labels_scores_and_masks(client: httpx.Client, predictor: Predictor) -> None:
    expected = predictor(PHOTO, confidence=True)
    inputs = {"inputs": base64.b64encode(PHOTO).decode()}
    for answer in (
        client.post(f"/models/{NAME}", content=PHOTO), client.post("/", content=PHOTO),
        client.post(f"/models/{NAME}", json=inputs),
        client.post(f"/models/{NAME}", json={**inputs, "parameters": {"threshold": 0.0, "subtask": "semantic"}}),
    ):  # fmt: skip
        segments = answer.json()
        assert [one["label"] for one in segments] == list(expected.areas)
        for i, one in zip(expected.names, segments, strict=True):
            assert one.keys() == {"label", "score", "mask"} and one["score"] == expected.confidences[one["label"]]
            with Image.open(io.BytesIO(base64.b64decode(one["mask"]))) as mask:
                assert mask.mode == "L" and np.array_equal(np.asarray(mask) == 255, expected.mask == i)
    kept = client.post(f"/models/{NAME}", json={**inputs, "parameters": {"threshold": 1.0}}).json()
    assert kept == [one for one in segments if one["score"] >= 1]


@pytest.mark.integration
def test_their_client(server: Running, predictor: Predictor, tmp_path: Any) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="Hugging Face's client: pip install huggingface_hub")
    (tmp_path / "cow.jpg").write_bytes(PHOTO)
    client = hub.InferenceClient(model=f"{server.url}/models/{NAME}")
    expected = predictor(PHOTO, confidence=True)
    for options in ({}, {"threshold": 0.1}):
        segments = client.image_segmentation(tmp_path / "cow.jpg", **options)
        assert [one.label for one in segments] == list(expected.areas)
        assert np.array_equal(np.asarray(segments[0].mask) == 255, expected.mask == next(iter(expected.names)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30) | st.dictionaries(st.sampled_from(["inputs", "parameters"]),
       st.text(max_size=8) | st.floats() | st.dictionaries(st.sampled_from(["threshold", "subtask", "x"]),
       st.floats() | st.text(max_size=4) | st.booleans() | st.none() | st.lists(st.integers(), max_size=2)))
       .map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_request_is_read_or_refused(body: bytes) -> None:
    try:
        image, _, threshold = image_and_threshold(body, Headers({"content-type": "application/json"}))
        assert isinstance(image, bytes) and 0 <= threshold <= 1
    except Problem as problem:
        assert problem.status in (400, 422) and problem.field
