"""Whatever a photograph comes as, the mask is the same; many of them give many results, in order."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atrous import Predictor


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor.load(trained, device="cpu", dtype=torch.float32)


def test_lists_tuples_and_batches_give_lists(predictor: Predictor, drawn, tmp_path: Path) -> None:
    images = [drawn(seed, 40, 52)[0] for seed in range(5)]
    expected = [predictor(image).mask for image in images]
    Image.fromarray(images[1]).save(tmp_path / "b.png")
    raw = io.BytesIO()
    Image.fromarray(images[3]).save(raw, "PNG")
    mixed = [
        images[0], tmp_path / "b.png", torch.from_numpy(images[2]).permute(2, 0, 1), raw.getvalue(),
        Image.fromarray(images[4]),
    ]  # fmt: skip
    batch = np.stack(images)
    for source in (mixed, tuple(images), batch, torch.from_numpy(batch).permute(0, 3, 1, 2)):
        results = predictor(source)
        assert isinstance(results, list)
        assert all(np.array_equal(a.mask, b) for a, b in zip(results, expected, strict=True))
    assert [result.source for result in predictor(mixed)] == ["", "b.png", "", "", ""] and predictor([]) == []


def test_a_generator_gives_a_generator_that_holds_a_few(predictor: Predictor, drawn, monkeypatch) -> None:
    monkeypatch.setattr(type(predictor), "workers", 3)
    image, taken = drawn(1, 30, 30)[0], []

    def frames() -> Iterator[np.ndarray]:
        for i in range(1000):
            taken.append(i)
            yield image

    results = predictor(frames(), confidence=True)
    assert isinstance(results, Iterator) and not taken
    assert np.array_equal(next(results).mask, predictor(image).mask) and len(taken) <= 7
    results.close()
    assert len(taken) <= 7


def test_bgr_is_rgb_turned(predictor: Predictor, drawn) -> None:
    image = drawn(5, 60, 60)[0]
    expected = predictor(image)
    four = np.dstack([image[:, :, ::-1], np.full(image.shape[:2], 255, np.uint8)])
    tensor = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)
    for source in (image[:, :, ::-1], four, tensor, image[:, :, ::-1] / 255):
        result = predictor(source, bgr=True)
        assert np.array_equal(result.image, expected.image) and np.array_equal(result.mask, expected.mask)
    assert np.array_equal(predictor([image[:, :, ::-1]], bgr=True)[0].mask, expected.mask)
    with pytest.raises(ValueError, match="bgr=True with a Image; expected an array or a tensor, as of OpenCV"):
        predictor(Image.fromarray(image), bgr=True)
    with pytest.raises(ValueError, match=r"bgr=True with the shape \(60, 60\); expected 3 or 4 channels"):
        predictor(image[:, :, 0], bgr=True)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_arrays_of_16_bits_are_read_as_files_are(predictor: Predictor, bits: int, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    for shape in ((30, 40), (30, 40, 3)):
        array = rng.integers(0, 1 << bits, shape).astype(np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb" if array.ndim == 3 else "minisblack")
        with pytest.warns(UserWarning, match=f"{bits}-bit") if bits < 16 and array.ndim == 2 else _nothing():
            expected = predictor(tmp_path / "a.tif")
        assert np.array_equal(predictor(array).image, expected.image)


def _nothing():  # noqa: ANN202
    import contextlib

    return contextlib.nullcontext()


def test_channels_first_and_odd_types_are_refused_with_the_way_out(predictor: Predictor) -> None:
    for source, message in [
        (np.zeros((3, 40, 50), np.uint8), r"array.transpose\(1, 2, 0\) puts them last"),
        (torch.zeros(40, 50, 3), r"tensor.permute\(2, 0, 1\) puts them first"),
        (np.zeros((40, 50, 3), np.int64), "array of int64; expected uint8"),
        (np.full((4, 5, 3), 200.0), "floats from 200 to 200; expected 0 to 1"),
        ({"a": 1}, "image of type dict; expected a path"),
        ([np.zeros((2, 2, 2, 3), np.uint8)], "a batch, of which one image is taken at a time"),
    ]:
        with pytest.raises(ValueError, match=message):
            predictor(source)
