"""CVAT for images: shapes of every kind in z-order, tasks and subsets, what is left out."""

from pathlib import Path

import numpy as np
import pytest

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from exports import save_image

LABELS = ("leaf", "stem")
LEAF = '<polygon label="leaf" points="0,0;9,0;9,9;0,9" z_order="1"></polygon>'


def label(name: str, kind: str = "any", more: str = "") -> str:
    attributes = "<attributes><attribute><name>ripe</name><input_type>checkbox</input_type></attribute></attributes>"
    return f"<label><name>{name}</name><color>#ff0000</color><type>{kind}</type>{attributes}{more}</label>"


def image(shapes: str, name: str = "a.png", more: str = "") -> str:
    return f'<image id="0" name="{name}" width="40" height="20" {more}>{shapes}</image>'


def put(
    root: Path,
    images: str,
    labels: str = "".join(map(label, LABELS)),
    file: str = "annotations.xml",
    meta: str = "<task><id>1</id><name>t</name><subset></subset><labels>{}</labels></task>",
) -> Path:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    text = f"<annotations><version>1.1</version><meta>{meta.format(labels)}</meta>{images}</annotations>"
    (root / file).write_text(text)
    return root


def read(root: Path, split: str = "all") -> np.ndarray:
    return open_dataset(root, split)[0].mask.numpy()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_image(tmp_path / "images" / "a.png", (40, 20))
    return tmp_path


def test_shapes_of_every_kind_in_z_order(root: Path) -> None:
    shapes = (
        LEAF,
        '<polygon label="stem" points="5,5;14,5;14,14;5,14" z_order="0"><attribute name="a">no</attribute></polygon>',
        '<box label="stem" xtl="20" ytl="2" xbr="24" ybr="4"></box>',
        '<box label="leaf" xtl="30" ytl="2" xbr="38" ybr="4" rotation="90"></box>',
        '<ellipse label="stem" cx="20" cy="14" rx="4" ry="2" z_order="1"></ellipse>',
        '<mask label="stem" rle="1, 2, 1" left="38" top="18" width="2" height="2"></mask>',
    )
    mask = read(put(root, image("".join(shapes))))
    expected = np.zeros((20, 40), np.uint8)
    expected[5:15, 5:15], expected[0:10, 0:10] = 2, 1
    expected[2:4, 20:24] = 2
    expected[0:7, 33:35] = 1  # upright; its first row is outside
    expected[18, 39] = expected[19, 38] = 2
    rows, columns = np.mgrid[0:20, 0:40] + 0.5
    expected[((columns - 20) / 4) ** 2 + ((rows - 14) / 2) ** 2 <= 1] = 2
    np.testing.assert_array_equal(mask, expected)


def test_what_has_no_area_is_left_out_and_boxes_are_counted(root: Path) -> None:
    nothing = (
        '<polyline label="leaf" points="1,1;2,2"></polyline>',
        '<points label="leaf" points="1,1"></points>',
        '<skeleton label="body"><points label="head" points="1,1"></points></skeleton>',
        '<tag label="leaf"></tag>',
        '<blob label="leaf"/>',
    )
    labels = "".join(map(label, LABELS)) + label("body", "skeleton") + label("head", "points", "<parent>body</parent>")
    put(root, image("".join([*nothing, '<box label="leaf" xtl="0" ytl="0" xbr="4" ybr="4"/>'])), labels)
    listing = list_split(root, "all")
    assert listing.labels.names == ("background", *LABELS), "a skeleton and its parts are no classes"
    lines = [line.partition("annotations.xml: ")[2] for line in listing.warnings]
    for kind in ("polyline", "points", "skeleton", "tag"):
        assert f"1 <{kind}> have no area, and are left out: image a.png" in lines
    assert "1 <blob> are unknown, and are left out: image a.png" in lines
    assert "1 box is filled as rectangles; no other shape has an area: where objects are no rectangles" in str(listing)
    assert (read(root) == 1).sum() == 16


def test_subsets_of_a_project_and_of_tasks_are_splits(root: Path) -> None:
    for name in ("b", "c"):
        save_image(root / "images" / f"{name}.png", (40, 20))
    images = (
        image(LEAF, more='subset="Train"') + image(LEAF, "b.png", 'task_id="7"') + image(LEAF, "c.png", 'task_id="8"')
    )
    tasks = "<task><id>7</id><subset>Validation</subset></task><task><id>8</id><subset>default</subset></task>"
    meta = f"<project><id>3</id><name>p</name><labels>{{}}</labels><tasks>{tasks}</tasks></project>"
    put(root, images, meta=meta)
    assert splits(root) == ["train", "val", "all"]
    assert [item.name for split in splits(root) for item in list_split(root, split).items] == ["a", "b", "c"]


def test_images_of_subsets_lie_in_their_folders_and_are_not_taken_for_one_another(root: Path) -> None:
    (root / "images" / "Train").mkdir()
    (root / "images" / "a.png").rename(root / "images" / "Train" / "a.png")
    put(root, image(LEAF, more='subset="Train"') + image(LEAF, more='subset="Validation"'))
    assert list_split(root, "train").items[0].image == root / "images" / "Train" / "a.png"
    assert "1 of 1 images are not there: a.png; export with 'Save images'" in list_split(root, "val").problems[0]


