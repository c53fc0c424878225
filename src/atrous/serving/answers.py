"""Results as what a client asked for: a palette PNG, an overlay, a cut-out, or JSON with RLE or polygons."""

from __future__ import annotations

import io
import json
from typing import Any, Literal

from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from atrous.data.images.image_io import mask_image, save_png
from atrous.data.labels import Labels
from atrous.messages import did_you_mean
from atrous.prediction.segmentation import Segmentation
from atrous.serving.errors import Problem

Answer = Literal["json", "mask", "overlay", "cutout"]


class Options(BaseModel):
    """How to answer `POST /predict`: in the query, or as fields of a form or of JSON."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="name of the model, as `GET /models` lists it; the first by default")
    answer: Answer | None = Field(
        None,
        description="`mask`: palette PNG of class ids. `overlay`: PNG, colours over the photograph. `cutout`: PNG, all "
        "but `classes` transparent. `json`: classes, their shares and shapes. By default as `Accept` says, else `json`",
    )
    shapes: Literal["rle", "polygons", "none"] = Field("rle", description="of `json`: COCO's RLE, or polygons")
    tolerance: float = Field(1.0, ge=0, le=100, description="of polygons: by how many pixels they may be simplified")
    classes: str | None = Field(
        None,
        max_length=4000,
        description="names or ids, with commas, of the overlay and the cut-out; all but background by default",
    )
    alpha: float = Field(0.5, ge=0, le=1, description="opacity of the overlay's colours")
    legend: bool = Field(True, description="whether the overlay has a legend")
    confidence: bool = Field(False, description="of `json`: the mean probability of each class, too")
    output_stride: int | None = Field(
        None, ge=8, le=32, description="8, 16 or 32; 8 finds finer detail at about thrice the time of 16"
    )

    def chosen(self, labels: Labels) -> list[str | int] | None:
        """The names or ids in `classes`, or None.

        Raises:
            Problem: 422 for one that the model lacks.
        """
        if self.classes is None:
            return None
        words = [word.strip() for word in self.classes.split(",") if word.strip()]
        return [_class(word, labels) for word in words]


def _class(word: str, labels: Labels) -> str | int:
    if word in labels.names:
        return word
    if word.isdecimal() and len(word) <= 3 and int(word) < len(labels):
        return int(word)
    hint, expected = did_you_mean(word, labels.names, otherwise=""), f"names or ids of: {', '.join(labels.names)}"
    raise Problem(422, f"the model has no such class{hint}", field="classes", found=word, expected=expected)


def wanted(options: Options, accept: str) -> Answer:
    """What to answer: as the option says, or else the `Accept` header.

    Raises:
        Problem: 406 if the header takes neither PNG nor JSON.
    """
    if options.answer:
        return options.answer
    kinds = [(part.partition(";")[0].strip().lower(), _quality(part)) for part in accept.split(",") if part.strip()]
    for kind in [kind for kind, quality in sorted(kinds, key=lambda pair: -pair[1]) if quality > 0] or ["*/*"]:
        if kind in ("application/json", "*/*", "application/*"):
            return "json"
        if kind in ("image/png", "image/*"):
            return "mask"
    expected = "image/png or application/json"
    raise Problem(406, "there is no such answer", field="Accept", found=accept, expected=expected)


def _quality(part: str) -> float:
    try:
        return float(part.partition("q=")[2] or 1)
    except ValueError:
        return 0.0


def render(result: Segmentation, answer: Answer, options: Options, model: str) -> Response:
    """The answer to one image."""
    names = options.chosen(result.labels)
    if answer == "mask":
        return Response(mask_png(result), media_type="image/png")
    if answer == "overlay":
        return Response(png(result.overlay(options.alpha, names, options.legend)), media_type="image/png")
    if answer == "cutout":
        return Response(png(result.cutout(*names or ())), media_type="image/png")
    shapes = None if options.shapes == "none" else options.shapes
    described = result.to_dict(shapes, options.tolerance)
    del described["source"]  # there is no file
    return json_response({"model": model, **described})


def mask_png(result: Segmentation) -> bytes:
    """The mask as a PNG of class ids: of 8 bits with a palette, or gray of 16 for more than 255 classes."""
    return png(mask_image(result.mask, result.labels))


def png(image: Image.Image) -> bytes:
    """A picture as the content of a PNG."""
    file = io.BytesIO()
    save_png(image, file)
    return file.getvalue()


def json_response(value: Any) -> Response:
    """JSON, encoded here, since FastAPI's encoder walks through every number."""
    return Response(json.dumps(value, separators=(",", ":")), media_type="application/json")
