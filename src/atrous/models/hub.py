"""Fetch a model from the Hugging Face hub: by name, with its revision pinned and its hash checked.

    path = fetch("user/name@0123abcd...")                 # the weight file in the hub's cache

Nothing is fetched that is not named. A revision that is a commit and lies in the cache needs no network.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import Any

from atrous.models.exported import requirement

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,100})?", re.ASCII)
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,10}$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_BESIDE = ("config.json", "preprocessor_config.json")


def is_hub_name(source: str | Path) -> bool:
    """Whether this is ``user/name`` or ``user/name@revision``, and no path: one slash, no suffix, no such folder."""
    name = str(source)
    if isinstance(source, Path) or not _NAME.fullmatch(name) or _SUFFIX.search(name):
        return False
    owner = name.partition("/")[0]
    return not os.path.lexists(name) and not os.path.isdir(owner) and owner not in (".", "..", "runs")


def fetch(name: str) -> Path:
    """The weight file of a model on the hub, in the hub's own cache.

    Args:
        name: ``user/name`` or ``user/name@revision``, a branch, a tag or a commit.

    Raises:
        ValueError: if huggingface_hub is missing, there is no such model or revision, it is gated, the hub cannot be
            reached, or a file is not the one that the hub lists.
    """
    hub = requirement("huggingface_hub", "hub")
    repo, _, revision = name.partition("@")
    if _COMMIT.fullmatch(revision) and (path := _cached(hub, repo, revision)):
        return path
    try:
        return _fetched(hub.HfApi(library_name="atrous"), repo, revision)
    except Exception as error:  # the hub's, and those of its client for HTTP, which differ by version
        raise ValueError(plain(error, name)) from None


def _fetched(api: Any, repo: str, revision: str) -> Path:
    info = api.model_info(repo, revision=revision or None, files_metadata=True)
    listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
    weights = next((file for file in _WEIGHTS if file in listed), "")
    if not weights:
        raise ValueError(f"it holds neither {' nor '.join(_WEIGHTS)}")
    paths = {}
    for file in (each for each in (weights, *_BESIDE) if each in listed):
        paths[file] = Path(api.hf_hub_download(repo, file, revision=info.sha))
        lfs = listed[file].lfs
        _check(paths[file], lfs.sha256 if lfs else listed[file].blob_id, f"{repo}@{info.sha}")
    if revision != info.sha:
        warnings.warn(f"{repo} is at {info.sha} now; {repo}@{info.sha} names these weights for good", stacklevel=3)
    return paths[weights]


def _cached(hub: Any, repo: str, commit: str) -> Path | None:
    """The weight file of a commit, if it lies in the cache, whose files bear the names of their hashes."""
    for file in _WEIGHTS:
        path = hub.try_to_load_from_cache(repo, file, revision=commit)
        if isinstance(path, str):
            blob = Path(path).resolve()
            if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
                _check(blob, blob.name, f"{repo}@{commit}")
            return Path(path)
    return None


def _check(path: Path, digest: str | None, name: str) -> None:
    """Compare a file with its SHA-256, or with Git's hash of it.

    Raises:
        ValueError: if it is another.
    """
    sha = hashlib.sha256() if digest and len(digest) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            sha.update(part)
    if sha.hexdigest() != digest:
        raise ValueError(
            f"{path.name} of {name} is not the file that the hub lists: its hash is {sha.hexdigest()}, expected "
            f"{digest}; remove it from the cache and fetch it anew"
        )


def plain(error: Exception, name: str) -> str:
    """What went wrong with the hub, in one line."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    repo, _, revision = name.partition("@")
    if "GatedRepoError" in kinds:
        return f"{repo} is gated: accept its terms on its page on the hub, then log in by: hf auth login"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no model {repo!r} on the hub, or it is private (hf auth login), and no such path"
    if "RevisionNotFoundError" in kinds:
        return f"{repo} on the hub has no revision {revision!r}; expected a branch, a tag or a commit"
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if "HfHubHTTPError" in kinds or "ValueError" in kinds:
        return f"{name} on the hub: {why}"
    return (
        f"the hub cannot be reached for {name!r}, which is no path either: {why}; NAME@COMMIT loads from the cache "
        "without a network what was fetched before"
    )
