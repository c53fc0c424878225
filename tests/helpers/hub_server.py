"""A small server of the Hugging Face hub's API, for tests: models that are listed, fetched, made and uploaded."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Models by name and commit; `requests` lists the paths that were asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.wrong_hash = False
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(repr(sorted(files)).encode() + b"".join(files.values())).hexdigest()
        self.models.setdefault(name, {})[commit] = files
        return commit


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_GET(self) -> None:
        self._get(body=True)

    def _get(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name in self.server.gated:
            return self._answer(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        if name not in self.server.models:
            return self._answer(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "none"})
        commits = self.server.models[name]
        revision = parts[5] if parts[0] == "api" and len(parts) > 5 else parts[3] if parts[0] != "api" else "main"
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return self._answer(404, {}, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "none"})
        files = commits[commit]
        if parts[0] == "api":
            return self._answer(200, self._listing(name, commit, files))
        content = files.get("/".join(parts[4:]))
        if content is None:
            return self._answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "none"})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_hash(content)}"', "Content-Length": str(len(content))}
        self._send(200, content if body else b"", headers)

    def _listing(self, name: str, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": file,
                "size": len(content),
                "blobId": "0" * 40 if self.server.wrong_hash else git_hash(content),
            }
            for file, content in files.items()
        ]
        return {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            said = json.loads(content)
            name = "/".join(filter(None, (said.get("organization"), said["name"])))
            self.server.models.setdefault(name, {})
            return self._answer(200, {"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for f in json.loads(content)["files"]]  # fmt: skip
            return self._answer(200, {"files": files})
        files = {}
        for line in content.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = self.server.add(name, files)
        self._answer(
            200, {"success": True, "commitOid": commit, "commitUrl": f"{self.server.address}/{name}/commit/{commit}"}
        )

    def _answer(self, status: int, said: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(said).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        self._send(status, b"" if self.command == "HEAD" else content, headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)
