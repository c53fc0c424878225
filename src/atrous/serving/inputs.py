"""The image and the options of a request: raw bytes, a form, or JSON with base64."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from atrous.serving.answers import Options
from atrous.serving.errors import Problem, of_validation

IMAGE_FIELDS = ("image", "file")
_FIELDS = 32
"""Most fields of a form."""


class _InMemory(MultiPartParser):
    """A form's files stay in memory: the body is limited already, and no image is to reach a disk."""

    spool_max_size = max_file_size = 1 << 62  # before and since Starlette 0.46


def media_type(headers: Headers) -> str:
    """`Content-Type` without its parameters, in lower case."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def image_and_options(body: bytes, headers: Headers, query: dict[str, str]) -> tuple[bytes, str, Options]:
    """The image, its field, and the options of `POST /predict`; those of the query count before those of the body.

    Raises:
        Problem: 400 for a body that is not what its type says, 415 for another type, 422 for a wrong field.
    """
    kind = media_type(headers)
    if kind == "multipart/form-data":
        image, field, fields = await _of_form(body, headers)
    elif kind == "application/json":
        fields = dict(json_object(body))
        names = [name for name in IMAGE_FIELDS if name in fields]
        if not names:
            expected = "a field `image` with base64 or a data: URI"
            raise Problem(422, "there is no image", field="image", found=sorted(fields)[:4], expected=expected)
        field = names[0]
        image = base64_image(fields.pop(field), field)
    else:
        check_raw(kind, "image/*, application/octet-stream, multipart/form-data or application/json")
        image, field, fields = body, "body", {}
    return image, field, options_of({**fields, **query})


def check_raw(kind: str, expected: str) -> None:
    """Refuse a type under which no client sends the bytes of an image.

    Raises:
        Problem: 415.
    """
    # curl --data-binary says that it sends a form
    known = ("", "application/octet-stream", "application/x-www-form-urlencoded")
    if not kind.startswith("image/") and kind not in known:
        raise Problem(415, "bodies of this type are not read", field="Content-Type", found=kind, expected=expected)


def options_of(fields: dict[str, Any]) -> Options:
    """Validate options.

    Raises:
        Problem: 422 with the field.
    """
    try:
        return Options.model_validate(fields)
    except ValidationError as error:
        raise of_validation(error.errors(include_url=False)) from None


async def _of_form(body: bytes, headers: Headers) -> tuple[bytes, str, dict[str, Any]]:
    async def stream() -> AsyncIterator[bytes]:
        yield body
        yield b""

    try:
        form = await _InMemory(headers, stream(), max_files=1, max_fields=_FIELDS).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError, ValueError) as error:
        found = error.message if isinstance(error, MultiPartException) else "no boundary, or a broken part"
        expected = "multipart/form-data with one file"
        raise Problem(400, "the form cannot be read", field="body", found=found, expected=expected) from None
    files = [(key, value) for key, value in form.multi_items() if isinstance(value, UploadFile)]
    fields = {key: value for key, value in form.multi_items() if not isinstance(value, UploadFile)}
    if not files:
        names = [name for name in IMAGE_FIELDS if name in fields]
        if not names:
            found, expected = f"fields {sorted(fields)[:4]}", "a file in a field `image`"
            raise Problem(422, "there is no image in the form", field="image", found=found, expected=expected)
        return base64_image(fields.pop(names[0]), names[0]), names[0], fields
    [(field, file)] = files
    image = await file.read()
    await form.close()
    return image, field[:80], fields


def json_object(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Problem: 400 if it is none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        found = str(error) if isinstance(error, json.JSONDecodeError) else "text that is not UTF-8, or nested too deep"
        raise Problem(400, "the body is no JSON", field="body", found=found, expected="a JSON object") from None
    if not isinstance(value, dict):
        raise Problem(400, "the body is no JSON object", field="body", found=value, expected="a JSON object")
    return value


def base64_image(value: object, field: str) -> bytes:
    """The bytes of a base64 string or a data: URI.

    Raises:
        Problem: 422 if it is neither.
    """
    expected = "base64, or a data: URI with base64"
    if isinstance(value, dict) and value.keys() == {"b64"}:  # TensorFlow Serving's form
        value = value["b64"]
    if not isinstance(value, str):
        raise Problem(422, f"{field} is no string", field=field, found=value, expected=expected)
    if value.startswith(("http:", "https:", "file:", "s3:", "gs:")):
        expected += "; this server fetches nothing"
        raise Problem(
            422, "an address is not fetched", field=field, found=value.partition(":")[0] + ":", expected=expected
        )
    text = value
    if value.startswith("data:"):
        head, comma, text = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Problem(422, f"{field} is no data: URI of base64", field=field, found=head[:80], expected=expected)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, f"{field} is no base64", field=field, found=value[:40], expected=expected) from None
