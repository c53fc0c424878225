"""Images by what annotations call them; none of another split, and none that is ambiguous."""

from pathlib import Path

import pytest

from atrous.data.datasets.image_search import ImageSearch, stem_of
from exports import save_image


@pytest.mark.parametrize(
    ("name", "within", "actual"),
    [
        ("a.png", "", "a.png"),
        ("deep/b.png", "", "x/deep/b.png"),
        ("other/b.png", "", None),
        ("b.png", "deep", "x/deep/b.png"),
        ("b.png", "", None),
        ("/home/me/a.png", "", "a.png"),
        ("..\\..\\a.png", "", "a.png"),
        ("c", "", "x/c.jpeg"),
        ("c.png", "", "x/c.jpeg"),
        ("my_photo_1.png", "", "x/my photo, 1.png"),
        ("s.png", "val", None),
        ("s.png", "train", "train/s.png"),
        ("s.png", "", "train/s.png"),
        ("", "", None),
        ("..", "", None),
        ("a\0.png", "", None),
        ("notes.txt", "", None),
    ],
)
def test_find(tmp_path: Path, name: str, within: str, actual: str | None) -> None:
    for stored in ("a.png", "x/deep/b.png", "x/b.png", "y/b.png", "x/c.jpeg", "x/my photo, 1.png", "train/s.png"):
        save_image(tmp_path / stored)
    (tmp_path / "notes.txt").write_text("")
    path = ImageSearch([tmp_path / "not there", tmp_path]).find(name, within)
    assert path == (tmp_path / actual if actual else None)


def test_stems() -> None:
    assert (stem_of("a/b.v1.png"), stem_of("frame_1.2"), stem_of("b.JPG")) == ("a/b.v1", "frame_1.2", "b")
