"""Published data sets, each laid out as it is distributed, come back to the pixel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from atrous.data.datasets.published import classes_of_config
from atrous.data.labels import CITYSCAPES, CITYSCAPES_LABEL_IDS
from own_data import ids, photo, stored, text

Ids = npt.NDArray[np.uint8]


def kitti(root: Path) -> dict[str, list[Ids]]:
    truth = [ids(19, seed) for seed in range(3)]
    for seed, mask in enumerate(truth):
        photo(root / "training" / "image_2" / f"{seed:06d}_10.png", seed)
        stored(root / "training" / "semantic" / f"{seed:06d}_10.png", np.array(CITYSCAPES_LABEL_IDS, np.uint8)[mask])
        stored(root / "training" / "semantic_rgb" / f"{seed:06d}_10.png", np.array(CITYSCAPES.palette, np.uint8)[mask])
        stored(root / "training" / "instance" / f"{seed:06d}_10.png", mask.astype(np.uint16) * 256)
    photo(root / "testing" / "image_2" / "000000_10.png")
    return {"all": truth}


def bdd(root: Path, name: str = "{}.png", folders: tuple[str, str] = ("images/10k", "labels/sem_seg/masks")) -> dict:
    truth = {split: [ids(19, seed), ids(19, seed + 9)] for seed, split in enumerate(("train", "val"))}
    for split, masks in truth.items():
        for number, mask in enumerate(masks):
            mask[0, 0] = 255
            photo(root / folders[0] / split / f"0a0-{number}.jpg")
            stored(root / folders[1] / split / name.format(f"0a0-{number}"), mask)
    photo(root / folders[0] / "test" / "z.jpg")
    return truth


def bdd_as_first(root: Path) -> dict:
    return bdd(root / "bdd100k", "{}_train_id.png", ("seg/images", "seg/labels"))


def loveda(root: Path) -> dict:
    truth: dict[str, list[Ids]] = {"train": [], "val": []}
    for split in truth:
        for seed, area in enumerate(("Rural", "Urban")):
            mask = ids(8, seed)
            photo(root / split.capitalize() / area / "images_png" / "7.png", seed)
            stored(root / split.capitalize() / area / "masks_png" / "7.png", mask)
            truth[split].append(mask - 1)  # 0 becomes 255
    photo(root / "Test" / "Urban" / "images_png" / "9.png")
    return truth


def pets(root: Path) -> dict:
    truth: dict[str, list[Ids]] = {"all": [], "test": []}
    for seed, (split, name) in enumerate((("all", "Abyssinian_1"), ("all", "pug_2"), ("test", "pug_3"))):
        mask = ids(3, seed) + 1
        photo(root / "images" / f"{name}.jpg", seed)
        stored(root / "annotations" / "trimaps" / f"{name}.png", mask)
        (root / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"\0\5\x16\7")
        truth[split].append(np.array([9, 1, 0, 255], np.uint8)[mask])
    text(root / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1\npug_2 1 2 1\n")
    text(root / "annotations" / "test.txt", "pug_3 1 2 1\n")
    text(root / "annotations" / "list.txt", "#Image CLASS-ID SPECIES BREED ID\n")
    return truth


def ade(root: Path) -> dict:
    truth: dict[str, list[Ids]] = {}
    for split, folder in (("train", "training"), ("val", "validation")):
        mask = ids(4, len(split), (12, 13))
        photo(root / "images" / folder / "ADE_1.jpg", size=(12, 13))
        stored(root / "annotations" / folder / "ADE_1.png", mask)
        truth[split] = [mask - 1]
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1\t2\t2\t1\twall", "2\t0.1\t2\t2\t1\tbuilding, edifice"]
    text(root / "objectInfo150.txt", "\n".join([*rows, "3\t0.1\t2\t2\t0\tcafé\t"]))
    text(root / "sceneCategories.txt", "ADE_1 street\n")
    return truth


def vistas_config() -> dict:
    rows = [("void--x", "Ego Vehicle", False), ("a--road", "Road, wet", True), ("b--road", "Café", True)]
    labels = [{"name": n, "readable": r, "evaluate": e, "color": [i, i, 9]} for i, (n, r, e) in enumerate(rows)]
    return {"labels": labels, "version": "1.2"}


def vistas(root: Path, version: str = "") -> dict:
    truth: dict[str, list[Ids]] = {}
    for split, folder in (("train", "training"), ("val", "validation")):
        mask = ids(3, len(split))
        photo(root / folder / "images" / "x_y-z.jpg")
        stored(root / folder / version / "labels" / "x_y-z.png", mask)
        truth[split] = [mask - 1]
    text(root / f"config{'_' if version else ''}{version}.json", vistas_config())
    photo(root / "testing" / "images" / "q.jpg")
    return truth


def vistas_2(root: Path) -> dict:
    text(root / "config_v1.2.json", vistas_config())
    (root / "training" / "v1.2" / "labels").mkdir(parents=True)
    return vistas(root, "v2.0")


LAYOUTS = [
    (kitti, "kitti", CITYSCAPES.names),
    (bdd, "bdd100k", CITYSCAPES.names),
    (bdd_as_first, "bdd100k", CITYSCAPES.names),
    (loveda, "loveda", ("background", "building", "road", "water", "barren", "forest", "agriculture")),
    (pets, "pets", ("background", "pet")),
    (ade, "ade20k", ("wall", "building", "café")),
    (vistas, "vistas", ("Road, wet", "Café")),
    (vistas_2, "vistas", ("Road, wet", "Café")),
]
Put = Callable[[Path], dict]


@pytest.mark.parametrize(("put", "kind", "names"), LAYOUTS)
def test_each_is_recognised_and_read_to_the_pixel(tmp_path: Path, put: Put, kind: str, names: tuple[str, ...]) -> None:
    truth = put(tmp_path)
    assert kind_of(tmp_path) == kind and {*truth} <= {*splits(tmp_path)}
    for split, masks in truth.items():
        listing = list_split(tmp_path, split)
        assert listing.problems == listing.warnings == () and kind[:3] in listing.read_as.lower().replace(
            "oxford-iiit ", ""
        )
        dataset = open_dataset(tmp_path, split)
        assert dataset.labels.names == names and len({*dataset.names}) == len(masks)
        for (_, _, mask), expected in zip(dataset, masks, strict=True):
            assert np.array_equal(mask.numpy(), expected)


@pytest.mark.parametrize(("put", "kind", "names"), LAYOUTS)
def test_an_image_without_its_mask_is_a_problem(tmp_path: Path, put: Put, kind: str, names: tuple[str, ...]) -> None:
    split = next(iter(put(tmp_path)))
    item = list_split(tmp_path, split).items[0]
    getattr(item.mask, "path", item.mask).unlink()
    listing = list_split(tmp_path, split)
    assert item.name.rpartition("/")[2] in listing.problems[0] and "no mask in" in listing.problems[0]
    item.image.write_bytes(b"")
    assert any("no mask" in line for line in list_split(tmp_path, split).problems)


@pytest.mark.parametrize(("put", "split"), [(kitti, "test"), (bdd, "test"), (loveda, "test"), (vistas, "test")])
def test_splits_without_masks_can_be_predicted_only(tmp_path: Path, put: Put, split: str) -> None:
    put(tmp_path)
    assert len(list_split(tmp_path, split).items) == 1
    with pytest.raises(ValueError, match="no masks, for there is no folder of masks"):
        open_dataset(tmp_path, split)


@pytest.mark.parametrize(("put", "whole"), [(kitti, "all"), (pets, "all")])
def test_where_there_is_no_split_to_validate_on_one_is_made(tmp_path: Path, put: Put, whole: str) -> None:
    put(tmp_path)
    parts = [open_dataset(tmp_path, part).names for part in ("train", "val")]
    assert all(parts) and sorted(sum(parts, [])) == sorted(open_dataset(tmp_path, whole).names)
    assert parts == [open_dataset(tmp_path, part).names for part in ("train", "val")]


def test_an_id_that_the_rule_does_not_know_is_an_error(tmp_path: Path) -> None:
    pets(tmp_path / "pets")
    stored(tmp_path / "pets" / "annotations" / "trimaps" / "pug_3.png", ids(5) + 1)
    with pytest.raises(ValueError, match=r"pug_3\.png: mask has id 4 \(.*; expected 1\.\.3"):
        open_dataset(tmp_path / "pets", "test")[0]
    ade(tmp_path / "ade")
    stored(tmp_path / "ade" / "annotations" / "validation" / "ADE_1.png", ids(4, size=(12, 13)).astype(np.uint16) * 200)
    with pytest.raises(ValueError, match=r"ADE_1\.png: id 600 \(.*; expected 0\.\.3: the full ADE20K"):
        open_dataset(tmp_path / "ade", "val")[0]


def test_the_full_ade20k_is_refused_by_name(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "ADE" / "training" / "urban" / "street" / "ADE_train_1.jpg")
    stored(
        tmp_path / "images" / "ADE" / "training" / "urban" / "street" / "ADE_train_1_seg.png",
        np.zeros((6, 8, 3), np.uint8),
    )
    text(tmp_path / "index_ade20k.pkl", "")
    with pytest.raises(
        ValueError, match="the full ADE20K, whose thousands of classes do not fit .*; expected its scene"
    ):
        open_dataset(tmp_path, "train")


def test_names_of_a_list_without_an_image_are_a_problem(tmp_path: Path) -> None:
    pets(tmp_path)
    text(tmp_path / "annotations" / "test.txt", "\ufeffpug_3 1 2 1\r\nlost_4 1 2 1\r\n")
    assert "1 names in the list of the split have no image: lost_4" in list_split(tmp_path, "test").problems[0]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"labels": 3}', '{"labels": [{"readable": "a"}]}', '{"labels": []}']
)
def test_a_broken_config_of_vistas_is_named(tmp_path: Path, content: str) -> None:
    path = text(tmp_path / "config.json", content)
    with pytest.raises(ValueError, match=r"config\.json: .*; expected `labels`") as caught:
        classes_of_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "Idx\tName\n1\n", "Name\twall\n", "Idx\tName\n2\twall\n", "Idx\tName\n1\ta\n2\ta\n"]
)
def test_a_broken_table_of_ade20k_is_named(tmp_path: Path, content: str) -> None:
    ade(tmp_path)
    text(tmp_path / "objectInfo150.txt", content)
    with pytest.raises(ValueError, match=r"objectInfo150\.txt: .*expected"):
        open_dataset(tmp_path, "train")


def test_vistas_names_that_occur_twice_are_told_apart(tmp_path: Path) -> None:
    vistas(tmp_path)
    config = vistas_config()
    config["labels"][2]["readable"] = "Road, wet"
    (tmp_path / "config.json").write_text("\ufeff" + json.dumps(config), "utf-8")
    assert open_dataset(tmp_path, "train").labels.names == ("a--road", "b--road")


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(["Idx\tName\n", '{"labels": [', "null"])


@settings(max_examples=50)
@given(TEXTS, TEXTS, st.integers(0, 3))
def test_no_text_is_more_than_a_line(
    tmp_path_factory: pytest.TempPathFactory, head: str, tail: str, which: int
) -> None:
    root = tmp_path_factory.mktemp("text")
    put, name, split = [
        (ade, "objectInfo150.txt", "train"),
        (vistas, "config.json", "train"),
        (pets, "annotations/test.txt", "test"),
        (pets, "annotations/trainval.txt", "all"),
    ][which]
    put(root)
    whole = (root / name).read_text("utf-8")
    (root / name).write_text(head + whole[len(head) : -len(tail) or None] + tail, "utf-8", newline="")
    try:
        listing = list_split(f"{kind_of(root)}:{root}", split)
    except ValueError as error:
        assert str(root) in str(error) and "\n" not in str(error)
    else:
        assert listing.items or listing.problems


COLOURS = st.lists(st.integers(-1, 300), min_size=2, max_size=4) | st.none() | st.text(max_size=3)
RECORDS = st.fixed_dictionaries(
    {}, optional={"readable": TEXTS | st.none(), "name": TEXTS, "evaluate": st.booleans(), "color": COLOURS}
)


@given(
    st.lists(RECORDS | st.integers(), max_size=5) | st.integers() | st.dictionaries(TEXTS, st.integers(), max_size=2)
)
def test_no_config_of_vistas_is_more_than_a_line(tmp_path_factory: pytest.TempPathFactory, labels: object) -> None:
    path = text(tmp_path_factory.mktemp("config") / "config.json", {"labels": labels})
    try:
        names, remap, _ = classes_of_config(path)
        assert len(names) == len({value for value in remap if value not in (-1, 255)})
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_options_beside_a_home_within_the_folder_are_read(tmp_path: Path) -> None:
    bdd_as_first(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bdd100k" / "dataset.yaml").write_text("ignore: [road]\n")
    assert "road" not in open_dataset(tmp_path, splits(tmp_path)[0]).labels.names


def test_an_ignored_class_of_vistas_needs_no_colour(tmp_path: Path) -> None:
    records = [
        {"readable": "Road", "name": "road", "color": [1, 2, 3]},
        {"readable": "Car", "name": "car", "evaluate": False},
        {"readable": "Sky", "name": "sky", "color": [4, 5, 6]},
    ]
    (tmp_path / "config.json").write_text(json.dumps({"labels": records}))
    labels, remap, ignored = classes_of_config(tmp_path / "config.json")
    assert labels.names == ("Road", "Sky") and labels.palette == ((1, 2, 3), (4, 5, 6)) and ignored == ["Car"]
    assert remap[:3] == (0, 255, 1)
