"""The commands of README.md and of every page of the docs parse."""

import re
import shlex
from pathlib import Path

import pytest

from atrous.cli.parser import build_parser
from benchmarks.__main__ import parser as benchmarks_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDER = re.compile(r"[<>]|\.\.\.")


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|", re.split(r"(?:^|\s)#\s", line)[0])]
    return [
        part for part in parts if part.startswith(("atrous ", "python -m benchmarks ")) and not PLACEHOLDER.search(part)
    ]


COMMANDS = [pytest.param(line, id=f"{page.stem}: {line}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    if command.startswith("python"):
        assert benchmarks_parser().parse_args(shlex.split(command)[3:]).what
    else:
        assert build_parser().parse_args(shlex.split(command)[1:]).run is not None


def test_readme_and_docs_have_commands() -> None:
    assert len(commands(PAGES[0])) >= 15 and len(COMMANDS) >= 80
