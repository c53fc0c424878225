"""LabelMe 3.0's XML: polygons, masks, deleted objects, boxes, folders."""

from pathlib import Path

import numpy as np
import pytest

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from exports import png, save_image

SIZE = "<imagesize><nrows>20</nrows><ncols>40</ncols></imagesize>"


def polygon(name: str, left: int, more: str = "") -> str:
    pairs = ((left, 2), (left + 5, 2), (left + 5, 7), (left, 7))
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in pairs)
    return f"<object><name>{name}</name>{more}<polygon><username>me</username>{points}</polygon></object>"


def put(
    root: Path, *objects: str, place: str = "Annotations/home/a.xml", size: str = SIZE, name: str = "a.png"
) -> Path:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    text = f"<annotation><filename>{name}</filename><folder>home</folder>{size}{''.join(objects)}</annotation>"
    (root / place).write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_image(tmp_path / "Images" / "home" / "a.png", (40, 20))
    return tmp_path


def read(root: Path) -> np.ndarray:
    return open_dataset(root, "all")[0].mask.numpy()


def test_later_over_earlier_and_deleted_objects_are_left_out(root: Path) -> None:
    deleted, box = "<deleted>1</deleted>", "<type>bounding_box</type>"
    put(
        root,
        polygon("leaf", 0),
        polygon("stem", 3, "<deleted>0</deleted>"),
        polygon("old", 9, deleted),
        polygon("leaf", 20, box),
    )
    assert kind_of(root) == "labelme_xml"
    listing = list_split(root, "all")
    assert listing.labels.names == ("background", "leaf", "stem")
    mask = read(root)
    assert (mask[3, 0], mask[3, 4], mask[3, 12], mask[3, 22]) == (1, 2, 0, 1)
    assert "1 objects are marked as deleted, and are left out: a.xml" in str(listing.warnings)
    assert "1 objects are boxes, filled as rectangles: a.xml" in str(listing.warnings)


@pytest.mark.parametrize("folder", ["Masks/home", "Annotations/home/Masks"])
def test_masks_are_what_is_not_black_and_stay_inside_the_data_set(root: Path, folder: str) -> None:
    (root / folder).mkdir(parents=True)
    inside = np.zeros((20, 40), bool)
    inside[3:5, 7:9] = True
    (root / folder / "m.png").write_bytes(png(inside))
    put(root, "<object><name>leaf</name><segm><mask>../../x/m.png</mask></segm></object>")
    np.testing.assert_array_equal(read(root), inside)
    (root / folder / "m.png").write_bytes(png(inside[1:]))
    with pytest.raises(ValueError, match=r"a\.xml: object 0, leaf: its mask .*m\.png has 40x19 pixels; expected 40x20"):
        read(root)
    (root / folder / "m.png").unlink()
    with pytest.raises(ValueError, match=r"a\.xml: object 0, leaf: its mask .*m\.png is not there"):
        read(root)


def test_without_a_size_that_of_the_image_counts(root: Path) -> None:
    assert read(put(root, polygon("leaf", 0), size="")).shape == (20, 40)
    with pytest.raises(ValueError, match=r"a\.xml: nrows 'many', ncols 40; expected the size in pixels"):
        read(put(root, polygon("leaf", 0), size=SIZE.replace("20", "many")))


def test_folders_are_splits_if_they_are_named_so(tmp_path: Path) -> None:
    for folder in ("train", "valid", "home"):
        save_image(tmp_path / "Images" / folder / "a.png", (40, 20))
        put(tmp_path, polygon(f"leaf of {folder}", 0), place=f"Annotations/{folder}/a.xml")
    assert splits(tmp_path) == ["train", "val", "all"]
    listings = {split: list_split(tmp_path, split) for split in splits(tmp_path)}
    assert len({listing.labels for listing in listings.values()}) == 1
    assert {split: [item.name for item in listing.items] for split, listing in listings.items()} == {
        "train": ["a"],
        "val": ["a"],
        "all": ["home/a"],
    }
    assert listings["val"].items[0].image == tmp_path / "Images" / "valid" / "a.png"


def test_all_in_one_folder(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (40, 20))
    assert read(put(tmp_path, polygon("leaf", 0), place="a.xml"))[3, 3] == 1


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("<object><name></name></object>", "object 0 has no name; expected one"),
        ("<object><name>leaf</name></object>", "object 0, leaf: neither a polygon nor a mask; expected one of them"),
        (polygon("leaf", 0).replace("<x>0</x>", ""), "object 0, leaf: could not convert string to float"),
    ],
)
def test_objects_that_cannot_be_drawn_are_named(root: Path, thing: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.xml: {message}"):
        read(put(root, thing, "<object><name>x</name><deleted>1</deleted><segm></segm></object>"))


def test_names_of_another_file_than_its_own_are_followed(tmp_path: Path) -> None:
    save_image(tmp_path / "Images" / "home" / "photo 1.png", (40, 20))
    listing = list_split(put(tmp_path, polygon("leaf", 0), name="photo 1.png"), "all")
    assert [item.image.name for item in listing.items] == ["photo 1.png"]
