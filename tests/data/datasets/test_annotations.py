"""What the readers of labelling tools share."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from PIL import Image

from atrous.data.datasets.annotations import expecting


@pytest.mark.parametrize(
    "error", [EOFError("no data left"), Image.DecompressionBombError("too large"), zlib.error("bad"), OSError("cut")]
)
def test_whatever_a_parser_raises_names_the_file(error: Exception) -> None:
    with pytest.raises(ValueError, match=r"^a\.json: .*; expected an image$"), expecting("a.json", "an image"):
        raise error


def test_a_missing_file_stays_one() -> None:
    with pytest.raises(FileNotFoundError), expecting("a.json"):
        Path("a.json").open()
