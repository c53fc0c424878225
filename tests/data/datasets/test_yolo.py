"""YOLO's polygons: as tools write them, and every line that is none."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from atrous.data.checks.validate import check
from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from atrous.data.datasets.options import DatasetOptions
from formats import worst_iou

CATS = Path(__file__).parents[4] / "shared" / "data" / "cats"
SQUARE = "0 0.0 0.0 0.5 0.0 0.5 0.5 0.0 0.5\n"


def put(root: Path, *texts: str, yaml: str = "nc: 2\nnames: [leaf, stem]\n", folder: str = "{kind}") -> Path:
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(yaml, "utf-8")
    for number, text in enumerate(texts):
        images, labels = (root / folder.format(kind=kind) for kind in ("images", "labels"))
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (20, 40, 3)).astype(np.uint8)
        Image.fromarray(noise).save(images / f"{number}.jpg")
        (labels / f"{number}.txt").write_text(text)
    return root


@pytest.mark.parametrize(
    ("folder", "yaml", "split"),
    [
        ("{kind}", "names: [leaf, stem]", "all"),
        ("{kind}/train", "path: .\ntrain: images/train\nnames: {0: leaf, 1: stem}", "train"),
        ("{kind}/train", "path: /data/elsewhere\ntrain: images/train\nnames: {0: leaf, 1: stem}", "train"),
        ("valid/{kind}", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['leaf', 'stem']", "val"),
        ("valid/{kind}", "\ufeffnames: [leaf, stem]\r\n", "val"),
    ],
)
def test_folders_are_found_and_smaller_polygons_are_on_top(tmp_path: Path, folder: str, yaml: str, split: str) -> None:
    put(tmp_path, "1 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3\r\n" + SQUARE, yaml=yaml, folder=folder)
    assert kind_of(tmp_path) == "yolo" and splits(tmp_path) == [split]
    dataset = open_dataset(tmp_path, split)
    assert dataset.labels.names == ("background", "leaf", "stem")
    mask = dataset[0].mask
    assert mask.shape == (20, 40) and mask[[4, 1, 15], [8, 1, 30]].tolist() == [2, 1, 0]


def test_images_without_text_have_no_object(tmp_path: Path) -> None:
    put(tmp_path, SQUARE + SQUARE.replace("0 ", "1 ", 1).replace("0.5", "0.2"), "")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "2.jpg")
    dataset = open_dataset(tmp_path, "all")
    assert [bool(sample.mask.any()) for sample in dataset] == [True, False, False]
    assert "1 images have no text file" in check(tmp_path).warnings[0] and check(tmp_path).problems == []


def test_a_text_file_in_upper_case_is_read(tmp_path: Path) -> None:
    labels = put(tmp_path, SQUARE) / "labels"
    (labels / "0.txt").rename(labels / "0.TXT")
    assert int(open_dataset(tmp_path, "all")[0].mask[1, 1]) == 1


@pytest.mark.parametrize("line", ["./images/{}.jpg", "data/images/{}.jpg", "C:\\data\\images\\{}.jpg"])
def test_lists_of_images_are_the_splits(tmp_path: Path, line: str) -> None:
    put(tmp_path, SQUARE, SQUARE, SQUARE, yaml="train: train.txt\nval: val.txt\nnames: [leaf, stem]\n")
    (tmp_path / "train.txt").write_text("".join(f"{line.format(name)}\n" for name in "02"))
    (tmp_path / "val.txt").write_text(f"{line.format(1)}\n{line.format(7)}\n")
    assert splits(tmp_path) == ["train", "val"]
    dataset = open_dataset(tmp_path, "train")
    assert [item.name for item in dataset.items] == ["0", "2"] and int(dataset[1].mask[1, 1]) == 1
    listing = list_split(tmp_path, "val")
    assert [item.name for item in listing.items] == ["1"]
    assert listing.problems == (f"{tmp_path}/val.txt: 1 line of images that are not there: 7",)


def test_lists_of_images_elsewhere_leave_the_folders_as_they_are(tmp_path: Path) -> None:
    put(tmp_path, SQUARE, yaml="train: train.txt\nnames: [leaf, stem]\n", folder="{kind}/train")
    (tmp_path / "train.txt").write_text("/elsewhere/0.jpg\n")
    assert splits(tmp_path) == ["train"] and len(open_dataset(tmp_path, "train")) == 1


def test_keypoints_are_no_polygons(tmp_path: Path) -> None:
    put(tmp_path, "0 .5 .5 .4 .4 .4 .4 2 .6 .6 2\n", yaml="kpt_shape: [2, 3]\nnames: [person]\n")
    with pytest.raises(ValueError, match=r"data\.yaml: kpt_shape, that is keypoints, of which no mask can be made"):
        open_dataset(tmp_path, "all")


def test_labels_without_images_find_them_elsewhere_or_are_named(tmp_path: Path) -> None:
    root = put(tmp_path / "export", SQUARE, SQUARE, folder="{kind}/train")
    (root / "images" / "train").rename(tmp_path / "photos")
    (root / "images").rmdir()
    assert kind_of(root) == "yolo" and splits(root) == ["train"]
    with pytest.raises(ValueError, match=r"2 text files have no image: 0, 1; put them into .*or give their folder"):
        open_dataset(root, "train")
    dataset = open_dataset(root, "train", DatasetOptions(images=str(tmp_path / "photos")))
    assert [int(sample.mask[1, 1]) for sample in dataset] == [1, 1]


def test_classes_txt_names_the_classes_as_label_studio_exports_them(tmp_path: Path) -> None:
    (put(tmp_path, SQUARE) / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("été\nyes\n", "utf-8")
    assert kind_of(tmp_path) == "yolo" and open_dataset(tmp_path, "all").labels.names == ("background", "été", "yes")


def test_a_count_that_differs_and_no_polygon_at_all_are_said(tmp_path: Path) -> None:
    listing = list_split(put(tmp_path, "", yaml="nc: 3\nnames: [leaf, stem]\n"), "all")
    assert "data.yaml: nc is 3, and there are 2 names; expected as many: correct either" in listing.problems[0]
    assert "no polygon in the first 1 text file; expected CLASS X Y X Y X Y ..." in str(listing.warnings)


def test_names_stay_text_and_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    names = ("yes", "on", "1e3", "7", "no name, é")
    put(tmp_path, SQUARE, yaml="names: [yes, on, 1e3, 7, 'no name, é']\n")
    assert open_dataset(tmp_path, "all").labels.names == ("background", *names)
    put(tmp_path, SQUARE, yaml="names:\n" + "".join(f"  {n}: c{n}\n" for n in (10, *range(10))))
    assert open_dataset(tmp_path, "all").labels.names[1:] == tuple(f"c{n}" for n in range(11))
    for text, said in (
        ("names: [a]\nnames: [b]", "line 2: the key 'names' is there twice"),
        ("names: {1: a}", "expected a"),
    ):
        put(tmp_path, SQUARE, yaml=text)
        with pytest.raises(ValueError, match=rf"data\.yaml: .*{said}"):
            open_dataset(f"yolo:{tmp_path}", "all")


def test_a_class_named_background_is_background(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, SQUARE, yaml="names: [leaf, background]"), "all")
    assert dataset.labels.names == ("background", "leaf") and dataset[0].mask[1, 1] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 2 is a box; outline the object with a polygon in your tool, or delete it"),
        ("0 0.1 0.1 0.2", "line 2 has 3 coordinates"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "line 2 has 7 coordinates"),
        ("0 1 1 20 20 30 30", "line 2 has 6 coordinates; expected 6 or more, 0..1"),
        ("0 nan 0.1 0.2 0.2 0.3 0.3", "line 2 has 6 coordinates; expected 6 or more, 0..1"),
        ("2 0.1 0.1 0.2 0.2 0.3 0.3", "line 2 has class 2; expected 0..1 of data.yaml"),
        ("0.5 0.1 0.1 0.2 0.2 0.3 0.3", "line 2 has class 0.5; expected"),
        ("leaf 0.1 0.1 0.2 0.2 0.3 0.3", "line 2 is 'leaf 0.1"),
    ],
)
def test_lines_that_are_no_polygon_are_named(tmp_path: Path, line: str, message: str) -> None:
    root = put(tmp_path, f"{SQUARE}{line}\n")
    with pytest.raises(ValueError, match=rf"labels/0\.txt: {message}"):
        open_dataset(root, "all")[0]


def test_boxes_alone_and_names_that_are_none_are_refused(tmp_path: Path) -> None:
    root = put(tmp_path, "0 0.5 0.5 0.2 0.2\n" * 3)
    with pytest.raises(ValueError, match=r"labels/0\.txt: boxes, five numbers a line, of which no mask can be made"):
        open_dataset(root, "all")
    put(tmp_path, SQUARE, yaml="nc: 2\ntrain: images\n")
    with pytest.raises(ValueError, match=r"data\.yaml: names is None; expected a list of class names"):
        open_dataset(root, splits(root)[0])


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    content=st.binary(max_size=60)
    | st.lists(st.floats(-2, 3), max_size=9).map(lambda x: " ".join(map(str, x)).encode())
)
def test_any_text_is_read_or_a_value_error(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, SQUARE)
    (tmp_path / "labels" / "0.txt").write_bytes(content)
    try:
        listing = list_split(tmp_path, "all")
        assert set(np.unique(listing.items[0].mask.read())) <= {0, 1, 2}
    except ValueError as error:
        assert "0.txt" in str(error) and "\n" not in str(error)


def test_real_exports() -> None:
    assert worst_iou("supervision-yolo") > 0.99
    if not CATS.is_dir():
        pytest.skip("no cats beside the repository, in shared/data")
    assert [len(open_dataset(CATS, split)) for split in ("train", "val")] == [220, 60]
    assert open_dataset(CATS, "val")[0].mask.unique().tolist() == [0, 1]
