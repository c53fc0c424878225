"""What is said at the end: the classes in words, what would help most, and the next commands."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from atrous.training.log_file import Log
from atrous.training.verdict import Mistake, Outcome, advice, next_commands, verdict


def outcome(**changes: object) -> Outcome:
    settings = {
        "names": ("background", "leaf", "stem"), "images": 30, "with_class": (30, 28, 6), "log": Log(),
        "iterations": 800, "iou": (0.97, 0.91, 0.44), **changes,
    }  # fmt: skip
    return Outcome(**settings)  # type: ignore[arg-type]


def scores(*values: float) -> Log:
    return Log(miou=tuple((100 * (i + 1), value) for i, value in enumerate(values)))


def test_each_class_is_named_and_the_worst_explained() -> None:
    assert verdict(outcome()) == "background 0.97, leaf 0.91, stem 0.44: the rarest class, in 6 of 30 images"
    assert verdict(outcome(with_class=(30, 6, 28))).endswith("stem 0.44: in 28 of 30 images")
    assert verdict(outcome(with_class=(30, 30, 30))) == "background 0.97, leaf 0.91, stem 0.44"
    assert verdict(outcome(iou=(0.9, math.nan, 0.8))).startswith("background 0.90, stem 0.80")
    assert "nobody knows" in verdict(outcome(iou=()))


def test_of_many_classes_the_best_and_the_worst_are_named() -> None:
    many = outcome(names=tuple("abcdef"), with_class=(9,) * 6, images=9, iou=(0.1, 0.9, 0.3, 0.5, 0.7, 0.2))
    assert verdict(many) == "b 0.90, e 0.70 ... f 0.20, a 0.10"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Label more photographs with stem: 6 of 30 have it."),
        ({"images": 6, "with_class": (6, 6, 6)}, "More photographs: 6 are few"),
        ({"iou": ()}, "Hold some images back"),
        ({"iou": (0.97, 0.91, 0.8), "mistakes": (Mistake(2, 1, 0.3),)}, "Look at stem: 30% of its .* taken for leaf"),
        ({"iou": (0.97, 0.91, 0.8), "log": scores(0.5, 0.6, 0.65, 0.7)}, r"Train longer.*1600 steps"),
        ({"iou": (0.97, 0.91, 0.8), "log": scores(0.5, 0.7, 0.6, 0.6)}, "from step 200 on it learnt these by heart"),
        ({"iou": (0.97, 0.91, 0.8), "log": scores(0.7, 0.7, 0.7, 0.7)}, "More photographs: 30 are few"),
        ({"iou": (0.97, 0.91, 0.8), "images": 300, "with_class": (300, 300, 200)}, "stem has the lowest IoU"),
    ],
)  # fmt: skip
def test_what_would_help_most(changes: dict[str, object], said: str) -> None:
    import re

    assert re.search(said, advice(outcome(**changes)))


def test_commands_can_be_pasted() -> None:
    predict, evaluate = next_commands(Path("runs/my run"), "my data", validated=True)
    assert predict == "atrous predict 'runs/my run' photos/ --out found"
    assert evaluate == "atrous eval 'runs/my run' --data 'my data' --output-stride 8"
    assert next_commands(Path("r"), "d", validated=False)[1] == "atrous data check d"
