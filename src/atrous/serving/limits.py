"""Limits of the HTTP service: size of a request, speed of its arrival, pixels of its image.

Nothing is decoded before the image's header was checked (`checked_size`), and no more than `Limits.held_bytes` of
requests are in memory at a time (`Intake`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from atrous.data.images.image_io import read_size
from atrous.serving.errors import Problem, of_image

_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one client, and all together, may ask for.

    Attributes:
        body_bytes: of a request.
        held_bytes: of all requests that are being received or waiting.
        pixels: width times height of an image, by its header.
        images: in one request.
        queue: requests that wait for a worker; further ones get 429.
        deadline: seconds from the last byte of a request to its answer.
        head_seconds: in which a connection must send the head of a request.
        body_grace: seconds, and from then on
        body_rate: bytes a second, in which a body must arrive.
        stall_seconds: in which a client must take some of an answer.
        connections: open at a time.
        grace: seconds that SIGTERM leaves for requests that have begun.
    """

    body_bytes: int = 32 * _MIB
    held_bytes: int = 256 * _MIB
    pixels: int = 64_000_000
    images: int = 64
    queue: int = 64
    deadline: float = 60.0
    head_seconds: float = 10.0
    body_grace: float = 10.0
    body_rate: float = 16_384.0
    stall_seconds: float = 20.0
    connections: int = 512
    grace: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} is {value}, expected a number above 0")


class Intake:
    """Receives the bodies of requests, within the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body of a request, counted as held until the end of the context.

        Raises:
            Problem: 413 if it is too large, 408 if it comes too slowly, 503 if the memory for requests is full.
            ClientDisconnect: if the client leaves.
        """
        await self._check_head(request)
        chunks: list[bytes] = []
        counted = 0
        try:
            async for chunk, more in self._timed(request):
                counted += len(chunk)
                self.held += len(chunk)
                if counted > self.limits.body_bytes:
                    chunks.clear()
                    await self._drop(request, more)
                    length = request.headers.get("content-length", f"more than {counted}")
                    raise self._too_large(f"{length[:30]} bytes")
                if self.held > self.limits.held_bytes:
                    chunks.clear()
                    self.held -= counted
                    counted = 0
                    await self._drop(request, more)
                    raise Problem(503, "too many bytes of requests are waiting", retry_after=2, close=True)
                chunks.append(chunk)
            yield b"".join(chunks)
        finally:
            self.held -= counted

    async def _check_head(self, request: Request) -> None:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            await self._drop(request)
            expected = "a body without Content-Encoding: images are compressed as they are"
            raise Problem(
                415, "compressed bodies are not read", field="Content-Encoding", found=encoding, expected=expected,
                close=True,
            )  # fmt: skip
        length = request.headers.get("content-length", "")
        too_long = length.isdecimal() and (len(length) > 18 or int(length) > self.limits.body_bytes)
        if too_long and request.headers.get("expect"):  # who asks first has sent nothing yet
            raise self._too_large(f"Content-Length: {length[:30]}")

    async def _timed(self, request: Request) -> AsyncIterator[tuple[bytes, bool]]:
        """Chunks, and whether more follow; they must come at the least rate once the grace is over."""
        loop, received, more = asyncio.get_running_loop(), 0, True
        began = loop.time()
        while more:
            due = began + self.limits.body_grace + received / self.limits.body_rate
            try:
                async with asyncio.timeout_at(due):
                    message = await request.receive()
            except TimeoutError:
                found = f"{received} bytes in {loop.time() - began:.0f} s"
                expected = f"{self.limits.body_rate:.0f} bytes a second, after the first {self.limits.body_grace:g} s"
                raise Problem(
                    408, "the body comes too slowly", field="body", found=found, expected=expected, close=True
                ) from None
            if message["type"] != "http.request":
                raise ClientDisconnect
            chunk, more = message.get("body", b""), message.get("more_body", False)
            received += len(chunk)
            yield chunk, more

    def _too_large(self, found: str) -> Problem:
        expected = f"at most {self.limits.body_bytes} bytes"
        return Problem(413, "the request is too large", field="body", found=found, expected=expected, close=True)

    async def _drop(self, request: Request, more: bool = True) -> None:
        """Read on for a moment, without keeping it: most clients read no answer before they have sent all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while more:
                    more = (await request.receive()).get("more_body", False)


def checked_size(image: bytes, limits: Limits, field: str = "body") -> tuple[int, int]:
    """Height and width by an image's header, upright.

    Raises:
        Problem: 413 if it has too many pixels, 415 if it is no image of a known format, 422 if it is damaged.
    """
    if not image:
        raise Problem(422, "there is no image", field=field, found="0 bytes", expected="the bytes of an image")
    try:
        height, width = read_size(image, max_pixels=1 << 62)
    except ValueError as error:
        raise of_image(str(error), field) from None
    if height * width > limits.pixels:
        found, expected = f"{width}x{height} = {height * width} pixels", f"at most {limits.pixels} pixels"
        raise Problem(413, "the image has too many pixels", field=field, found=found, expected=expected)
    return height, width
