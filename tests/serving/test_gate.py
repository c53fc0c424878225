"""Hosts, origins, headers and log lines."""

from __future__ import annotations

import logging

import httpx
import pytest

from atrous.serving.gate import LOG, host_name, is_loopback
from atrous.serving.served import ServedModel
from serving import photograph, running


@pytest.mark.parametrize(("host", "name"), [
    ("localhost:8000", "localhost"), ("LOCALHOST", "localhost"), ("[::1]:80", "::1"), ("[::1]", "::1"),
    ("127.0.0.1", "127.0.0.1"), ("a.example.", "a.example"), ("", ""), ("evil.com:80", "evil.com"),
])  # fmt: skip
def test_the_name_of_a_host(host: str, name: str) -> None:
    assert host_name(host) == name


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))


def test_another_host_is_not_served(client: httpx.Client) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        answer = client.get("/", headers={"host": host})
        assert answer.status_code == 421 and answer.json()["field"] == "Host"


def test_pages_of_other_sites_may_not_ask(client: httpx.Client, models: dict[str, ServedModel]) -> None:
    for origin in ("https://evil.example", "null"):
        answer = client.post("/predict", content=photograph(), headers={"origin": origin})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    own = {"origin": str(client.base_url).rstrip("/")}
    assert client.post("/predict", content=photograph(), headers=own).status_code == 200
    preflight = {"origin": "https://good.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/predict", headers=preflight).headers
    with running(models, origins=["https://good.example"]) as here:
        assert here.client.options("/predict", headers=preflight).status_code == 204
        answer = here.client.post("/predict", content=photograph(), headers={"origin": "https://good.example"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://good.example"
        assert here.client.get("/", headers={"host": "any.example"}).status_code == 200


def test_a_log_line_a_request_without_what_was_sent(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    LOG.propagate = True
    with caplog.at_level(logging.INFO, LOG.name):
        client.post("/predict?answer=mask", files={"image": ("holiday-in-rome.jpg", photograph())})
        client.get("/secret%0A/path?token=secret")
        client.post("/predict?classes=secret", content=photograph())
    lines = [record.getMessage() for record in caplog.records if record.name == LOG.name]
    assert len(lines) == 3 and "secret" not in "".join(lines) and "rome" not in "".join(lines)
    assert lines[0].startswith("method=POST route=/predict status=200 ms=")
    assert lines[0].endswith("model=objects-mobilenetv2 size=96x64")
    assert "route=other status=404" in lines[1]
