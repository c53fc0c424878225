"""Hugging Face data sets: folders with metadata, and parquet files with images as bytes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from atrous.data.datasets.dataset import kind_of, list_split, open_dataset, splits
from own_data import ids, photo, stored, text

pytestmark = pytest.mark.filterwarnings("ignore:.*(no names of classes|no split there|unpack)")


def metadata(root: Path, lines: list[dict[str, Any]], folder: str = "train", names: bool = True) -> Path:
    for name in ("a b", "é"):
        photo(root / folder / f"{name}.jpg")
        stored(root / folder / "masks" / f"{name}.png", ids(3))
    text(root / folder / "metadata.jsonl", "".join(json.dumps(line) + "\r\n" for line in lines))
    if names:
        text(root / "id2label.json", {"0": "soil", "1": "leaf, wet", "2": "yes"})
    return root


@pytest.mark.parametrize("mask", ["label", "annotation", "mask_file_name", "segmentation_mask"])
@pytest.mark.parametrize("image", ["file_name", "image", "image_file_name"])
def test_metadata_name_images_and_masks(tmp_path: Path, image: str, mask: str) -> None:
    metadata(tmp_path, [{image: f"{name}.jpg", mask: f"masks/{name}.png"} for name in ("a b", "é")])
    assert kind_of(tmp_path) == "huggingface" and splits(tmp_path) == ["train"]
    dataset = open_dataset(tmp_path, "train")
    assert dataset.labels.names == ("soil", "leaf, wet", "yes") and dataset.names == ["a b", "é"]
    assert np.array_equal(dataset[1].mask, ids(3))


def test_metadata_as_csv_without_names(tmp_path: Path) -> None:
    metadata(tmp_path, [], "validation", names=False)
    (tmp_path / "validation" / "metadata.jsonl").unlink()
    text(tmp_path / "validation" / "metadata.csv", "\ufefffile_name,mask\r\na b.jpg,masks/a b.png\r\n")
    assert splits(tmp_path) == ["val"]
    assert open_dataset(tmp_path, "val").labels.names == ("background", "class 1", "class 2")


def test_a_dataset_yaml_names_the_classes(tmp_path: Path) -> None:
    metadata(tmp_path, [{"file_name": "é.jpg", "label": "masks/é.png"}], names=False)
    text(tmp_path / "dataset.yaml", "names: [soil, leaf, stem]\nmap: {stem: leaf}\n")
    dataset = open_dataset(tmp_path, "train")
    assert dataset.labels.names == ("soil", "leaf") and np.array_equal(dataset[0].mask, ids(3).clip(max=1))


def test_what_metadata_name_and_is_not_there_is_a_problem(tmp_path: Path) -> None:
    lines = [{"file_name": "a b.jpg", "label": "masks/a b.png"}, {"file_name": "q.jpg", "label": "masks/q.png"}]
    metadata(tmp_path, [*lines, {"file_name": "é.jpg", "label": None}, {"file_name": "é.jpg", "label": "/etc/x.png"}])
    problems = list_split(tmp_path, "train").problems
    assert "3 files that it names are not there: q.jpg, masks/q.png, /etc/x.png" in problems[0]
    assert "1 rows have no name of an image or no name of a mask" in problems[1]


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"file_name": "a b.jpg", "label": "masks/a b.png"}\n{{'])
def test_broken_metadata_are_named(tmp_path: Path, content: str) -> None:
    metadata(tmp_path, [])
    text(tmp_path / "train" / "metadata.jsonl", content)
    with pytest.raises(ValueError, match=r"metadata\.jsonl: line . is .*; expected a JSON object a line"):
        open_dataset(f"huggingface:{tmp_path}", "train")


def test_a_classification_is_not_taken_for_masks(tmp_path: Path) -> None:
    metadata(tmp_path, [{"file_name": "a b.jpg", "label": "cat"}])
    with pytest.raises(ValueError, match="layout not recognised"):
        kind_of(tmp_path / "train")


def encoded(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def parquet(path: Path, columns: tuple[str, str] = ("image", "label"), rows: int = 3, struct: bool = True) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [encoded(np.full((6, 8, 3), seed, np.uint8), "JPEG") for seed in range(rows)]
    masks = [encoded(ids(3, seed), "PNG") for seed in range(rows)]
    cells = [[{"bytes": cell, "path": None} if struct else cell for cell in cells] for cells in (images, masks)]
    pyarrow.parquet.write_table(pa.table(dict(zip((*columns, "id"), (*cells, [*range(rows)]), strict=True))), path)
    return path


@pytest.mark.parametrize("columns", [("image", "label"), ("pixel_values", "labels"), ("image", "annotation")])
@pytest.mark.parametrize("struct", [True, False])
def test_parquet_files_hold_images_and_masks(tmp_path: Path, columns: tuple[str, str], struct: bool) -> None:
    root = tmp_path / "data set"
    parquet(root / "data" / "train-00000-of-00002-0123456789abcdef.parquet", columns, 3, struct)
    parquet(root / "data" / "train-00001-of-00002-0123456789abcdef.parquet", columns, 2, struct)
    parquet(root / "data" / "validation-00000-of-00001.parquet", columns, 1, struct)
    text(root / "id2label.json", {"0": "soil", "1": "leaf", "2": "stem"})
    assert kind_of(root) == "huggingface" and splits(root) == ["train", "val"]
    dataset = open_dataset(root, "train")
    assert len(dataset) == 5 and len(open_dataset(root, "val")) == 1 and dataset.labels.names[1] == "leaf"
    assert [np.array_equal(mask, ids(3, seed)) for (_, _, mask), seed in zip(dataset, (0, 1, 2, 0, 1), strict=True)]
    assert dataset[2].image.unique().tolist() == [2]


def test_one_parquet_file_is_a_data_set(tmp_path: Path) -> None:
    path = parquet(tmp_path / "masks.parquet")
    assert kind_of(path) == "huggingface" and splits(path) == ["all"] and len(open_dataset(path, "all")) == 3
    train, val = (open_dataset(path, part).names for part in ("train", "val"))
    assert len(train) == 2 and len(val) == 1


def test_wrong_parquet_files_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", ("image", "price"))
    with pytest.raises(ValueError, match=r"x\.parquet: the columns image, price, id; expected one of images, .*masks"):
        open_dataset(path, "all")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"x\.parquet: .*expected a whole parquet file"):
        open_dataset(path, "all")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.parquet: .*expected a whole parquet file"):
        open_dataset(path, "all")
    assert [*tmp_path.iterdir()] == [path]


def test_without_pyarrow_it_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"x\.parquet: .* pip install 'atrous\[parquet\]'$"):
        open_dataset(path, "all")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *((text, "names by id") for text in ("", "[]", '{"a": "b"}', '{"1": "a"}')),
        ('{"0": "a", "1": "a"}', "every name"),
    ],
)
def test_broken_names_are_named(tmp_path: Path, content: str, expected: str) -> None:
    metadata(tmp_path, [{"file_name": "a b.jpg", "label": "masks/a b.png"}])
    text(tmp_path / "id2label.json", content)
    with pytest.raises(ValueError, match=rf"id2label\.json: .*; expected {expected}"):
        open_dataset(tmp_path, "train")


VALUES = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["file_name", "image", "label", "mask"]), VALUES, max_size=3), max_size=4
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS, st.binary(max_size=10))
def test_no_metadata_are_more_than_a_line(tmp_path_factory: pytest.TempPathFactory, rows: list, junk: bytes) -> None:
    root = tmp_path_factory.mktemp("rows")
    metadata(root, [{"file_name": "a b.jpg", "label": "masks/a b.png"}, *rows])
    with (root / "train" / "metadata.jsonl").open("ab") as file:
        file.write(junk)
    try:
        listing = list_split(f"huggingface:{root}", "train")
        assert len(listing.items) >= 1 and bool(rows) <= (bool(listing.problems) or len(listing.items) == 1 + len(rows))
    except ValueError as error:
        assert str(root) in str(error) and "\n" not in str(error)
