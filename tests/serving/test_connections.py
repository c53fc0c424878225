"""Connections that are slow, silent or too many; the end of the server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from atrous.serving.connections import listen
from atrous.serving.limits import Limits
from atrous.serving.served import ServedModel
from serving import photograph, running


def test_a_port_that_is_taken_is_said() -> None:
    with listen("127.0.0.1", 0) as one, pytest.raises(ValueError, match="cannot listen on 127.0.0.1, port .*--port N"):
        one.listen()
        listen("127.0.0.1", one.getsockname()[1])
    with pytest.raises(ValueError, match="cannot listen on no.such.host.invalid"):
        listen("no.such.host.invalid", 0)
    with pytest.raises(ValueError, match="port 99999"):
        listen("127.0.0.1", 99999)


def test_what_is_no_http_is_told_so(models: dict[str, ServedModel]) -> None:
    with running(models) as here:
        for junk in (
            b"hello\r\n\r\n",
            b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000,
        ):
            with socket.create_connection(("127.0.0.1", here.port)) as client:
                client.settimeout(20)
                client.sendall(junk)
                answer = client.recv(4000)
                assert answer.startswith(b"HTTP/1.1 400") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert here.client.get("/health").status_code == 200


def test_too_many_connections_are_turned_away(models: dict[str, ServedModel]) -> None:
    with running(models, Limits(connections=3)) as here:
        here.client.get("/health")
        open_ones = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(2)]
        with socket.create_connection(("127.0.0.1", here.port)) as client:
            client.settimeout(20)
            assert client.recv(4000).startswith(b"HTTP/1.1 503")
        for client in open_ones:
            client.close()


@pytest.mark.integration
def test_a_head_of_a_byte_a_second_is_cut_off_and_the_others_are_served(models: dict[str, ServedModel]) -> None:
    with running(models, Limits(head_seconds=1.5)) as here:
        slow = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(64)]
        for letter in b"GET /":
            for client in slow:
                try:
                    client.send(bytes([letter]))
                except OSError:
                    pass
            assert httpx.post(f"{here.url}/predict", content=photograph()).status_code == 200
            time.sleep(0.8)
        for client in slow:
            client.settimeout(20)
            try:
                assert client.recv(4000).startswith(b"HTTP/1.1 408")
            except ConnectionResetError:
                pass
            client.close()


@pytest.mark.integration
def test_a_client_that_takes_no_answer_is_cut_off(models: dict[str, ServedModel]) -> None:
    with running(models, Limits(stall_seconds=1.5)) as here:
        image = photograph(size=(3000, 2000))
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", here.port))
        head = f"POST /predict?answer=overlay HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(image)}\r\n\r\n"
        client.sendall(head.encode() + image)
        time.sleep(6)
        client.settimeout(5)
        received = 0
        with pytest.raises(ConnectionResetError):
            while chunk := client.recv(1 << 20):
                received += len(chunk)
            raise ConnectionResetError
        assert received < 10_000_000
        client.close()


def started(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its address."""
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "atrous", "serve", "--port", "0", "--json", "--device", "cpu", *arguments],
        stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["address"]


@pytest.mark.integration
def test_sigterm_answers_what_has_begun_and_leaves_with_status_0(tmp_path: Path) -> None:
    process, url = started(tmp_path, "-j", "1")
    image = photograph(size=(640, 426))
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(httpx.post, f"{url}/predict", content=image, timeout=60) for _ in range(8)]
        while "atrous_requests_in_flight 9.0" not in httpx.get(f"{url}/metrics").text and not answers[0].done():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert [one.result().status_code for one in answers] == [200] * 8
    assert process.wait(30) == 0
    log = (tmp_path / "log").read_text()
    assert log.count("route=/predict status=200") == 8 and "stopping" in log and "Traceback" not in log


@pytest.mark.integration
def test_sigterm_leaves_in_time_though_a_client_sends_no_more(tmp_path: Path) -> None:
    process, url = started(tmp_path, "--grace", "2")
    client = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    client.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4000\r\n\r\n" + bytes(100))
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    client.settimeout(5)
    assert client.recv(2000).startswith(b"HTTP/1.1 503")
    client.close()
    assert "Traceback" not in (tmp_path / "log").read_text()
