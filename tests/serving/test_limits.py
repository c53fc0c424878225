"""Sizes, speeds and numbers: what is too much is refused, and what was held for it is freed."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atrous.serving.errors import Problem
from atrous.serving.limits import Limits, checked_size
from atrous.serving.served import ServedModel
from serving import bomb, photograph, running

PHOTO = photograph()
WHOLE = [photograph(kind=kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")]


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="queue is 0, expected a number above 0"):
        Limits(queue=0)


def test_pixels_are_counted_by_the_header(models: dict[str, ServedModel]) -> None:
    began = time.process_time()
    with pytest.raises(Problem) as error:
        checked_size(bomb(), Limits())
    assert error.value.status == 413 and error.value.found == "50000x50000 = 2500000000 pixels"
    assert time.process_time() - began < 1
    with running(models, Limits(pixels=96 * 64 - 1)) as here:
        answer = here.client.post("/predict", content=PHOTO)
        assert answer.status_code == 413 and answer.json()["found"] == "96x64 = 6144 pixels"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_bytes_have_a_size_or_a_problem(data: Any) -> None:
    whole = data.draw(st.sampled_from(WHOLE))
    image = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, 60), max_size=4)):
        if place < len(image):
            image[place] = data.draw(st.integers(0, 255))
    try:
        height, width = checked_size(bytes(image), Limits())
        assert height > 0 and width > 0
    except Problem as problem:
        assert problem.status in (413, 415, 422)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large(models: dict[str, ServedModel], chunked: bool) -> None:
    with running(models, Limits(body_bytes=1000)) as here:
        body = iter([bytes(600)] * 4) if chunked else bytes(2400)
        answer = here.client.post("/predict", content=body)
        assert answer.status_code == 413 and answer.json()["expected"] == "at most 1000 bytes"
        assert answer.headers["connection"] == "close" and here.service.intake.held == 0
        assert here.client.get("/health").status_code == 200


@pytest.mark.parametrize(("held", "headers", "status"), [(1 << 30, {"content-encoding": "gzip"}, 415), (3000, {}, 503)])
def test_who_sends_all_before_reading_gets_the_answer(
    models: dict[str, ServedModel], held: int, headers: dict[str, str], status: int
) -> None:
    with running(models, Limits(held_bytes=held)) as here:
        for _ in range(5):
            answer = here.client.post("/predict", content=bytes(8_000_000), headers=headers)
            assert answer.status_code == status and here.service.intake.held == 0


def test_who_asks_before_sending_is_told_at_once(models: dict[str, ServedModel]) -> None:
    with running(models, Limits(body_bytes=1000)) as here, socket.create_connection(("127.0.0.1", here.port)) as client:
        head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
        client.sendall(head)
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_memory_for_all_requests_is_bounded(models: dict[str, ServedModel]) -> None:
    with running(models, Limits(held_bytes=3000)) as here:
        slow = socket.create_connection(("127.0.0.1", here.port))
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4000\r\n\r\n" + bytes(2500))
        for _ in range(500):
            if here.service.intake.held == 2500:
                break
            time.sleep(0.01)
        answer = here.client.post("/predict", content=bytes(1000))
        assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
        slow.close()
        for _ in range(500):
            if here.service.intake.held == 0:
                break
            time.sleep(0.01)
        assert here.client.post("/predict", content=PHOTO[:2000]).status_code != 503


def test_too_many_images(models: dict[str, ServedModel]) -> None:
    import base64

    one = base64.b64encode(PHOTO).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [3], "data": [one] * 3}
    with running(models, Limits(images=2)) as here:
        answer = here.client.post(f"/v2/models/{next(iter(models))}/infer", content=json.dumps({"inputs": [tensor]}))
        assert answer.status_code == 413 and answer.json()["expected"] == "1 to 2 images"


@pytest.mark.integration
def test_a_body_of_a_byte_a_second_is_answered_and_the_others_are_served(models: dict[str, ServedModel]) -> None:
    with running(models, Limits(body_grace=1.5)) as here:
        slow = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(64)]
        head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
        for client in slow:
            client.sendall(head)
        for _ in range(3):
            for client in slow:
                try:
                    client.send(b"x")
                except OSError:
                    pass
            assert httpx.post(f"{here.url}/predict", content=PHOTO).status_code == 200
            time.sleep(0.7)
        for client in slow:
            client.settimeout(20)
            assert client.recv(4000).startswith(b"HTTP/1.1 408")
            client.close()
        assert here.service.intake.held == 0


@pytest.mark.integration
def test_twenty_megapixels_are_answered(models: dict[str, ServedModel]) -> None:
    image = photograph(size=(5472, 3648))
    with running(models) as here:
        answer = here.client.post("/predict?answer=mask", content=image)
        assert answer.status_code == 200
