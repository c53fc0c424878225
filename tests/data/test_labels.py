"""Names, palettes and lookups against what the benchmarks publish; `dataset.yaml` against anything a person writes."""

from pathlib import Path

import numpy as np
import pytest

from atrous.data import labels as module
from atrous.data.datasets.folding import load_labels
from atrous.data.labels import CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC, Labels, coco_to_voc

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_voc_palette_has_the_known_colours() -> None:
    palette = module.voc_palette(256)
    assert palette[0] == (0, 0, 0)
    assert palette[VOC.names.index("aeroplane")] == (128, 0, 0)
    assert palette[VOC.names.index("person")] == (192, 128, 128)
    assert palette[VOC.names.index("tvmonitor")] == (0, 64, 128)
    assert palette[255] == module.IGNORE_COLOUR == (224, 224, 192)
    assert len(set(palette)) == 256


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "c"], "classes other than those of train: c more; expected the same in all splits"),
        (["a", "c"], "classes other than those of train: c more and no b; expected the same in all splits"),
        (["b", "a"], "the classes b, a; expected those of train: a, b"),
        (["a", "b"], "other colours of its classes than train; expected the same in all splits"),
    ],
)
def test_a_difference_is_named(names: list[str], message: str) -> None:
    ours = Labels(("a", "b"), ((0, 0, 0), (1, 2, 3)))
    assert module.difference(Labels((*names,), module.voc_palette(len(names))), ours, "train") == message


@pytest.mark.parametrize("count", [-1, 65537])
def test_voc_palette_refuses_other_counts(count: int) -> None:
    with pytest.raises(ValueError, match="0 to 65536"):
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
        (((), ()), "1 to 4096"),
        ((("a",) * 2, module.voc_palette(2)), "'a' 2 times"),
        ((tuple(map(str, range(4097))), module.voc_palette(4097)), "4097 classes"),
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


def test_255_classes_leave_one_id_of_8_bits_and_more_need_16() -> None:
    assert len(Labels(tuple(map(str, range(255))), module.voc_palette(255))) == 255
    wide = Labels(tuple(map(str, range(256))), module.voc_palette(256), 65535)
    assert wide.largest_id == 65535 == module.ignored_id(256) and module.ignored_id(255) == 255
    with pytest.raises(ValueError, match="ignore is 255, the id of class '255'; expected .* 256..65535"):
        Labels(tuple(map(str, range(256))), module.voc_palette(256))


def test_more_colours_than_vocs_are_all_different() -> None:
    palette = module.voc_palette(4096)
    assert len(set(palette)) == 4096 and palette[:256] == module.voc_palette(256)


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
