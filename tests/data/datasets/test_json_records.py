"""The records of large JSON files, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from atrous.data.datasets.json_records import json_elements, json_records


@pytest.mark.parametrize("comma", ["", ",", " , "])
def test_a_comma_before_the_bracket_is_taken(comma: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        f'{{"images": [{{"id": 1}}, {{"id": 2}}{comma}], "info": {{}}, "none": [] , "annotations": [3{comma}]}}'
    )
    content = path.read_bytes()
    records = list(json_records(path))
    assert [(key, element) for key, element, _, _ in records] == [
        ("images", {"id": 1}), ("images", {"id": 2}), ("annotations", 3),
    ]  # fmt: skip
    assert [content[start:end] for _, _, start, end in records] == [b'{"id": 1}', b'{"id": 2}', b"3"]
    path.write_text(f"[1, 2{comma}]")
    assert [element for element, _, _ in json_elements(path)] == [1, 2]
