"""Photographs in, masks out: the same mask for every kind of source, at the size of the source."""

from __future__ import annotations

import errno
import functools
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atrous import DeepLabV3
from atrous.cli.parser import main
from atrous.data.images.image_io import read_image, read_mask
from atrous.data.labels import Labels
from atrous.evaluation.evaluate import predict_classes, predict_probabilities
from atrous.models.weights import load, save
from atrous.prediction.files import find_photographs, output_names, predict_files
from atrous.prediction.predictor import Predictor
from forks import Forked
from pictures import MODES, UNTURN, as_mode
from reliability import counted, record

Draw = Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]
Loaded = Callable[..., Predictor]


@pytest.fixture(scope="module")
def predictor(trained: Path, drawn: Draw, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """`trained`, its classes made equally likely: what few steps learn of them differs from processor to processor."""
    model, card = load(trained)
    with torch.no_grad():
        images = torch.from_numpy(np.stack([drawn(seed, 60, 60)[0] for seed in range(4)])).permute(0, 3, 1, 2) / 255
        logits = model.eval()((images - torch.tensor(card.mean).view(3, 1, 1)) / torch.tensor(card.std).view(3, 1, 1))
        spread, mean = torch.std_mean(logits, (0, 2, 3))
        assert bool((spread > 0).all()) and model.classifier.bias is not None
        model.classifier.weight /= spread.view(-1, 1, 1, 1)
        model.classifier.bias.copy_((model.classifier.bias - mean) / spread)
    path = tmp_path_factory.mktemp("predictor") / "model.safetensors"
    save(model, path, card, half=False)
    return Predictor.load(path, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def loaded(trained: Path) -> Callable[..., Predictor]:
    """The predictor of `trained` with these options, loaded once. Not to be changed."""
    return functools.cache(functools.partial(Predictor.load, trained, device="cpu"))


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
def test_the_output_has_the_size_of_the_input(loaded: Loaded, size: tuple[int, int], options: dict) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    result = loaded(**options)(image)
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
    expected = {["ground", "red", "green", "blue"][i]: n / 3600 for i, n in zip(ids, counts, strict=True)}
    assert result.areas == pytest.approx(expected)
    assert list(result.areas.values()) == sorted(result.areas.values(), reverse=True) and len(ids) > 1
    assert sum(result.areas.values()) == pytest.approx(1, abs=1e-12)
    assert [*result.names.values()] == [*result.areas] and [*result.names] == [*result.shares]
    assert all(["ground", "red", "green", "blue"][i] == name for i, name in result.names.items())


def test_segments_are_a_mask_for_each_class(predictor, drawn: Draw) -> None:
    result = predictor(drawn(5, 60, 60)[0])
    segments = result.segments()
    assert [segment["label"] for segment in segments] == list(result.names.values())
    assert all(segment["score"] is None and segment["mask"].mode == "L" for segment in segments)
    for i, segment in zip(result.names, segments, strict=True):
        assert np.array_equal(np.asarray(segment["mask"]) == 255, result.mask == i)
    assert (np.sum([np.asarray(segment["mask"]).astype(int) for segment in segments], 0) == 255).all()


def test_the_options_reach_the_model(loaded: Loaded, drawn: Draw) -> None:
    image, _ = drawn(2, 48, 48)
    options: dict[str, Any] = {"output_stride": 8, "scales": (0.75, 1.5), "flip": True}
    predictor = loaded(dtype=torch.float32, **options)
    assert predictor.model.output_stride == 8
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = predict_classes(predictor.model, pixels, scales=(0.75, 1.5), flip=True)[0]
    assert np.array_equal(predictor(image).mask, expected.numpy())


def test_options_of_a_call_are_those_of_a_predictor_made_with_them(trained: Path, drawn: Draw) -> None:
    image, _ = drawn(2, 48, 64)
    options: list[dict[str, Any]] = [{"output_stride": 16}, {"scales": (0.75, 1.5)}, {"flip": True, "output_stride": 4}]
    predictor = Predictor.load(trained, device="cpu", output_stride=8)
    before = predictor(image).mask
    for chosen in options:
        expected = Predictor.load(trained, device="cpu", **{"output_stride": 8, **chosen})(image).mask
        assert np.array_equal(predictor(image, **chosen).mask, expected) and not np.array_equal(expected, before)
    assert predictor.model.output_stride == 8 and np.array_equal(predictor(image).mask, before)
    predictor.model.output_stride = 16  # for the calls that follow
    assert np.array_equal(predictor(image).mask, predictor(image, output_stride=16).mask)
    with pytest.raises(ValueError, match="output_stride is 7"):
        predictor(image, output_stride=7)
    with pytest.raises(ValueError, match="scales are"):
        predictor(image, scales=())


@pytest.fixture(scope="module")
def shared() -> Predictor:
    """Padded as TensorFlow does, image-level features, and photographs larger than its window."""
    torch.manual_seed(0)
    model = DeepLabV3("timm/tf_mobilenetv3_small_minimal_100", 4, aspp_rates=(2,), output_stride=16)
    model.set_batch_norm_decay(0.5)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(2, 3, 65, 65))
        model.classifier.weight.normal_()
    labels = Labels(("a", "b", "c", "d"), ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)))
    return Predictor(model, labels, device="cpu", dtype=torch.float32, window=129)


