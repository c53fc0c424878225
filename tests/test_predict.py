"""Photographs in, masks out: the same mask for every kind of source, at the size of the source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atrous.data.labels import Labels
from atrous.engine.evaluate import predict_classes
from atrous.jobs.predict import Predictor, find_photographs, output_names, predict_files

Draw = Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor.load(trained, device="cpu")


def photograph(path: Path, drawn: Draw, seed: int = 0, height: int = 40, width: int = 52) -> np.ndarray:
    image, _ = drawn(seed, height, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


def test_path_picture_array_and_tensor_give_the_same_mask(predictor, drawn: Draw, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = photograph(path, drawn, 5, 60, 60)
    sources = [
        path, str(path), opened(path), Image.fromarray(image), image, image / 255,
        torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(image).permute(2, 0, 1).double() / 255,
    ]  # fmt: skip
    masks = [predictor(source).mask for source in sources]
    assert len(np.unique(masks[0])) > 1  # one class everywhere would be the same in any case
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


def test_the_mask_is_the_argmax_of_the_model(predictor, drawn: Draw) -> None:
    image, _ = drawn(3, 37, 53)
    pixels = torch.from_numpy(image / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (predictor.model.mean, predictor.model.std))
    with torch.no_grad():
        logits = predictor.model(((pixels - mean) / std).float()[None])[0]
    top = logits.topk(2, 0).values
    clear = (top[0] - top[1] > 1e-3).numpy()
    assert clear.mean() > 0.9
    assert np.array_equal(predictor(image).mask[clear], logits.argmax(0).numpy()[clear])
    probabilities = predictor.probabilities(image)
    assert probabilities.shape == (4, 37, 53) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, logits.softmax(0).numpy(), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (17, 16), (33, 33), (37, 53), (64, 31)])
@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.25), "flip": True}], ids=["plain", "averaged"])
def test_the_output_has_the_size_of_the_input(trained: Path, drawn: Draw, size: tuple[int, int], options: dict) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    result = Predictor.load(trained, device="cpu", **options)(image)
    assert result.mask.shape == size and result.mask.dtype == np.uint8 and result.mask.max() < 4
    assert result.overlay().size == (size[1], size[0])
    assert np.array_equal(result.image, image)
    assert sum(result.areas.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_a_photograph_held_upright_by_exif_is_segmented_upright(predictor, drawn: Draw, tmp_path, turn: int) -> None:
    image, _ = drawn(1, 40, 56)
    stored = {3: np.rot90(image, 2), 6: np.rot90(image, 1), 8: np.rot90(image, 3)}[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    result = predictor(tmp_path / "turned.png")
    assert np.array_equal(result.image, image)
    assert np.array_equal(result.mask, predictor(image).mask)


def test_areas_and_names_are_those_of_the_mask_largest_first(predictor, drawn: Draw) -> None:
    result = predictor(drawn(5, 60, 60)[0])
    ids, counts = np.unique(result.mask, return_counts=True)
    assert result.areas == {int(i): pytest.approx(n / 3600) for i, n in zip(ids, counts, strict=True)}
    assert list(result.areas.values()) == sorted(result.areas.values(), reverse=True) and len(ids) > 1
    assert sum(result.areas.values()) == pytest.approx(1, abs=1e-12)
    assert result.names == {i: ["ground", "red", "green", "blue"][i] for i in result.areas}


def test_segments_are_a_mask_for_each_class(predictor, drawn: Draw) -> None:
    result = predictor(drawn(5, 60, 60)[0])
    segments = result.segments()
    assert [segment["label"] for segment in segments] == list(result.names.values())
    assert all(segment["score"] is None and segment["mask"].mode == "L" for segment in segments)
    for i, segment in zip(result.names, segments, strict=True):
        assert np.array_equal(np.asarray(segment["mask"]) == 255, result.mask == i)
    assert (np.sum([np.asarray(segment["mask"]).astype(int) for segment in segments], 0) == 255).all()


def test_the_options_reach_the_model(trained: Path, drawn: Draw) -> None:
    image, _ = drawn(2, 48, 48)
    predictor = Predictor.load(trained, device="cpu", output_stride=8, scales=(0.75, 1.5), flip=True)
    assert predictor.model.output_stride == 8
    with torch.no_grad():
        tensor = predictor.normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
        expected = predict_classes(predictor.model, tensor, scales=(0.75, 1.5), flip=True)[0]
    assert (predictor(image).mask == expected.numpy()).mean() > 0.999


def test_bad_options_are_refused_when_loading(trained: Path) -> None:
    with pytest.raises(ValueError, match="scales are .*, expected numbers from 0.05 to 16"):
        Predictor.load(trained, device="cpu", scales=(0.0,))
    with pytest.raises(ValueError, match="output stride|output_stride"):
        Predictor.load(trained, device="cpu", output_stride=7)
    with pytest.raises(ValueError, match="there are 2 labels, the model has 4 classes"):
        model = Predictor.load(trained, device="cpu").model
        Predictor(model, Labels(("a", "b"), ((0, 0, 0), (1, 1, 1))), device="cpu")


def test_too_many_pixels_are_refused(trained: Path, drawn: Draw, tmp_path: Path) -> None:
    photograph(tmp_path / "a.png", drawn)
    with pytest.raises(ValueError, match=r"a\.png: 52x40 pixels; expected at most 100"):
        Predictor.load(trained, device="cpu", max_pixels=100)(tmp_path / "a.png")


def written(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def test_files_folders_and_globs(predictor, drawn: Draw, tmp_path: Path) -> None:
    for i, name in enumerate(["one/b.png", "one/a.JPG", "two/c.webp", "two/d.bmp", "three/e.png"]):
        photograph(tmp_path / name, drawn, i)
    (tmp_path / "one" / "notes.txt").write_text("no photograph")
    (tmp_path / "one" / "below").mkdir()
    out, seen = tmp_path / "out", []
    sources = [
        tmp_path / "one",
        str(tmp_path / "two" / "*.*"),
        tmp_path / "three" / "e.png",
        tmp_path / "one" / "b.png",
    ]
    batch = predict_files(predictor, sources, out, progress=lambda path, share: share or seen.append(path))
    assert [path.name for path in seen] == ["a.JPG", "b.png", "c.webp", "d.bmp", "e.png"]
    assert list(batch.areas) == seen and batch.failures == {}
    assert written(out) == [f"{kind}/{stem}.png" for kind in ("masks", "overlays") for stem in "abcde"]
    for path in seen:
        mask = opened(out / "masks" / f"{path.stem}.png")
        expected = predictor(path)
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), expected.mask)
        assert mask.getpalette()[:6] == [90, 90, 90, 220, 30, 30]
        assert opened(out / "overlays" / f"{path.stem}.png").size == mask.size
        assert batch.areas[path] == {expected.names[i]: share for i, share in expected.areas.items()}


def test_a_recursive_glob_and_a_name_with_brackets(drawn: Draw, tmp_path: Path) -> None:
    for name in ("x/deep/a.png", "x/b[1].png"):
        photograph(tmp_path / name, drawn)
    assert [path.name for path in find_photographs([str(tmp_path / "**" / "*.png")])] == ["b[1].png", "a.png"]
    assert [path.name for path in find_photographs([tmp_path / "x" / "b[1].png"])] == ["b[1].png"]


def test_one_bad_file_does_not_stop_the_others(predictor, drawn: Draw, tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        photograph(tmp_path / "in" / name, drawn)
    whole = (tmp_path / "in" / "a.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    batch = predict_files(predictor, [tmp_path / "in"], out)
    assert [path.name for path in batch.areas] == ["a.png", "c.png"]
    assert [path.name for path in batch.failures] == ["b.png"] and "b.png" in next(iter(batch.failures.values()))
    assert written(out) == ["masks/a.png", "masks/c.png", "overlays/a.png", "overlays/c.png"]


def test_only_bad_files_leave_nothing(predictor, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    batch = predict_files(predictor, [tmp_path / "bad.png"], tmp_path / "out")
    assert batch.areas == {} and len(batch.failures) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("nowhere.jpg", FileNotFoundError, "no file or folder .*nowhere.jpg"),
        ("empty", ValueError, "empty' holds no photograph"),
        ("*.tiff", ValueError, r"\*\.tiff' holds no photograph"),
    ],
)
def test_a_source_that_stands_for_nothing(predictor, tmp_path: Path, source: str, kind: Any, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind, match=message):
        predict_files(predictor, [str(tmp_path / source)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stems_that_collide_keep_their_suffix() -> None:
    names = output_names([Path("a/x.jpg"), Path("a/x.png"), Path("a/y.png")])
    assert list(names.values()) == ["x.jpg.png", "x.png.png", "y.png"]


@pytest.mark.parametrize("paths", [["a/x.jpg", "b/x.jpg"], ["a/x.jpg", "a/x.bmp", "a/x.jpg.png"]])
def test_names_that_collide_anyway_are_refused_before_anything_is_written(paths: list[str]) -> None:
    with pytest.raises(ValueError, match=r"x\.jpg.* would both be written to x\.jpg\.png; segment them into two"):
        output_names([Path(path) for path in paths])


def test_prediction_imports_no_training_code(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    code = "import sys\nimport atrous.jobs.predict\nprint([m for m in sys.modules if m.startswith('atrous.engine')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "atrous.engine.evaluate" in done.stdout
    assert "atrous.engine.train" not in done.stdout and "checkpoint" not in done.stdout


def test_outputs_that_cannot_be_are_refused_before_anything_is_done(predictor, drawn: Draw, tmp_path: Path) -> None:
    photograph(tmp_path / "a.png", drawn)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="out is a file, expected a folder"):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    (tmp_path / "mine" / "masks").mkdir(parents=True)
    photograph(tmp_path / "mine" / "masks" / "b.png", drawn)
    before = (tmp_path / "mine" / "masks" / "b.png").read_bytes()
    with pytest.raises(ValueError, match="b.png is one of the photographs and would be overwritten"):
        predict_files(predictor, [tmp_path / "mine" / "masks"], tmp_path / "mine")
    assert (tmp_path / "mine" / "masks" / "b.png").read_bytes() == before
