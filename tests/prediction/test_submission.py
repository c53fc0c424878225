"""What the servers take: names, palettes, label ids; every fault of an archive; the official score of what we write."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atrous.cli.parser import main
from atrous.data.datasets.dataset import open_dataset
from atrous.data.labels import CITYSCAPES, VOC, Labels
from atrous.evaluation.metrics import ConfusionMatrix
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import ModelCard, save
from atrous.prediction import submission
from atrous.prediction.predictor import Predictor

SIZES = [(33, 40), (40, 25), (21, 21)]
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
Model = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models")

    def model(labels: Labels, seed: int = 0) -> Path:
        """An untrained network of these classes, whose answers are as good as any."""
        path = folder / f"{len(labels)}-{seed}.safetensors"
        if not path.exists():
            torch.manual_seed(seed)
            network = DeepLabV3(backbone="timm/lcnet_050", num_classes=len(labels), aspp_rates=(1,))
            card = ModelCard(
                arguments=network.arguments, names=labels.names, palette=labels.palette, mean=network.mean,
                std=network.std, output_stride=16,
            )  # fmt: skip
            save(network, path, card)
        return path

    return model


def put_images(folder: Path, names: list[str], sizes: list[tuple[int, int]] = SIZES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (*sizes[seed % len(sizes)], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOC2012"
    put_images(root / "JPEGImages", ["2008_1.jpg", "2008_2.jpg", "2008_3.jpg"])
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("2008_1\n2008_2\n2008_3\n")
    return root


CITY = ["berlin_000000_000019", "berlin_000001_000019", "bonn_000000_000019"]


def put_cityscapes(root: Path, split: str, sizes: list[tuple[int, int]] = SIZES) -> Path:
    for seed, stem in enumerate(CITY):
        city, size = stem.partition("_")[0], sizes[seed % len(sizes)]
        put_images(root / "leftImg8bit" / split / city, [f"{stem}_leftImg8bit.png"], [size])
        # Blocks of ids, void ones too, so that every class is somewhere and some are not.
        ids = np.random.default_rng(seed).integers(0, 34 - 3 * seed, (8, 8)).astype(np.uint8)
        target = root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST).save(target)
    return root


def members(archive: Path) -> dict[str, bytes]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            return {name: zipped.read(name) for name in zipped.namelist()}
    with tarfile.open(archive) as packed:
        return {info.name: packed.extractfile(info).read() for info in packed}  # type: ignore[union-attr]


def repack(archive: Path, files: dict[str, bytes]) -> Path:
    other = archive.with_name("other.tgz")
    with tarfile.open(other, "w:gz") as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return other


def png(array: np.ndarray, palette: list[int] | None = None, **options: int) -> bytes:
    image, file = Image.fromarray(array), io.BytesIO()
    if palette is not None:
        image.putpalette(palette)
    image.save(file, "PNG", **options)
    return file.getvalue()


def test_voc_files_are_palette_pngs_of_our_masks(voc: Path, model: Model, tmp_path: Path) -> None:
    data, out = f"voc:{voc}", tmp_path / "out"
    actual = submission.write(model(VOC), data, out, device="cpu", flip=True)
    assert (actual.images, actual.predicted) == (3, 3) and actual.archive == out / "results.tgz"
    files = members(actual.archive)
    assert list(files) == [f"{FOLDER}/2008_{i}.png" for i in (1, 2, 3)]
    predictor = Predictor.load(model(VOC), device="cpu", flip=True)
    for i in (1, 2, 3):
        image = Image.open(io.BytesIO(files[f"{FOLDER}/2008_{i}.png"]))
        assert image.mode == "P" and image.getpalette()[:63] == [part for colour in VOC.palette for part in colour]
        assert (np.array(image) == predictor(voc / "JPEGImages" / f"2008_{i}.jpg").mask).all()
    assert submission.check(actual.archive, data) == []
    with tarfile.open(actual.archive) as packed:
        assert {(info.uid, info.uname) for info in packed} == {(0, "")}, "nobody's name goes out with it"


def test_cityscapes_files_hold_label_ids(model: Model, tmp_path: Path) -> None:
    root = put_cityscapes(tmp_path / "cityscapes", "test")
    actual = submission.write(model(CITYSCAPES), root, tmp_path / "out", device="cpu")
    files = members(actual.archive)
    assert list(files) == [f"results/{name}_pred_labelIds.png" for name in CITY]
    predictor, official = Predictor.load(model(CITYSCAPES), device="cpu"), submission.CITYSCAPES_LABEL_IDS
    for name in CITY:
        image = Image.open(io.BytesIO(files[f"results/{name}_pred_labelIds.png"]))
        mask = predictor(root / "leftImg8bit" / "test" / name.partition("_")[0] / f"{name}_leftImg8bit.png").mask
        assert image.mode == "L" and (np.array(image) == np.vectorize(official.__getitem__)(mask)).all()
    assert submission.check(actual.archive, root) == []


def test_what_was_interrupted_goes_on(voc: Path, model: Model, tmp_path: Path) -> None:
    data, out = f"voc:{voc}", tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submission.write(model(VOC), data, out, device="cpu", progress=stop)
    assert sorted(os.listdir(out / FOLDER)) == ["2008_1.png", "2008_2.png"] and not (out / "results.tgz").exists()
    with pytest.raises(
        ValueError, match=r"holds predictions of another setting \(there, here\): flip False, True; name"
    ):
        submission.write(model(VOC), data, out, device="cpu", flip=True)
    with pytest.raises(ValueError, match=r"another setting .*: weights [0-9a-f]{64}, [0-9a-f]{64}; name another --out"):
        submission.write(model(VOC, seed=1), data, out, device="cpu")
    assert submission.write(model(VOC), data, out, device="cpu").predicted == 1
    whole = submission.write(model(VOC), data, tmp_path / "whole", device="cpu")
    assert members(whole.archive) == members(out / "results.tgz")
    Image.new("P", (5, 5)).save(out / FOLDER / "2008_2.png")
    with pytest.raises(ValueError, match=r"2008_2\.png: 5x5 pixels; expected 25x40.*; remove the wrong files there"):
        submission.write(model(VOC), data, out, device="cpu")
    assert not list(out.glob(".*")), "no half an archive is left"


def test_every_fault_of_an_archive_is_named(voc: Path, model: Model, tmp_path: Path) -> None:
    data, colours = f"voc:{voc}", [part for colour in VOC.palette for part in colour]
    archive = submission.write(model(VOC), data, tmp_path / "out", device="cpu").archive
    files = members(archive)
    first, second, third = files
    ids = np.zeros((33, 40), np.uint8)

    def faults(**changes: bytes | None) -> list[str]:
        changed = {**files, **{{"first": first, "second": second}.get(k, k): v for k, v in changes.items()}}
        return submission.check(repack(archive, {k: v for k, v in changed.items() if v is not None}), data)

    assert faults() == []
    assert faults(first=None) == [f"1 of 3 predictions are missing: 2008_1; expected {first}"]
    assert faults(**{"results/x.png": b"", "__MACOSX/._a": b""}) == [
        "2 files are not expected: results/x.png, __MACOSX/._a"
    ]
    assert faults(**{first.replace("comp6", "comp5"): files[first]}) == [
        "1 images have more than one prediction: 2008_1"
    ]
    assert faults(first=png(ids.T.copy(), colours)) == [
        f"{first}: 33x40 pixels; expected 40x33, the size of its photograph"
    ]
    assert faults(first=png(ids)) == [f"{first}: mode L; expected P, 8 bits of ids"]
    assert faults(first=png(np.zeros((33, 40, 3), np.uint8))) == [f"{first}: mode RGB; expected P, 8 bits of ids"]
    assert faults(first=png(ids, [*colours[3:], 1, 2, 3])) == [f"{first}: another palette; expected VOC's colour map"]
    wrong = ids.copy()
    wrong[0, :3], wrong[1, 0] = 21, 255
    assert faults(first=png(wrong, colours)) == [f"{first}: id 21 (3 pixels), 255 (1 pixels); expected 0..20"]
    assert faults(first=files[first][:-20], second=b"nothing") == [
        f"{first}: not a whole PNG",
        f"{second}: not a whole PNG",
    ]
    assert third in files
    moved = repack(archive, {name.removeprefix("results/"): content for name, content in files.items()})
    assert len(submission.check(moved, data)) == 2, "all are missing, all are not expected"


def test_train_ids_for_label_ids_are_noticed(model: Model, tmp_path: Path) -> None:
    root = put_cityscapes(tmp_path / "cityscapes", "test")

    def archive(values: np.ndarray, **options: int) -> Path:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
            for name, size in zip(CITY, SIZES, strict=True):
                zipped.writestr(f"any/{name}_mine.png", png(np.resize(values.astype(np.uint8), size), **options))
        return tmp_path / "a.zip"

    assert submission.check(archive(np.array([7, 23, 33, 0])), root) == []
    (line,) = submission.check(archive(np.arange(19)), root)
    assert line.startswith("no file has an id above 18: train ids, it seems")
    lines = submission.check(archive(np.array([7, 34, 255])), root)
    assert [line.partition(": ")[2] for line in lines][0].startswith(
        "id 34 (440 pixels), 255 (440 pixels); expected 0..33"
    )


def test_a_broken_archive_is_one_line(voc: Path, tmp_path: Path) -> None:
    whole = repack(tmp_path / "a.tgz", {"results/x.png": os.urandom(5000)})
    for name, content in {
        "cut.tgz": whole.read_bytes()[:3000],
        "no.zip": b"PK\x03\x04 and no more",
        "empty.tgz": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: .*; expected a whole \.zip, \.tar or \.tgz"):
            submission.check(tmp_path / name, f"voc:{voc}")
    with pytest.raises(FileNotFoundError, match=r"none\.tgz: no such file"):
        submission.check(tmp_path / "none.tgz", f"voc:{voc}")


def test_what_cannot_be_submitted(voc: Path, model: Model, tmp_path: Path, tiny_data: Path) -> None:
    with pytest.raises(ValueError, match=r"layout folder; expected one with a server, voc or cityscapes"):
        submission.write(model(VOC), tiny_data, tmp_path / "out")
    with pytest.raises(
        ValueError, match="21 classes background.*; the model has the 19 classes road, sidewalk.*class 0"
    ):
        submission.write(model(CITYSCAPES), voc, tmp_path / "out")
    root = put_cityscapes(tmp_path / "cityscapes", "test")
    with pytest.raises(ValueError, match="competition is 'comp5'; expected one of VOC's, comp5 or comp6"):
        submission.write(model(CITYSCAPES), root, tmp_path / "out", competition="comp5")
    (voc / "JPEGImages" / "2008_2.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 3 names have no image: 2008_2; VOC 2012 is published at"):
        submission.write(model(VOC), voc, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line(voc: Path, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", f"voc:{voc}", "--json"]
    arguments = ["submit", "write", str(model(VOC)), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*arguments, "--competition", "comp5", *options]) == 0
    archive = tmp_path / "out" / "results.tgz"
    assert json.loads(capsys.readouterr().out) == {"archive": str(archive), "images": 3, "predicted": 3}
    assert list(members(archive))[0] == "results/VOC2012/Segmentation/comp5_test_cls/2008_1.png"
    assert main(["submit", "check", str(archive), *options]) == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True
    bad = repack(archive, {})
    assert main(["submit", "check", str(bad), *options[:2]]) == 1
    assert "3 of 3 predictions are missing: 2008_1, 2008_2, 2008_3" in capsys.readouterr().err


def test_the_official_cityscapes_score_of_our_files_is_ours(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path / "out" / "results"))
    name = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    official = pytest.importorskip(name, reason="no cityscapesscripts")
    root = put_cityscapes(tmp_path / "cityscapes", "val", [(97, 130), (64, 33), (150, 91)])
    archive = submission.write(model(CITYSCAPES), root, tmp_path / "out", split="val", device="cpu").archive
    assert submission.check(archive, root, split="val") == []

    dataset, confusion = open_dataset(root, "val"), ConfusionMatrix(19)
    predictor = Predictor.load(model(CITYSCAPES), device="cpu")
    for item, sample in zip(dataset.items, dataset, strict=True):
        confusion.update(torch.from_numpy(predictor(item.image).mask), sample.mask)
    ours = confusion.scores(CITYSCAPES.names)

    args = official.args
    monkeypatch.setattr(args, "evalInstLevelScore", False)  # of instances, with a function that NumPy 2.4 has no more
    monkeypatch.setattr(args, "JSONOutput", False)
    monkeypatch.setattr(args, "quiet", True)
    monkeypatch.setattr(args, "predictionPath", str(tmp_path / "out" / "results"))
    monkeypatch.setattr(args, "predictionWalk", None)
    truths = sorted(str(path) for path in root.glob("gtFine/val/*/*_gtFine_labelIds.png"))
    actual = official.evaluateImgLists([official.getPrediction(args, truth) for truth in truths], truths, args)
    theirs = [actual["classScores"][label] for label in CITYSCAPES.names]
    assert 0 < np.nanmax(theirs) < 1 and len(set(theirs)) > 5
    assert [repr(value) for value in ours.iou] == [repr(float(value)) for value in theirs]
    # Theirs is summed class by class, ours as torch sums.
    assert repr(ours.miou) == repr(float(actual["averageScoreClasses"]))
