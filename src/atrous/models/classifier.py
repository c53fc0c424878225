"""Start a backbone from a classifier's checkpoint, given by its path: of torchvision or of timm.

    model.backbone.load_imagenet(backbone_weights("resnet101.pth", "resnet101"))

ResNets, timm's networks under timm's names, and torchvision's MobileNets by the order of their layers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from atrous.models.interchange.files import PICKLES, read_file
from atrous.models.timm_backbone import in_timms_order

HEADS = (
    "fc.weight",
    "classifier.weight",
    "classifier.1.weight",
    "classifier.3.weight",
    "head.fc.weight",
    "head.weight",
)
"""Where torchvision's and timm's classifiers have the weights of the classes, classes by features."""
_EPSILON = {"mobilenetv2": 1e-5, "mobilenetv3": 1e-3}
"""Of torchvision's batch norm in its networks that are read by the order of their layers."""


def is_classifier(source: str | Path | None) -> bool:
    """Whether this is the file of a classifier of images, and of no segmentation model."""
    if source is None or not str(source).lower().endswith((".safetensors", *PICKLES)) or not os.path.isfile(source):
        return False
    stamp = os.stat(source)
    return _read(Path(source), stamp.st_mtime_ns, stamp.st_size) is not None


def backbone_weights(source: str | Path, backbone: str) -> dict[str, Tensor]:
    """The tensors of a classifier's file under the keys that `Backbone.load_imagenet` takes.

    Args:
        source: for which `is_classifier` holds.
        backbone: as of `DeepLabV3`.

    Raises:
        ValueError: if the file is of another network, as far as its names and shapes tell.
    """
    stamp = os.stat(source)
    tensors = _read(Path(source), stamp.st_mtime_ns, stamp.st_size)
    if tensors is None:
        raise ValueError(f"{source} is no classifier of images")
    if not backbone.startswith("timm/"):
        return tensors
    if any(key.startswith("features.") for key in tensors):
        return _of_torchvision(tensors, backbone, str(source))
    return {**tensors, **{key.replace(".", "_", 1): value for key, value in tensors.items()}}  # timm flattens stages


@functools.lru_cache(maxsize=1)
def _read(path: Path, *_: int) -> dict[str, Tensor] | None:
    try:
        tensors = read_file(path).tensors
    except (ValueError, OSError):
        return None  # what is wrong is said by whoever reads it as a model
    headed = any(key in tensors and tensors[key].ndim == 2 for key in HEADS)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()} if (
        headed and "classifier.0.convs.0.0.weight" not in tensors) else None  # fmt: skip


def _of_torchvision(tensors: Mapping[str, Tensor], backbone: str, source: str) -> dict[str, Tensor]:
    name = backbone.removeprefix("timm/")
    epsilon = next((value for kind, value in _EPSILON.items() if name.startswith(kind)), None)
    if epsilon is None:
        raise ValueError(
            f"{source} is of torchvision, whose {', '.join(_EPSILON)} and ResNets are known, not {backbone}"
        )
    theirs = {key: value for key, value in tensors.items() if key.startswith("features.")}
    ours = in_timms_order(theirs, name, source, classifier=True)
    return {key: value + epsilon - 1e-5 if key.endswith("running_var") else value for key, value in ours.items()}
