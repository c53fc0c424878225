"""The argument parser and the flags that several commands share."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from atrous.messages import did_you_mean

SYNONYMS = {
    "--batch": "--batch-size",
    "--accumulate": "--grad-accum-steps",
    "--ema": "--ema-decay",
    "--model": "the model is the first word: atrous predict MODEL PHOTOGRAPHS",
    "--epochs": "training is counted in steps: --iterations (an epoch has images / batch size of them)",
    "--steps": "--iterations",
    "--max-iters": "--iterations",
    "--learning-rate": "--lr",
    "--img-size": "--longest-side for prediction and evaluation, --set crop=SIDE for training",
    "--imgsz": "--longest-side for prediction and evaluation, --set crop=SIDE for training",
    "--os": "--output-stride",
    "--input": "photographs are given without a flag: atrous predict PHOTOGRAPHS",
    "--output": "--out",
    "--gpu": "--device cuda",
    "--num-workers": "--workers",
    "--config": "the recipe is the first word: atrous train RECIPE --data DATA",
    "--classes": "names in the dataset.yaml of --data",
    "--checkpoint": "a run folder or weight file is given without a flag, as MODEL",
    "--pretrained": "--weights",
    "--name": "--out",
}
"""Flags of other tools and of before, and what they are called here."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line that names the right flag."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Leave with status 2 and one line that names the right flag."""
        _, unknown, words = message.partition("unrecognized arguments: ")
        if unknown:
            flag = (words.split() or [""])[0].split("=")[0]  # a word can be empty
            hint = SYNONYMS.get(flag)
            message += f"; here: {hint}" if hint else did_you_mean(flag, self._option_string_actions, otherwise="")
        if "invalid choice: '" in message:
            word = message.split("invalid choice: '")[1].split("'")[0]
            choices = re.findall(r"[\w-]+", message.partition("(choose from ")[2])
            message += did_you_mean(word, choices, otherwise="")
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; a flag that a subcommand does not know is reported with its neighbours."""
        # A subcommand's unknown flags come back to the top, which does not know their neighbours: report them below.
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            getattr(parsed, "parser", self).error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed


def add_command(commands: Any, name: str, run: Any, text: str, example: str, **options: Any) -> Parser:
    """Add a subcommand that calls `run(args)`, with its one-line help and an example."""
    epilog = f"example:\n  {example}"
    parser: Parser = commands.add_parser(name, help=text, description=text, epilog=epilog, **options)
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_inference(parser: Parser) -> None:
    """Add the flags of output stride, scales and flips."""
    parser.add_argument("--output-stride", type=int, help="of the features (default: the model's)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="average over these scales")
    parser.add_argument("--flip", action="store_true", help="average over left-right flipped inputs, too")


def add_longest_side(parser: Parser) -> None:
    """Add `--longest-side`."""
    text = "resize images to this longest side for the model, 0 for none (default: the model's)"
    parser.add_argument("--longest-side", type=int, metavar="PIXELS", help=text)


def add_pad_to(parser: Parser) -> None:
    """Add `--pad-to`."""
    text = "pad smaller images to this height and width with the mean color; the paper has 513 for VOC (default: none)"
    parser.add_argument("--pad-to", type=int, metavar="PIXELS", help=text)


def add_device(parser: Parser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")


def add_json(parser: Parser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")
