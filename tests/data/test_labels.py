"""Names, palettes and lookups against what the benchmarks publish; `dataset.yaml` against anything a person writes."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atrous.data import labels as module
from atrous.data.labels import CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC, Labels, coco_to_voc, load_labels
from reliability import counted, record

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_voc_palette_has_the_known_colours() -> None:
    palette = module.voc_palette(256)
    assert palette[0] == (0, 0, 0)
    assert palette[VOC.names.index("aeroplane")] == (128, 0, 0)
    assert palette[VOC.names.index("person")] == (192, 128, 128)
    assert palette[VOC.names.index("tvmonitor")] == (0, 64, 128)
    assert palette[255] == module.IGNORE_COLOUR == (224, 224, 192)
    assert len(set(palette)) == 256


@pytest.mark.parametrize("count", [-1, 257])
def test_voc_palette_refuses_other_counts(count: int) -> None:
    with pytest.raises(ValueError, match="0 to 256"):
        module.voc_palette(count)


def test_benchmarks_have_their_classes() -> None:
    assert (len(VOC), len(CITYSCAPES), len(CAMVID)) == (21, 19, 11)
    assert VOC.names[15] == "person" and CITYSCAPES.names[13] == "car" and CAMVID.names[3] == "road"
    assert CITYSCAPES.palette[0] == (128, 64, 128) and CITYSCAPES.palette[18] == (119, 11, 32)


def test_cityscapes_ids_go_there_and_back() -> None:
    table = np.array(CITYSCAPES_TRAIN_IDS)
    assert table.shape == (256,)
    assert table[7] == 0 and table[33] == 18 and table[26] == 13
    assert (table[:34] == 255).sum() == 34 - 19 and table[0] == table[9] == table[255] == 255
    assert (table[34:255] == -1).all(), "there are no such labels"
    assert table[list(module.CITYSCAPES_LABEL_IDS)].tolist() == list(range(19))


def test_cityscapes_table_is_the_official_one() -> None:
    official = pytest.importorskip("cityscapesscripts.helpers.labels", reason="no cityscapesscripts").labels
    for label in official:
        assert CITYSCAPES_TRAIN_IDS[label.id % 256] == (label.trainId if 0 <= label.trainId < 255 else 255), label.name
        if label.id >= 0 and not label.ignoreInEval:
            assert module.CITYSCAPES_LABEL_IDS[label.trainId] == label.id
            assert (CITYSCAPES.names[label.trainId], CITYSCAPES.palette[label.trainId]) == (label.name, label.color)
    assert {i for i, train in enumerate(CITYSCAPES_TRAIN_IDS) if train >= 0} == {label.id % 256 for label in official}


# COCO's 80 categories, as its instances files name them.
COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""


def test_coco_covers_every_voc_object_once() -> None:
    names = [" ".join(name.split()) for name in COCO.split(",")]
    vocs = {name: VOC.names[coco_to_voc(name)] for name in names if coco_to_voc(name)}
    assert len(names) == 80 and sorted(vocs.values()) == sorted(VOC.names[1:])
    assert {coco: voc for coco, voc in vocs.items() if coco != voc} == {
        "airplane": "aeroplane", "dining table": "diningtable", "motorcycle": "motorbike",
        "potted plant": "pottedplant", "couch": "sofa", "tv": "tvmonitor",
    }  # fmt: skip
    assert coco_to_voc("background") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), ()), "1 to 255"),
        ((("a",) * 2, module.voc_palette(2)), "'a' 2 times"),
        ((tuple(map(str, range(256))), module.voc_palette(256)), "256 classes"),
        ((("a", " "), module.voc_palette(2)), r"names\[1\]"),
        ((("a", "b\nc"), module.voc_palette(2)), r"names\[1\]"),
        ((("a",), module.voc_palette(2)), "2 colours for 1 names"),
        ((("a",), ((0, 0, 256),)), r"palette\[0\]"),
        ((("a",), ((0, 0),)), r"palette\[0\]"),
        ((("a",), ((0, 0, 0),), 0), "the id of class 'a'"),
        ((("a",), ((0, 0, 0),), 256), "0..255"),
        ((("a",), ((0, 0, 0),), True), "0..255"),
    ],
)
def test_labels_refuse(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Labels(*arguments)


def test_255_classes_leave_one_id() -> None:
    assert len(Labels(tuple(map(str, range(255))), module.voc_palette(255))) == 255


def test_load_labels_reads_what_it_documents(tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text("names: [sky, 'no']\npalette: [[1, 2, 3], [4, 5, 6]]\nignore: 9\n")
    assert load_labels(path) == Labels(("sky", "no"), ((1, 2, 3), (4, 5, 6)), 9)
    path.write_text("names:\n- sky\n- road\n")
    assert load_labels(path) == Labels(("sky", "road"), module.voc_palette(2), 255)


def test_a_map_of_stored_ids(tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text("\ufeffnames: [sky, road]\r\nmap: {255: 1, 7: road, 1: 255}\r\n", "utf-8")
    labels, remap = module.load_description(path)
    assert labels.names == ("sky", "road") and remap is not None and len(remap) == 256
    assert {stored: remap[stored] for stored in (0, 1, 2, 7, 254, 255)} == {0: 0, 1: 255, 2: -1, 7: 1, 254: -1, 255: 1}
    path.write_text("names: [sky, road]")
    assert module.load_description(path)[1] is None


# Eight to the power of eight strings, were it ever written out.
BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{key}: &{key} [{','.join(['*' + before] * 8)}]\n" for before, key in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [yes, no]", r"names\[0\] is true.*quotes"),
        ("names: [sky, off]", r"names\[1\] is false.*quotes"),
        ("names: [sky, 3]", r"names\[1\] is int 3"),
        ("names: [sky, null]", r"names\[1\] is empty"),
        ("names: sky", "str 'sky'; expected a list"),
        ("names: {0: sky}", "dict.*expected a list"),
        ("nmaes: [sky]", "'nmaes'; did you mean names"),
        ("names: [sky]\ncolours: []", "unknown key 'colours'; expected names, palette, ignore, map"),
        ("palette: []", "no key 'names'"),
        ("names: []", "0 classes"),
        ("names: [sky]\npalette: 3", "int 3; expected a list of"),
        ("names: [sky]\npalette: [[1, 2, x]]", r"palette\[0\]"),
        ("names: [sky]\nignore: none", "ignore is 'none'"),
        ("names: [a, 1e3]", r"names\[1\] is float 1000.0; expected a string: put it in quotes"),
        ("names: [a]\nnames: [b]", "line 2: the key 'names' is there twice"),
        ("names: [a]\nmap: [0]", "map is list .0.; expected stored ids with their class"),
        ("names: [a, b]\nmap: {255: 2}", "map has 255: 2; expected 0..255: 0..1, a name, or 255, ignored"),
        ("names: [a, b]\nmap: {300: 1}", "map has 300: 1; expected 0..255: "),
        ("names: [a, b]\nmap: {'7': 1}", "map has '7': 1; expected 0..255: "),
        ("names: [a, b]\nmap: {7: c}", "map has 7: 'c'; expected 0..255: "),
        ("names: [a, b]\nmap: {7: true}", "map has 7: True; expected 0..255: "),
        ("", "document is empty"),
        ("[a]", "document is list"),
        ("names: [", "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ("!!bool maybe", "cannot be read as YAML"),
        ("[" * 5000, "cannot be read as YAML"),
        ("names: [\x00]", "cannot be read as YAML"),
        (BOMB, "unknown key 'a'"),
        (BOMB.replace("h:", "names:"), "unknown key 'a'"),
    ],
)
def test_load_labels_names_the_file_and_the_fault_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_labels(path)
    shown = str(caught.value)
    assert shown.startswith(str(path)) and "\n" not in shown and len(shown) < len(str(path)) + 400


def test_load_labels_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_labels(tmp_path / "dataset.yaml")
    with pytest.raises(ValueError, match="not a file; expected a dataset.yaml"):
        load_labels(tmp_path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)
near_misses = st.fixed_dictionaries(
    {}, optional={"names": documents, "palette": documents, "ignore": documents, "name": documents}
)


texts = st.binary(max_size=60) | st.text("names: [a,b]{}&*!|>-'\"\n?0x_%@`~<=.", max_size=60).map(str.encode)
sound = st.fixed_dictionaries(
    {"names": st.lists(st.text("abc 1~", min_size=1, max_size=3), min_size=1, max_size=4, unique=True)},
    optional={
        "ignore": st.integers(-1, 300),
        "palette": st.lists(st.lists(st.integers(-1, 256), max_size=4), max_size=4),
    },
)
contents = texts | (documents | near_misses | sound).map(
    lambda document: yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")
)
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(FUZZ, max_examples=300)
@given(content=contents)
def test_any_bytes_are_labels_or_a_value_error(tmp_path: Path, content: bytes) -> None:
    _labels_or_value_error(tmp_path, content)


@pytest.mark.slow
def test_ten_thousand_documents_are_labels_or_value_errors(tmp_path: Path) -> None:
    read: list[bool] = []

    @settings(FUZZ, max_examples=counted(10_000))
    @given(content=contents)
    def many(content: bytes) -> None:
        read.append(_labels_or_value_error(tmp_path, content))

    many()
    record("fuzzing", f"dataset.yaml: {len(read):,} files, {sum(read):,} read, the others refused by name")


def _labels_or_value_error(folder: Path, content: bytes) -> bool:
    path = folder / "dataset.yaml"
    path.write_bytes(content)
    try:
        return isinstance(load_labels(path), Labels)
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return False


@pytest.mark.parametrize(("name", "expected"), [("camvid", CAMVID), ("objects", VOC)])
def test_shared_data_has_the_labels_we_ship(name: str, expected: Labels) -> None:
    path = SHARED / name / "dataset.yaml"
    if not path.exists():
        pytest.skip(f"no {path.name} of {name} beside the repository, in shared/data")
    assert load_labels(path) == expected


def test_colour_map_is_read_by_exact_colours() -> None:
    ids = np.array([[0, 15], [20, 255]], dtype=np.uint8)
    colours = np.array(module.voc_palette(256), dtype=np.uint8)[ids]
    assert (module.ids_of_colours(colours, VOC.palette) == ids).all()
    colours[0, 0] = (1, 2, 3)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) in 1 pixels"):
        module.ids_of_colours(colours, VOC.palette)
