"""Any data set becomes plain, the same at each call; names do not collide, and nothing else is written over."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.checks.validate import check
from atrous.data.convert import convert
from atrous.data.datasets.dataset import open_dataset, splits
from atrous.data.datasets.options import DatasetOptions
from atrous.data.images.image_io import write_mask
from atrous.data.labels import CLASSES, Labels, voc_palette, write_labels
from atrous.data.source import predicted, source_of


def yolo(root: Path, count: int = 10) -> Path:
    """Squares of one class in most images, of another in two."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    (root / "data.yaml").write_text("names: [leaf, stem]\n")
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index:02}.png")
        lines = ["0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"] + ["1 0.6 0.6 0.9 0.6 0.9 0.9"] * (index in (2, 7))
        (root / "labels" / f"{index:02}.txt").write_text("\n".join(lines))
    return root


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def masks(data: Path) -> dict[str, np.ndarray]:
    return {sample.name: sample.mask.numpy() for split in splits(data) for sample in open_dataset(data, split)}


def test_data_without_splits_is_divided_with_each_class_on_both_sides(tmp_path: Path) -> None:
    data, out = yolo(tmp_path / "mine"), tmp_path / "out"
    result = convert(source_of(data), out)
    assert result.splits == {"train": 8, "val": 2} and result.written == 10 and not result.failures
    assert "divided 10 images into 8 train, 2 val, with seed 0" in result.said[0]
    report = check(out)
    assert report.problems == [] and report.names == ("background", "leaf", "stem")
    assert all(split.counts.images[2] == 1 for split in report.splits.values())
    before, after = masks(data), masks(out)
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    assert content(out)["images/train/00.png"] == (data / "images" / "00.png").read_bytes()


def test_palettes_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "data" / "dataset.yaml").write_text("names: [background, leaf, stem]\n")
    for name, palette in (("a", [0, 0, 0, 9, 9, 9, 99, 9, 9]), ("b", [99, 9, 9, 0, 0, 0, 9, 9, 9])):
        Image.new("RGB", (3, 1)).save(tmp_path / "data" / "images" / f"{name}.jpg")
        mask = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
        mask.putpalette(palette)
        mask.save(tmp_path / "data" / "masks" / f"{name}.png")
    with pytest.raises(ValueError, match=r"b\.png: id 0 is drawn in \(99, 9, 9\), but in .*a\.png in \(0, 0, 0\)"):
        convert(source_of(tmp_path / "data"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_is_divided_beside_a_test_split_as_training_divides_it(tmp_path: Path, make_data) -> None:
    data = make_data(tmp_path / "data", {"all": 10, "test": 2})
    result = convert(source_of(data), tmp_path / "out")
    assert result.splits == {"train": 8, "val": 2, "test": 2}
    for split in ("train", "val", "test"):
        assert open_dataset(tmp_path / "out", split).names == open_dataset(data, split).names
    some = DatasetOptions.parse({"classes": ["blue"]})
    convert(source_of(data, some), tmp_path / "some")
    assert open_dataset(tmp_path / "some", "val").names == open_dataset(data, "val", some).names
    assert convert(source_of(data), tmp_path / "anew", resplit=True).splits == {"train": 10, "val": 2}
    assert convert(source_of(data), tmp_path / "kept", val=0).splits == {"all": 10, "test": 2}


def test_masks_have_the_palette_of_the_classes_and_the_file_says_where_they_came_from(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source_of(yolo(tmp_path / "mine")), out)
    text = (out / "dataset.yaml").read_text()
    assert "from mine: YOLO's polygons, with the 2 classes of data.yaml" in text
    assert "divided with --val 0.2 --seed 0" in text and "# id 2: stem" in text
    labels = open_dataset(out, "train").labels
    with Image.open(next((out / "masks" / "train").iterdir())) as mask:
        assert mask.mode == "P" and tuple(mask.getpalette()[3:6]) == labels.palette[1]


def test_stored_ids_are_kept_in_the_note(tmp_path: Path, make_data) -> None:
    data = make_data(tmp_path / "data", {"train": 2, "val": 1}, ignore=False)
    for path in data.glob("masks/*/*"):
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 3, 200, np.asarray(Image.open(path)))).save(path)
    (data / "dataset.yaml").write_text("names: [ground, red, green, blue]\nmap: {200: 3}\n")
    convert(source_of(data), tmp_path / "out")
    assert "# id 3: blue, there 3, 200" in (tmp_path / "out" / "dataset.yaml").read_text()
    assert max(mask.max() for mask in masks(tmp_path / "out").values()) == 3


def test_the_same_bytes_at_each_call_and_after_an_interruption(tmp_path: Path) -> None:
    data, out, again = yolo(tmp_path / "mine"), tmp_path / "out", tmp_path / "again"
    convert(source_of(data), out)
    whole = content(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("masks/*/*")}
    assert convert(source_of(data), out).already == 10
    assert content(out) == whole and times == {path: path.stat().st_mtime_ns for path in out.glob("masks/*/*")}

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source_of(data), again, progress=stop)
    for path in list(again.glob("masks/*/*"))[:2]:
        path.unlink()
    result = convert(source_of(data), again)
    assert result.written + result.already == 10 and content(again) == whole


def test_annotations_that_changed_are_converted_anew(tmp_path: Path) -> None:
    data, out = yolo(tmp_path / "mine"), tmp_path / "out"
    convert(source_of(data), out)
    text = data / "labels" / "00.txt"
    text.write_text("1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5")
    os.utime(text, (2**31, 2**31))
    result = convert(source_of(data), out)
    assert result.written == 1 and set(np.unique(masks(out)["00"])) == {0, 2}


