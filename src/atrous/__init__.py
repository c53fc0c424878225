"""DeepLabv3 as software: "Rethinking Atrous Convolution for Semantic Image Segmentation" on current PyTorch.

Importing this is cheap: each public name brings its module along when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atrous.data.datasets import open_dataset
    from atrous.data.labels import Labels
    from atrous.data.transforms import Augment
    from atrous.engine.evaluate import evaluate
    from atrous.engine.metrics import ConfusionMatrix
    from atrous.engine.recipe import Recipe, load_recipe
    from atrous.engine.train import train
    from atrous.jobs.check import check
    from atrous.jobs.predict import Predictor, Segmentation
    from atrous.models.deeplab import DeepLabV3
    from atrous.models.weights import ModelCard, load, save
    from atrous.ops.stride import Dial

__version__ = "0.1.0"

_HOMES = {
    "Augment": "data.transforms",
    "ConfusionMatrix": "engine.metrics",
    "DeepLabV3": "models.deeplab",
    "Dial": "ops.stride",
    "Labels": "data.labels",
    "ModelCard": "models.weights",
    "Predictor": "jobs.predict",
    "Recipe": "engine.recipe",
    "Segmentation": "jobs.predict",
    "check": "jobs.check",
    "evaluate": "engine.evaluate",
    "load": "models.weights",
    "load_recipe": "engine.recipe",
    "open_dataset": "data.datasets",
    "save": "models.weights",
    "train": "engine.train",
}

__all__ = [
    "Augment",
    "ConfusionMatrix",
    "DeepLabV3",
    "Dial",
    "Labels",
    "ModelCard",
    "Predictor",
    "Recipe",
    "Segmentation",
    "check",
    "evaluate",
    "load",
    "load_recipe",
    "open_dataset",
    "save",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'atrous' has no attribute {name!r}")
    value = getattr(import_module(f"atrous.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
