"""A tiny generated data set, a recipe that trains on it in seconds, and a run of that recipe."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image

# One thread, here and in the processes that tests start: what they compute is small, and threads that wait for each
# other on a busy machine cost more than all of it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# No test depends on the clock: an example takes as long as the machine's load lets it.
settings.register_profile("atrous", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("atrous")

NAMES = ["ground", "red", "green", "blue"]
PALETTE = [[90, 90, 90], [220, 30, 30], [30, 200, 30], [30, 30, 220]]
SIZES = [(40, 48), (48, 40), (33, 64), (56, 35)]


def draw(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rectangles and a disc, each of its class's colour, on noise: uint8 H,W,3 and uint8 H,W."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for kind in rng.permutation([1, 2, 3]):
        top, left = rng.integers(0, height * 2 // 3), rng.integers(0, width * 2 // 3)
        high, wide = rng.integers(height // 4, height // 2), rng.integers(width // 4, width // 2)
        if kind == 3:
            inside = (rows - top - high / 2) ** 2 + (columns - left - high / 2) ** 2 <= (high / 2) ** 2
        else:
            inside = (rows >= top) & (rows < top + high) & (columns >= left) & (columns < left + wide)
        mask[inside] = kind
    image = np.array(PALETTE)[mask] + rng.integers(-30, 31, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), mask


def write_data(
    root: Path, splits: dict[str, int], *, ignore: bool = True, sizes: Sequence[tuple[int, int]] = SIZES
) -> Path:
    """A folder of the plain layout; with `ignore`, the first columns of every mask do not count."""
    root.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"names": NAMES, "palette": PALETTE, "ignore": 255})
    (root / "dataset.yaml").write_text(text, encoding="utf-8")
    for number, (split, count) in enumerate(splits.items()):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, mask = draw(1000 * number + i, *sizes[i % len(sizes)])
            if ignore:
                mask[:, :2] = 255
            Image.fromarray(image).save(root / "images" / split / f"{split}{i}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{split}{i}.png")
    return root


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported with the tests stays: the collector need not look through it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def drawn() -> Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]:
    """`draw`: seed, height, width to image and mask."""
    return draw


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Path]:
    """`write_data`: a folder, and how many images each split has."""
    return write_data


def made_once(request: pytest.FixtureRequest, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of a session's processes makes, for all of them."""
    base: Path = request.getfixturevalue("tmp_path_factory").getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / name
    with FileLock(f"{folder}.lock"):
        if not Path(f"{folder}.made").exists():
            make(folder)
            Path(f"{folder}.made").touch()
    return folder


@pytest.fixture(scope="session")
def tiny_data(request: pytest.FixtureRequest) -> Path:
    """Eight images to train on, four to validate on; four classes. One for all processes, to be read only."""
    return made_once(request, "shapes", lambda root: write_data(root, {"train": 8, "val": 4}))


@pytest.fixture(scope="session")
def tiny():  # noqa: ANN201
    """A recipe whose steps take a few hundredths of a second."""
    from atrous.training.config import Recipe, override

    return override(
        Recipe(),
        {
            "backbone": "timm/lcnet_050",
            "multi_grid": None,
            "aspp_rates": (1,),
            "aspp_pointwise": False,
            "weights": None,
            "train_split": "train",
            "crop": 33,
            "scales": (0.8, 1.25),
            "batch_size": 4,
            "iterations": 4,
            "lr": 0.02,
            "batch_norm_decay": 0.9,
            "val_every": 100,
            "save_every": 100,
        },
    )


@pytest.fixture(scope="session")
def longer(tiny):  # noqa: ANN001, ANN201
    """`tiny` from ImageNet weights, for long enough to tell the classes apart."""
    from atrous.training.config import override

    return override(
        tiny,
        {
            "backbone": "timm/tf_efficientnet_lite0",
            "weights": "imagenet",
            "iterations": 30,
            "optimizer": "adamw",
            "lr": 0.002,
            "head_lr_factor": 2.0,
            "batch_norm_decay": 0.8,
            "output_stride": 8,
            "aspp_pointwise": True,
            "image_pooling": False,
        },
    )


@pytest.fixture(scope="session")
def trained(longer, tiny_data: Path, request: pytest.FixtureRequest) -> Path:  # noqa: ANN001
    """The folder of a finished run of `longer`. One for all processes of a session, to be read only."""
    from atrous.training.loop import train

    return made_once(request, "longer", lambda run: train(longer, tiny_data, run, workers=0, device="cpu"))
