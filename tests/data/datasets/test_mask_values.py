"""Values that do not fit the names: the likely mapping, which, once it is written down, is read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from atrous.data.datasets.dataset import open_dataset
from own_data import photo, stored, text

pytestmark = pytest.mark.filterwarnings("ignore:.*no names of classes")


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (["a", "b", "c"], [1, 3, 3], [0, 2, 2]),
        (["a", "b", "c"], [0, 1, 3], [0, 1, 3]),
        (["a", "b"], [0, 128, 128], [0, 1, 1]),
        (["a", "b", "c", "d"], [0, 170, 255], [0, 2, 3]),
        (["a", "b", "c"], [7, 8, 11], [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("file", ["labels.txt", "dataset.yaml"])
def test_the_line_that_is_proposed_is_read(
    tmp_path: Path, names: list, values: list, expected: list, file: str
) -> None:
    photo(tmp_path / "images" / "x.png", size=(1, 3))
    stored(tmp_path / "masks" / "x.png", np.array([values], np.uint8))
    text(tmp_path / file, "\n".join(names) if file == "labels.txt" else f"names: [{', '.join(names)}]")
    with pytest.raises(ValueError, match=r"x\.png: mask has id .* \([12] pixels\)") as caught:
        open_dataset(tmp_path, "all")[0]
    lines = re.findall(r"`(names: .*?|map: .*?)`", str(caught.value))
    if not any(line.startswith("names") for line in lines):
        lines.append(f"names: [{', '.join(names)}]")
    text(tmp_path / "dataset.yaml", "\n".join(lines))
    assert open_dataset(tmp_path, "all")[0].mask.tolist() == [expected]
