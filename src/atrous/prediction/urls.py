"""Fetch photographs by their URL, where the user asks for it: `atrous predict --allow-urls`."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from atrous.atomic import written_whole

MOST_BYTES = 256 << 20
"""A larger answer is refused."""

TIMEOUT = 30.0
"""Seconds that a server may say nothing."""


def is_url(source: str | Path) -> bool:
    """Whether a source is an address of the web."""
    return str(source).lower().startswith(("http://", "https://"))


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_url(newurl):
            raise ValueError(f"{req.full_url}: redirected to {newurl.partition(':')[0]}:; expected http or https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, folder: Path) -> Path:
    """Download a photograph into a folder; the file has the last part of the URL as its name.

    Raises:
        ValueError: naming the URL, if the server cannot be reached, answers with an error, or sends too much.
    """
    path = folder / _file_name(url)
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{Path(_file_name(url)).stem}-{number}{path.suffix}")
    opener = urllib.request.build_opener(_HttpOnly)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "atrous"})
        with opener.open(request, timeout=TIMEOUT) as answer, written_whole(path) as file:
            length = 0
            while part := answer.read(1 << 20):
                length += len(part)
                if length > MOST_BYTES:
                    raise ValueError(f"{url}: more than {MOST_BYTES >> 20} MB; expected a photograph")
                file.write(part)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url}: the server answers {error.code} {error.reason}; expected a photograph") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, UnicodeError) as error:
        raise ValueError(f"{url}: cannot be reached: {getattr(error, 'reason', None) or error}") from None
    return path


def _file_name(url: str) -> str:
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    name = re.sub(r"[^\w.\- ]", "_", os.path.basename(last)).strip(". ")[-100:]
    return name or "image"
