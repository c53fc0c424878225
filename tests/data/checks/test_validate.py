"""Every fault that a data set can have, put into a small one, is found, and nothing else is."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from atrous.data.checks.validate import check, render
from atrous.data.datasets.mask_values import class_counts
from atrous.data.datasets.options import DatasetOptions
from atrous.data.images.image_io import write_mask
from atrous.data.labels import VOC, Labels, voc_palette
from atrous.data.sampling import id_histograms, open_splits

SHARED = Path(__file__).parents[3] / "shared" / "data"


def put(root: Path, split: str, name: str, *, seed: int, size: tuple[int, int] = (6, 4), mask: int | None = 1) -> None:
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / "images" / split / f"{name}.png")
    if mask is not None:
        ids = np.zeros((size[1], size[0]), dtype=np.uint8)
        ids[0], ids[1, :3] = mask, 255
        Image.fromarray(ids).save(root / "masks" / split / f"{name}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dataset.yaml").write_text("names: [sky, road]\n")
    put(tmp_path, "train", "a", seed=1)
    put(tmp_path, "train", "b", seed=2, size=(8, 4), mask=0)
    put(tmp_path, "val", "c", seed=3)
    return tmp_path


def shown(root: Path) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(check(root)))
    return console.export_text()


def test_a_sound_set_is_counted(root: Path) -> None:
    report = check(str(root))
    assert report.problems == [] and report.warnings == []
    train = report.splits["train"]
    assert (train.images, train.sound) == (2, 2)
    assert train.sizes == {"min": (6, 4), "median": (8, 4), "max": (8, 4)}
    assert train.counts.pixels.tolist() == [15 + 29, 6] and train.counts.images.tolist() == [2, 1]
    assert train.counts.shares.tolist() == pytest.approx([44 / 50, 6 / 50])
    assert train.counts.ignored == 6 and train.counts.ignored_share == pytest.approx(6 / 56)
    actual = json.loads(json.dumps(report.as_dict()))
    assert actual["sound"] and actual["classes"] == ["sky", "road"] and actual["splits"]["val"]["images"] == 1
    assert actual["splits"]["train"]["class_images"] == {"sky": 2, "road": 1}
    assert "no problems, 0 warnings" in shown(root)


def test_every_fault_is_found_and_none_stops_the_rest(root: Path) -> None:
    put(root, "train", "range", seed=4, mask=9)
    put(root, "train", "size", seed=5)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(root / "masks" / "train" / "size.png")
    put(root, "train", "cut", seed=6, size=(40, 40))
    whole = (root / "images" / "train" / "cut.png").read_bytes()
    (root / "images" / "train" / "cut.png").write_bytes(whole[:300])
    put(root, "train", "lone", seed=7, mask=None)
    put(root, "val", "leak", seed=1)
    put(root, "val", "d", seed=8)
    (root / "masks" / "val" / "d.png").write_bytes(b"nothing")
    (root / "images" / "test").mkdir()
    report = check(root)
    for part in (
        "range.png: mask has id 9 (6 pixels)",
        "size.png: mask of 5x4; expected 6x4",
        "train/cut.png: ",
        "1 of 6 images have no mask in masks/train, of the same stem: lone",
        "masks/val/d.png: not an image",
        "train/a.png and " + str(root / "images/val/leak.png") + ": the same picture in train and val",
        "images/test: no images",
    ):
        assert sum(part in line for line in report.problems) == 1, part
    assert len(report.problems) == 7 and all("\n" not in line for line in report.problems)
    assert report.splits["train"].sound == 2 and report.splits["train"].images == 5
    assert not report.as_dict()["sound"] and "7 problems" in shown(root)


def test_splits_of_the_same_files_are_told_from_copies(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [leaf]\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0 0 .5 0 .5 .5\n")
    (problem,) = check(tmp_path).problems
    assert problem.endswith("expected none; they are the same files: name others for one of the two")


def test_likely_mistakes_are_warned_of(root: Path) -> None:
    (root / "dataset.yaml").write_text("names: [sky, road, '[bold]car']\n")
    put(root, "train", "again", seed=1)
    put(root, "val", "b", seed=9, mask=2)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(root / "masks" / "val" / "orphan.png")
    report = check(root, allow_empty_classes=True)
    assert report.problems == []
    for part in (
        "train: 1 picture occurs more than once: a, again",
        "train and val: 1 pictures have the same name: b",
        "train: no pixel of [bold]car",
        "1 masks have no image: orphan",
    ):
        assert sum(part in line for line in report.warnings) == 1, part
    assert len(report.warnings) == 4 and "[bold]car" in shown(root)


def put_masks(root: Path, values: np.ndarray, names: str, count: int = 1) -> None:
    """A data set of one train image a mask, all with the same ids."""
    for number in range(count):
        put(root, "train", f"{number:02}", seed=100 + number, size=values.shape[::-1], mask=None)
        Image.fromarray(values.astype(np.uint8)).save(root / "masks" / "train" / f"{number:02}.png")
    (root / "dataset.yaml").write_text(f"names: {names}\n")


HALF = np.repeat([[0, 1]], 4, axis=0)
BOTH = "if 255 is leaf and 0 is background, write `names: [background, leaf]` and `map: {255: 1}` in dataset.yaml"


@pytest.mark.parametrize(
    ("values", "names", "said"),
    [
        (HALF * 255, "[leaf]", ["leaf is the only class", "ids 0 (4 pixels), 255 (4 pixels)", BOTH]),
        (HALF * 255, "[background, leaf]", ["train: no pixel of leaf", "if 255 is leaf, write `map: {255: 1}` in"]),
        (HALF * 255, "[a, b, c]", ["no pixel of b, c", "if 255 is one of the classes, write `map: {255: ID}`"]),
        (HALF * 0, "[sky, road]", ["train: no pixel of road; expected every class"]),
        (HALF * 0, "[sky]", ["sky is the only class"]),
        (HALF * 0 + 255, "[sky, road]", ["train: every pixel is ignored; expected some of the 2 classes"]),
        (HALF, "[leaf]", ["mask has id 1 (4 pixels)", "`names: [background, leaf]` in dataset.yaml"]),
        (HALF * 128, "[background, leaf]", ["mask has id 128 (4 pixels)", "write `map: {128: 1}` in dataset.yaml"]),
        (HALF + 1, "[sky, road]", ["id 2 (4 pixels)", "if the first class, sky, is id 1, write `map: {1: 0, 2: 1}`"]),
        (np.array([[0, 1, 2]]), "[a, b]", ["id 2 (1 pixels)", "if 0 is background, write `names: [background, a, b]`"]),
        (np.array([[0, 128, 255]]), "[a, b, c]", ["id 128 (1 pixels)", "write `map: {128: 1, 255: 2}`"]),
    ],
)
def test_masks_that_do_not_fit_their_names_are_problems(
    tmp_path: Path, values: np.ndarray, names: str, said: list[str]
) -> None:
    put_masks(tmp_path, values, names)
    (problem,) = check(tmp_path).problems
    assert [part for part in said if part not in problem] == [], problem


def test_masks_of_0_and_255_are_found_in_any_split_and_among_others(tmp_path: Path) -> None:
    put_masks(tmp_path, HALF, "[background, leaf]", count=3)
    for name in ("c", "d"):
        put(tmp_path, "val", name, seed=-ord(name) % 97, size=HALF.shape[::-1], mask=None)
        Image.fromarray((HALF * 255).astype(np.uint8)).save(tmp_path / "masks" / "val" / f"{name}.png")
    (problem,) = check(tmp_path).problems
    assert problem.startswith("val: no pixel of leaf") and "write `map: {255: 1}`" in problem
    Image.fromarray(HALF.astype(np.uint8)).save(tmp_path / "masks" / "val" / "c.png")
    report = check(tmp_path)
    assert (
        report.problems == []
        and "val: 1 of 2 masks have the ids 0 and 255 only, and no other has 255" in report.warnings[0]
    )
    assert "d.png" in report.warnings[0] and len(report.warnings) == 1


@pytest.mark.filterwarnings("ignore:.*16-bit file whose")
def test_images_of_16_bits_that_use_fewer_are_counted(root: Path) -> None:
    for index, top in enumerate((4095, 4000, 1000)):
        put(root, "train", f"wide{index}", seed=0)
        values = np.linspace(0, top, 24).astype(np.uint16).reshape(4, 6)
        Image.fromarray(values).save(root / "images" / "train" / f"wide{index}.png")
    report = check(root)
    (line,) = [line for line in report.warnings if "16 bits" in line]
    assert line.startswith("train: 3 of 5 images looked at have 16 bits and use 0 to 4095 of them, such as ")
    assert line.endswith("--value-range 0,4095 says it, --value-range 0,65535 reads all 16 bits")
    assert not [line for line in check(root, DatasetOptions(value_range=(0, 65535))).warnings if "16 bits" in line]
    assert report.problems == []


def test_empty_classes_can_be_allowed(tmp_path: Path) -> None:
    put_masks(tmp_path, HALF * 255, "[background, leaf]")
    report = check(tmp_path, allow_empty_classes=True)
    assert report.problems == [] and "no pixel of leaf" in report.warnings[0]


def test_a_problem_of_empty_classes_names_the_option_of_each_command(tmp_path: Path) -> None:
    put_masks(tmp_path, HALF * 0, "[sky, road]")
    (problem,) = check(tmp_path).problems
    assert problem.endswith("; to accept that: --allow-empty-classes, or in training --set allow_empty_classes=true")


def test_data_without_a_val_split_is_warned_of(tmp_path: Path) -> None:
    put_masks(tmp_path, HALF, "[sky, road]")
    (warning,) = check(tmp_path).warnings
    assert warning == (
        "no split val: finetune validates nothing, and keeps the last weights, not the best; "
        f"to make one: atrous data convert {tmp_path} OUT --resplit"
    )


def test_a_layout_without_folders_of_splits_is_told_how_to_make_a_val_split(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.linear_gradient("L").resize((4, 4)).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(np.array([[0, 1]] * 4, np.uint8).repeat(2, 1)).save(tmp_path / "masks" / "a.png")
    (tmp_path / "labels.txt").write_text("sky\nroad\n")
    (warning,) = check(tmp_path).warnings
    assert warning.startswith("no splits: training divides the images") and "atrous data convert" in warning


def test_classes_without_a_pixel_in_val_are_warned_of(root: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(root / "masks" / "val" / "c.png")
    report = check(root)
    assert report.problems == []
    assert report.warnings == ["val: no pixel of road, so that no IoU is measured there; expected every class"]


def test_an_ignored_border_is_not_taken_for_a_class(tmp_path: Path) -> None:
    put_masks(tmp_path, np.array([[0, 1, 255]]), "[a, b, c]")
    (problem,) = check(tmp_path).problems
    assert "no pixel of c" in problem and "map" not in problem


def test_problems_of_one_kind_are_one_line(tmp_path: Path) -> None:
    put_masks(tmp_path, np.array([[0, 128, 255]]), "[a, b, c]", count=30)
    for number in range(10):
        (tmp_path / "images" / "train" / f"{number:02}.png").write_bytes(b"nothing")
        mask = Image.fromarray(np.zeros((2, 10 + number), np.uint8))
        mask.save(tmp_path / "masks" / "train" / f"{number + 10:02}.png")
    unreadable, sizes, ids = check(tmp_path).problems
    assert unreadable.startswith("train: 10 files like this: ") and "00.png: not an image" in unreadable
    assert "; and " in unreadable and "01.png" in unreadable and "02.png" not in unreadable
    assert sizes.startswith("train: 10 files like this: ") and "10.png: mask of 10x2; expected 3x1" in sizes
    assert "train: 10 files like this" in ids and "the masks of train have the ids 0 (10 pixels), 128 (10" in ids
    assert ids.endswith("write `map: {128: 1, 255: 2}` in dataset.yaml")


def test_the_same_pictures_in_two_splits_are_one_line(tmp_path: Path) -> None:
    put_masks(tmp_path, HALF, "[a, b]", count=30)
    shutil.copytree(tmp_path / "images" / "train", tmp_path / "images" / "val")
    shutil.copytree(tmp_path / "masks" / "train", tmp_path / "masks" / "val")
    (problem,) = check(tmp_path).problems
    assert problem.startswith("train and val: 30 files like this: ") and "00.png" in problem and "02.png" not in problem


def test_splits_with_other_classes_are_a_problem(tmp_path: Path) -> None:
    for split, names in (("train", ["cat", "dog"]), ("val", ["dog", "cat"])):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8), (9, 9, len(split))).save(tmp_path / split / "x.jpg")
        region = {"image_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]], "area": 9}
        document = {
            "images": [{"id": 1, "file_name": "x.jpg", "height": 8, "width": 8}],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
            "annotations": [{"category_id": number, **region} for number in (0, 1)],
        }
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(document))
    message = "val: the classes background, dog, cat; expected those of train: background, cat, dog"
    assert message in check(tmp_path).problems


def test_a_split_of_ignored_pixels_is_warned_of(root: Path) -> None:
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(root / "masks" / "val" / "c.png")
    assert check(root).warnings == ["val: every pixel is ignored; expected some of the 2 classes"]


def test_vocs_trainaug_may_contain_its_train(tmp_path: Path) -> None:
    sets = tmp_path / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug"):
        (tmp_path / folder).mkdir()
    for split, names in {"train": "a", "val": "b", "trainval": "ab", "trainaug": "ac"}.items():
        (sets / f"{split}.txt").write_text("\n".join(names))
    for seed, name in enumerate("abc"):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            write_mask(tmp_path / folder / f"{name}.png", np.full((4, 6), 15, np.uint8), VOC)
    report = check(f"voc:{tmp_path}", allow_empty_classes=True)
    assert report.problems == [] and list(report.splits) == ["train", "trainaug", "val"]
    (sets / "trainaug.txt").write_text("a\nb\n")
    problems = check(tmp_path, allow_empty_classes=True).problems
    assert ["same picture in trainaug and val" in line for line in problems] == [True]


def test_what_cannot_be_checked_at_all(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check(root / "nowhere")
    (root / "dataset.yaml").write_text("names: 3")
    with pytest.raises(ValueError, match=r"dataset\.yaml: names is the text .3."):
        check(root)
    empty = root / "empty"
    empty.mkdir()
    (empty / "dataset.yaml").write_text("names: [sky]")
    with pytest.raises(ValueError, match="no splits"):
        check(empty)


def test_class_counts_of_nothing() -> None:
    counts = class_counts(np.zeros((0, 256), dtype=np.int64), VOC)
    assert counts.shares.tolist() == [0.0] * 21 and counts.ignored_share == 0


def test_progress_is_told(root: Path) -> None:
    told: list[tuple[str, int, int]] = []
    check(root, workers=1, progress=lambda *step: told.append(step))
    assert told == [("train", 1, 2), ("train", 2, 2), ("val", 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camvid", "objects"])
def test_shared_data_is_sound(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} beside the repository, in shared/data")
    assert check(SHARED / name).problems == []


def test_a_pipe_among_the_images_is_named_and_not_waited_for(tiny_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    (data / "images" / "val" / "val0.png").unlink()
    os.mkfifo(data / "images" / "val" / "val0.png")
    assert any("val0.png: not a file" in line for line in check(data).problems)
    (data / "dataset.yaml").unlink()
    os.mkfifo(data / "dataset.yaml")
    with pytest.raises(ValueError, match=r"not a file; expected a dataset.yaml|layout not recognised"):
        check(data)


def test_a_path_that_is_named_like_an_emoji_is_shown_as_it_is(tiny_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "a:v:b")
    console = Console(record=True, width=200)
    console.print(render(check(f"folder:{data}")))
    assert "a:v:b: no problems" in console.export_text()


RED, GREEN, BLACK, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 0), (0, 0, 200)


def put_palette(root: Path, split: str, name: str, ids: list[int], palette: list[tuple[int, int, int]]) -> Path:
    """An image, and a mask of one row a palette PNG draws in these colours."""
    put(root, split, name, seed=len(name) + ord(name[0]), size=(len(ids), 1), mask=None)
    image = Image.fromarray(np.array([ids], np.uint8))
    image.putpalette([part for colour in palette for part in colour])
    path = root / "masks" / split / f"{name}.png"
    image.save(path)
    (root / "dataset.yaml").write_text("names: [background, leaf, stem]\n")
    return path


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_whose_palettes_were_renumbered_are_a_problem(tmp_path: Path, split: str) -> None:
    first = put_palette(tmp_path, "train", "a", [0, 1, 2], [BLACK, RED, GREEN])
    other = put_palette(tmp_path, split, "b", [0, 1, 2], [BLACK, GREEN, RED])
    message = f"{other}: id 1 is drawn in (0, 200, 0), but in {first} in (200, 0, 0); expected each id in one colour"
    (problem,) = check(tmp_path).problems
    assert problem.startswith(message) and "save the masks as RGB and give their colours as `palette`" in problem
    drawn: list = []
    with pytest.raises(ValueError, match="id 1 is drawn in") as caught:
        for name in ("train", "val") if split == "val" else ("train",):
            id_histograms(open_splits(tmp_path, name), drawn)
    assert str(caught.value) == problem


def test_palettes_of_one_object_each_are_compared_by_id(tmp_path: Path) -> None:
    put_palette(tmp_path, "train", "a", [0, 1, 2], [BLACK, RED, GREEN])
    for name in "bcd":
        put_palette(tmp_path, "train", name, [0, 1, 1], [BLACK, GREEN])
    (problem,) = check(tmp_path).problems
    assert problem.startswith("train: 3 files like this: ") and problem.count("id 1 is drawn in") == 2


def test_palettes_that_agree_in_the_ids_that_occur_are_sound(tmp_path: Path) -> None:
    put_palette(tmp_path, "train", "a", [0, 1, 2], [BLACK, RED, GREEN])
    put_palette(tmp_path, "train", "b", [0, 1, 1], [BLACK, RED, BLUE, RED])
    put_palette(tmp_path, "train", "c", [0, 1, 255], [BLACK, RED, GREEN] + [BLUE] * 253)
    put_palette(tmp_path, "train", "d", [0, 1, 255], [BLACK, RED, GREEN] + [RED] * 253)
    put(tmp_path, "train", "e", seed=5)  # gray
    assert check(tmp_path).problems == []


def test_masks_that_this_package_wrote_go_with_those_in_other_colours(tmp_path: Path) -> None:
    labels = Labels(("background", "leaf", "stem"), voc_palette(3))
    first = put_palette(tmp_path, "train", "a", [0, 1, 2], [BLACK, RED, GREEN])
    ours = put_palette(tmp_path, "pseudo", "b", [0, 1, 2], [BLACK])
    write_mask(ours, np.array([[0, 1, 2]]), labels)
    assert check(tmp_path).problems == []
    put_palette(tmp_path, "train", "a", [0, 1, 2], [BLACK, labels.palette[2], labels.palette[1]])
    (problem,) = check(tmp_path).problems
    assert problem.startswith(f"{first}: id 1 is drawn in (0, 128, 0), but in {ours} in (128, 0, 0)")


def test_palettes_are_compared_where_the_masks_name_the_classes_too(tmp_path: Path) -> None:
    put_palette(tmp_path, "train", "a", [0, 1, 2], [BLACK, RED, GREEN])
    put_palette(tmp_path, "train", "b", [0, 1, 2], [GREEN, BLACK, RED])
    (tmp_path / "dataset.yaml").unlink()
    (problem,) = check(tmp_path).problems
    assert "b.png: id 0 is drawn in (0, 200, 0), but in " in problem
    with pytest.raises(ValueError, match="id 0 is drawn in"):
        id_histograms(open_splits(tmp_path, "train"))


def test_another_class_than_background_in_black_is_said(tmp_path: Path) -> None:
    white = (255, 255, 255)
    for name in "ab":
        put_palette(tmp_path, "train", name, [0, 1, 1], [white, BLACK])
    (tmp_path / "dataset.yaml").write_text("names: [background, leaf]\n")
    said = [line for line in check(tmp_path).warnings if "in black" in line]
    assert said[0].startswith("train: 2 masks draw background in (255, 255, 255) and leaf in black, such as ")
    (tmp_path / "dataset.yaml").write_text("names: [leaf, background]\n")
    assert "in black" not in str(check(tmp_path).warnings)


def test_mapped_ids_may_have_several_colours(tmp_path: Path) -> None:
    put_palette(tmp_path, "train", "a", [0, 1, 2], [BLACK, RED, GREEN])
    put_palette(tmp_path, "train", "b", [0, 3, 2], [BLACK, RED, GREEN, BLUE])
    (tmp_path / "dataset.yaml").write_text("names: [background, leaf, stem]\nmap: {3: 1}\n")
    assert check(tmp_path).problems == []
