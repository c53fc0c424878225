"""The run's page: it has everything, asks for nothing, refreshes while it trains, and never stops a training."""

from __future__ import annotations

import html.parser
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atrous.data.datasets.dataset import open_dataset
from atrous.evaluation.evaluate import Evaluation, evaluate
from atrous.models.weights import load
from atrous.training.config import Recipe, override
from atrous.training.interrupts import Stopped
from atrous.training.loop import train
from atrous.training.run_page import RunPage
from atrous.training.state import State
from states import final_state, same

FILES = ("curves.png", "confusion.png", "predictions.jpg", "index.html")


class Links(html.parser.HTMLParser):
    """Every address and every tag of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data")]


def test_a_finished_run_shows_itself(trained: Path, tiny_data: Path) -> None:
    text = (trained / "index.html").read_text(encoding="utf-8")
    page = Links(text)
    assert {address.partition("?")[0] for address in page.addresses} == {*FILES} - {"index.html"}
    assert not {"script", "link", "iframe", "object"} & {*page.tags} and "http" not in text.replace("http-equiv", "")
    assert 'http-equiv="refresh"' not in text and "done: step 30 of 30" in text and 'name="viewport"' in text
    for word in ("ground", "red", "green", "blue", "backbone: timm/", "8 images to train on, 4 to validate on"):
        assert word in text
    assert f"atrous predict {trained} photos/ --out found" in text.replace("&#x27;", "'")
    assert f"atrous eval {trained} --data {tiny_data} --output-stride 8" in text
    assert len(text) < 30_000
    for name in FILES[:3]:
        Image.open(trained / name).load()


def test_the_verdict_and_the_next_commands_are_said(
    longer: Recipe, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(override(longer, {"iterations": 2}), tiny_data, tmp_path / "run", workers=0, device="cpu")
    said = capsys.readouterr().err
    assert (
        re.search(r"\w+ \d\.\d\d, \w+ \d\.\d\d", said) and "next:\n  atrous predict" in said and "atrous eval" in said
    )


def test_it_refreshes_until_the_run_ends_or_is_stopped(
    longer: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = State.take_step

    def take_step(state: State, *arguments: Any) -> float:
        seen.append((tmp_path / "index.html").read_text(encoding="utf-8"))
        if state.step == 3:
            raise Stopped("enough", 143)
        return real(state, *arguments)

    monkeypatch.setattr(State, "take_step", take_step)
    recipe = override(longer, {"iterations": 6, "val_every": 2, "save_every": 2})
    with pytest.raises(Stopped):
        train(recipe, tiny_data, tmp_path, workers=0, device="cpu")
    assert all('http-equiv="refresh"' in text for text in seen)
    assert "step 0 of 6" in seen[0] and "step 2 of 6" in seen[2]
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in text and "stopped: step 3 of 6" in text


def test_drawing_changes_no_bit_and_its_failure_no_training(
    longer: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = override(longer, {"iterations": 5, "val_every": 2})
    train(recipe, tiny_data, tmp_path / "drawn", workers=0, device="cpu")
    capsys.readouterr()

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atrous.training.run_page._save", fails)
    monkeypatch.setattr("atrous.training.run_page.write_text", fails)
    train(recipe, tiny_data, tmp_path / "not", workers=0, device="cpu")
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("could not be drawn, and the training goes on") == 1 and "No space left" in said
    assert not any((tmp_path / "not" / name).exists() for name in FILES)
    assert same(final_state(tmp_path / "drawn"), final_state(tmp_path / "not"))
    assert (tmp_path / "drawn/best/model.safetensors").read_bytes() == (
        tmp_path / "not/best/model.safetensors"
    ).read_bytes()


@pytest.fixture
def page(trained: Path, tiny_data: Path, tiny: Recipe, tmp_path: Path) -> tuple[RunPage, Evaluation]:
    model, _ = load(trained)
    val = open_dataset(tiny_data, "val")
    names = ("ground", "<b>red</b>", "green, 'x'", "été")
    labels = replace(val.labels, names=names)
    presence = np.array([[True, True, False, False], [True, False, False, True]])
    shown = RunPage(tmp_path, tiny, "data", labels, presence, val, "two\nlines & more")
    return shown, evaluate(model, val, worst=3)


def test_the_worst_images_come_first(page: tuple[RunPage, Evaluation]) -> None:
    shown, actual = page
    ious = [example.iou for example in actual.worst]
    assert len(ious) == 3 and ious == sorted(ious)
    sheet = shown.show(actual)
    assert sheet is not None and (shown.run / "predictions.jpg").exists() and (shown.run / "confusion.png").exists()


def test_names_are_escaped(page: tuple[RunPage, Evaluation]) -> None:
    shown, _ = page
    shown.update("here <script>", refresh=True)
    text = (shown.run / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;red&lt;/b&gt;" in text and "été" in text and "lines &amp; more" in text
    assert "script" not in Links(text).tags


def test_two_processes_write_nothing_of_each_other(trained: Path) -> None:
    assert not list(trained.glob(".*.tmp"))


def test_names_of_no_utf8_do_not_break_the_page(
    page: tuple[RunPage, Evaluation], make_data: Callable[..., Path]
) -> None:
    shown, _ = page
    shown.data = "caf\udce9"
    shown.update("training", refresh=True)
    assert (shown.run / "index.html").read_text(encoding="utf-8")
