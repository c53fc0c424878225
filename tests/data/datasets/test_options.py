"""`dataset.yaml` against anything that a person writes: what is read as written, and what is refused in one line."""

import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atrous.data.datasets.folding import load_labels, own_labels
from atrous.data.datasets.options import KEYS, NO_OPTIONS, DatasetOptions, bands_of, read_options, value_range_of
from atrous.data.labels import Labels, voc_palette
from reliability import counted, record


def test_load_labels_reads_what_it_documents(tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text("names: [sky, 'no']\npalette: [[1, 2, 3], [4, 5, 6]]\nignore: 9\n")
    assert load_labels(path) == Labels(("sky", "no"), ((1, 2, 3), (4, 5, 6)), 9)
    path.write_text("names:\n- sky\n- road\n")
    assert load_labels(path) == Labels(("sky", "road"), voc_palette(2), 255)


EVERY_KEY = {
    "names": ["sky", "yes", "1e3"], "palette": [[1, 2, 3], [4, 5, 6], [0, 0, 9]], "ignore": ["255", [9, 8, 7]],
    "map": {"7": "sky"}, "classes": ["sky", "yes"], "rest": "ignore", "images": "photos", "annotator": "ann",
    "binary": "object", "value_range": [0.0, 4095.0], "bands": [4, 3, 2],
}  # fmt: skip


def test_every_key_goes_there_and_back(tmp_path: Path) -> None:
    assert set(EVERY_KEY) == set(KEYS)
    options = DatasetOptions.parse(EVERY_KEY)
    assert options.as_dict() == EVERY_KEY and DatasetOptions.parse(options.as_dict()) == options
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(EVERY_KEY))
    read, place = read_options(tmp_path / "dataset.yaml")
    assert read.images == str(tmp_path / "photos") and place == {}
    assert read.over(NO_OPTIONS).as_dict() | {"images": "photos"} == EVERY_KEY
    by_id = DatasetOptions.parse({"names": {3: "b", "1": "a"}})
    assert (by_id.names, by_id.ids) == (("a", "b"), (1, 3)) and DatasetOptions.parse(by_id.as_dict()) == by_id
    assert not NO_OPTIONS and by_id and str(by_id) == "names: {'1': a, '3': b}"


def test_values_come_out_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text("names: [yes, on, 1e3, 2024-01-01, 0x10, null, ~, 'a, b', é]\n", "utf-8")
    assert load_labels(path).names == ("yes", "on", "1e3", "2024-01-01", "0x10", "null", "~", "a, b", "é")
    path.write_bytes("\ufeffnames: {0: off, 1: on}\r\nmap: {on: off, off: on}\r\n".encode())
    assert load_labels(path).names == ("off", "on")


def test_what_is_given_overrules_what_is_in_the_file() -> None:
    file = DatasetOptions.parse({"names": {1: "a", 2: "b"}, "classes": ["a"], "value_range": [0, 9]})
    flags = DatasetOptions.parse({"names": ["c", "d"], "bands": [1]})
    both = flags.over(file)
    assert (both.names, both.ids, both.classes, both.value_range, both.bands) == (("c", "d"), (), ("a",), (0, 9), (1,))


def test_numbers_in_flags() -> None:
    assert value_range_of("-160,240") == (-160, 240) and bands_of("4,3,2") == (4, 3, 2) and bands_of(5) == (5,)
    for text in ("1", "2,1", "1,1", "a,b", "0,inf", "nan,1", "", "1,2,3", None):
        with pytest.raises(ValueError, match="value_range is .*; expected LOW,HIGH"):
            value_range_of(text)
    for text in ("1,2", "0", "a", "", "1,2,3,4", "-1,2,3", None):
        with pytest.raises(ValueError, match="band.* is .*; expected"):
            bands_of(text)


