"""Label Studio's machine-learning backend: tasks in, brush strokes or polygons out.

Nothing is fetched: a task's image is a data: URI, or a file that Label Studio keeps in a folder that this service was
given (`--label-studio-files`).
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import Response
from starlette.datastructures import QueryParams

from atrous.integrations import label_studio as integration
from atrous.prediction.segmentation import Segmentation
from atrous.serving.answers import json_response
from atrous.serving.errors import Problem
from atrous.serving.inputs import base64_image
from atrous.serving.limits import Limits
from atrous.serving.served import ServedModel, find
from atrous.serving.service import Service

KINDS = ("BrushLabels", "PolygonLabels")
"""The tags that take masks."""

_CONFIG_CHARACTERS = 1 << 20


def setup(model: ServedModel, document: Mapping[str, Any]) -> dict[str, str]:
    """Answer of ``POST /setup``: the version of the model, once the project's labels are found to fit.

    Raises:
        Problem: 422 if they do not.
    """
    config = document.get("schema") or document.get("label_config")
    if config:
        parse_config(config, model.predictor.labels.names)
    return {"model_version": version_of(model)}


def version_of(model: ServedModel) -> str:
    """The version that Label Studio shows beside predictions."""
    return f"{model.name}-{model.version[:8]}"


async def predict(service: Service, request: Request, document: Mapping[str, Any], name: str | None) -> Response:
    """Answer of ``POST /predict``.

    Raises:
        Problem: 413 or 422 if a task or the labelling interface is not valid.
    """
    model = find(service.models, name)
    target = parse_config(document.get("label_config"), model.predictor.labels.names)
    tasks = parse_tasks(document, service.limits)
    images = [
        await service.aside(read_task, task, target, service.files, service.limits, place)
        for place, task in enumerate(tasks)
    ]

    def finish(results: Sequence[Segmentation]) -> Response:
        version = version_of(model)
        return json_response({"results": [prediction(result, target, version) for result in results]})

    if not images:
        return finish([])
    fields = [f"tasks.{place}.data.{target.key}" for place in range(len(images))]
    response: Response = await service.segment(request, model, images, finish, confidence=True, fields=fields)
    return response


@dataclass(frozen=True)
class Target:
    """Where results go: the tags of a project's labelling interface.

    Attributes:
        kind: tag of the labels, BrushLabels or PolygonLabels.
        from_name: its name.
        to_name: name of the image's tag.
        key: of the image in a task's data.
        labels: the project's label for each class of the model that it has.
    """

    kind: str
    from_name: str
    to_name: str
    key: str
    labels: Mapping[str, str]


def parse_config(config: object, classes: Sequence[str]) -> Target:
    """Find the labels and the image of a labelling interface; labels are classes of the same name, in any case.

    Raises:
        Problem: 422 if it is no XML, or has no such tags, or no label of the model's.
    """
    root = _xml(config)
    tags = [tag for kind in KINDS for tag in root.iter(kind)]
    if not tags:
        expected = "a tag BrushLabels or PolygonLabels"
        raise Problem(
            422, "the labelling interface takes no masks", field="label_config", found=_tags(root), expected=expected
        )
    tag = tags[0]
    to_name = tag.get("toName", "")
    values = [one.get("value", "") for one in root.iter("Image") if one.get("name") == to_name]
    if not values or not values[0].startswith("$"):
        expected = f'a tag Image with name="{to_name}" and value="$image"'
        raise Problem(422, "the labels belong to no image", field="label_config", found=_tags(root), expected=expected)
    theirs = {label.get("value", "").lower(): label.get("value", "") for label in tag.iter("Label")}
    labels = {name: theirs[name.lower()] for name in classes if name.lower() in theirs}
    if not labels:
        found, expected = ", ".join(theirs.values())[:200], f"labels of: {', '.join(classes)}"
        raise Problem(422, "no label is a class of the model", field="label_config", found=found, expected=expected)
    return Target(tag.tag, tag.get("name", ""), to_name, values[0][1:], labels)


def _xml(config: object) -> ET.Element:
    expected = "the XML of a labelling interface"
    if not isinstance(config, str) or not config.strip():
        raise Problem(422, "there is no labelling interface", field="label_config", found=config, expected=expected)
    if len(config) > _CONFIG_CHARACTERS or "<!" in config.replace("<!--", ""):  # entities can fill the memory
        raise Problem(
            422,
            "the labelling interface is not read",
            field="label_config",
            found="a declaration, or too long",
            expected=expected,
        )
    try:
        return ET.fromstring(config)
    except (ET.ParseError, ValueError) as error:
        raise Problem(
            422, "the labelling interface is no XML", field="label_config", found=str(error), expected=expected
        ) from None


def _tags(root: ET.Element) -> str:
    return ", ".join(sorted({tag.tag for tag in root.iter()}))[:200]


def parse_tasks(document: Mapping[str, Any], limits: Limits) -> list[Mapping[str, Any]]:
    """The tasks of a request.

    Raises:
        Problem: 413 if they are too many, 422 if they are none.
    """
    tasks = document.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and isinstance(t.get("data"), dict) for t in tasks):
        expected = '[{"data": {"image": ...}}]'
        raise Problem(422, "tasks is no list of tasks", field="tasks", found=tasks, expected=expected)
    if len(tasks) > limits.images:
        raise Problem(413, "too many tasks", field="tasks", found=len(tasks), expected=f"at most {limits.images}")
    return tasks


def read_task(task: Mapping[str, Any], target: Target, files: Path | None, limits: Limits, place: int = 0) -> bytes:
    """The content of a task's image: of a data: URI, or of a file of Label Studio's.

    Raises:
        Problem: 413 if the file is too large, 422 if there is no such image.
    """
    field = f"tasks.{place}.data.{target.key}"
    value = task["data"].get(target.key)
    if isinstance(value, str) and value.startswith("data:"):
        return base64_image(value, field)
    expected = "a data: URI" + ("" if files is None else ", /data/upload/... or /data/local-files/?d=...")
    expected += "; this server fetches nothing"
    path = _local_path(value) if files is not None else None
    if path is None or files is None:
        found = value[:60] if isinstance(value, str) else value
        raise Problem(422, "the image cannot be had", field=field, found=found, expected=expected)
    return _read(files, path, field, limits)


def _local_path(value: object) -> str | None:
    """The path in the folder that an address of Label Studio's own stands for."""
    if not isinstance(value, str):
        return None
    for start in ("/data/local-files/?d=", "/data/"):
        if value.startswith(start):
            return QueryParams("d=" + value.removeprefix(start).replace("+", "%2B").replace("&", "%26"))["d"]
    return None


