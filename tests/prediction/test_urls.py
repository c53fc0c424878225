"""Photographs by URL, from a server on this machine: only where the flag asks for it, and only photographs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.cli.parser import main
from atrous.data.images.image_io import read_image
from atrous.prediction import urls


@pytest.fixture
def server(drawn, tmp_path: Path) -> Iterator[str]:
    Image.fromarray(drawn(1, 40, 52)[0]).save(tmp_path / "served.png")
    content = (tmp_path / "served.png").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/away"):
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd" if "file" in self.path else "/photo.png")
                self.end_headers()
                return
            known = self.path.startswith(("/photo", "/deep/"))
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(content if known else b"no")

        def log_message(self, *_: object) -> None:
            pass

    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}"
    service.shutdown()
    service.server_close()
    thread.join()


def test_fetch_names_files_by_their_urls(server: str, tmp_path: Path, drawn, monkeypatch) -> None:
    folder = tmp_path / "fetched"
    folder.mkdir()
    paths = [urls.fetch(server + rest, folder) for rest in ("/photo.png?x=/y", "/photo.png", "/deep/%2e%2e/", "/away")]
    assert [path.name for path in paths] == ["photo.png", "photo-2.png", "image", "away"]
    assert all(path.parent == folder for path in paths)
    assert all(np.array_equal(read_image(path), drawn(1, 40, 52)[0]) for path in paths)
    with pytest.raises(ValueError, match="the server answers 404 Not Found; expected a photograph"):
        urls.fetch(server + "/gone.png", folder)
    with pytest.raises(ValueError, match="Redirection to url 'file:///etc/passwd' is not allowed; expected"):
        urls.fetch(server + "/away-file", folder)
    with pytest.raises(ValueError, match="http://127.0.0.1:9/a.png: cannot be reached"):
        urls.fetch("http://127.0.0.1:9/a.png", folder)
    with pytest.raises(ValueError, match="http://127.0.0.1:9/a b.png: cannot be reached: URL can't contain"):
        urls.fetch("http://127.0.0.1:9/a b.png", folder)
    with pytest.raises(ValueError, match="http://127.0.0.1:port/a.png: cannot be reached: nonnumeric port"):
        urls.fetch("http://127.0.0.1:port/a.png", folder)
    with pytest.raises(ValueError, match="http://127.0.0.1:9/ä.png: cannot be reached: ordinal not in range"):
        urls.fetch("http://127.0.0.1:9/ä.png", folder)
    monkeypatch.setattr(urls, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="more than 0 MB; expected a photograph"):
        urls.fetch(server + "/photo.png", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["away", "image", "photo-2.png", "photo.png"]


def test_predict_downloads_where_it_is_asked_to(trained: Path, server: str, tmp_path: Path, capsys) -> None:
    line = ["predict", str(trained), f"{server}/photo.png", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(line) == 2
    assert "photo.png is downloaded with --allow-urls alone" in capsys.readouterr().err
    assert main([*line, "--allow-urls", "--json"]) == 0
    [(path, areas)] = json.loads(capsys.readouterr().out)["files"].items()
    assert path.endswith("photo.png") and sum(areas.values()) == pytest.approx(1)
    assert (tmp_path / "out" / "masks" / "photo.png").is_file()
    assert main([*line[:2], f"{server}/gone.png", *line[3:], "--allow-urls"]) == 2
    assert "the server answers 404" in capsys.readouterr().err


def test_a_url_that_fails_leaves_the_others(trained: Path, server: str, tmp_path: Path, capsys) -> None:
    gone, there = f"{server}/gone.png", f"{server}/photo.png"
    line = ["predict", str(trained), gone, there, "--out", str(tmp_path / "out"), "--device", "cpu", "--allow-urls"]
    assert main([*line, "--json"]) == 2
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert len(answer["files"]) == 1 and (tmp_path / "out" / "masks" / "photo.png").is_file()
    assert list(answer["failures"]) == [gone] and "404" in answer["failures"][gone] and "404" in err
    assert main([*line[:3], *line[4:], "--json"]) == 2
    alone = json.loads(capsys.readouterr().out)
    assert alone.keys() == answer.keys() and alone["files"] == {} and list(alone["failures"]) == [gone]
