"""COCO read as VOC: hand-drawn regions against arrays, the paper's rule for images, the real files where they are."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from atrous.data.checks.validate import check, render
from atrous.data.datasets.dataset import list_split, open_dataset, splits
from atrous.data.labels import VOC

pytest.importorskip("pycocotools", reason="no pycocotools: pip install 'atrous[coco]'")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OBJECTS = Path(__file__).parents[4] / "shared" / "data" / "objects"
HEIGHT, WIDTH = 60, 80
NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,,backpack,umbrella,,,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,,dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")
CATEGORIES = {number: name for number, name in enumerate(NAMES, start=1) if name}
PERSON, PLANE, TABLE, TV = (VOC.names.index(name) for name in ("person", "aeroplane", "diningtable", "tvmonitor"))


def box(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """A rectangle of whole pixels, as one polygon."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE: lengths of runs down the columns, the first of zeros."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
    changes = np.flatnonzero(np.diff(flat))
    bounds = np.concatenate([[0], changes, [mask.size]])
    return {"size": list(mask.shape), "counts": np.diff(bounds).tolist()}


def annotation(category: int, segmentation: Any, area: float, crowd: int = 0, image: int = 1) -> dict[str, Any]:
    return {
        "id": 7, "image_id": image, "category_id": category, "iscrowd": crowd, "area": area, "bbox": [0, 0, 1, 1],
        "segmentation": segmentation,
    }  # fmt: skip


Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def build(*annotations: dict[str, Any], count: int = 1, **sections: Any) -> Path:
        """A folder as COCO distributes them; images number 1 to `count`."""
        folder = tmp_path / "train2017"
        folder.mkdir(exist_ok=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        records = []
        for number in range(1, count + 1):
            Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(folder / f"{number:012}.jpg")
            records.append({"id": number, "file_name": f"{number:012}.jpg", "height": HEIGHT, "width": WIDTH})
        document = {
            "info": {"description": "a { in a [ string"},
            "images": records,
            "annotations": list(annotations),
            "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        }
        (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps({**document, **sections}))
        return tmp_path

    return build


def mask_of(root: Path) -> np.ndarray:
    return open_dataset(f"coco:{root}", "train")[0].mask.numpy()


def test_classes_crowds_and_order_on_hand_drawn_regions(build: Build) -> None:
    crowd, small_crowd = np.zeros((2, HEIGHT, WIDTH), bool)
    crowd[0:10, 60:80], small_crowd[50:55, 0:4] = True, True
    root = build(
        annotation(1, box(20, 10, 10, 20), 200),  # a person over the table, listed first
        annotation(67, box(0, 0, 50, 40), 2000),
        annotation(47, box(2, 2, 10, 10), 100),  # a cup on it covers nothing
        annotation(72, [*box(60, 40, 5, 5), *box(70, 40, 5, 5)], 50),  # in two parts
        annotation(1, runs(crowd), 200, crowd=1),
        annotation(5, box(62, 2, 4, 4), 16),  # in front of the crowd
        annotation(47, runs(small_crowd), 20, crowd=1),  # of cups
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[0:40, 0:50] = TABLE
    expected[10:30, 20:30] = PERSON
    expected[40:45, 60:65] = expected[40:45, 70:75] = TV
    expected[0:10, 60:80] = 255
    expected[2:6, 62:66] = PLANE
    assert (mask_of(root) == expected).all()


def test_among_equal_areas_the_later_lies_on_top(build: Build) -> None:
    first, second = annotation(1, box(0, 0, 40, 40), 1600), annotation(5, box(20, 0, 40, 40), 1600)
    assert mask_of(build(first, second))[0, [10, 30, 50]].tolist() == [PERSON, PLANE, PLANE]
    assert mask_of(build(second, first))[0, [10, 30, 50]].tolist() == [PERSON, PERSON, PLANE]


def test_compressed_runs_are_those_of_pycocotools(build: Build) -> None:
    from pycocotools import mask as official

    drawn = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8)
    encoded = official.encode(np.asfortranarray(drawn))
    region = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    root = build(annotation(5, region, 2400))
    assert (mask_of(root) == drawn * PLANE).all()
    assert (mask_of(build(annotation(5, runs(drawn.astype(bool)), 2400))) == drawn * PLANE).all()


def test_only_images_with_a_large_region_of_vocs_classes_are_kept(build: Build) -> None:
    whole = runs(np.ones((HEIGHT, WIDTH), bool))
    root = build(
        annotation(1, box(0, 0, 40, 40), 1000.01, image=1),
        annotation(1, box(0, 0, 40, 25), 1000, image=2),  # not larger than 1,000
        annotation(1, box(0, 0, 30, 30), 900, image=3),
        annotation(5, box(30, 0, 30, 30), 900, image=3),  # nor are two that are together
        annotation(47, box(0, 0, 80, 60), 4800, image=4),  # a cup
        annotation(1, whole, 4800, crowd=1, image=5),  # a crowd
        count=6,
    )
    listing = list_split(f"coco:{root}", "train")
    assert [item.name for item in listing.items] == ["000000000001"] and not listing.problems
    assert listing.left_out == {"no region of more than 1000 pixels": 2, "no region of VOC's classes": 3}
    report = check(f"coco:{root}")
    assert report.splits["train"].left_out == listing.left_out
    assert report.as_dict()["splits"]["train"]["class_pixels"]["person"] == 1600
    assert any("train: 3 more images left out: no region of VOC's" in str(part) for part in render(report).renderables)


OWN = {"categories": [{"id": 3, "name": "scratch é"}, {"id": 1, "name": "person"}]}


@pytest.mark.parametrize("prefix", ["", "coco:", "instances:"])
def test_own_categories_are_the_classes(build: Build, prefix: str) -> None:
    root = build(
        annotation(3, box(0, 0, 10, 10), 100),
        annotation(1, box(0, 0, 40, 40), 1600),
        annotation(3, box(60, 40, 5, 5), 25, crowd=1),
        count=2,
        **OWN,
    )
    dataset = open_dataset(f"{prefix}{root}", "train")
    assert dataset.labels.names == ("background", "person", "scratch é") and len(dataset) == 2
    mask = dataset[0].mask
    assert [int(mask[y, x]) for y, x in ((5, 5), (30, 30), (50, 10), (42, 62))] == [2, 1, 0, 255]
    assert not dataset[1].mask.any(), "an image without annotation is background"
    assert check(root).problems == []
    assert "2 categories of its own" in list_split(root, "train").read_as


def test_run_lengths_that_tools_mark_as_crowds_are_their_class(build: Build, tmp_path: Path) -> None:
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[20:30, 5:40] = True
    marked = annotation(3, runs(drawn), 350, crowd=1)
    mask = open_dataset(build(annotation(1, box(0, 0, 60, 50), 3000), marked, **OWN), "train")[0].mask
    assert ((mask.numpy() == 2) == drawn).all(), "no RLE is without that mark"
    assert "all 1 RLE have iscrowd 1" in list_split(tmp_path, "train").warnings[0]
    plain = annotation(3, runs(drawn[::-1]), 350)
    mask = open_dataset(build(marked, plain, **OWN), "train")[0].mask
    assert (mask.numpy()[25, 5:40] == 255).all() and (mask.numpy()[32:40, 5:40] == 2).all()


def test_cocos_own_categories_are_vocs_classes_only_where_that_is_asked_for(build: Build) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600), annotation(47, box(60, 0, 10, 10), 100))
    asked = list_split(f"coco:{root}", "train")
    assert asked.labels is VOC and asked.read_as == "COCO, its 80 categories read as VOC's 21 classes"
    own = open_dataset(root, "train")
    assert len(own.labels) == 81 and own.labels.names[own[0].mask[5, 65]] == "cup"


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_a_category_named_background_is_background(build: Build, name: str) -> None:
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": name}]
    root = build(annotation(1, box(0, 0, 40, 40), 1600), annotation(2, box(0, 0, 10, 10), 100), categories=categories)
    dataset = open_dataset(root, "train")
    assert dataset.labels.names == (name, "person") and dataset[0].mask[[5, 30], [5, 30]].tolist() == [0, 1]


