"""Connections that end: slow or silent clients are cut off, SIGTERM drains, and the process leaves with status 0.

uvicorn bounds neither the time of a request's head nor the time that a client takes for its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from atrous.serving.errors import Problem
from atrous.serving.limits import Limits

_HEAD_BYTES = 16_384
_LEAST_RATE = 1024.0
"""Bytes a second of an answer that a client takes, unless it stalls."""


class Guarded(H11Protocol):
    """A connection that is looked at once a second."""

    limits = Limits()
    _cycle: Any = None
    _since: float | None = None
    _pending = 0
    _stalled: float | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: D102
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self.turn_away(Problem(503, "too many connections", retry_after=5), "Service Unavailable")

    def send_400_response(self, msg: str) -> None:  # noqa: D102
        problem = Problem(400, "this is no HTTP request", expected="HTTP/1.1, with a head of at most 16 KiB")
        self.turn_away(problem, "Bad Request")

    def turn_away(self, problem: Problem, reason: str) -> None:
        """Answer where no request is under way, and close."""
        self.transport.write(problem.raw(reason))
        self.transport.close()

    def look(self, now: float) -> None:
        """Cut the connection off if its client is too slow with a head, or does not take its answer."""
        self._look_at_head(now)
        self._look_at_answer(now)

    def _look_at_head(self, now: float) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if not idle or self.cycle is not self._cycle or self._since is None:
            self._since, self._cycle = now if idle else None, self.cycle
        elif now - self._since > self.limits.head_seconds and not self.transport.is_closing():
            expected = f"within {self.limits.head_seconds:g} s"
            problem = Problem(408, "the head of the request comes too slowly", expected=expected)
            self.turn_away(problem, "Request Timeout")

    def _look_at_answer(self, now: float) -> None:
        pending = self.transport.get_write_buffer_size()
        moves = not pending or pending < self._pending - _LEAST_RATE
        self._pending = pending
        if moves or self._stalled is None:
            self._stalled = now if pending else None
        elif now - self._stalled > self.limits.stall_seconds:
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn that watches its connections, and whose SIGTERM is an orderly end."""

    ready: Callable[[], None]
    draining: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.ready()

    async def on_tick(self, counter: int) -> bool:
        """Look at all connections once a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast(Any, connection).look(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which in the end raises the signal again and so would never leave with status 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second time, leave."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.draining()


def listen(host: str, port: int) -> socket.socket:
    """A socket on that address; port 0 is any that is free.

    Raises:
        ValueError: if the address or the port cannot be had.
    """
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(kind, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot listen on {host}, port {port}: {reason}; expected a free port: --port N") from None
    return listener


def build_server(
    app: FastAPI,
    limits: Limits,
    ready: Callable[[], None] = lambda: None,
    draining: Callable[[], None] = lambda: None,
) -> Server:
    """A server whose `run([socket])` answers requests until SIGTERM or Ctrl-C, and then ends what has begun.

    Args:
        app: the service.
        limits: of connections and requests; `Limits.grace` bounds the end.
        ready: called once requests are answered.
        draining: called when the end begins.
    """
    config = uvicorn.Config(
        app,
        http=type("Limited", (Guarded,), {"limits": limits}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(limits.grace)),
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # our own lines say it
    server = Server(config)
    server.ready, server.draining = ready, draining
    return server
