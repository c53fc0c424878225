"""Load the weights that a training starts from: a model's, a TF-Lite graph's, or a classifier's for the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atrous.models.classifier import backbone_weights, is_classifier
from atrous.models.deeplab import DeepLabV3
from atrous.models.tflite import is_tflite, load_tflite
from atrous.models.weights import load_into


def initialize(
    model: DeepLabV3, source: str | Path, *, reset_head: bool = False, classes_from: Sequence[int] = ()
) -> None:
    """Load the weights of `source` into a model, and the normalisation that they were trained with.

    Args:
        model: receives them.
        source: as for `atrous.load`; or a DeepLab graph of TF-Lite, see `atrous.models.tflite`; or a classifier's file,
            for the backbone alone.
        reset_head: keep the model's own classifier, for other classes, and the whole head where the shapes differ.
        classes_from: the class of `source` that each class of the model starts from, by id; empty for the same classes.

    Raises:
        ValueError: if they do not fit.
        FileNotFoundError: if there is no such graph.
    """
    if is_classifier(source):
        if classes_from:
            raise ValueError(
                f"classes_from is {list(classes_from)}, but {source} is a classifier, whose head is not taken"
            )
        name = model.backbone.name
        try:
            model.backbone.load_imagenet(backbone_weights(source, name))
        except ValueError as error:
            raise ValueError(f"{source}: {error}; expected a classifier with the backbone {name}") from error
        return
    (load_tflite if is_tflite(source) else load_into)(model, source, reset_head=reset_head, classes_from=classes_from)