def test_roboflows_project_is_no_class(build: Build) -> None:
    categories = [
        {"id": 0, "name": "cats-k3", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cats-k3"},
    ]
    for annotations in ([annotation(1, box(0, 0, 40, 40), 1600)], []):
        root = build(*annotations, categories=categories)
        assert open_dataset(root, "train").labels.names == ("background", "cat")


def test_a_byte_order_mark_and_a_missing_area_are_no_faults(build: Build) -> None:
    region = annotation(3, box(0, 0, 10, 10), 0) | {"bbox": [0, 0, 10, 10]}
    under = annotation(1, box(0, 0, 40, 40), 0) | {"bbox": [0, 0, 40, 40]}
    for record in (region, under):
        del record["area"]
    root = build(region, under, **OWN)
    path = root / "annotations" / "instances_train2017.json"
    path.write_text("\ufeff" + path.read_text(), "utf-8")
    assert open_dataset(root, "train")[0].mask[[5, 30], [5, 30]].tolist() == [2, 1]


def test_an_area_of_0_is_that_of_the_box(build: Build) -> None:
    region = annotation(3, box(0, 0, 10, 10), 0) | {"bbox": [0, 0, 10, 10]}
    under = annotation(1, box(0, 0, 40, 40), 0) | {"bbox": [0, 0, 40, 40], "area": None}
    assert open_dataset(build(region, under, **OWN), "train")[0].mask[[5, 30], [5, 30]].tolist() == [2, 1]


def test_images_that_differ_by_suffix_are_two(build: Build) -> None:
    names = {1: "a.jpg", 2: "a.png"}
    images = [{"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in names.items()]
    root = build(*(annotation(1, box(0, 0, 40, 40), 1600, image=n) for n in names), **OWN, images=images)
    for name in names.values():
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train2017" / name)
    listing = list_split(root, "train")
    assert listing.warnings == () and len(listing.items) == 2


@pytest.mark.parametrize("place", ["images", "images/default", "default", "."])
def test_images_are_found_where_tools_put_them(build: Build, tmp_path: Path, place: str) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600), **OWN)
    (root / "annotations" / "instances_train2017.json").rename(root / "annotations" / "instances_default.json")
    (root / place).mkdir(parents=True, exist_ok=True)
    (root / "train2017" / "000000000001.jpg").rename(root / place / "000000000001.jpg")
    assert splits(root) == ["all"] and len(open_dataset(root, "all")) == 1


def test_other_names_of_the_file(build: Build, tmp_path: Path) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600), **OWN)
    path = root / "annotations" / "instances_train2017.json"
    image = root / "train2017" / "000000000001.jpg"
    for folder in ("train", "valid", "images"):
        (root / "new" / folder).mkdir(parents=True)
    for folder in ("train", "valid"):
        (root / "new" / folder / "_annotations.coco.json").write_bytes(path.read_bytes())
        (root / "new" / folder / image.name).write_bytes(image.read_bytes())
    assert splits(root / "new") == ["train", "val"] and len(open_dataset(root / "new", "val")) == 1
    for folder in ("train", "valid"):
        (root / "new" / folder / "_annotations.coco.json").unlink()
    path.rename(root / "new" / "annotations.json")
    image.rename(root / "new" / "images" / image.name)
    assert splits(root / "new") == ["all"] and len(open_dataset(root / "new", "all")) == 1