def test_several_tasks_in_folders_are_one_data_set(tmp_path: Path) -> None:
    for task in ("task 1", "task 2"):
        save_image(tmp_path / task / "images" / "a.png", (40, 20))
    put(tmp_path, image(LEAF), label("leaf"), "task 1/annotations.xml")
    put(tmp_path, image(LEAF.replace("leaf", "stem")), label("stem"), "task 2/annotations.xml")
    dataset = open_dataset(tmp_path, "all")
    assert dataset.labels.names == ("background", "leaf", "stem") and dataset.names == ["task 1/a", "task 2/a"]
    assert [int(sample.mask[0, 0]) for sample in dataset] == [1, 2]


def test_of_an_image_that_is_annotated_twice_the_later_counts(root: Path) -> None:
    put(root, image(LEAF) + image(LEAF.replace("leaf", "stem")))
    listing = list_split(root, "all")
    assert listing.left_out == {"annotated twice: the later in the file counts": 1} and len(listing.items) == 1
    assert int(read(root)[0, 0]) == 2


def test_images_that_differ_by_suffix_are_two(root: Path) -> None:
    save_image(root / "images" / "a.JPG", (40, 20))
    put(root, image(LEAF) + image(LEAF.replace("leaf", "stem"), "a.JPG"))
    listing = list_split(root, "all")
    assert listing.left_out == {} and [item.image.name for item in listing.items] == ["a.png", "a.JPG"]


def test_a_file_in_upper_case_is_found(root: Path) -> None:
    put(root, image(LEAF), file="annotations.XML")
    assert kind_of(root) == "cvat" and int(read(root)[0, 0]) == 1


def test_one_file_can_be_named(root: Path) -> None:
    put(root, image(LEAF))
    put(root, image(LEAF), file="other.xml")
    path = root / "other.xml"
    assert kind_of(f"cvat:{root}") == "cvat" and list_split(root, "all").left_out
    from atrous.data.datasets.cvat import LAYOUT
    from atrous.data.datasets.options import DatasetOptions

    assert LAYOUT.recognise(path) == path and LAYOUT.splits(path) == ["all"]
    assert LAYOUT.read(path, "all", DatasetOptions()).left_out == {}


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("frame_000001", "frame_000001.PNG"),
        ("sub/a b.png", "a b.png"),
        ("../../a.png", "a.png"),
        ("C:\\x\\a.png", "a.png"),
    ],
)
def test_images_are_found_by_what_is_left_of_their_names(tmp_path: Path, name: str, stored: str) -> None:
    save_image(tmp_path / "images" / stored, (40, 20))
    put(tmp_path, image(LEAF, name))
    assert list_split(tmp_path, "all").items[0].image == tmp_path / "images" / stored


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<polygon label="leaf" points="1,1;2"/>', "shape 0, leaf, a polygon: not enough values"),
        ('<polygon label="leaf"/>', "shape 0, leaf, a polygon: without 'points'"),
        (
            '<mask label="leaf" rle="1, 2" left="0" top="0" width="2" height="2"/>',
            "shape 0, leaf, a mask: run lengths of 3 pixels; expected 4, its width times its height",
        ),
        ('<mask label="leaf" rle="4" left="50" top="0" width="2" height="2"/>', "a mask at 50, 0, outside the image"),
        (
            '<mask label="leaf" rle="4" left="0" top="0" width="-2" height="-2"/>',
            "height -2, width -2; expected the size",
        ),
        ('<ellipse label="leaf" cx="5" cy="5" rx="0" ry="2"/>', "a shape of 0 by 4 pixels; expected some width"),
        ('<box label="leaf" xtl="9" ytl="1" xbr="2" ybr="4"/>', "a shape of -7 by 3 pixels"),
        ('<polygon label="leaf" z_order="top" points="1,1;2,2;3,1"/>', "a polygon has the z_order 'top'"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_named(root: Path, shape: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"annotations\.xml, image a\.png: .*{message}"):
        read(put(root, image(shape)))


def test_a_size_that_is_none_is_named(root: Path) -> None:
    put(root, image(LEAF).replace('width="40"', ""))
    with pytest.raises(ValueError, match=r"image a\.png: height 20, width None; expected the size in pixels"):
        read(root)


def test_tracks_are_refused_by_name(root: Path) -> None:
    put(root, '<track id="0" label="leaf"><polygon frame="0" outside="0" points="1,1;2,2;3,1"/></track>')
    with pytest.raises(ValueError, match=r"annotations\.xml: tracks of CVAT for video; export it as CVAT for images"):
        open_dataset(root, "all")


def test_a_file_that_changes_after_it_was_listed_is_refused(root: Path) -> None:
    dataset = open_dataset(put(root, image(LEAF)), "all")
    put(root, image(LEAF, "b.png"))
    with pytest.raises(ValueError, match=r"image a\.png: the file has changed since it was listed"):
        dataset[0]


def test_more_classes_than_8_bits_hold(root: Path) -> None:
    names = [f"class {number}" for number in range(400)]
    shape = LEAF.replace("leaf", names[-1])
    mask = list_split(put(root, image(shape), "".join(map(label, names))), "all").items[0].mask
    assert mask is not None and not isinstance(mask, Path) and int(mask.read()[0, 0]) == 400


def test_a_z_order_may_have_a_point_and_is_named_where_it_is_no_number(root: Path) -> None:
    stem = '<polygon label="stem" points="5,5;14,5;14,14;5,14" z_order="{}"></polygon>'
    for level, value in (("5.0", 2), ("0.0", 1), ("10.0", 2)):
        assert read(put(root, image(stem.format(level) + LEAF)))[7, 7] == value, level
    for level in ("top", "nan", "inf"):
        put(root, image(stem.format(level)))
        with pytest.raises(ValueError, match=rf"image a\.png: a polygon has the z_order '{level}'; expected a whole"):
            read(root)
