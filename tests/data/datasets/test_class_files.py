"""Files of labelling tools that name classes, as the tools write them and as people change them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from atrous.data.datasets.class_files import ColourMask, find_class_file, read_classes, read_lines
from atrous.data.labels import voc_palette

CAT = (200, 10, 30)


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nsmall cat, é:200,10,30::\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\r\n\r\nsmall cat, é:200,10,30:ear,tail:sits  \r\n"),
        ("class_dict.csv", 'name,r,g,b\nbackground,0,0,0\n"small cat, é",200,10,30\n'),
        ("class_dict.csv", ' name, r, g, b\nbackground, 0, 0, 0\n"small cat, é", 200, 10, 30'),
        ("label_colors.txt", "0 0 0 background\n200 10 30\tsmall cat, é\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_names_and_colours(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    labels, by_colour = read_classes(written(tmp_path / name, text, encoding))
    assert by_colour and labels.names == ("background", "small cat, é") and labels.palette == ((0, 0, 0), CAT)


@pytest.mark.parametrize("text", ["__ignore__\n_background_\nyes\n1e3\n", "\ufeff_background_\r\nyes \r\n\r\n1e3"])
def test_names_in_the_order_of_ids(tmp_path: Path, text: str) -> None:
    labels, by_colour = read_classes(written(tmp_path / "labels.txt", text))
    assert not by_colour and labels.names == ("_background_", "yes", "1e3") and labels.palette == voc_palette(3)


def test_a_label_map_without_colours_has_those_of_voc(tmp_path: Path) -> None:
    labels, by_colour = read_classes(written(tmp_path / "labelmap.txt", "# label:color\nbackground:::\na b, é:::\n"))
    assert by_colour and labels.names == ("background", "a b, é") and labels.palette == voc_palette(2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labelmap.txt", "cat:1,2::\n", r"line 1 is 'cat:1,2::'; expected LABEL:RED,GREEN,BLUE:PARTS:ACTIONS"),
        ("labelmap.txt", "cat:1,2,300::\n", "line 1 is .*expected LABEL"),
        ("labelmap.txt", "cat\n", "line 1 is 'cat'; expected LABEL"),
        ("labelmap.txt", "cat:1,2,3::\ndog:1,2,3::\n", r"cat and dog have the colour \(1, 2, 3\)"),
        ("labelmap.txt", "cat:1,2,3::\ncat:1,2,4::\n", "names has 'cat' 2 times"),
        ("label_colors.txt", "1 2 cat\n", "line 1 is '1 2 cat'; expected RED GREEN BLUE NAME"),
        ("class_dict.csv", "name,r,g,b\ncat,1,2\n", "line 2 is 'cat,1,2'; expected NAME,RED"),
        ("labels.txt", "\n\n", "names has 0 classes"),
        ("labels.txt", "a\na\n", "names has 'a' 2 times"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_classes(written(tmp_path / name, text))
    assert str(caught.value).startswith(str(tmp_path / name))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"labels\.txt: byte 3 is not UTF-8"):
        read_lines(written(tmp_path / "labels.txt", "caf\u00e9", "latin-1"))


def test_files_of_colours_come_first(tmp_path: Path) -> None:
    assert find_class_file((tmp_path,)) is None
    for name in ("labels.txt", "labelmap.txt"):
        written(tmp_path / name, "")
    assert find_class_file((tmp_path / "none", tmp_path)) == tmp_path / "labelmap.txt"


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P"])
def test_masks_are_read_by_colour_and_not_by_index(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path / "labelmap.txt", "cat:200,10,30::\ndog:1,2,3::\n")
    labels, _ = read_classes(source)
    palette = [*(1, 2, 3), *(0, 0, 0), *CAT, *(224, 224, 192)]
    image = Image.fromarray(np.array([[1, 2, 0, 3]], np.uint8))
    image.putpalette(palette)
    (image if kind == "P" else image.convert(kind)).save(tmp_path / "m.png")
    assert ColourMask(tmp_path / "m.png", labels, source).read().tolist() == [[0, 1, 2, 255]]


def test_ids_beside_a_file_of_colours_are_told_what_they_need(tmp_path: Path) -> None:
    def said(mask: np.ndarray, rows: str = "background:0,0,0::\ncat:200,10,30::\n") -> str:
        source = written(tmp_path / "labelmap.txt", rows)
        Image.fromarray(mask).save(tmp_path / "m.png")
        with pytest.raises(ValueError, match="are not in") as caught:
            ColourMask(tmp_path / "m.png", read_classes(source)[0], source).read()
        return str(caught.value)

    ids = np.array([[0, 1, 2, 255]], np.uint8)
    assert "; if the masks hold ids, they need labels.txt in its place" in said(ids)
    assert said(ids).endswith("without colours: move labelmap.txt elsewhere")
    for mask in (ids + 100, np.array([[CAT, (1, 1, 1), (1, 2, 3)]], np.uint8)):
        assert "hold ids" not in said(mask)
    assert "hold ids" not in said(ids, "background:0,0,0::\ncat:90,90,90::\n"), "shades of gray are classes"


def test_unknown_colours_are_counted_and_named(tmp_path: Path) -> None:
    source = written(tmp_path / "labelmap.txt", "cat:200,10,30::\n")
    colours = np.array([[CAT, (9, 9, 9), (9, 9, 9), (224, 224, 192), (7, 7, 7)]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "m.png")
    message = r"m\.png: the colours \(9, 9, 9\) \(2 pixels\), \(7, 7, 7\) \(1 pixels\) are not in .*labelmap\.txt"
    with pytest.raises(ValueError, match=message):
        ColourMask(tmp_path / "m.png", read_classes(source)[0], source).read()
    Image.fromarray(colours).save(tmp_path / "m.jpg")
    with pytest.raises(ValueError, match=r"m\.jpg: a mask in a format that changes colours"):
        ColourMask(tmp_path / "m.jpg", read_classes(source)[0], source).read()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(name=st.sampled_from(["labelmap.txt", "class_dict.csv", "label_colors.txt", "labels.txt"]), content=st.binary())
def test_any_content_is_read_or_a_value_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        labels, _ = read_classes(tmp_path / name)
        assert len(labels) == len(labels.palette)
    except ValueError as error:
        assert str(error).startswith(str(tmp_path / name)) and "\n" not in str(error)


def test_names_by_id_are_hugging_faces_alone_and_keep_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "id2label.json"
    path.write_text('{"0": "ground", "1": "__ignore__", "2": "leaf"}')
    assert find_class_file((tmp_path,)) is None
    assert read_classes(path)[0].names == ("ground", "__ignore__", "leaf")