def test_boxes_alone_are_refused(build: Build) -> None:
    root = build(annotation(1, [], 1600), **OWN)
    with pytest.raises(ValueError, match=r"train2017\.json: its annotations are boxes; expected polygons"):
        open_dataset(root, "train")


def test_real_exports_are_read_as_what_they_are() -> None:
    formats = OBJECTS.parents[1] / "formats"
    if not formats.is_dir():
        pytest.skip("no shared/formats beside the repository")
    names = tuple(json.loads((formats / "classes.json").read_text()))
    for layout in ("coco_instances", "coco_instances-rle", "supervision-coco"):
        worst, least = 1.0, 1.0 if layout == "coco_instances-rle" else 0.9
        for split in splits(formats / layout):
            dataset = open_dataset(formats / layout, split)
            assert dataset.labels.names == names, "supervision leaves background out, and ours is first"
            for name, _, mask in dataset:
                truth = np.array(Image.open(formats / "truth" / f"{name}.png"))
                for value in np.unique(truth[truth != 255]):
                    both, either = (
                        ((mask.numpy() == value) & (truth == value)),
                        ((mask.numpy() == value) | (truth == value)),
                    )
                    worst = min(worst, both.sum() / either.sum())
        assert worst >= least, layout


def test_layouts_and_splits(build: Build, tmp_path: Path) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600))
    content = (root / "annotations" / "instances_train2017.json").read_text()
    assert splits(root) == ["train"], "recognised without being named"
    (root / "annotations" / "instances_val2017.json").write_text(content)
    (root / "annotations" / "instances_val2014.json").write_text("{}")
    assert splits(root) == ["train", "val"]
    with pytest.raises(
        ValueError, match=r"val2017: 1 images of instances_val2017\.json are not there: 0+1\.jpg; COCO is"
    ):
        open_dataset(root, "val")
    plain = tmp_path / "plain"
    (plain / "images").mkdir(parents=True)
    (root / "train2017").rename(plain / "images" / "train")
    (plain / "instances_train.json").write_text(content)
    assert (mask_of(plain) == PERSON).sum() == 1600


