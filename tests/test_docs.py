"""The commands on every page of the docs parse."""

import re
import shlex
from pathlib import Path

import pytest

from atrous.cli.parser import build_parser

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"&&|\|", re.split(r"(?:^|\s)#\s", line)[0])]
    return [part.strip() for part in parts if part.strip().startswith("atrous ")]


@pytest.mark.parametrize(
    "command", [pytest.param(line, id=f"{page.stem}: {line}") for page in PAGES for line in commands(page)]
)
def test_commands_parse(command: str) -> None:
    if not re.search(r"[<>]|\.\.\.", command):
        assert build_parser().parse_args(shlex.split(command)[1:]).run is not None
