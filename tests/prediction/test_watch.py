"""A watched folder: each file once, when it is whole; again when it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous import Predictor
from atrous.data.images.image_io import read_mask
from atrous.prediction.watch import watch


def test_files_are_segmented_once_they_are_whole_and_again_when_they_change(trained: Path, drawn, tmp_path) -> None:
    predictor, folder, out = Predictor.load(trained, device="cpu"), tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def put(name: str, seed: int) -> None:
        Image.fromarray(drawn(seed, 30, 40)[0]).save(folder / name)

    put("a.png", 0)
    done: list[list[str]] = []

    def grow() -> None:  # as a slow copy does
        put("c.png", 3)
        whole = (folder / "c.png").read_bytes()
        (folder / "c.png").write_bytes(whole[:100])
        steps.insert(0, lambda: (folder / "c.png").write_bytes(whole))

    def change() -> None:
        put("a.png", 7)
        os.utime(folder / "a.png", (2e9, 2e9))
        os.utime(out / "overlays" / "b.png")

    steps: list[Callable[[], object]] = [lambda: None, lambda: put("b.png", 1), lambda: None, grow]
    steps += [lambda: None, lambda: None, change, lambda: (folder / "x.txt").write_text("no"), lambda: None]

    def wait(seconds: float) -> bool:
        if not steps:
            return True
        steps.pop(0)()
        return False

    def said(batch) -> None:  # noqa: ANN001
        done.append(sorted(path.name for path in batch.areas))
        assert not batch.failures

    watch(predictor, folder, out, said=said, wait=wait)
    assert done == [["a.png"], ["b.png"], ["c.png"], ["a.png"]]


def test_a_file_never_takes_the_outputs_of_another(trained: Path, drawn, tmp_path) -> None:
    predictor, folder, out = Predictor.load(trained, device="cpu"), tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "a.bmp")):
        Image.fromarray(drawn(seed, 30, 40)[0]).save(tmp_path / name)
    expected = {name: predictor(tmp_path / name).mask for name in ("a.png", "a.bmp")}
    (tmp_path / "a.png").rename(folder / "a.png")
    steps: list[Callable[[], object]] = [lambda: None, lambda: (tmp_path / "a.bmp").rename(folder / "a.bmp")]
    steps += [lambda: None, lambda: None]
    watch(predictor, folder, out, wait=lambda _: not steps or bool(steps.pop(0)() and False))
    assert np.array_equal(read_mask(out / "masks" / "a.png"), expected["a.png"])
    assert np.array_equal(read_mask(out / "masks" / "a.bmp.png"), expected["a.bmp"])


def test_what_cannot_be_watched_is_refused(trained: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(trained, device="cpu")
    with pytest.raises(ValueError, match="--watch takes one folder; found '.*nowhere', which is none"):
        watch(predictor, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "out" / "masks").mkdir(parents=True)
    with pytest.raises(ValueError, match="watch another folder"):
        watch(predictor, tmp_path / "out" / "masks", tmp_path / "out")
