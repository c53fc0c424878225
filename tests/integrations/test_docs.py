"""The blocks in docs/integrations.md run as they stand; a section has at most thirty lines."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

from atrous.prediction.demo import bundled

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]}
NEEDS = {"supervision": "supervision", "FiftyOne": "fiftyone", "CVAT": "cvat_sdk"}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_short(name: str) -> None:
    assert len(SECTIONS[name].splitlines()) <= 30


@pytest.mark.integration
@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    shutil.copy(bundled("cow.jpg"), "photo.jpg")
    shutil.copy(bundled("cow.jpg"), "photos/a.jpg")
    [code] = re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)
    scope: dict[str, object] = {}
    try:
        exec(compile(code, str(PAGE), "exec"), scope)
    except Exception as error:
        if type(error).__name__ in ("FiftyOneConfigError", "ServiceExecutableNotFound"):
            pytest.skip(f"FiftyOne's database, MongoDB, does not run here: {error}")
        raise
    for path in Path().glob("*json"):
        assert json.loads(path.read_text(encoding="utf-8"))
    assert scope.get("spec") is not None if name == "CVAT" else True
