"""DeepLabv3 as software: "Rethinking Atrous Convolution for Semantic Image Segmentation" on current PyTorch.

Importing this is cheap: each public name brings its module along when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atrous import models as models
    from atrous.data.checks.validate import check as check
    from atrous.data.datasets.dataset import open_dataset as open_dataset
    from atrous.data.labels import Labels as Labels
    from atrous.data.transforms import Augment as Augment
    from atrous.evaluation.evaluate import evaluate as evaluate
    from atrous.evaluation.metrics import ConfusionMatrix as ConfusionMatrix
    from atrous.models.deeplab import DeepLabV3 as DeepLabV3
    from atrous.models.output_stride import Dial as Dial
    from atrous.models.weights import ModelCard as ModelCard
    from atrous.models.weights import load as load
    from atrous.models.weights import save as save
    from atrous.prediction.predictor import Predictor as Predictor
    from atrous.prediction.segmentation import Segmentation as Segmentation
    from atrous.training.config import Recipe as Recipe
    from atrous.training.loop import train as train
    from atrous.training.recipes import load_recipe as load_recipe

__version__ = "0.1.0"

_HOMES = {
    "Augment": "data.transforms",
    "ConfusionMatrix": "evaluation.metrics",
    "DeepLabV3": "models.deeplab",
    "Dial": "models.output_stride",
    "Labels": "data.labels",
    "ModelCard": "models.weights",
    "Predictor": "prediction.predictor",
    "Recipe": "training.config",
    "Segmentation": "prediction.segmentation",
    "check": "data.checks.validate",
    "evaluate": "evaluation.evaluate",
    "load": "models.weights",
    "load_recipe": "training.recipes",
    "models": "models",
    "open_dataset": "data.datasets.dataset",
    "save": "models.weights",
    "train": "training.loop",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'atrous' has no attribute {name!r}")
    home = import_module(f"atrous.{_HOMES[name]}")
    value = home if name == "models" else getattr(home, name)  # a folder that is called
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