def test_an_item_is_small_and_passes_to_workers(build: Build) -> None:
    far = [[x + 0.123456789 for x in range(1, 60)] + [1.0]]  # a polygon of 30 points
    root = build(*(annotation(1, far, 1600) for _ in range(100)))
    dataset = open_dataset(f"coco:{root}", "train")
    assert len(pickle.dumps(dataset.items)) < 100 * 30, "places in the file, and no polygons"
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    assert (next(iter(loader)).mask.numpy() == dataset[0].mask.numpy()).all()


def test_places_in_the_file_hold_for_any_text(build: Build) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600))
    path = root / "annotations" / "instances_train2017.json"
    text = path.read_text().replace("000000000001", "caf\u00e9 \u5317").replace(", ", " ,\r\n\t").replace(": ", " : ")
    path.write_text(text, "utf-8")
    (root / "train2017" / "000000000001.jpg").rename(root / "train2017" / "caf\u00e9 \u5317.jpg")
    assert [item.name for item in list_split(f"coco:{root}", "train").items] == ["caf\u00e9 \u5317"]
    assert (mask_of(root) == PERSON).sum() == 1600


def test_a_size_that_is_not_the_images_is_named(build: Build) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600))
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "train2017" / "000000000001.jpg")
    with pytest.raises(ValueError, match=r"json, image 1: mask of 80x60; expected 60x80, the size of .*0001\.jpg"):
        mask_of(root)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], r"a box \[0, 0, 1, 1\] without a polygon; outline the object with a polygon in your tool, or delete it"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers"),
        ([[1, 2, 3, 4, 1e9, 6]], "a polygon of 6 numbers that are not x, y"),
        ([[1, 2, 3, 4, float("nan"), 6]], "a polygon of 6 numbers"),
        ([["a"] * 6], "could not convert"),
        ({"size": [60, 80], "counts": [5, 7]}, "run lengths of 12 pixels; expected 4800"),
        ({"size": [60, 80], "counts": [5, 70000]}, "run lengths of 70005 pixels; expected 4800"),
        ({"size": [60, 80], "counts": [-5, 4805]}, "run lengths of 4800 pixels; expected 4800"),
        ({"size": [60, 80], "counts": "zzzzzzz"}, r"run lengths of -?\d+ pixels; expected 4800, its width"),
        ({"size": [60, 80], "counts": ""}, "run lengths of 0 pixels; expected 4800"),
        ({"size": [60, 80], "counts": "04\u5317"}, r"run lengths of -?\d+ pixels; expected 4800, its width"),
        ({"size": [80, 60], "counts": [4800]}, r"RLE of size \[80, 60\] in an image of \[60, 80\]"),
        ({"size": [60, 80]}, "counts"),
        (None, r"a box \[0, 0, 1, 1\] without a polygon"),
        (5, "int"),
    ],
)
def test_regions_that_cannot_be_drawn_are_named(build: Build, segmentation: Any, message: str) -> None:
    root = build(annotation(1, segmentation, 1600))
    with pytest.raises(ValueError, match=message) as caught:
        mask_of(root)
    start = f"{root / 'annotations' / 'instances_train2017.json'}, image 1: annotation 7: "
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith("; expected polygons, or RLE of the image's size")


