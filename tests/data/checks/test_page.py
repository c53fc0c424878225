"""The report of a check is one file that shows each problem."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrous.data.checks.page import write_page
from atrous.data.checks.validate import check


@pytest.fixture
def report(make_data, tmp_path: Path):
    data = make_data(tmp_path / "<b>data", {"train": 4, "val": 2})
    Image.new("L", (9, 9)).save(data / "masks" / "train" / "train0.png")
    (data / "images" / "train" / "train1.png").write_bytes(b"nothing")
    Image.fromarray(np.full((33, 64), 9, np.uint8)).save(data / "masks" / "train" / "train2.png")
    return check(data)


def test_the_page_stands_alone_and_shows_the_problems(report, tmp_path: Path) -> None:
    write_page(report, tmp_path / "check.html")
    text = (tmp_path / "check.html").read_text(encoding="utf-8")
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(text)
    assert tags.count("img") == 3 and "script" not in tags and "link" not in tags
    assert (
        re.findall(r"(?:src|href)='(.{5})", text) == ["data:"] * 3 and "<b>data" not in text and "&lt;b&gt;data" in text
    )
    for words in ("mask of 9x9", "not an image", "has id 9", "ground", "nearest neighbour"):
        assert words in text


def test_the_picture(report, tmp_path: Path) -> None:
    write_page(report, tmp_path / "check.png")
    with Image.open(tmp_path / "check.png") as picture:
        assert picture.width == 1100 and picture.height > 600


def test_another_suffix_is_refused(report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix '.txt'; expected .html or .png"):
        write_page(report, tmp_path / "check.txt")
