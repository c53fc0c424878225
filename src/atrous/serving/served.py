"""The models that a service has: each a predictor with its name, and whether it may segment images together."""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from atrous.data.images.image_io import read_image, to_tensor
from atrous.data.palette import is_background
from atrous.evaluation.evaluate import predict_classes
from atrous.evaluation.preprocessor import Preprocessor
from atrous.messages import did_you_mean
from atrous.models.exported import ExportedDeepLabV3
from atrous.prediction.demo import bundled
from atrous.prediction.predictor import Predictor
from atrous.prediction.segmentation import Segmentation
from atrous.serving.errors import Problem, of_image

TOGETHER_PIXELS = 320 * 240
"""Most pixels, as the model sees them, of images that are segmented together: with more, a batch is not faster
(docs/serve.md)."""


@dataclass(frozen=True)
class ServedModel:
    """A predictor under its name.

    Attributes:
        name: in requests.
        predictor: safe in threads.
        version: a digest of all that decides a mask.
        batches: whether images of one size may be segmented together.
        description: one line.
        licence: of the weights.
    """

    name: str
    predictor: Predictor
    version: str
    batches: bool
    description: str = ""
    licence: str = ""

    @classmethod
    def of(cls, name: str, predictor: Predictor, **words: str) -> ServedModel:
        """Serve a predictor, warmed up, and after a trial of both ways to run it."""
        predictor(np.zeros((*(_fixed_size(predictor) or (64, 96)), 3), np.uint8))
        return cls(name, predictor, predictor.settings(), batches_agree(predictor), **words)

    def segment(
        self, images: Sequence[bytes], output_stride: int | None = None, confidence: bool = False
    ) -> list[Segmentation]:
        """Segment the contents of image files; several have one size.

        Raises:
            Problem: 415 or 422 if one cannot be decoded, 503 if there is no memory for it.
        """
        try:
            if len(images) == 1:
                return [self.predictor(images[0], output_stride=output_stride, confidence=confidence)]
            return self._together(images, output_stride)
        except ValueError as error:
            raise of_image(str(error), "image") from None
        except (MemoryError, torch.OutOfMemoryError):
            text = "there is not enough memory for this image"
            raise Problem(503, text, expected="a smaller image", retry_after=10) from None

    def together(self, size: tuple[int, int], output_stride: int | None) -> Hashable | None:
        """The key of what may be segmented together with an image of that height and width; None for nothing."""
        seen = Preprocessor(self.predictor.model).seen_size(size)
        small = self.batches and seen[0] * seen[1] <= TOGETHER_PIXELS and self.predictor.fits(*size)
        return (self.name, size, output_stride) if small else None

    def check_output_stride(self, output_stride: int | None) -> None:
        """Refuse one that the model cannot reach.

        Raises:
            Problem: 422.
        """
        # Of those that a request may name: see `Options`.
        strides = [stride for stride in self.predictor.model.backbone.reachable if 8 <= stride <= 32]
        if output_stride is not None and output_stride not in strides:
            raise Problem(
                422, "output_stride cannot be reached", field="output_stride", found=output_stride,
                expected=f"one of: {', '.join(map(str, strides))}",
            )  # fmt: skip

    def check_size(self, size: tuple[int, int], field: str) -> None:
        """Refuse an image of that height and width where the model is a file exported at another one.

        Raises:
            Problem: 422.
        """
        fixed = _fixed_size(self.predictor)
        if fixed and Preprocessor(self.predictor.model).seen_size(size) != fixed:
            raise Problem(
                422, "this model takes images of one size", field=field, found=f"{size[1]}x{size[0]}",
                expected=f"{fixed[1]}x{fixed[0]}, or a model exported with --size dynamic",
            )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        labels, model = self.predictor.labels, self.predictor.model
        classes = [
            {"id": i, "name": name, "color": list(colour), "background": is_background(name)}
            for i, (name, colour) in enumerate(zip(labels.names, labels.palette, strict=True))
        ]
        return {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "licence": self.licence,
            "output_stride": model.output_stride,
            "longest_side": model.longest_side,
            "classes": classes,
        }

    def _together(self, images: Sequence[bytes], output_stride: int | None) -> list[Segmentation]:
        pixels = [read_image(image, max_pixels=self.predictor.max_pixels, rule=self.predictor.rule) for image in images]
        masks = _masks(self.predictor, pixels, output_stride)
        return [Segmentation(mask, image, self.predictor.labels) for mask, image in zip(masks, pixels, strict=True)]


def find(models: Mapping[str, ServedModel], name: str | None) -> ServedModel:
    """The model of that name, or the first if there is no name.

    Raises:
        Problem: 404 if there is none.
    """
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        expected = f"one of: {', '.join(models)}"
        hint = did_you_mean(name, models, otherwise="")
        raise Problem(404, f"there is no such model{hint}", field="model", found=name, expected=expected)
    return models[name]


def batches_agree(predictor: Predictor) -> bool:
    """Whether small photographs have the same masks, bit for bit, together as alone, by a trial."""
    if predictor.scales != (1.0,) or predictor.flip or predictor.device.type != "cpu" or _fixed_size(predictor):
        return False
    for size in ((96, 64), (160, 120)):
        pixels = [_reduced(name, size) for name in ("cow.jpg", "aeroplane.jpg", "terrace.jpg", "pavilion.jpg")]
        alone = [predictor(image).mask for image in pixels]
        for count in (2, 3, 4):
            if any(map(_differ, _masks(predictor, pixels[:count], None), alone)):
                return False
    return True


def _fixed_size(predictor: Predictor) -> tuple[int, int] | None:
    return predictor.model.fixed_size if isinstance(predictor.model, ExportedDeepLabV3) else None


def _differ(mask: Any, other: Any) -> bool:
    return not np.array_equal(mask, other)


def _reduced(name: str, size: tuple[int, int]) -> Any:
    with Image.open(io.BytesIO(bundled(name).read_bytes())) as image:
        return np.asarray(image.convert("RGB").resize(size))


def _masks(predictor: Predictor, pixels: Sequence[Any], output_stride: int | None) -> list[Any]:
    images = torch.stack([to_tensor(image) for image in pixels])
    ids = predict_classes(predictor.inference_model(output_stride), images, pad_to=predictor.pad_to)
    return list(ids.cpu().numpy())