def _read(files: Path, path: str, field: str, limits: Limits) -> bytes:
    root = os.path.realpath(files)
    missing = Problem(422, "there is no such file", field=field, found=path, expected="a file in Label Studio's folder")
    try:
        real = os.path.realpath(os.path.join(root, path.lstrip("/")))
        if os.path.commonpath([root, real]) != root or not os.path.isfile(real):
            raise missing
        if os.path.getsize(real) > limits.body_bytes:
            expected = f"at most {limits.body_bytes} bytes"
            raise Problem(413, "the file is too large", field=field, found=path, expected=expected)
        with open(real, "rb") as file:
            return file.read(limits.body_bytes)
    except (OSError, ValueError):
        raise missing from None


def prediction(result: Segmentation, target: Target, version: str) -> dict[str, Any]:
    """One task's prediction, in Label Studio's form; classes that the project has no label for are left out.

    Args:
        result: with its confidence.
        target: see `parse_config`.
        version: of the model.
    """
    kind: Literal["brush", "polygon"] = "brush" if target.kind == "BrushLabels" else "polygon"
    made = integration.prediction(
        result, from_name=target.from_name, to_name=target.to_name, kind=kind, background=True, model_version=version
    )
    kept = []
    for one in made["result"]:
        name = one["value"][f"{kind}labels"][0]
        if name in target.labels:
            kept.append({**one, "value": {**one["value"], f"{kind}labels": [target.labels[name]]}})
    return {**made, "result": kept}
