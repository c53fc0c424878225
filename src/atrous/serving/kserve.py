"""KServe's Open Inference Protocol, v2, over REST: images as BYTES, in JSON as base64 or by the binary extension.

One input, `image`: BYTES, the contents of image files; or UINT8 of H,W,3 or N,H,W,3. Outputs, of which a request names
those that it wants: `mask` (UINT8 N,H,W, class ids), `mask_png` (BYTES, palette PNGs), `areas` (FP32 N,K, the share of
each class). `mask` is INT32 for a model of more than 256 classes.
"""

from __future__ import annotations

import base64
import io
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi.responses import Response
from PIL import Image
from starlette.datastructures import Headers

import atrous
from atrous.prediction.segmentation import Segmentation
from atrous.serving.answers import json_response, mask_png
from atrous.serving.errors import Problem
from atrous.serving.inputs import base64_image, json_object
from atrous.serving.limits import Limits
from atrous.serving.served import ServedModel

HEADER = "inference-header-content-length"
"""Length of the JSON, where binary tensors follow it."""

OUTPUTS = {"mask": "UINT8", "mask_png": "BYTES", "areas": "FP32"}


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        images: contents of image files.
        outputs: names, and whether each is wanted as binary.
        id: of the request, or "".
    """

    images: list[bytes]
    outputs: dict[str, bool]
    id: str


def server_metadata() -> dict[str, Any]:
    """Answer of ``GET /v2``."""
    return {"name": "atrous", "version": atrous.__version__, "extensions": ["binary_tensor_data"]}


def metadata(model: ServedModel) -> dict[str, Any]:
    """Answer of ``GET /v2/models/NAME``."""
    classes = len(model.predictor.labels)
    shapes = {"mask": [-1, -1, -1], "mask_png": [-1], "areas": [-1, classes]}
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "pytorch_atrous",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": n, "datatype": datatype(n, classes), "shape": shapes[n]} for n in OUTPUTS],
    }


def datatype(output: str, classes: int) -> str:
    """That of an output of a model with so many classes."""
    return "INT32" if output == "mask" and classes > 256 else OUTPUTS[output]


def parse(body: bytes, headers: Headers, limits: Limits) -> Request:
    """Read an inference request.

    Raises:
        Problem: 400 for no JSON, 413 for too many images, 422 for a wrong field.
    """
    head, binary = _split(body, headers)
    document = json_object(head)
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(422, "there must be one input", field="inputs", found=inputs, expected="a list of one tensor")
    outputs = _outputs(document)
    images = _images(inputs[0], binary, limits)
    name = document.get("id", "")
    if not isinstance(name, str):
        raise Problem(422, "id is no string", field="id", found=name, expected="a string")
    return Request(images, outputs, name[:200])


def _split(body: bytes, headers: Headers) -> tuple[bytes, bytes]:
    text = headers.get(HEADER)
    if text is None:
        return body, b""
    if not text.isdecimal() or len(text) > 12 or int(text) > len(body):
        expected = f"the length of the JSON, at most {len(body)}"
        raise Problem(400, "the binary header is wrong", field=HEADER, found=text, expected=expected)
    return body[: int(text)], body[int(text) :]


def _outputs(document: Mapping[str, Any]) -> dict[str, bool]:
    binary = _parameters(document, "parameters").get("binary_data_output") is True
    wanted = document.get("outputs") or [{"name": "mask"}]
    if not isinstance(wanted, list) or not all(isinstance(one, dict) for one in wanted):
        raise Problem(
            422, "outputs is no list of objects", field="outputs", found=wanted, expected='[{"name": "mask"}]'
        )
    outputs = {}
    for i, one in enumerate(wanted):
        name = one.get("name")
        if not isinstance(name, str) or name not in OUTPUTS:
            expected = f"one of: {', '.join(OUTPUTS)}"
            raise Problem(422, "there is no such output", field=f"outputs.{i}.name", found=name, expected=expected)
        outputs[name] = _parameters(one, f"outputs.{i}.parameters").get("binary_data", binary) is True
    return outputs


def _parameters(document: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise Problem(422, "parameters is no object", field=field, found=parameters, expected="an object")
    return parameters


def _images(tensor: Mapping[str, Any], binary: bytes, limits: Limits) -> list[bytes]:
    name, kind = tensor.get("name"), tensor.get("datatype")
    if name != "image":
        raise Problem(422, "there is no such input", field="inputs.0.name", found=name, expected="image")
    if kind not in ("BYTES", "UINT8"):
        expected = "BYTES (contents of image files) or UINT8 (H,W,3 or N,H,W,3)"
        raise Problem(422, "there is no such datatype", field="inputs.0.datatype", found=kind, expected=expected)
    shape, size = _shape(tensor), _parameters(tensor, "inputs.0.parameters").get("binary_data_size")
    if size is None and binary:
        expected = "`binary_data_size` in the parameters of the input"
        raise Problem(
            422, "bytes follow the JSON that no input names", field="inputs.0", found=len(binary), expected=expected
        )
    if size is not None and (type(size) is not int or size != len(binary)):
        field, expected = "inputs.0.parameters.binary_data_size", f"{len(binary)}, the bytes behind the JSON"
        raise Problem(422, "the binary tensor is cut", field=field, found=size, expected=expected)
    if kind == "UINT8":
        return _arrays(tensor, shape, binary if size is not None else None, limits)
    images = _elements(binary) if size is not None else _from_json(tensor)
    if math.prod(shape) != len(images):
        raise Problem(
            422, "shape and data differ", field="inputs.0.shape", found=list(shape), expected=f"[{len(images)}]"
        )
    if not 1 <= len(images) <= limits.images:
        expected = f"1 to {limits.images} images"
        raise Problem(
            413 if images else 422,
            "too many images, or none",
            field="inputs.0.data",
            found=len(images),
            expected=expected,
        )
    return images


def _shape(tensor: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or not all(type(side) is int and 0 < side < 1 << 20 for side in shape)
        or len(shape) > 4
    ):
        raise Problem(422, "shape is not valid", field="inputs.0.shape", found=shape, expected="positive integers")
    return tuple(shape)


def _from_json(tensor: Mapping[str, Any]) -> list[bytes]:
    data = tensor.get("data")
    if not isinstance(data, list):
        expected = "a list of base64 strings, or binary data"
        raise Problem(422, "there is no image", field="inputs.0.data", found=data, expected=expected)
    data = data[0] if len(data) == 1 and isinstance(data[0], list) else data  # of shape 1,N
    return [base64_image(value, f"inputs.0.data.{i}") for i, value in enumerate(data)]


def _elements(binary: bytes) -> list[bytes]:
    """Elements of a BYTES tensor: each its length, four bytes, little end first, and its content."""
    elements, place = [], 0
    while place < len(binary):
        if place + 4 > len(binary):
            break
        (length,) = struct.unpack_from("<I", binary, place)
        place += 4
        elements.append(binary[place : place + length])
        place += length
    if place != len(binary):
        expected = "elements of four bytes of length, little end first, and their content"
        raise Problem(
            422, "the binary tensor is cut", field="inputs.0", found=f"{len(binary)} bytes", expected=expected
        )
    return elements


def _arrays(tensor: Mapping[str, Any], shape: tuple[int, ...], binary: bytes | None, limits: Limits) -> list[bytes]:
    """Arrays as the contents of image files, without loss, so that one way leads from here."""
    if len(shape) not in (3, 4) or shape[-1] != 3:
        expected = "H,W,3 or N,H,W,3, red, green, blue"
        raise Problem(422, "the array is no image", field="inputs.0.shape", found=list(shape), expected=expected)
    count, pixels = shape[0] if len(shape) == 4 else 1, shape[-3] * shape[-2]
    if count > limits.images or pixels > limits.pixels:
        expected = f"at most {limits.images} images of {limits.pixels} pixels"
        raise Problem(413, "the array is too large", field="inputs.0.shape", found=list(shape), expected=expected)
    values = _flat(tensor.get("data"), math.prod(shape)) if binary is None else np.frombuffer(binary, np.uint8)
    if values.size != math.prod(shape):
        raise Problem(
            422, "shape and data differ", field="inputs.0.shape", found=list(shape), expected=f"{values.size} values"
        )
    return [_as_file(image) for image in values.reshape(count, *shape[-3:])]


def _flat(data: object, count: int) -> npt.NDArray[np.uint8]:
    expected = f"{count} integers from 0 to 255, nested or flat"
    try:
        values = np.asarray(data)
    except (ValueError, TypeError, OverflowError):
        values = np.empty(0)
    if values.dtype.kind not in "iu" or not values.size or values.min() < 0 or values.max() > 255:
        raise Problem(422, "data is not valid", field="inputs.0.data", found=data, expected=expected)
    return values.astype(np.uint8).ravel()


def _as_file(image: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "BMP")
    return file.getvalue()


def answer(results: Sequence[Segmentation], request: Request, model: ServedModel) -> Response:
    """The response, with binary tensors behind the JSON where they were asked for.

    Raises:
        Problem: 422 if masks of several sizes are wanted as one tensor.
    """
    outputs, tail = [], b""
    for name, binary in request.outputs.items():
        shape, value = _output(name, results)
        kind = datatype(name, len(results[0].labels))
        tensor: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
        if binary:
            raw = _raw(value)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            tensor["data"] = _listed(value)
        outputs.append(tensor)
    document = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    document |= {"id": request.id} if request.id else {}
    if not any(request.outputs.values()):
        return json_response(document)
    head = json.dumps(document, separators=(",", ":")).encode()
    return Response(head + tail, media_type="application/octet-stream", headers={HEADER: str(len(head))})


def _output(name: str, results: Sequence[Segmentation]) -> tuple[list[int], Any]:
    if name == "mask_png":
        return [len(results)], [mask_png(result) for result in results]
    if name == "areas":
        classes = range(len(results[0].labels))
        areas = np.array([[result.shares.get(i, 0.0) for i in classes] for result in results], dtype="<f4")
        return list(areas.shape), areas
    sizes = sorted({result.mask.shape for result in results})
    if len(sizes) > 1:
        found, expected = f"images of {len(sizes)} sizes", "images of one size, or the output mask_png"
        raise Problem(422, "the masks are no one tensor", field="outputs", found=found, expected=expected)
    masks = np.stack([result.mask for result in results])
    masks = masks if masks.dtype == np.uint8 else masks.astype("<i4")
    return list(masks.shape), masks


def _raw(value: Any) -> bytes:
    if isinstance(value, list):
        return b"".join(struct.pack("<I", len(part)) + part for part in value)
    return bytes(value.tobytes())


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [base64.b64encode(part).decode() for part in value]
    listed: list[Any] = value.ravel().tolist()
    return listed
