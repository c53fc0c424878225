"""The public names, that importing is cheap, and the flags of the command line."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import atrous
from atrous.cli import parser


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert atrous.__all__ == sorted(atrous.__all__)
    for name in atrous.__all__:
        value = getattr(atrous, name)
        assert value.__name__ in (name, f"atrous.{name}") and value.__doc__
    assert set(atrous.__all__) <= set(dir(atrous))


def test_the_names_of_the_plan_are_public() -> None:
    assert {"DeepLabV3", "Predictor", "Segmentation", "load", "evaluate", "train"} <= set(atrous.__all__)


def test_models_lists_the_named_weights() -> None:
    listing = atrous.models()
    assert sorted(listing) == sorted(
        path.stem for path in Path(atrous.__file__).parent.glob("models/zoo/*.safetensors")
    )
    assert all(card.names and card.licence for card in listing.values())


@pytest.mark.integration
def test_models_lists_the_named_weights_however_it_is_imported() -> None:
    for code in ("import atrous", "import atrous.models.weights, atrous", "from atrous import models as m, Predictor"):
        loaded_by(f"{code}\nimport atrous\nassert 'objects-mobilenetv2' in atrous.models()")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'atrous' has no attribute 'DeepLabV4'"):
        _ = atrous.DeepLabV4


def loaded_by(code: str) -> set[str]:
    tail = "\nimport sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "torchvision", "timm", "matplotlib", "tensorboard", "numpy", "PIL", "rich", "yaml", "sklearn"}


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import atrous", set()),
        ("from atrous.cli.parser import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass", set()),
        ("from atrous import load_recipe", {"yaml"}),
        pytest.param(
            "from atrous import DeepLabV3, Predictor, evaluate, train",
            {"torch", "numpy", "PIL", "rich", "yaml"},
            marks=pytest.mark.integration,
        ),
    ],
    ids=["import", "--help", "a recipe", "everything"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, loaded: set[str]) -> None:
    assert loaded_by(code) & HEAVY == loaded


FLAGS = {
    "": ["--help", "--version", "-h"],
    "demo": ["--device", "--help", "--json", "--out", "-h"],
    "predict": [
        "--allow-urls", "--bands", "--device", "--every", "--flip", "--help", "--json", "--longest-side",
        "--max-pixels", "--out", "--output-stride", "--resume", "--scales", "--value-range", "--watch", "--window",
        "-h",
    ],
    "train": [
        "--amp", "--annotator", "--asynchronous", "--bands", "--batch-size", "--binary", "--classes", "--data",
        "--device", "--ema-decay", "--grad-accum-steps", "--help", "--ignore", "--images", "--iterations", "--json",
        "--list", "--lr", "--map", "--names", "--offline", "--out", "--output-stride", "--reset-head", "--rest",
        "--resume", "--seed", "--set", "--time", "--value-range", "--weights", "--workers", "-b", "-h", "-j",
    ],
    "eval": [
        "--annotator", "--bands", "--binary", "--classes", "--data", "--device", "--flip", "--help", "--ignore",
        "--ignore-class-names", "--images", "--json", "--ladder", "--longest-side", "--map", "--names",
        "--output-stride", "--pad-to", "--rest", "--scales", "--split", "--value-range", "-h",
    ],
    "val": [
        "--annotator", "--bands", "--binary", "--classes", "--data", "--device", "--flip", "--help", "--ignore",
        "--ignore-class-names", "--images", "--json", "--ladder", "--longest-side", "--map", "--names",
        "--output-stride", "--pad-to", "--rest", "--scales", "--split", "--value-range", "-h",
    ],
    "serve": [
        "--allow-host", "--allow-origin", "--deadline", "--device", "--grace", "--help", "--host", "--json",
        "--label-studio-files", "--longest-side", "--max-body", "--max-pixels", "--output-stride", "--port", "--queue",
        "--workers", "-h", "-j",
    ],
    "bench": [
        "--data", "--help", "--json", "--output-stride", "--rounds", "--runtimes", "--size", "--threads", "-h",
    ],
    "convert": [
        "--aspp-rates", "--backbone", "--half", "--help", "--json", "--name", "--out", "--output-stride", "--to", "-h",
    ],
    "export": [
        "--aot", "--data", "--format", "--help", "--int8", "--json", "--logits", "--max-loss", "--out",
        "--output-stride", "--raw-input", "--size", "-h",
    ],
    "models": ["--help", "--json", "-h"],
    "data": ["--help", "-h"],
    "data check": [
        "--allow-empty-classes", "--annotator", "--bands", "--binary", "--classes", "--help", "--ignore", "--images",
        "--json", "--map", "--names", "--report", "--rest", "--value-range", "-h",
    ],
    "data show": [
        "--annotator", "--bands", "--binary", "--classes", "--count", "--device", "--help", "--ignore", "--images",
        "--json", "--map", "--model", "--names", "--out", "--predictions", "--rest", "--split", "--value-range", "-h",
    ],
    "data convert": [
        "--annotator", "--bands", "--binary", "--classes", "--copy", "--device", "--help", "--ignore", "--images",
        "--json", "--map", "--model", "--names", "--polygons", "--resplit", "--rest", "--seed", "--to", "--tolerance",
        "--val", "--value-range", "-h",
    ],
    "label": [
        "--confidence", "--data", "--device", "--flip", "--help", "--json", "--output-stride", "--scales", "--split",
        "-h",
    ],
    "submit": ["--help", "-h"],
    "submit write": [
        "--competition", "--data", "--device", "--flip", "--help", "--json", "--out", "--output-stride", "--pad-to",
        "--scales", "--split", "-h",
    ],
    "submit check": ["--data", "--help", "--json", "--split", "-h"],
    "reproduce": [
        "--backbone", "--data", "--device", "--dry-run", "--help", "--iterations", "--json", "--model", "--out",
        "--parallel", "--preset", "--pretraining", "--seeds", "--set", "--workers", "-h", "-j",
    ],
}  # fmt: skip
"""Every flag there is. A new one needs a better reason than a key of the recipe has."""


def flags(parser: argparse.ArgumentParser, path: str = "") -> dict[str, list[str]]:
    actual = {path: sorted(parser._option_string_actions)}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                actual |= flags(inner, f"{path} {name}".strip())
    return actual


def test_the_flags_are_these() -> None:
    assert flags(parser.build_parser()) == FLAGS
