"""Any words on the command line, and any text as a recipe, are obeyed or refused with one clear line."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atrous.cli import parser
from atrous.training.config import Recipe, override, parse_assignments
from atrous.training.recipes import load_recipe
from reliability import counted, record

FUZZ = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    "derandomize": True,
}
KEYS = [field.name for field in fields(Recipe)]
COMMANDS = [
    "train",
    "eval",
    "val",
    "predict",
    "data",
    "check",
    "models",
    "demo",
    "bench",
    "reproduce",
    "-h",
    "--version",
]
FLAGS = [
    "--data", "--out", "--resume", "--output-stride", "-b", "--batch-size", "--grad-accum-steps", "--iterations",
    "--lr", "--json",
    "--weights", "--reset-head", "--amp", "--ema-decay", "--seed", "-j", "--workers", "--set", "--device", "--split",
    "--flip", "--scales", "--peers", "--size", "--rounds", "--", "-", "--no-such-flag", "-x", "--batch-size=",
    "--set=lr=1",
]  # fmt: skip
VALUES = [
    "0", "-1", "1e999", "nan", "inf", "8", "0.5", "none", "imagenet", "cpu", "cuda:99", "tpu", "nowhere", ".", "",
    "voc:", "voc:nowhere", ":", "camvid-efficientnet_lite0", "voc-resnet101", "no.yaml", "train", "off", "*",
    "lr=", "lr=1", "=", "crop=[", "[", "\x00", "ü", "x" * 5000, "9" * 400, "%s", "{}", "--", "\n", "\udcff", "a=b=c",
]  # fmt: skip
ONE = st.sampled_from(COMMANDS + FLAGS + VALUES) | st.text(max_size=6).filter(lambda word: not set("/~") & set(word))
LINES = st.lists(ONE, max_size=8) | st.tuples(st.sampled_from(COMMANDS), st.lists(ONE, max_size=8)).map(
    lambda line: [line[0], *line[1]]
)


@pytest.fixture
def harmless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands that would work for minutes do nothing; the others find no data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATROUS_DEBUG", raising=False)
    for name in ("run_demo", "run_bench", "run_reproduce", "run_models"):
        monkeypatch.setattr(parser, name, lambda args: 0, raising=False)


def check_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """The status of a command line, once it is known to have said no more than it should."""
    try:
        status = parser.main(words)
    except SystemExit as error:
        status = int(error.code or 0)
    out, said = capsys.readouterr()
    assert status in (0, 2), (status, words, said)
    if status == 2:
        assert out == "" and said.count("\n") == 1 and "error: " in said, (words, out, said)
    return status


@pytest.mark.usefixtures("harmless")
@settings(max_examples=150, **FUZZ)
@given(words=LINES)
def test_any_command_line_is_obeyed_or_refused_with_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    check_line(words, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("harmless")
def test_many_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    count = counted(10_000)
    statuses = []

    @settings(max_examples=count, **FUZZ)
    @given(words=LINES)
    def run(words: list[str]) -> None:
        statuses.append(check_line(words, capsys))

    run()
    refused = sum(status == 2 for status in statuses)
    record("fuzzing", f"command line: {len(statuses):,} examples, {refused:,} refused with one line, none uncaught")


def spoilt(text: str, rng: random.Random) -> bytes:
    """A recipe with bytes changed, words swapped in, lines lost and doubled."""
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0 and ":" in lines[at]:
            lines[at] = (
                lines[at].split(":")[0] + ": " + rng.choice(VALUES + ["[1, 2]", "{a: 1}", "!!int ''", "*a", "&a [*a]"])
            )
        elif kind == 1:
            lines[at] = rng.choice(KEYS + ["base", "", "? ", "- "]) + ": " + rng.choice(VALUES)
        elif kind == 2:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif kind == 3:
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        elif kind == 4:
            lines[at] = "  " + lines[at]
        else:
            lines[at] = "!!python/object/apply:os.system ['touch pwned']"
    content = bytearray("\n".join(lines).encode("utf-8", "surrogatepass"))
    if rng.random() < 0.3:
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def check_recipe(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        actual = load_recipe(path)
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error), str(error)
        return False
    path.write_text(actual.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == actual
    return True


def read_many_recipes(folder: Path, count: int) -> int:
    rng = random.Random(0)
    text = yaml.safe_dump(yaml.safe_load(Recipe().to_yaml()), sort_keys=False)
    return sum(check_recipe(folder / "fuzzed.yaml", spoilt(text, rng)) for _ in range(count))


def test_a_spoilt_recipe_is_read_or_refused_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert 0 < read_many_recipes(tmp_path, 60) < 60
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_many_spoilt_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    count = counted(10_000)
    read = read_many_recipes(tmp_path, count)
    assert not (tmp_path / "pwned").exists()
    record(
        "fuzzing", f"recipes: {count:,} examples, {read:,} read, {count - read:,} refused with one line, none uncaught"
    )


@pytest.mark.slow
def test_many_assignments() -> None:
    count = counted(10_000)
    read = []

    @settings(max_examples=count, **FUZZ)
    @given(key=st.sampled_from(KEYS) | st.text(max_size=5), text=st.sampled_from(VALUES) | st.text(max_size=20))
    def assign(key: str, text: str) -> None:
        try:
            actual = override(Recipe(), parse_assignments([f"{key}={text}"]))
        except ValueError as error:
            assert str(error)
        else:
            read.append(actual)

    assign()
    record("fuzzing", f"--set KEY=VALUE: {count:,} examples, {len(read):,} taken, none uncaught")
