"""`atrous train`: the time that is given, and what goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atrous.cli.parser import main
from atrous.cli.train import duration
from atrous.training.config import Recipe, override
from atrous.training.recipes import RECIPES


@pytest.mark.parametrize(
    ("text", "seconds"), [("20m", 1200), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), ("2H", 7200), ("1m0s", 60)]
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["20", "", "m", "1d", "-5m", "20 minutes", "1.2.3h", "m20", "h"])
def test_other_times_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 20m or 1h30m"):
        duration(text)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--time 45s", "--time is 45s, expected at least 1m"),
        ("--time 20m --iterations 100", "--time and iterations are given; expected one of them"),
        ("--time 20m --asynchronous 2", "--time takes one recipe"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    flags: str, said: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "finetune", "--data", str(tiny_data), "--out", str(tmp_path / "run"), *flags.split()]
    assert main(words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_time_goes_to_the_training_and_a_resume_keeps_the_plan(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[Recipe, dict[str, Any]]] = []
    monkeypatch.setattr("atrous.training.loop.train", lambda recipe, *_, **how: seen.append((recipe, how)))
    name = "folder-efficientnet_lite0"
    words = ["train", name, "--data", str(tiny_data), "--out", str(tmp_path), "--time", "20m"]
    assert main(words) == 0 and 1190 < seen[0][1]["seconds"] <= 1200
    planned = override(RECIPES[name], {"iterations": 77, "val_every": 7, "warmup": 3})
    (tmp_path / "recipe.yaml").write_text(planned.to_yaml())
    assert main([*words, "--resume"]) == 0
    assert seen[1][0] == planned and "seconds" not in seen[1][1]
    assert "has 77 steps" in " ".join(capsys.readouterr().err.split())