def test_polygons_without_area_are_nothing(build: Build) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600), annotation(5, [[1, 2, 3, 4]], 0))
    assert np.unique(mask_of(root)).tolist() == [0, PERSON]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"categories": []}, "it has no categories"),
        (
            {"images": [{"id": "x0", "file_name": "a.jpg", "height": 60, "width": 80}]},
            "an image has the id 'x0'; COCO's ids are whole numbers: number them",
        ),
        ({"annotations": [annotation("cat", [], 9)]}, "annotation 7 has the category_id 'cat'; COCO's ids"),
        ({"categories": [{"id": 1, "name": None}]}, "category 1 has the name None, which is no text"),
        ({"categories": [{"id": 2, "name": "tv"}]}, "annotations of category 1, which it does not list"),
        ({"images": [{"id": 1}]}, "without 'file_name'"),
        ({"images": [5]}, "TypeError"),
        (
            {"images": [{"id": 1, "file_name": "x", "height": 1e6, "width": 1e6}]},
            "image 1: height 1000000, width 1000000; expected the size",
        ),
        ({"annotations": [{"id": 3, "image_id": 1, "category_id": 1}]}, "without 'area'"),
        (
            {"images": [{"id": 1, "file_name": name, "height": 60, "width": 80} for name in ("a.jpg", "b.jpg")]},
            "image 1 is a.jpg and b.jpg, as in files merged without new ids",
        ),
        ({"categories": [{"id": 1, "name": "tv"}, {"id": 1, "name": "cup"}]}, "category 1 is 'tv' and 'cup'"),
        (
            {"annotations": [annotation(1, [1, 2, 3, 4, 5, 6], 9)]},
            r"annotation 7: segmentation is \[1, 2, 3, 4, 5, 6\]; expected \[\[x, y, ...\], ...\]",
        ),
    ],
)
def test_files_of_another_form_are_named(build: Build, sections: Any, message: str) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600), **sections)
    with pytest.raises(ValueError, match=rf"instances_train2017\.json: .*{message}.*; expected COCO's instances"):
        open_dataset(f"coco:{root}", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tv", "tv"], "names has 'tv' 2 times"),
        ([f"{n}" for n in range(70000)], "names has 70001 classes; expected 1 to"),
    ],
)
def test_categories_that_cannot_be_classes_are_named(build: Build, names: list[str], message: str) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    root = build(annotation(1, box(0, 0, 40, 40), 1600), categories=categories)
    with pytest.raises(ValueError, match=rf"instances_train2017\.json: {message}"):
        open_dataset(root, "train")


def test_a_file_that_changes_after_it_was_listed_is_refused(build: Build) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600))
    dataset = open_dataset(f"coco:{root}", "train")
    build(annotation(1, box(0, 0, 40, 40), 1600, image=2), count=2)
    with pytest.raises(ValueError, match="image 1: the file has changed since it was listed"):
        dataset[0]


def test_ids_that_are_numbers_as_text_are_read(build: Build) -> None:
    region = annotation(1, box(0, 0, 40, 40), 1600) | {"image_id": "1", "category_id": "1"}
    assert (mask_of(build(region)) == PERSON).sum() == 1600


def test_annotations_of_no_image_are_a_warning(build: Build) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600), annotation(1, box(0, 0, 40, 40), 1600, image=9))
    (warning,) = list_split(f"coco:{root}", "train").warnings
    assert warning.endswith("1 annotations are of 1 images that it does not list")


def test_without_pycocotools_the_extra_is_named(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build(annotation(1, box(0, 0, 40, 40), 1600))
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(ValueError, match=r"pip install 'atrous\[coco\]'"):
        open_dataset(f"coco:{root}", "train")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_any_file_is_listed_or_a_value_error(tmp_path: Path, data: st.DataObject) -> None:
    sound = json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 60, "width": 80}],
            "annotations": [annotation(1, box(0, 0, 40, 40), 1600)],
            "categories": [{"id": 1, "name": "person"}],
        }
    ).encode()
    named = data.draw(st.sampled_from(["coco", "instances"]))  # fmt: skip
    place, length = data.draw(st.integers(0, len(sound))), data.draw(st.integers(0, 20))
    content = sound[:place] + data.draw(st.binary(max_size=6)) + sound[place + length :]
    (tmp_path / "instances_train.json").write_bytes(content)
    try:
        listing = list_split(f"{named}:{tmp_path}", "train")
        assert listing.problems
    except ValueError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_masks_are_reproduced(split: str) -> None:
    if not (OBJECTS / f"instances_{split}.json").exists():
        pytest.skip("no objects/ beside the repository, in shared/data")
    items = list_split(f"coco:{OBJECTS}", split).items[:80]
    truth = [np.array(Image.open(OBJECTS / "masks" / split / f"{item.name}.png")) for item in items]
    drawn = [item.mask.read() for item in items]
    share = sum(int((a != b).sum()) for a, b in zip(drawn, truth, strict=True)) / sum(mask.size for mask in truth)
    assert 0 < share < 0.004, "the two rasterisers differ along edges"
    # The masks of `objects/` were drawn by Pillow, not by COCO's rasteriser.
    items = [item._replace(mask=replace(item.mask, border=True)) for item in items]
    assert all((item.mask.read() == mask).all() for item, mask in zip(items, truth, strict=True)), "the order is theirs"
