"""What README.md says is so: its Python runs, its files are there."""

import re
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photograph = resources.files("atrous") / "prediction" / "assets" / "cow.jpg"
    (tmp_path / "photo.jpg").write_bytes(photograph.read_bytes())
    exec(compile(block, "README.md", "exec"), {})


def test_files_named_are_there() -> None:
    tree = [line.split()[0] for block in blocks("") for line in block.splitlines() if line.startswith("src/")]
    assert len(tree) == 6
    named = [name.replace("atrous/", "src/atrous/", 1) for name in re.findall(r"`(atrous/[\w/]+\.py)`", README)]
    named += re.findall(r"\]\((docs/[\w./-]+)\)", README) + re.findall(r"`(docs/[\w./-]+|src/[\w./]+)`", README)
    assert named
    missing = [name for name in [*tree, *named] if not (ROOT / name).exists()]
    assert not missing
