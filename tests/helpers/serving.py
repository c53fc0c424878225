"""A service on a loopback port of this process, and what tests send to it."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
from PIL import Image

from atrous.prediction.demo import bundled
from atrous.serving.app import create_app
from atrous.serving.connections import build_server, listen
from atrous.serving.limits import Limits
from atrous.serving.served import ServedModel
from atrous.serving.service import Service

SIZES = [(96, 64), (64, 96), (120, 90), (33, 57), (160, 120)]


class Running:
    """A service that answers: `url`, `port`, `client`, `service`."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port, self.url = service, port, f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=120)


@contextlib.contextmanager
def running(models: Mapping[str, ServedModel], limits: Limits | None = None, **options: Any) -> Iterator[Running]:
    """Serve on a free port; `options` are those of `create_app`, and `workers`, `label_studio_files`."""
    own = {key: options.pop(key) for key in ("workers", "label_studio_files") if key in options}
    service, listener = Service(models, limits or Limits(), **own), listen("127.0.0.1", 0)
    began = threading.Event()
    server = build_server(create_app(service, **options), service.limits, began.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    assert began.wait(60)
    here = Running(service, listener.getsockname()[1])
    try:
        yield here
    finally:
        here.client.close()
        server.should_exit = True
        thread.join(60)
        service.close()
        assert not thread.is_alive()


def photograph(name: str = "cow.jpg", size: tuple[int, int] = (96, 64), kind: str = "JPEG") -> bytes:
    """A bundled photograph, made small: width and height."""
    with Image.open(bundled(name)) as image:
        return content(image.convert("RGB").resize(size), kind)


def content(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image as the content of a file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def ids_of(png: bytes) -> np.ndarray:
    """The class ids of a palette PNG."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "P"
        return np.array(image)


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header says 50,000 x 50,000 pixels."""
    small = bytearray(content(np.zeros((4, 4, 3), np.uint8)))
    import struct
    import zlib

    small[16:24] = struct.pack(">II", 50_000, 50_000)
    small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    return bytes(small)
