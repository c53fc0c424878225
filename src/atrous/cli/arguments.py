"""The argument parser and the flags that several commands share."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from atrous.messages import did_you_mean

if TYPE_CHECKING:
    from atrous.data.datasets.options import DatasetOptions

DATA = "a folder, LAYOUT:PATH such as voc:PATH or coco:PATH, or a file with the keys of dataset.yaml"

SYNONYMS = {
    "--batch": "--batch-size",
    "--accumulate": "--grad-accum-steps",
    "--ema": "--ema-decay",
    "--model": "the model is given without a flag: atrous predict MODEL PHOTOGRAPHS; in training, by --weights",
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
    "--checkpoint": "a run folder or weight file is given without a flag, as MODEL",
    "--pretrained": "--weights",
    "--weights": "the model is given without a flag: atrous predict MODEL PHOTOGRAPHS",
    "--batch-size": "training alone has one; how many photographs are segmented at once is chosen for you",
    "--name": "--out",
}
"""Flags of other tools, of before and of other commands, and what is said where a command does not have them."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line that names the right flag."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._words: list[str] = []

    def error(self, message: str) -> NoReturn:
        """Leave with status 2 and one line that names the right flag."""
        if "arguments are required" in message and (strange := self._unknown_flag()):
            message = f"unrecognized arguments: {strange}"  # likely meant as what is missing
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

    def _unknown_flag(self) -> str:
        flags = (word.split("=")[0] for word in self._words if word.startswith("--") and word != "--")
        return next((flag for flag in flags if flag not in self._option_string_actions), "")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; the words are kept for `error`."""
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

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


def add_model(parser: Parser, *, exported: bool = True) -> None:
    """Add MODEL, which may be an exported file, too, where it is run alone."""
    text = "a named model (see atrous models), a run folder"
    text += ", a weight file or an exported file" if exported else " or a weight file"
    parser.add_argument("model", metavar="MODEL", help=text)


def add_inference(parser: Parser) -> None:
    """Add the flags of output stride, scales and flips."""
    add_output_stride(parser)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="average over these scales")
    parser.add_argument("--flip", action="store_true", help="average over left-right flipped inputs, too")


def add_output_stride(parser: Parser) -> None:
    """Add `--output-stride`."""
    text = "pixels a feature: 16, or 8 for finer detail in more time (default: the model's)"
    parser.add_argument("--output-stride", type=int, metavar="N", help=text)


def add_longest_side(parser: Parser) -> None:
    """Add `--longest-side`."""
    text = "resize images to this longest side for the model, 0 for none (default: the model's)"
    parser.add_argument("--longest-side", type=int, metavar="PIXELS", help=text)


def add_pad_to(parser: Parser) -> None:
    """Add `--pad-to`."""
    text = "pad smaller images to this height and width with the mean colour; the paper has 513 for VOC (default: none)"
    parser.add_argument("--pad-to", type=int, metavar="PIXELS", help=text)


def add_device(parser: Parser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")


def add_json(parser: Parser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")


def add_data(
    parser: Parser, *, positional: bool = False, several: bool = False, name: str = "DATA", text: str = DATA
) -> None:
    """Add `--data`, or DATA, and the flags of how data is read, for `dataset_options`."""
    if positional:
        parser.add_argument("data", metavar=name, help=text)
    elif several:
        text = f"{text}; for several recipes once, or once each"
        parser.add_argument("--data", required=True, action="append", help=text)
    else:
        parser.add_argument("--data", required=True, help=text)
    add_reading(parser)
    group = parser.add_argument_group("classes of the data, over what its dataset.yaml says")
    text = "keep this class, and fold the others into background; repeat it, or NAME,NAME"
    group.add_argument("--classes", action="append", default=[], metavar="NAME", help=text)
    group.add_argument("--rest", choices=("background", "ignore"), help="what the other classes become")
    text = "read a class or a stored id as another class; can be given many times"
    group.add_argument("--map", action="append", default=[], metavar="FROM=TO", help=text)
    text = "neither train on nor count a stored id, a class, or a colour R,G,B; can be given many times"
    group.add_argument("--ignore", action="append", default=[], metavar="WHAT", help=text)
    text = "the classes in the order of their ids: NAME,NAME; or repeat it, for names with commas"
    group.add_argument("--names", action="append", default=[], metavar="NAME", help=text)
    group.add_argument("--images", metavar="FOLDER", help="folder of the images, for an export without them")
    group.add_argument("--annotator", metavar="WHO", help="whose annotations count, where several people made them")
    group.add_argument("--binary", choices=("object", "ignore"), help="what 255 is in masks of 0 and 255")


def add_reading(parser: Parser) -> None:
    """Add the flags of how the samples of an image become colours."""
    group = parser.add_argument_group("images of more than 8 bits or 3 bands")
    text = "values that become black and white, such as 0,4095"
    group.add_argument("--value-range", metavar="LOW,HIGH", help=text)
    group.add_argument("--bands", metavar="R,G,B", help="bands to read, counted from 1, such as 4,3,2; or one")


def dataset_options(args: argparse.Namespace) -> DatasetOptions:
    """What the flags of `add_data` or `add_reading` say.

    Raises:
        ValueError: naming the flag, for a value that cannot be.
    """
    from atrous.data.datasets.options import DatasetOptions

    values: dict[str, Any] = {}
    for key in ("classes", "rest", "map", "ignore", "names", "images", "annotator", "binary", "value_range", "bands"):
        if given := getattr(args, key, None):
            values[key] = given
        if isinstance(given, list) and [] in given:  # what argparse makes of it
            raise ValueError(f"--{key} is '--'; expected a value")
    if "map" in values:
        values["map"] = _pairs(values["map"])
    if "ignore" in values:
        values["ignore"] = [_id_or_colour(word) for word in values["ignore"]]
    if len(values.get("names", ())) == 1:
        values["names"] = [name.strip() for name in values["names"][0].split(",")]
    try:
        return DatasetOptions.parse(values)
    except ValueError as error:
        key, _, rest = str(error).partition(" ")
        raise ValueError(f"--{key.replace('_', '-')} {rest}" if key in values else str(error)) from None


def _pairs(words: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        before, equals, after = word.partition("=")
        if not equals or not before.strip() or not after.strip():
            raise ValueError(f"--map is {word!r}; expected FROM=TO, such as 255=leaf")
        if pairs.setdefault(before.strip(), after.strip()) != after.strip():
            raise ValueError(f"--map has {before.strip()!r} twice; expected one class for it")
    return pairs


def _id_or_colour(word: str) -> str | list[str]:
    parts = [part.strip() for part in word.split(",")]
    return parts if len(parts) == 3 and all(part.isdecimal() for part in parts) else word