def test_names_by_id_are_for_the_ids_that_masks_store() -> None:
    labels, remap = own_labels(DatasetOptions.parse({"names": {1: "wall", 4: "door"}, "ignore": 0}))
    assert labels.names == ("wall", "door") and remap is not None
    assert [remap[value] for value in (0, 1, 2, 4, 255)] == [-1, 0, -1, 1, 255]
    assert own_labels(DatasetOptions.parse({"names": {0: "a", 1: "b"}}))[1] is None
    labels, remap = own_labels(DatasetOptions.parse({"names": {7: "a", 1000: "b"}}))
    assert remap is not None and len(remap) == 65536 and remap[1000] == 1 and labels.ignore == 255


# Eight to the power of eight strings, were it ever written out.
BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{key}: &{key} [{','.join(['*' + before] * 8)}]\n" for before, key in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [yes, yes]", "'yes' 2 times"),
        ("names: [sky, '']", r"names\[1\] is ''; expected a printable"),
        ("names: [sky, [road]]", r"names\[1\] is a list .*; expected a name"),
        ("names: sky", "the text 'sky'; expected a list of names, or id: name"),
        ("names: {sky: 0}", "an id in names is the text 'sky'; expected a whole number"),
        ("names: {}", "names is empty"),
        ("names: {1: a, 01: b}", "names has the id 1 twice"),
        ("nmaes: [sky]", "'nmaes'; did you mean names"),
        ("names: [sky]\ncolours: []", "unknown key 'colours'; expected: names, palette, ignore, map, classes"),
        ("palette: []", "no key 'names'"),
        ("names: [sky]\nclases: [sky]", "unknown key 'clases'; did you mean classes"),
        ("names: [sky]\nrest: drop", "rest is the text 'drop'; expected background or ignore"),
        ("names: [sky]\nvalue_range: 4095", "value_range is the text '4095'; expected LOW,HIGH"),
        ("names: [sky]\nbands: [1, 2]", "bands is a list .*; expected three"),
        ("names: [sky]\nimages:", "images is empty; expected text"),
        ("names: [sky]\nclasses: []", "classes is empty"),
        ("names: [sky]\nignore: []", "ignore is empty"),
        ("names: []", "names is empty"),
        ("names: [sky]\npalette: 3", "the text '3'; expected a list of"),
        ("names: [sky]\npalette: [[1, 2, x]]", r"palette\[0\]"),
        ("names: [sky]\nignore: none", "ignore has 'none', which is no class; the classes are: sky"),
        ("names: [a]\nnames: [b]", "line 2: the key 'names' is there twice"),
        ("names: [a]\nmap: [0]", "map is a list .*; expected stored ids or names with their class"),
        ("names: [a, b]\nmap: {255: 2}", "map leads to '2', which is no class; the classes are: a, b; or ignore"),
        ("names: [a, b]\nmap: {70000: 1}", "map has the id 70000; expected 0 to 65535"),
        ("names: [a, b]\nmap: {-7: 1}", "map has '-7', which is no class"),
        ("names: [leaf, stem]\nmap: {7: leef}", "map leads to 'leef', which is no class; did you mean leaf"),
        ("names: [a, b]\nmap: {7: true}", "map leads to 'true', which is no class"),
        ("", "document is empty"),
        ("[a]", "document is a list"),
        ("names: [", "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['true']", "the document is a list"),
        ("!!bool maybe", "the document is the text 'maybe'"),
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


def test_the_page_has_every_key_and_its_example_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "dataset-yaml.md").read_text("utf-8")
    example = page.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "dataset.yaml").write_text(example, "utf-8")
    options, _ = read_options(tmp_path / "dataset.yaml")
    assert {*options.as_dict()} == {*KEYS} and len(load_labels(tmp_path / "dataset.yaml")) == 3
    rows = [line for line in page.split("\n") if line.startswith("| `")]
    for key in KEYS:
        (row,) = [row for row in rows if row.startswith(f"| `{key}` |")]
        assert f"--{key.replace('_', '-')}" in row or key == "palette"