def test_threads_share_a_predictor(shared: Predictor, drawn: Draw) -> None:
    images = [drawn(seed, *size)[0] for seed, size in enumerate([(40, 52), (33, 97), (60, 61), (140, 70)])]
    options: list[dict[str, Any]] = [{}, {"output_stride": 8}, {"output_stride": 8, "flip": True}, {"scales": (0.7,)}]
    jobs = [(image, chosen) for image in images for chosen in options]
    alone = [shared(image, **chosen).mask for image, chosen in jobs]
    assert len({mask.tobytes() for mask in alone}) == len(jobs)  # each option makes a difference
    order = [i for seed in range(8) for i in random.Random(seed).sample(range(len(jobs)), 6)]
    with ThreadPoolExecutor(8) as threads:
        masks = list(threads.map(lambda i: shared(jobs[i][0], **jobs[i][1]).mask, order))
    wrong = [i for i, mask in zip(order, masks, strict=True) if not np.array_equal(mask, alone[i])]
    assert wrong == [] and shared.model.output_stride == 16


def test_the_model_of_a_predictor_is_what_it_predicts_with(trained, drawn: Draw, monkeypatch) -> None:
    monkeypatch.setattr("atrous.models.inference.native_dtype", lambda device: torch.bfloat16)
    image, _ = drawn(2, 48, 64)
    fast, exact, asked = (
        Predictor.load(trained, device="cpu", dtype=dtype) for dtype in (None, torch.float32, torch.bfloat16)
    )
    dtypes = [next(predictor.model.parameters()).dtype for predictor in (fast, exact, asked)]
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16], "the device's own, unless another is asked for"
    assert np.array_equal(fast.probabilities(image), asked.probabilities(image))
    assert not np.array_equal(fast.probabilities(image), exact.probabilities(image))
    assert fast.settings() != exact.settings()


def test_padding_is_that_of_evaluation(trained: Path, drawn: Draw) -> None:
    image = drawn(2, 48, 64)[0]
    padded, plain = (Predictor.load(trained, device="cpu", dtype=torch.float32, pad_to=side) for side in (193, None))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = predict_probabilities(padded.model, pixels, pad_to=193)[0].numpy()
    assert np.array_equal(padded.probabilities(image), expected)
    assert (padded(image).mask == expected.argmax(0)).mean() > 0.999 and padded.settings() != plain.settings()
    assert np.abs(expected - plain.probabilities(image)).max() > 1e-3
    with pytest.raises(ValueError, match="pad_to is 0"):
        Predictor.load(trained, device="cpu", pad_to=0)


