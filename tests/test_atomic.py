"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from atrous.atomic import write_text


def test_an_error_below_a_file_names_the_path_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file" / "x.txt", "")
    assert caught.value.filename == str(tmp_path / "file" / "x.txt")
