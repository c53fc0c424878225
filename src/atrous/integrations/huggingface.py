"""A predictor that is called as Hugging Face's pipeline for image segmentation is.

segment = Pipeline(Predictor.load())
segment("photo.jpg")           # [{"label": "cow", "score": 0.98, "mask": PIL}, ...]
segment(["a.jpg", "b.jpg"])    # a list of those
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atrous.data.images.image_io import Source
from atrous.prediction.predictor import Predictor


class Pipeline:
    """What ``transformers.pipeline("image-segmentation")`` gives, with the mean confidence of each class as its score.

    Args:
        predictor: that segments.
    """

    task = "image-segmentation"

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def __call__(
        self, inputs: Source | Sequence[Source], *, threshold: float = 0.0, subtask: str | None = None, **_: Any
    ) -> Any:
        """Segments of one image, or a list of those for a list of images.

        Args:
            inputs: an image or a list of images, see `Predictor`.
            threshold: leave out classes of a lower score.
            subtask: ``"semantic"``, which is what this does, or None.

        Raises:
            ValueError: for another subtask, or as `Predictor`.
        """
        if subtask not in (None, "semantic"):
            raise ValueError(f"subtask is {subtask!r}; expected 'semantic': every pixel has one class")
        if isinstance(inputs, (list, tuple)):
            return [self(image, threshold=threshold) for image in inputs]
        segments = self.predictor(inputs, confidence=True).segments()  # type: ignore[arg-type]
        return [segment for segment in segments if segment["score"] >= threshold]
