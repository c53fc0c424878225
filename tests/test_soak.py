"""The table of docs/reliability.md has a row for whatever a test records, and its script finds the tests."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    loader = SourceFileLoader("soak", str(ROOT / "scripts" / "soak"))
    spec = importlib.util.spec_from_loader("soak", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_every_row_that_a_test_records_is_in_the_table(soak: ModuleType) -> None:
    actual = soak.tests()
    assert actual.keys() <= soak.ROWS.keys()
    assert "tests/test_reliability.py::test_killed_at_many_moments_of_a_save" in actual["a killed save"]


def test_what_failed_what_was_skipped_and_a_smaller_count_are_said(soak: ModuleType) -> None:
    actual = {"scale": 0.1, "figures": ["5 of 5"], "failed": [], "skipped": [], "minutes": 1}
    assert soak.measured(actual) == "5 of 5; (with 0.1 of the full counts)"
    assert soak.measured({**actual, "scale": 1.0, "failed": ["a::b"]}) == "**failed**: `a::b`; 5 of 5"
    assert soak.measured(None) == "not run"
    lines = soak.table({"SIGTERM": actual}).splitlines()
    assert len(lines) == 2 + len(soak.ROWS) and sum("5 of 5" in line for line in lines) == 1


def test_the_table_is_written_between_its_marks(soak: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "r.md"
    path.write_text(f"before\n{soak.BEGIN}\nold\n{soak.END}\nafter\n")
    soak.write(path, "new")
    assert path.read_text() == f"before\n{soak.BEGIN}\nnew\n{soak.END}\nafter\n"
    path.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the marks"):
        soak.write(path, "new")


def test_the_document_has_every_row(soak: ModuleType) -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert all(f"| {row} |" in text for row in soak.ROWS)