def test_images_are_linked_or_copied(tmp_path: Path) -> None:
    data = yolo(tmp_path / "mine", 3)
    convert(source_of(data), tmp_path / "links")
    convert(source_of(data), tmp_path / "copies", copy=True)
    original = (data / "images" / "00.png").stat()
    linked, copied = (next((tmp_path / kind).rglob("images/*/00.png")).stat() for kind in ("links", "copies"))
    assert linked.st_ino == original.st_ino and copied.st_ino != original.st_ino
    assert convert(source_of(data), tmp_path / "copies", copy=True).already == 3


def test_names_that_collide_are_told_apart(tmp_path: Path, make_data) -> None:
    """Two folders of images with the same names, as one COCO file lists them."""
    import json

    from atrous.data.polygons import run_lengths

    images, annotations = [], []
    for number, folder in enumerate(("a", "b", "B"), start=1):
        (tmp_path / "coco" / "images" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 60, 0, 0)).save(tmp_path / "coco" / "images" / folder / "x.png")
        region = np.zeros((8, 8), bool)
        region[:number] = True
        images.append({"id": number, "file_name": f"{folder}/x.png", "height": 8, "width": 8})
        rle = run_lengths(region, compressed=False)
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": number * 8, "segmentation": rle}
        )
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "leaf"}]}
    (tmp_path / "coco" / "annotations.json").write_text(json.dumps(document))
    out = tmp_path / "out"
    result = convert(source_of(tmp_path / "coco"), out, val=0)
    (split,) = result.splits
    names = sorted(path.name for path in (out / "images" / split).iterdir())
    assert len({name.lower() for name in names}) == 3 and "a__x.png" in names, names
    for path in (out / "images" / split).iterdir():
        red = Image.open(path).getpixel((0, 0))[0]
        assert (np.asarray(Image.open(out / "masks" / split / path.name)) == 1).sum() == 8 * red // 60


def test_splits_are_kept_or_put_together_and_divided_anew(tmp_path: Path, tiny_data: Path) -> None:
    assert convert(source_of(tiny_data), tmp_path / "kept").splits == {"train": 8, "val": 4}
    result = convert(source_of(tiny_data), tmp_path / "anew", resplit=True, val=0.5, seed=3)
    assert sum(result.splits.values()) == 12 and result.splits["val"] == 6
    assert open_dataset(tmp_path / "kept", "val").labels == open_dataset(tiny_data, "val").labels


def test_another_folder_is_not_written_over(tmp_path: Path, tiny_data: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \(diary.txt\); expected an empty folder"):
        convert(source_of(tiny_data), out)
    (out / "diary.txt").unlink()
    convert(source_of(tiny_data), out)
    with pytest.raises(ValueError, match="is of another data set or other settings"):
        convert(source_of(tiny_data), out, resplit=True)
    shutil.copy(out / "images" / "val" / "val0.png", out / "images" / "val" / "mine.png")
    with pytest.raises(ValueError, match=r"images/val has mine.png, which shapes has not"):
        convert(source_of(tiny_data), out)
    with pytest.raises(ValueError, match="holds what is to be converted"):
        convert(source_of(tiny_data), tiny_data)


def test_what_cannot_be_read_is_told_and_the_rest_converted(tmp_path: Path) -> None:
    data, out = yolo(tmp_path / "mine"), tmp_path / "out"
    (data / "labels" / "03.txt").write_text("0 nothing")
    result = convert(source_of(data), out)
    assert list(result.failures) == ["03"] and "line 1 is '0 nothing'" in result.failures["03"]
    assert sum(result.splits.values()) == result.written == 9
    (data / "labels" / "03.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5")
    assert sum(convert(source_of(data), tmp_path / "whole").splits.values()) == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "cocoo"}, "no format 'cocoo'; did you mean coco"),
        ({"val": 1.0}, "val is 1.0; expected a share"),
    ],
)
def test_options_out_of_range(options: dict, words: str, tmp_path: Path, tiny_data: Path) -> None:
    with pytest.raises(ValueError, match=words):
        convert(source_of(tiny_data), tmp_path / "out", **options)


def test_a_models_masks_become_annotations(tmp_path: Path) -> None:
    labels = Labels(("background", "leaf"), voc_palette(2))
    (tmp_path / "found" / "masks").mkdir(parents=True)
    write_labels(tmp_path / "found" / CLASSES, labels)
    photographs = {}
    for name in "ab":
        path = tmp_path / f"{name}.jpg"
        Image.new("RGB", (12, 10)).save(path)
        photographs[path] = f"{name}.png"
        write_mask(tmp_path / "found" / "masks" / f"{name}.png", np.eye(10, 12, dtype=np.uint8), labels)
    (tmp_path / "found" / "masks" / "b.png").unlink()
    source = predicted(tmp_path / "found", photographs)
    assert "1 photograph without a mask left out" in source.said[0]
    result = convert(source, tmp_path / "out", to="voc")
    assert result.splits == {"train": 1}
    assert (masks(tmp_path / "out")["a"] == np.eye(10, 12)).all()
    with pytest.raises(FileNotFoundError, match="expected the output folder of atrous predict"):
        predicted(tmp_path, photographs)


def test_how_images_are_read_is_kept(tmp_path: Path, tiny_data: Path) -> None:
    options = DatasetOptions.parse({"value_range": [0, 200], "classes": ["red", "green"]})
    convert(source_of(tiny_data, options), tmp_path / "out")
    ours, theirs = open_dataset(tiny_data, "val", options), open_dataset(tmp_path / "out", "val")
    assert theirs.rule == ours.rule and theirs.labels.names == ours.labels.names == ("background", "red", "green")
    assert all((a.mask == b.mask).all() and (a.image == b.image).all() for a, b in zip(ours, theirs, strict=True))
