"""Prediction and training where the system has neither POSIX's modules nor its calls, and workers are spawned."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from atrous import platforms
from atrous.evaluation.distributed import pick_device
from atrous.training.config import Recipe, override
from forks import Forked

# Run by each spawned worker too, which imports the script again.
WINDOWS = """
import os, signal, sys

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("setpgrp", "setpgid", "setsid", "killpg", "getpgid", "getpgrp", "fork", "getuid", "geteuid", "mkfifo"):
    delattr(os, name)
del signal.SIGKILL

import multiprocessing, torch, types
from atrous import platforms

platforms.sys = types.SimpleNamespace(platform="win32")  # for the package alone: libraries would look for msvcrt
opened = os.open


def opens_no_folder(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))
    return opened(path, *arguments, **options)


os.open = opens_no_folder
# As on ARM.
torch.backends.mkldnn.is_available = lambda: False

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from pathlib import Path
    import atrous
    from atrous.models.weights import load
    from atrous.training import checkpoint

    recipe, data, run = atrous.load_recipe(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    atrous.train(recipe, data, run, workers=2, device="cpu")
    assert checkpoint.steps(run)[-1] == 3
    longer = run / "longer.yaml"
    longer.write_text((run / "recipe.yaml").read_text().replace("iterations: 3", "iterations: 4"))
    atrous.train(atrous.load_recipe(longer), data, run, resume=True, workers=0, device="cpu")
    assert checkpoint.steps(run)[-1] == 4
    predictor = atrous.Predictor.load(run, device="cpu")
    photo = next(Path(data, "images", "val").iterdir())
    result = predictor(photo)
    model, card = load(run)
    atrous.save(model, run / "again.safetensors", card)
    assert atrous.Predictor.load(run / "again.safetensors", device="cpu")(photo).mask.tolist() == result.mask.tolist()
    print("done")
"""


@pytest.mark.integration
def test_without_posix_it_predicts_saves_trains_with_workers_and_resumes(
    tiny: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "windows.py").write_text(WINDOWS)
    recipe = override(tiny, {"iterations": 3, "save_every": 1, "val_every": 3})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    ran = subprocess.run(
        [sys.executable, "windows.py", "recipe.yaml", str(tiny_data), "run"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0 and ran.stdout.endswith("done\n"), ran.stderr


@pytest.mark.integration
def test_a_long_temporary_folder_does_not_stall_workers(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    recipe = override(tiny, {"iterations": 1, "val_split": None})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    line = ["train", str(tmp_path / "recipe.yaml"), "--data", str(tiny_data), "--out", str(tmp_path / "run"), "-j", "1"]
    ran = Forked([*line, "--device", "cpu"], tmp_path / "said", [("temporary_folder", str(long))])
    assert ran.status() == 0, ran.output
    assert [path for path in long.iterdir() if "torchinductor" not in path.name] == []  # PyTorch makes that one


def test_where_no_folder_is_short_enough_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "_SOCKET_PATH", 41)
    monkeypatch.setattr(tempfile, "tempdir", "/long")
    with pytest.raises(ValueError, match="TMPDIR is /long, of 5 characters; expected at most 1, or --workers 0"):
        platforms.place_sockets()


def test_apples_gpus_are_a_device() -> None:
    import torch

    if torch.backends.mps.is_available():
        assert pick_device("mps").type == "mps"
    else:
        with pytest.raises(ValueError, match="'mps' was asked for, but PyTorch finds no GPU of Apple's"):
            pick_device("mps")