def test_the_callers_model_is_not_changed() -> None:
    model = DeepLabV3("timm/lcnet_050", 2, aspp_rates=(1,)).train()
    labels = Labels(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    predictor = Predictor(model, labels, device="cpu", output_stride=8, longest_side=64)
    predictor(np.zeros((30, 40, 3), dtype=np.uint8), output_stride=32)
    assert model.training and model.output_stride == 16 and model.longest_side is None
    assert predictor.model is not model and not predictor.model.training


def test_photographs_are_brought_to_the_longest_side(loaded: Loaded, drawn: Draw) -> None:
    image, _ = drawn(2, 48, 64)
    at_size, as_it_is = (loaded(longest_side=side) for side in (96, 0))
    assert (at_size.model.longest_side, as_it_is.model.longest_side) == (96, None)
    enlarged = loaded(scales=(95 / 63,))
    assert np.array_equal(at_size(image).mask, enlarged(image).mask)
    assert np.array_equal(as_it_is(image).mask, loaded()(image).mask)
    assert at_size.settings() != as_it_is.settings()
    assert at_size.fits(10_000, 17_000) and not as_it_is.fits(10_000, 17_000) and not at_size.fits(20_000, 20_000)
    seen_larger = loaded(longest_side=12_000)
    assert not seen_larger.fits(4000, 6000) and seen_larger.fits(1000, 1500)
    # By windows, it is the picture as it is: what a window shows has no longest side of its own.
    large, _ = drawn(1, 150, 140)
    windows = [loaded(longest_side=side, window=129, flip=True) for side in (96, 0)]
    assert np.array_equal(*(predictor(large).mask for predictor in windows))


def test_bad_options_are_refused_when_loading(trained: Path) -> None:
    with pytest.raises(ValueError, match="scales are .*, expected numbers from 0.05 to 16"):
        Predictor.load(trained, device="cpu", scales=(0.0,))
    with pytest.raises(ValueError, match="longest side is -1, expected 1 to 65536 pixels, or 0"):
        Predictor.load(trained, device="cpu", longest_side=-1)
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
    """Files below the folder of outputs; beside these it has the classes, for other commands."""
    return sorted(str(path.relative_to(out)) for path in out.glob("*/*") if path.is_file())


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
        assert batch.areas[path] == expected.areas


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


@pytest.mark.integration
def test_prediction_imports_no_training_code(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    code = "import sys\nimport atrous.prediction.files\nprint([m for m in sys.modules if m.startswith('atrous')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "atrous.evaluation.evaluate" in done.stdout
    assert "atrous.training" not in done.stdout and "training.checkpoint" not in done.stdout


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


# Windows and rows -----------------------------------------------------------------------------------------------------


def test_a_window_is_for_what_is_larger_than_it(trained: Path, loaded: Loaded, drawn: Draw) -> None:
    predictor, whole = loaded(window=257), loaded()
    assert predictor.fits(257, 257) and not predictor.fits(1, 258)
    assert whole.fits(4097, 4097) and whole.fits(1000, 16_785) and not whole.fits(4097, 4098)
    small, large = drawn(0, 100, 257)[0], drawn(1, 300, 260)[0]
    assert np.array_equal(predictor(small).mask, whole(small).mask)
    agreed = (predictor(large).mask == whole(large).mask).mean()
    assert 0.85 < agreed, agreed
    with pytest.raises(ValueError, match="window is 60, expected at least 64 at output stride 8"):
        Predictor.load(trained, device="cpu", output_stride=8, window=60)


def test_every_output_stride_has_its_window() -> None:
    model = DeepLabV3("resnet18", num_classes=2, head="cascade", last_block=7, output_stride=256)
    predictor = Predictor(model, Labels(("a", "b"), ((0, 0, 0), (1, 1, 1))), device="cpu")
    assert predictor.sliding_window().side == 7 * 256 + 1


def test_a_file_by_rows_is_the_picture_by_windows(loaded: Loaded, drawn: Draw, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("pyvips", reason="the extra 'large' is not installed")
    predictor = loaded(window=129)
    monkeypatch.setattr("atrous.prediction.files.OVERLAY_SIDE", 50)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = drawn(1, 150, 131)[0]
    for name in ("a.png", "a.tif", "turned.png", "a.gif"):  # a GIF is not read by rows, but whole
        upright = np.rot90(image) if "turned" in name else image
        Image.fromarray(upright).save(tmp_path / name, **({"exif": exif} if "turned" in name else {}))
    told: dict[str, list[float]] = {}
    files = [tmp_path / name for name in ("a.png", "a.tif", "turned.png", "a.gif")]
    batch = predict_files(
        predictor, files, tmp_path / "out", progress=lambda path, share: told.setdefault(path.name, []).append(share)
    )
    assert batch.failures == {}
    expected = predictor(image)
    assert np.array_equal(np.asarray(opened(tmp_path / "out" / "masks" / "a.gif.png")), predictor(files[3]).mask)
    for name in ("a.png.png", "a.tif.png", "turned.png"):
        assert np.array_equal(np.asarray(opened(tmp_path / "out" / "masks" / name)), expected.mask)
        assert opened(tmp_path / "out" / "overlays" / name).size == (44, 50)
    assert batch.areas[files[0]] == expected.areas
    assert told["a.png"] == sorted(told["a.png"]) and (told["a.png"][0], told["a.png"][-1]) == (0, 1)
    assert len(told["a.png"]) > 5
    monkeypatch.setattr("atrous.data.images.row_io.MAX_PIXELS", 1000)
    batch = predict_files(predictor, files[2:], tmp_path / "out")
    assert list(batch.failures) == [files[3]] and "is not read by rows" in batch.failures[files[3]]


def test_without_libvips_a_file_is_read_whole(loaded: Loaded, drawn: Draw, tmp_path: Path, monkeypatch) -> None:
    predictor = loaded(window=257)
    photograph(tmp_path / "a.png", drawn, 1, 50, 261)
    monkeypatch.setitem(sys.modules, "pyvips", None)
    batch = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    assert not batch.failures
    expected = predictor(tmp_path / "a.png").mask
    assert np.array_equal(np.asarray(opened(tmp_path / "out" / "masks" / "a.png")), expected)
    monkeypatch.setattr("atrous.prediction.predictor.MAX_PIXELS", 1000)
    batch = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    assert "pip install 'atrous[large]'" in batch.failures[tmp_path / "a.png"]


# Files of every kind, and what interrupts ----------------------------------------------------------------------------


def test_what_in_a_folder_is_no_picture_is_named_and_nothing_waits(predictor, drawn: Draw, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    photograph(folder / "good.png", drawn)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "notes.txt").write_text("no picture")
    batch = predict_files(predictor, [folder], tmp_path / "out")
    assert [path.name for path in batch.areas] == ["good.png"]
    whys = {path.name: why for path, why in batch.failures.items()}
    assert sorted(whys) == ["empty.jpg", "loop.png", "nowhere.jpg", "phone.heic", "pipe.jpg"]
    assert all(name in why for name, why in whys.items())
    assert written(tmp_path / "out") == ["masks/good.png", "overlays/good.png"]
    for name in ("nowhere.jpg", "loop.png", "pipe.jpg"):
        assert list(predict_files(predictor, [folder / name], tmp_path / "out").failures) == [folder / name]


LONG = ["m" * 230, "n" * 251, "ö" * 120, "m" * 229 + "x"]


def test_a_long_file_name_does_not_end_the_batch(predictor, drawn: Draw, tmp_path: Path) -> None:
    for number, stem in enumerate(["a", *LONG, "z"]):
        photograph(tmp_path / "in" / f"{stem}.png", drawn, number)
    (tmp_path / "out" / "overlays" / "z.png").mkdir(parents=True)  # so that one output cannot be written
    batch = predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    assert sorted(path.stem for path in batch.areas) == sorted(["a", *LONG])
    assert list(batch.failures) == [tmp_path / "in" / "z.png"]
    assert batch.failures[tmp_path / "in" / "z.png"].startswith(f"{tmp_path / 'in' / 'z.png'}: ")
    assert sorted(path.stem for path in batch.shortened) == sorted(LONG)
    for path, name in batch.shortened.items():
        assert len(os.fsencode(name)) <= 200 and name[:50] == path.stem[:50]
        assert np.array_equal(read_mask(tmp_path / "out" / "masks" / name), predictor(path).mask)
    assert len(set(batch.shortened.values())) == len(LONG)
    again = predict_files(predictor, [tmp_path / "in"], tmp_path / "out", resume=True)
    assert len(again.skipped) == 5 and again.as_dict()["shortened"] == batch.as_dict()["shortened"]
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        find_photographs(["x" * 300 + ".png"])


def test_a_full_disk_ends_the_batch(predictor, drawn: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph(tmp_path / "a.png", drawn)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.png")

    monkeypatch.setattr("atrous.prediction.files.write_mask", full)
    with pytest.raises(OSError, match="No space left"):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")


def test_what_tools_leave_in_folders_is_no_photograph(drawn: Draw, tmp_path: Path) -> None:
    for name in (
        "a.png",
        "._a.png",
        ".b.png",
        "@eaDir/a.png",
        ".ipynb_checkpoints/a.png",
        "in/c.png",
        "__MACOSX/d.png",
    ):
        photograph(tmp_path / ".hidden" / name, drawn)
    folder = tmp_path / ".hidden"  # that a user names it says that it is meant
    assert find_photographs([folder]) == [folder / "a.png"]
    assert find_photographs([f"{folder}/**/*.png"]) == [folder / "a.png", folder / "in" / "c.png"]
    assert find_photographs([folder / "._a.png"]) == [folder / "._a.png"]
    with pytest.raises(ValueError, match="holds no photograph"):
        find_photographs([f"{folder}/@eaDir/../.*.png"])


def test_bytes_and_file_objects_are_photographs(predictor, drawn: Draw, tmp_path: Path) -> None:
    image = photograph(tmp_path / "a.png", drawn, 5, 60, 60)
    raw, expected = (tmp_path / "a.png").read_bytes(), predictor(image).mask
    with open(tmp_path / "a.png", "rb") as file:
        for source in (raw, bytearray(raw), io.BytesIO(raw), file):
            assert np.array_equal(predictor(source).mask, expected)
    with pytest.raises(ValueError, match="whole|truncated"):
        predictor(raw[: len(raw) // 2])


def test_names_of_any_bytes(trained: Path, drawn: Draw, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (b"new\nline.png", b"\xff\xfe.png", b"[red] %s {}.png", "图.png".encode()):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name))
        photograph(path, drawn)
    path.write_bytes(b"")
    options = ["--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["predict", str(trained), str(tmp_path / "in"), *options]) == 2
    assert capsys.readouterr().err.count("图.png: not an image") == 1
    assert len(written(tmp_path / "out")) == 6
    assert main(["predict", str(trained), str(tmp_path / "in"), "--json", "--resume", *options]) == 2
    assert len(json.loads(capsys.readouterr().out)["skipped"]) == 3


def test_resume_does_what_is_not_done_by_these_settings(loaded: Loaded, drawn: Draw, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    names = ["a.png", "b.png", "c.png", "d.png", "e.png"]
    for number, name in enumerate(names):
        photograph(folder / name, drawn, number)

    def rerun(resume: bool = True, **options: Any) -> list[str]:
        batch = predict_files(loaded(**options), [folder], out, resume=resume)
        assert sorted([*batch.areas, *batch.skipped]) == [folder / name for name in names] and not batch.failures
        return [path.name for path in batch.areas]

    assert rerun() == names and rerun() == []
    (out / "masks" / "a.png").unlink()
    (out / "overlays" / "b.png").unlink()
    whole = (out / "masks" / "c.png").read_bytes()
    (out / "masks" / "c.png").write_bytes(whole[:-6])  # as a power cut may leave it
    later = (out / "masks" / "d.png").stat().st_mtime + 10
    os.utime(folder / "d.png", (later, later))
    photograph(folder / "e.png", drawn, 9, 41, 52)
    os.utime(folder / "e.png", (1, 1))  # an older photograph that was put in its place
    assert rerun() == names
    assert (out / "masks" / "c.png").read_bytes() == whole
    os.utime(folder / "d.png", (1, 1))
    assert rerun() == []
    os.utime(out / "overlays" / "d.png", (2, 2))  # as after a kill before its overlay
    assert rerun() == ["d.png"]
    assert rerun(flip=True) == names and rerun(flip=True) == [] and rerun() == names
    assert rerun(resume=False) == names
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def kill_at_some_moment(process: Forked, out: Path, generator: random.Random) -> bool:
    """After it has finished another file; whether it was still at work."""
    before = set(written(out))
    while set(written(out)) == before and process.process.is_alive():
        time.sleep(0.005)
    time.sleep(generator.random() * 0.4)
    alive = process.process.is_alive()
    process.send(generator.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
    return alive


def check_finished(out: Path, expected: dict[str, np.ndarray]) -> None:
    for name in written(out):
        kind, _, file = name.rpartition("/")
        if file.startswith("."):  # what a killed process was writing
            continue
        if kind == "masks":
            assert np.array_equal(read_mask(out / name), expected[file])
        else:
            assert read_image(out / name).shape[:2] == expected[file].shape


def killed_runs(trained: Path, drawn: Draw, tmp_path: Path, kills: int) -> tuple[int, int]:
    """Predict 8 files, killed that often at any moment; how many kills, and how many runs in all."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(8):
        photograph(folder / f"{number:02}.png", drawn, number, 180 + 20 * number, 200)
    predictor = Predictor.load(trained, device="cpu", window=257)
    expected = {path.name: predictor(path).mask for path in folder.iterdir()}
    line = ["predict", str(trained), str(folder), "--out", str(out), "--resume", "--device", "cpu", "--window", "257"]
    generator, killed, runs = random.Random(0), 0, 0
    while True:
        runs += 1
        process = Forked(line, tmp_path / f"{runs}.txt")
        last = killed >= kills
        killed += not last and kill_at_some_moment(process, out, generator)
        assert process.status() in (0, 130, 143, -signal.SIGKILL, -signal.SIGTERM), process.output
        check_finished(out, expected)
        if last:
            break
        if len(written(out)) == 16:  # all done: once more
            shutil.rmtree(out)
    assert len(written(out)) == 16
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    return killed, runs


@pytest.mark.integration
def test_killed_predictions_leave_whole_files_and_a_rerun_does_the_rest(trained, drawn: Draw, tmp_path: Path) -> None:
    killed_runs(trained, drawn, tmp_path, 1)


@pytest.mark.integration
def test_sigterm_leaves_nothing_half_written(trained: Path, drawn: Draw, tmp_path: Path) -> None:
    pytest.importorskip("pyvips", reason="the extra 'large' is not installed")
    photograph(tmp_path / "a.png", drawn, 0, 4000, 200)
    line = ["predict", str(trained), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    process = Forked([*line, "--window", "257"], tmp_path / "said.txt")
    while not list(tmp_path.glob("out/masks/.*.tmp")) and process.process.is_alive():
        time.sleep(0.002)
    process.send(signal.SIGTERM)
    assert process.status() == 143, process.output
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_predictions_killed_at_many_moments(trained: Path, drawn: Draw, tmp_path: Path) -> None:
    killed, runs = killed_runs(trained, drawn, tmp_path, counted(50))
    record(
        "interrupted prediction", f"{killed} kills (SIGKILL, SIGTERM, Ctrl-C), {runs} runs: every file whole or absent"
    )


# The full counts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_size_comes_out_at_its_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DeepLabV3("timm/lcnet_050", num_classes=4, output_stride=16)
    labels = Labels(("a", "b", "c", "d"), ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)))
    predictor = Predictor(model, labels, device="cpu")
    generator, count = random.Random(0), counted(200)
    sizes = [(1, 1), (1, 1025), (2049, 1), (2049, 1025), (2048, 1024), (2, 2), (513, 513), (512, 512)]
    while len(sizes) < count:
        sizes.append((round(2049 ** generator.random()), round(1025 ** generator.random())))
    for size in sizes[:count]:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert predictor(image).mask.shape == size
    record("any input size", f"{count} of {count} sizes from 1×1 to 2,049×1,025 come out as they went in")


@pytest.mark.slow
def test_predictions_lie_on_the_picture_in_every_mode_and_orientation(predictor, drawn: Draw, tmp_path: Path) -> None:
    shares = {}
    for mode, orientation in itertools.product(MODES, UNTURN):
        image, seen = as_mode(mode, drawn(5, 60, 60)[0])
        exif = Image.Exif()
        exif[0x0112] = orientation
        UNTURN[orientation](image).save(tmp_path / "a.img", MODES[mode], exif=exif)
        actual = predictor(tmp_path / "a.img")
        assert np.abs(actual.image.astype(int) - seen).max() <= 1
        shares[mode, orientation] = float((actual.mask == predictor(seen).mask).mean())
    assert len(shares) == 72 and min(shares.values()) > 0.99
    record("image modes", f"72 of 72: at least {min(shares.values()):.1%} of pixels as for the picture that is seen")
