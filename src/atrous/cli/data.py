"""`atrous data check`, `show` and `convert`: is it sound, a sheet of it, and into another layout."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrous.cli.arguments import Parser, add_command, add_data, add_device, add_json, dataset_options
from atrous.cli.commands import bar, complain, print_json, print_table, say

if TYPE_CHECKING:
    from atrous.data.convert import Converted
    from atrous.data.datasets.dataset import Item
    from atrous.data.images.image_io import Pixels
    from atrous.data.sheet import Predict
    from atrous.data.source import Source

FORMATS = ("plain", "coco", "yolo", "voc", "labelme", "cvat")
"""What `convert --to` takes; the keys of `atrous.data.convert.WRITERS`, which `--help` is too quick to import."""


def add(commands: Any) -> None:
    """Add `data` with its subcommands."""
    parser = add_command(commands, "data", None, "look at a data set, or convert it", "atrous data check my-data")
    inner = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_check(inner)
    _add_show(inner)
    _add_convert(inner)


def _add_check(inner: Any) -> None:
    check = add_command(inner, "check", run_check, "is this data set sound?", "atrous data check my-data")
    text = "classes without a pixel, or one class alone, are warnings, not problems"
    check.add_argument("--allow-empty-classes", action="store_true", help=text)
    text = "write a page (.html) or picture (.png) with the classes and an example of each problem"
    check.add_argument("--report", type=Path, metavar="FILE", help=text)
    add_data(check, positional=True)
    add_json(check)


def _add_show(inner: Any) -> None:
    example = "atrous data show my-data --out sheet.png"
    show = add_command(
        inner, "show", run_show, "a sheet of photographs with their masks, rarest classes first", example
    )
    add_data(show, positional=True)
    show.add_argument("--out", type=Path, default=Path("sheet.png"), help="picture to write (default: %(default)s)")
    show.add_argument(
        "--split", action="append", default=[], help="take pictures from this split alone; can be repeated"
    )
    text = "pictures (default: as many as it takes to see every class, 12 to 60)"
    show.add_argument("--count", type=int, metavar="N", help=text)
    text = "output folder of atrous predict, or a folder of masks, to be shown beside the truth"
    show.add_argument("--predictions", type=Path, metavar="DIR", help=text)
    text = "show what this model finds beside the truth: a name, a run folder or a weight file"
    show.add_argument("--model", help=text)
    add_device(show)
    add_json(show)


def _add_convert(inner: Any) -> None:
    text = "write the plain layout, or the format of a labelling tool"
    convert = add_command(inner, "convert", run_convert, text, "atrous data convert cvat-export my-data")
    add_data(convert, positional=True)
    convert.add_argument("out", metavar="OUT", type=Path, help="folder to write; an interrupted call can be repeated")
    text = "plain, or for correction in a tool: coco, yolo, voc, labelme, cvat (default: %(default)s)"
    convert.add_argument("--to", default="plain", choices=FORMATS, metavar="FORMAT", help=text)
    convert.add_argument("--copy", action="store_true", help="copy images (default: hard links where that can be)")
    text = "share of the images that validate, where plain data has one split (default: 0.2; 0 for none)"
    convert.add_argument("--val", type=float, default=0.2, metavar="SHARE", help=text)
    convert.add_argument("--seed", type=int, default=0, help="seed of that division (default: %(default)s)")
    convert.add_argument("--resplit", action="store_true", help="put all splits together and divide them anew")
    convert.add_argument("--polygons", action="store_true", help="polygons rather than masks, for coco and cvat")
    text = "how far polygons may be from the outline, 0 for every corner (default: %(default)s)"
    convert.add_argument("--tolerance", type=float, default=1.0, metavar="PIXELS", help=text)
    convert.add_argument("--model", help="segment DATA, photographs without masks, by this model")
    add_device(convert)
    add_json(convert)


def run_check(args: argparse.Namespace) -> int:
    """Look at a data set."""
    from atrous.data.checks.page import check_suffix, write_page
    from atrous.data.checks.validate import check, render

    if args.report:
        check_suffix(args.report)
    with bar("check") as tell:
        report = check(
            args.data, dataset_options(args), allow_empty_classes=args.allow_empty_classes,
            progress=lambda _, done, total: tell(done, total),
        )  # fmt: skip
    if args.report:
        write_page(report, args.report)
    if args.json:
        print_json(report.as_dict())
    else:
        print_table(render(report))
    return 1 if report.problems else 0


def run_show(args: argparse.Namespace) -> int:
    """Draw a sheet."""
    from atrous.data.sheet import sheet

    if args.predictions and args.model:
        raise ValueError("--predictions and --model are both given; expected one of them")
    predict = _predicted_in(args.predictions) if args.predictions else _predicted_by(args) if args.model else None
    with bar("masks") as tell:
        drawn = sheet(
            args.data, dataset_options(args), only=args.split, count=args.count, predict=predict, progress=tell
        )
    drawn.save(args.out)
    for line in drawn.unreadable[:3]:
        complain(line, 2)
    if args.json:
        print_json({"out": str(args.out), "shown": drawn.shown, "unreadable": drawn.unreadable})
    else:
        said = f"{len(drawn.shown)} pictures, rarest classes first"
        said += f"; {len(drawn.unreadable)} could not be read: atrous data check" if drawn.unreadable else ""
        say(f"{said}; {args.out}")
    return 0


def _predicted_in(folder: Path) -> Predict:
    """Masks of a folder, by the stem of the image."""
    from atrous.data.images.image_io import read_mask

    place = folder / "masks" if (folder / "masks").is_dir() else folder
    if not place.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the output of atrous predict")

    def predict(item: Item) -> Pixels:
        path = place / f"{Path(item.image).stem}.png"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a predicted mask of {item.image}")
        return read_mask(path)

    return predict


def _predicted_by(args: argparse.Namespace) -> Predict:
    """What a model of the data's classes finds.

    Raises:
        ValueError: if its classes are others.
    """
    from atrous.data.datasets.dataset import list_split, splits
    from atrous.evaluation.evaluate import class_difference
    from atrous.prediction.predictor import Predictor

    predictor = Predictor.load(args.model, device=args.device)
    names = list_split(args.data, next(iter(args.split or splits(args.data))), dataset_options(args)).labels.names
    if difference := class_difference(predictor.labels.names, names):
        raise ValueError(f"{args.model} and {args.data}: {difference}; expected a model of the same classes")
    return lambda item: predictor(item.image).mask


def run_convert(args: argparse.Namespace) -> int:
    """Write another layout."""
    from atrous.data.convert import convert
    from atrous.data.writers.base import Shapes

    source = _source(args)
    with bar("convert") as tell:
        result = convert(
            source, args.out, to=args.to, copy=args.copy, val=args.val, seed=args.seed, resplit=args.resplit,
            shapes=Shapes(args.polygons, args.tolerance), progress=tell,
        )  # fmt: skip
    return _tell(args, source, result)


def _source(args: argparse.Namespace) -> Source:
    """The data set, predictions or photographs to convert."""
    from atrous.data.labels import CLASSES
    from atrous.data.source import predicted, source_of

    folder = Path(args.data)
    if args.model:
        return _segmented(args)
    if (folder / CLASSES).is_file() and (folder / "masks").is_dir():
        from atrous.prediction.files import find_photographs, output_names

        if not args.images:
            raise ValueError(f"{folder} holds masks without their photographs; expected --images FOLDER, too")
        return predicted(folder, output_names(find_photographs([args.images])))
    return source_of(args.data, dataset_options(args))


def _segmented(args: argparse.Namespace) -> Source:
    """Photographs, whose masks a model makes when they are asked for."""
    from atrous.data.datasets.dataset import Item
    from atrous.data.source import source_of_masks
    from atrous.prediction.files import find_photographs, output_names
    from atrous.prediction.predictor import Predictor

    names = output_names(find_photographs([args.data]))
    predictor = Predictor.load(args.model, device=args.device)

    class Mask:
        def __init__(self, path: Path) -> None:
            self.photograph = path

        def __str__(self) -> str:
            return f"{self.photograph} by {args.model}"

        def read(self) -> Pixels:
            return predictor(self.photograph).mask

    items = [Item(Path(name).stem, path, Mask(path)) for path, name in names.items()]
    return source_of_masks(Path(args.data), predictor.labels, items)


def _tell(args: argparse.Namespace, source: Source, result: Converted) -> int:
    for why in list(result.failures.values())[:3]:
        complain(why, 2)
    if args.json:
        print_json(result.as_dict())
    else:
        lines = [f"read as {source.read_as}", *result.said]
        done = f"{result.written} written" + (f", {result.already} were there" if result.already else "")
        done += f", {len(result.failures)} could not be read" if result.failures else ""
        counts = ", ".join(f"{split} {count}" for split, count in result.splits.items())
        lines.append(f"{args.out}: {counts}; {done}")
        if args.to == "plain" and any(result.splits.values()):
            out = shlex.quote(str(args.out))
            lines += ["next:", f"  atrous data check {out}", f"  atrous train finetune --data {out}"]
        say("\n".join(lines))
    return 2 if result.failures else 0
