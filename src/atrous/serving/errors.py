"""Errors of the HTTP service: a status, and JSON that says which field, what was found and what was expected."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80
_SHOWN.maxlist = _SHOWN.maxdict = 4
_SHOWN.maxlevel = 2


class Problem(Exception):
    """What is wrong with a request, or with the service, for whoever sent it.

    Args:
        status: of the answer, 400 to 599.
        error: one sentence.
        field: of the request, where one is to blame.
        found: what it holds.
        expected: what it should hold.
        retry_after: seconds after which the request may succeed.
        close: end the connection, since the rest of the request is not read.
    """

    def __init__(
        self,
        status: int,
        error: str,
        *,
        field: str = "",
        found: object = None,
        expected: str = "",
        retry_after: float | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.field, self.expected = status, error, field, expected
        self.found = None if found is None else shown(found)
        self.retry_after, self.close = retry_after, close

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is empty is left out."""
        parts = {"field": self.field, "found": self.found, "expected": self.expected}
        return {"error": self.error, "status": self.status, **{key: value for key, value in parts.items() if value}}

    def headers(self) -> dict[str, str]:
        """Of the answer."""
        retry = {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        return {"cache-control": "no-store", **retry, **({"connection": "close"} if self.close else {})}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.as_dict(), self.status, self.headers())

    def raw(self, reason: str) -> bytes:
        """The answer as the bytes of HTTP/1.1, for where there is no request yet; it ends the connection."""
        body = json.dumps(self.as_dict()).encode()
        head = f"HTTP/1.1 {self.status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return head.encode() + b"connection: close\r\n\r\n" + body


def shown(value: object) -> str:
    """A value of a request, cut short; text as it is."""
    return value[:200] if isinstance(value, str) else _SHOWN.repr(value)


def of_validation(errors: Sequence[Any]) -> Problem:
    """The first of pydantic's errors."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body"))
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    found = first.get("input")
    if first["type"] == "extra_forbidden":
        expected, found = "a parameter that /openapi.json lists", field
    return Problem(422, f"{field or 'the request'} is not valid", field=field, found=found, expected=expected)


def of_image(text: str, field: str) -> Problem:
    """From the words of `atrous.data.images.image_file`, which begin with the source's name."""
    reason, _, expected = text.removeprefix("bytes: ").partition("; expected ")
    unknown = reason.startswith(("not an image", "HEIC", "a TIFF"))
    error = "this is not an image of a format that is read" if unknown else "the image cannot be decoded"
    expected = expected or "a whole, sound image"
    return Problem(415 if unknown else 422, error, field=field, found=reason, expected=expected)
