"""LabelMe's JSON: every shape, and LabelMe's own example against the masks that its own converter makes of it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from formats import FORMATS


def shape(label: str, points: list[list[float]], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, **more}


def put(root: Path, *shapes: dict[str, Any], name: str = "a", **more: Any) -> Path:
    root.mkdir(exist_ok=True)
    Image.new("RGB", (40, 20)).save(root / f"{name}.jpg")
    document = {"shapes": list(shapes), "imagePath": f"{name}.jpg", "imageHeight": 20, "imageWidth": 40} | more
    (root / f"{name}.json").write_text(json.dumps(document))
    return root


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask.astype(bool)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


SQUARE = shape("leaf", [[0, 0], [10, 0], [10, 10], [0, 10]])


def test_every_shape_and_later_over_earlier(tmp_path: Path) -> None:
    put(
        tmp_path,
        SQUARE,
        shape("stem", [[5, 5], [2, 2]], "rectangle"),
        shape("_background_", [[0, 8], [9, 8], [9, 9], [0, 9]]),
        shape("leaf", [[20, 10], [20, 14]], "circle"),
        shape("stem", [[30, 5], [38, 5]], "line"),
        shape("__ignore__", [[30, 15], [34, 15], [38, 18]], "linestrip"),
        shape("leaf", [[12, 2], [13, 3]], "mask", mask=png(np.array([[1, 0], [1, 1]]))),
    )
    dataset = open_dataset(tmp_path, "all")
    assert kind_of(tmp_path) == "labelme" and dataset.labels.names == ("_background_", "leaf", "stem")
    mask = dataset[0].mask
    points = {
        (0, 0): 1,
        (3, 3): 2,
        (8, 4): 0,
        (10, 23): 1,
        (10, 26): 0,
        (5, 34): 2,
        (15, 32): 255,
        (2, 12): 1,
        (2, 13): 0,
    }
    assert {place: int(mask[place]) for place in points} == points


def test_a_rectangle_of_four_corners_as_anylabeling_writes_it(tmp_path: Path) -> None:
    put(tmp_path, shape("leaf", [[3, 2], [12, 2], [12, 8], [3, 8]], "rectangle"))
    mask = np.zeros((20, 40), np.uint8)
    mask[2:9, 3:13] = 1
    assert np.array_equal(open_dataset(tmp_path, "all")[0].mask, mask)


def test_a_turned_rectangle_of_anylabeling_is_its_polygon(tmp_path: Path) -> None:
    corners = [[3, 5], [12, 2], [14, 8], [5, 11]]
    put(tmp_path, shape("leaf", corners, "rotation"))
    put(tmp_path, shape("leaf", corners), name="b")
    turned, polygon = open_dataset(tmp_path, "all")
    assert np.array_equal(turned.mask, polygon.mask)
    assert turned.mask.sum() > 40


def test_a_name_of_another_image_is_said(tmp_path: Path) -> None:
    put(tmp_path, SQUARE)
    put(tmp_path, SQUARE, name="b", imagePath="..\\photos\\a.jpg")
    listing = list_split(tmp_path, "all")
    assert [item.image.name for item in listing.items] == ["a.jpg", "b.jpg"]
    assert listing.warnings == (
        f"{tmp_path}: 1 JSON name another image than the one of their own name, which is taken: b.json names a.jpg; "
        "expected one image",
    )


def test_splits_share_their_classes_and_labels_txt_orders_them(tmp_path: Path) -> None:
    put(tmp_path / "train", SQUARE)
    put(tmp_path / "valid", shape("stem", SQUARE["points"]))
    assert splits(tmp_path) == ["train", "val"]
    assert open_dataset(tmp_path, "train").labels == open_dataset(tmp_path, "val").labels
    assert open_dataset(tmp_path, "val").labels.names == ("background", "leaf", "stem")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nstem\nleaf\n")
    assert int(open_dataset(tmp_path, "train")[0].mask[1, 1]) == 2
    (tmp_path / "labels.txt").write_text("_background_\nleafs\n")
    with pytest.raises(ValueError, match=r"train/a\.json: shape 0 is 'leaf', no class; did you mean leafs"):
        open_dataset(tmp_path, "train")[0]


@pytest.mark.parametrize(
    ("listed", "names", "leaf"),
    [
        ("cat\nleaf\n", ("background", "cat", "leaf"), 2),
        ("cat\nBackground\nleaf\n", ("Background", "cat", "leaf"), 2),
        ("leaf\n__ignore__\n_background_\n", ("_background_", "leaf"), 1),
    ],
)
def test_what_no_shape_covers_is_background_wherever_labels_txt_lists_it(
    tmp_path: Path, listed: str, names: tuple[str, ...], leaf: int
) -> None:
    put(tmp_path, SQUARE, shape("_background_", [[0, 0], [3, 3]], "rectangle"))
    (tmp_path / "labels.txt").write_text(listed)
    dataset = open_dataset(tmp_path, "all")
    assert dataset.labels.names == names
    assert dataset[0].mask[[1, 8, 15], [1, 8, 30]].tolist() == [0, leaf, 0]
    put(tmp_path, SQUARE, shape(names[0], [[0, 0], [3, 3]], "rectangle"))
    assert int(open_dataset(tmp_path, "all")[0].mask[1, 1]) == 0


@pytest.mark.parametrize(
    ("file", "content", "background", "leaf"),
    [
        ("label_colors.txt", "9 0 0 leaf\n0 0 0 cat\n0 9 0 background\n", 2, 0),
        ("labelmap.txt", "leaf:9,0,0::\n_background_:0,0,0::\n", 1, 0),
        ("class_dict.csv", "name,r,g,b\nleaf,9,0,0\n", 0, 1),
    ],
)
def test_classes_with_colours_keep_their_order(
    tmp_path: Path, file: str, content: str, background: int, leaf: int
) -> None:
    put(tmp_path, SQUARE, shape("_background_", [[0, 0], [3, 3]], "rectangle"))
    (tmp_path / file).write_text(content)
    mask = open_dataset(tmp_path, "all")[0].mask
    assert mask[[1, 8, 15], [1, 8, 30]].tolist() == [background, leaf, background]


def test_classes_with_colours_and_no_background_are_refused(tmp_path: Path) -> None:
    put(tmp_path, SQUARE)
    (tmp_path / "label_colors.txt").write_text("9 0 0 leaf\n0 0 0 cat\n")
    with pytest.raises(
        ValueError, match=r"label_colors\.txt: the classes leaf, cat, none of them background; expected"
    ):
        open_dataset(tmp_path, "all")


def test_images_are_found_and_what_is_missing_is_named(tmp_path: Path) -> None:
    put(tmp_path, SQUARE)
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match=r"1 of 1 images are not there: a\.json; put them beside their JSON"):
        open_dataset(tmp_path, "all")
    put(tmp_path, SQUARE, imagePath="..\\photos\\b.jpg")
    (tmp_path / "a.jpg").unlink()
    assert len(open_dataset(tmp_path, "all")) == 1
    Image.new("RGB", (4, 4)).save(tmp_path / "c.jpg")
    assert "1 images have no JSON, and are left out: c" in list_split(tmp_path, "all").warnings[0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (shape("leaf", [[1, 1], [2, 2]]), "shape 0, leaf: a polygon of 2 points; expected 3 or more"),
        (shape("leaf", [[1, 1], [5, 1], [5, 5]], "rectangle"), "shape 0, leaf: a rectangle of 3 points; expected 2"),
        (shape("leaf", [[1, 1]], "line"), "shape 0, leaf: a line of 1 point; expected 2 or more"),
        (shape("leaf", [[1, 1]], "point"), "shape 0, leaf: a point; expected polygon"),
        (shape("leaf", [[1, 1], [2, 2], [9e9, 1]]), "shape 0, leaf: points far outside the image"),
        (shape("leaf", [[1, 1], [2, 2], [float("nan"), 1]]), "shape 0, leaf: points far outside the image"),
        (shape("leaf", [[1, 1], [2]]), "shape 0, leaf: not enough values"),
        (shape("leaf", [[1, 1], [2, 2]], "mask", mask="!"), "shape 0, leaf: "),
        (shape("leaf", [[1, 1], [2, 2]], "mask", mask=png(np.ones((50, 50)))), "a mask of 50x50 in an image of 40x20"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_named(tmp_path: Path, broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        open_dataset(put(tmp_path, broken), "all")[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"shapes": [shape("", [])]}, "shape 0 has the label ''; expected a name"),
        ({"shapes": [3]}, "shape 0 has the label None"),
        ({"shapes": {"points": 1}}, "no list of shapes"),
    ],
)
def test_files_of_another_form_are_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.json: {message}"):
        open_dataset(put(tmp_path, SQUARE, **more), "all")


def test_a_size_that_is_none_or_another_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.json: imageHeight 'x', imageWidth 40; expected the size in pixels"):
        open_dataset(put(tmp_path, SQUARE, imageHeight="x"), "all")[0]
    with pytest.raises(ValueError, match=r"a\.json: mask of 40x19; expected 40x20, the size of"):
        open_dataset(put(tmp_path, SQUARE, imageHeight=19), "all")[0]


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_any_content_is_read_or_a_value_error(tmp_path: Path, data: st.DataObject) -> None:
    sound = (put(tmp_path, SQUARE) / "a.json").read_bytes()
    place, length = data.draw(st.integers(0, len(sound))), data.draw(st.integers(0, 20))
    (tmp_path / "a.json").write_bytes(sound[:place] + data.draw(st.binary(max_size=6)) + sound[place + length :])
    try:
        for item in list_split(f"labelme:{tmp_path}", "all").items:
            item.mask.read()
    except ValueError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)


def test_an_image_that_is_not_there_is_taken_from_the_file(tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path / "photos", SQUARE, name=name)
    picture = tmp_path / "photos" / "a.jpg"
    data, pixels = base64.b64encode(picture.read_bytes()).decode(), np.array(Image.open(picture))
    put(tmp_path / "photos", SQUARE, imageData=data)
    picture.unlink()
    for _ in range(2):  # unpacked once
        dataset = open_dataset(tmp_path / "photos", "all")
        assert dataset.names == ["a", "b"] and (dataset[0].image.permute(1, 2, 0).numpy() == pixels).all()
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("photos-images.")]) == 1
    put(tmp_path / "photos", SQUARE, imageData="bm90IGFuIGltYWdl")
    picture.unlink()
    with pytest.raises(ValueError, match=r"a\.json: imageData: .*expected PNG or JPEG in base64"):
        open_dataset(tmp_path / "photos", "all")


def test_folders_that_are_no_splits_are_one(tmp_path: Path) -> None:
    for folder in ("monday", "tuesday"):
        put(tmp_path / folder, SQUARE)
    assert splits(tmp_path) == ["all"] and open_dataset(tmp_path, "all").names == ["monday/a", "tuesday/a"]


def test_labelmes_own_example_is_what_its_own_converter_makes_of_it() -> None:
    if not (FORMATS / "labelme-json").is_dir():
        pytest.skip("no shared/formats beside the repository")
    names = [name.strip("_") for name in (FORMATS / "labelme-json-truth" / "class_names.txt").read_text().split("\n")]
    dataset = open_dataset(FORMATS / "labelme-json", "all")
    assert len(dataset) == 3
    for name, _, mask in dataset:
        truth = np.array(Image.open(FORMATS / "labelme-json-truth" / f"{name}.png"))
        table = np.array([*(names.index(label) for label in dataset.labels.names), *[255] * 256])[:256]
        assert (table[mask.numpy()] == truth).mean() > 0.9999, name


def test_json_of_something_else_is_left_out_and_counted(tmp_path: Path) -> None:
    put(tmp_path, SQUARE)
    (tmp_path / "zz_meta.json").write_text('{"project": "leaves"}')
    (tmp_path / "aa_names.json").write_text('["leaf"]')
    listing = list_split(tmp_path, "all")
    assert [item.name for item in listing.items] == ["a"] and listing.labels.names == ("background", "leaf")
    (warning,) = listing.warnings
    assert "2 JSON files are not LabelMe's" in warning and warning.endswith("left out: aa_names.json, zz_meta.json")
    for text, message in (("{", "not JSON"), ('{"imagePath": "a.jpg"}', "no list of shapes")):
        (tmp_path / "zz_meta.json").write_text(text)
        with pytest.raises(ValueError, match=rf"zz_meta\.json: {message}"):
            list_split(tmp_path, "all")
    put(tmp_path, SQUARE, name="zz_meta")
    (tmp_path / "zz_meta.json").write_text('{"project": "leaves"}')
    with pytest.raises(ValueError, match=r"zz_meta\.json: no list of shapes"):
        list_split(tmp_path, "all")
