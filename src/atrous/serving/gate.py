"""What every request passes: hosts and origins that may ask, security headers, errors as JSON, one log line.

A log line and a metric name the route, never the path, a file or anything else that a client sent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
import uuid
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atrous.serving.errors import Problem
from atrous.serving.metrics import Metrics

LOG = logging.getLogger("atrous.serve")

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Gate:
    """ASGI middleware around the whole service.

    Args:
        app: the service.
        metrics: where requests are counted.
        hosts: names that a Host header may have; None for any. It keeps out a page of another site whose name was
            pointed at this machine (DNS rebinding).
        origins: of other sites whose pages may send requests, "*" for any.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, hosts: Collection[str] | None = None, origins: Collection[str] = ()
    ) -> None:
        self.app, self.metrics, self.origins = app, metrics, frozenset(origins)
        self.hosts = None if hosts is None else frozenset(name.lower() for name in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        began, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message), Headers(scope=scope).get("origin"))
            await send(message)

        scope.setdefault("state", {})["noted"] = facts = dict[str, Any]()
        with self.metrics.in_flight.track_inprogress():
            try:
                await self._answer(scope, receive, noted)
            except asyncio.CancelledError:  # the time to drain is over
                if not status:
                    await Problem(503, "the server is stopping", retry_after=5, close=True).response()(
                        scope, receive, noted
                    )
            except Exception as error:  # Starlette raises it again once it is answered
                if not status:
                    await failure(error).response()(scope, receive, noted)
        self.metrics.left.inc(status == 499)
        self._note(scope, status, time.perf_counter() - began, facts)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_sender(scope)
            preflight = scope["method"] == "OPTIONS" and self._is_allowed(Headers(scope=scope).get("origin"))
            app = Response(status_code=204, headers={"allow": "GET, POST"}) if preflight else self.app
            await app(scope, receive, send)
        except Problem as problem:
            await problem.response()(scope, receive, send)

    def _check_sender(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and host_name(host) not in self.hosts:
            expected = f"one of: {', '.join(sorted(self.hosts))} (atrous serve --allow-host NAME)"
            raise Problem(421, "this host is not served", field="Host", found=host, expected=expected, close=True)
        if origin and scope["method"] not in ("GET", "HEAD") and not self._may_send(origin, host):
            expected = "a page of this server (atrous serve --allow-origin ORIGIN)"
            raise Problem(
                403, "pages of other sites may not ask", field="Origin", found=origin, expected=expected, close=True
            )

    def _may_send(self, origin: str, host: str) -> bool:
        return origin.partition("://")[2] == host or self._is_allowed(origin)

    def _is_allowed(self, origin: str | None) -> bool:
        return origin is not None and bool({origin, "*"} & self.origins)

    def _add_headers(self, headers: MutableHeaders, origin: str | None) -> None:
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        if origin is not None and self._is_allowed(origin):
            headers["access-control-allow-origin"] = origin
            headers["access-control-allow-headers"] = "content-type, accept"
            headers["cross-origin-resource-policy"] = "cross-origin"
            headers.add_vary_header("origin")

    def _note(self, scope: Scope, status: int, seconds: float, facts: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = (
            scope["method"]
            if scope["method"] in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
            else "other"
        )
        self.metrics.requests.labels(route, method, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        LOG.info("%s", line({"method": method, "route": route, "status": status, "ms": round(seconds * 1e3), **facts}))


def failure(error: Exception) -> Problem:
    """An error that nobody foresaw: into the log with a number, of which alone the client hears."""
    number = uuid.uuid4().hex[:8]
    LOG.error("error %s", number, exc_info=error)
    return Problem(500, f"the server failed; its log has error {number}")


def line(facts: dict[str, Any]) -> str:
    """One log line: ``key=value`` pairs."""
    return " ".join(f"{key}={value}" for key, value in facts.items())


def host_name(host: str) -> str:
    """The name in a Host header, without its port and brackets, in lower case."""
    name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return name.strip("[]").rstrip(".").lower()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is of this machine alone."""
    if host.lower() in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
