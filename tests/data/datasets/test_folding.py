"""Names, ignored ids, maps and kept classes, applied to what any layout has read: the masks that they should give."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atrous.data.datasets.base import Listing
from atrous.data.datasets.dataset import open_dataset
from atrous.data.datasets.folding import folded
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.data.labels import Labels, voc_palette
from formats import FORMATS

CITY = Labels(("background", "car", "bus", "person, sitting", "rider"), voc_palette(5))


def options(**values: object) -> DatasetOptions:
    return DatasetOptions.parse(values)


def table(given: DatasetOptions, labels: Labels = CITY, remap: tuple[int, ...] | None = None) -> dict[int, str]:
    """What becomes of each stored id that may occur, by the names of the classes that are left."""
    listing = folded(Listing("here", (), labels, remap), given)
    names = {**dict(enumerate(listing.labels.names)), listing.labels.ignore: "ignored"}
    classes = listing.remap or [i if i in names else -1 for i in range(256)]
    return {stored: names[index] for stored, index in enumerate(classes) if index >= 0}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"names": ["bg", "a", "b", "c", "d"]}, "bg a b c d ignored"),
        ({"names": {1: "auto"}}, "background auto bus person,_sitting rider ignored"),
        ({"ignore": "rider"}, "background car bus person,_sitting ignored ignored"),
        ({"map": {"bus": "car"}}, "background car car person,_sitting rider ignored"),
        ({"map": {"2": "1"}}, "background car car person,_sitting rider ignored"),
        ({"map": {"bus": "car", "car": "bus"}}, "background bus car person,_sitting rider ignored"),
        ({"map": {"bus": "car", "car": "rider"}}, "background rider car person,_sitting rider ignored"),
        ({"map": {"rider": "ignore", "bus": 255}}, "background car ignored person,_sitting ignored ignored"),
        ({"classes": ["rider", "car"]}, "background car background background rider ignored"),
        ({"classes": "car,person, sitting"}, "background car background person,_sitting background ignored"),
        ({"classes": ["car"], "rest": "ignore"}, None),
        ({"classes": ["car", "bus"], "rest": "ignore"}, "ignored car bus ignored ignored ignored"),
        ({"map": {"bus": "car"}, "classes": ["car"]}, "background car car background background ignored"),
    ],
)
def test_what_becomes_of_each_id(values: dict, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="no class is left"):
            table(options(classes=["background"]))
        return
    actual = table(options(**values))
    assert " ".join(name.replace(" ", "_") for _, name in sorted(actual.items())) == expected


def test_kept_classes_have_the_order_that_they_are_asked_for_in_and_their_colours() -> None:
    listing = folded(Listing("here", (), CITY), options(classes=["rider", "car"]))
    assert listing.labels.names == ("background", "rider", "car")
    assert listing.labels.palette == tuple(CITY.palette[index] for index in (0, 4, 1))
    assert listing.read_as.endswith("folded away: bus, person, sitting")
    assert folded(listing, NO_OPTIONS) is listing


def test_a_background_is_made_where_there_is_none() -> None:
    plain = Labels(("sky", "road", "car"), voc_palette(4)[1:])
    assert table(options(classes=["car"]), plain) == {0: "background", 1: "background", 2: "car", 255: "ignored"}
    listing = folded(Listing("here", (), plain), options(classes=["car"]))
    assert listing.labels.names == ("background", "car") and listing.labels.palette[0] == (0, 0, 0)
    assert folded(Listing("here", (), plain), options(classes=["road", "car", "sky"])).labels.names == (
        "road",
        "car",
        "sky",
    )


def test_ids_that_are_mapped_before_are_folded_from_there() -> None:
    stored = tuple([-1] * 24 + [0, 1, 2, 3, 4] + [-1] * 226 + [255])
    assert table(options(classes=["car"]), CITY, stored) == dict.fromkeys((24, 26, 27, 28), "background") | {
        25: "car", 255: "ignored",
    }  # fmt: skip
    assert table(options(map={"7": "car"}, ignore=9), CITY, stored)[9] == "ignored"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"map": {"bus": "cat"}}, "map leads to 'cat', which is no class; did you mean car"),
        ({"map": {"truck": "car"}}, "map has 'truck', which is no class; the classes are"),
        ({"classes": ["cra"]}, "classes has 'cra', which is no class; did you mean car"),
        ({"classes": ["car,cra"]}, "classes has 'cra', which is no class; did you mean car"),
        ({"classes": ["car", "car"]}, "classes has 'car' 2 times"),
        ({"classes": ["background"]}, "no class is left of background, car"),
        ({"map": dict.fromkeys(CITY.names[1:], "background")}, "no class is left"),
        ({"ignore": 3}, "ignore is 3, the id of class 'person, sitting'; expected an id that is no class's"),
        ({"ignore": "300"}, None),
        ({"names": ["a", "b"]}, "names has 2 names, the data 5 classes"),
        ({"names": {9: "a"}}, "names has the id 9; the data has the ids 0 to 4"),
        ({"names": {1: "bus"}}, "'bus' 2 times; expected every name once"),
        ({"palette": [[0, 0, 0]]}, "palette has 1 colours for 5 names"),
        ({"ignore": [[1, 1, 1]], "palette": [[1, 1, 1]] * 5}, "ignore has .1, 1, 1., the colour of class 'background'"),
        ({"rest": "ignore"}, "rest is ignore, but there are no classes to keep"),
    ],
)
def test_what_cannot_be_right_is_one_line(values: dict, message: str | None) -> None:
    if message is None:
        assert table(options(**values))[300] == "ignored"
        return
    with pytest.raises(ValueError, match=message) as caught:
        table(options(**values))
    assert "\n" not in str(caught.value)


words = st.sampled_from([*CITY.names, "car,bus", "x", "", "3", "255", "300", "70000", "ignore", "é, ü"])
values = st.fixed_dictionaries(
    {},
    optional={
        "names": st.lists(words, max_size=6) | st.dictionaries(st.integers(-1, 70000), words, max_size=4),
        "ignore": words | st.lists(words | st.tuples(*[st.integers(-1, 256)] * 3), max_size=3),
        "map": st.dictionaries(words, words, max_size=4),
        "classes": st.lists(words, max_size=4),
        "rest": st.sampled_from(["ignore", "background", "no"]),
    },
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(values)
def test_any_options_give_a_sound_table_or_one_line(given: dict) -> None:
    try:
        listing = folded(Listing("here", (), CITY), DatasetOptions.parse(given))
    except ValueError as error:
        assert "\n" not in str(error) and str(error)
        return
    allowed = {-1, listing.labels.ignore, *range(len(listing.labels))}
    assert listing.remap is None or ({*listing.remap} <= allowed and len(listing.remap) in (256, 65536))


def put(root: Path, masks: dict[str, np.ndarray], yaml: str) -> Path:
    for name, mask in masks.items():
        for folder in ("images", "masks"):
            (root / folder / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*mask.shape[:2], 3), np.uint8)).save(root / "images" / "train" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / "train" / f"{name}.png")
    (root / "dataset.yaml").write_text(yaml, "utf-8")
    return root


def test_masks_of_ids_and_of_colours_are_folded_alike(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 3], [1, 3, 255, 255]], dtype=np.uint8)
    palette = np.array([*CITY.palette[:4], *[(9, 9, 9)] * 251, (224, 224, 192)], dtype=np.uint8)
    text = "names: [background, car, bus, rider]\nclasses: [rider]\nmap: {bus: rider}\n"
    root = put(tmp_path, {"ids": ids, "colours": palette[ids]}, text)
    for _, _, mask in open_dataset(root, "train"):
        assert mask.tolist() == [[0, 0, 1, 1], [0, 1, 255, 255]]
    dataset = open_dataset(root, "train", options(classes=["car"]))
    assert dataset.labels.names == ("background", "car") and dataset[0].mask[0].tolist() == [0, 1, 0, 0]
    grays = palette.copy()
    grays[255] = (7, 7, 7)
    put(tmp_path, {"colours": grays[ids]}, text)
    with pytest.raises(ValueError, match=r"colour \(7, 7, 7\) in 2 pixels"):
        open_dataset(root, "train")[0]
    put(tmp_path, {}, text + "ignore: [255, [7, 7, 7]]\n")
    assert open_dataset(root, "train")[0].mask.tolist() == [[0, 0, 1, 1], [0, 1, 255, 255]]


def test_a_file_elsewhere_names_the_folder_and_the_layout(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    root = put(tmp_path / "my data", {"a": ids}, "names: [a, b, c]")
    (tmp_path / "some.yaml").write_text("path: my data\nlayout: folder\nnames: [x, y, z]\nclasses: [z]\n")
    with pytest.raises(ValueError, match="layout is 'foldr'; did you mean folder"):
        (tmp_path / "other.yml").write_text("path: my data\nlayout: foldr\n")
        open_dataset(tmp_path / "other.yml", "train")
    dataset = open_dataset(tmp_path / "some.yaml", "train")
    assert dataset.labels.names == ("background", "z") and dataset[0].mask.tolist() == [[0, 0], [1, 1]]
    assert open_dataset(root, "train").labels.names == ("a", "b", "c")
    with pytest.raises(ValueError, match="my data: classes has 'w', which is no class; the classes are: a, b, c"):
        open_dataset(root, "train", options(classes=["w"]))


@pytest.mark.parametrize("layout", ["voc_segmentation", "coco_instances", "supervision-yolo", "labelme-json", "camvid"])
def test_every_layout_is_folded_after_it_has_been_read(layout: str) -> None:
    if not (FORMATS / layout).is_dir():
        pytest.skip("no shared/formats beside the repository")
    from atrous.data.datasets.dataset import splits

    split = splits(FORMATS / layout)[0]
    whole = open_dataset(FORMATS / layout, split)
    keep, other = whole.labels.names[-1], whole.labels.names[-2]
    part = open_dataset(FORMATS / layout, split, options(classes=[keep], map={other: keep}))
    assert part.labels.names == ("background", keep)
    for (_, _, mask), (_, _, small) in zip(whole, part, strict=True):
        expected = np.isin(mask.numpy(), [len(whole.labels) - 1, len(whole.labels) - 2]).astype(int)
        expected[mask.numpy() == whole.labels.ignore] = part.labels.ignore
        assert np.array_equal(small.numpy(), expected)


def test_255_is_the_second_class_of_two_where_binary_says_so(tmp_path: Path) -> None:
    mask = np.array([[0, 255, 255]], np.uint8)
    for kind, pixels in {"images": np.zeros((1, 3, 3), np.uint8), "masks": mask}.items():
        (tmp_path / kind / "train").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / kind / "train" / "a.png")
    given = {"names": ["background", "leaf"], "binary": "object"}
    dataset = open_dataset(tmp_path, "train", options(**given))
    assert dataset[0].mask.tolist() == [[0, 1, 1]] and dataset.labels.ignore == 255
    with pytest.raises(ValueError, match="binary is object, but the classes are background, leaf, stem; expected two"):
        open_dataset(tmp_path, "train", options(**given | {"names": ["background", "leaf", "stem"]}))
