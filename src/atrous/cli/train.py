"""`atrous train`: by a recipe, by several in sequence, or by the one that the data asks for (`finetune`)."""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrous.cli.arguments import add_command, add_data, add_device, add_json, dataset_options
from atrous.cli.commands import print_json, print_table, say

if TYPE_CHECKING:
    from atrous.training.config import Recipe

_LEAST_SECONDS = 60


class _ListRecipes(argparse.Action):
    """``--list``: print the recipes and leave, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from atrous.cli.tables import recipes_table
        from atrous.training.recipes import RECIPES

        print_table(recipes_table(RECIPES))
        parser.exit()


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        run,
        "train a model by a recipe",
        "atrous train finetune --data my-data --out runs/mine",
    )
    parser.add_argument("--list", action=_ListRecipes, nargs=0, help="list the recipes and exit")
    text = "finetune, a named recipe, or a YAML file; of several, each starts from the weights of the one before"
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help=text)
    add_data(parser, several=True)
    parser.add_argument("--out", type=Path, help="run folder (default: runs/RECIPE); for several, the folder of them")
    parser.add_argument("--resume", action="store_true", help="continue from the run folder's newest checkpoint")
    parser.add_argument("--output-stride", type=int, help="output stride in training")
    parser.add_argument("-b", "--batch-size", type=int, help="images in a step, over all processes")
    parser.add_argument("--grad-accum-steps", type=int, help="parts that a batch is computed in, to fit in memory")
    parser.add_argument("--iterations", type=int, help="steps of training")
    text = "minutes or hours that it may take, such as 20m or 1h30m: the steps that fit, measured first"
    parser.add_argument("--time", type=str, metavar="TIME", help=text)
    parser.add_argument("--lr", type=float, help="initial learning rate")
    parser.add_argument("--weights", help="imagenet, none, or a model to start from")
    text = "download nothing: say which ImageNet weights are missing, and where to put them"
    parser.add_argument("--offline", action="store_true", help=text)
    parser.add_argument(
        "--reset-head", action="store_true", help="a new classifier, for other classes than those of --weights"
    )
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), help="automatic mixed precision")
    parser.add_argument("--ema-decay", type=float, help="decay of the moving average of the weights; 0 for none")
    parser.add_argument("--seed", type=int, help="seed of everything random")
    parser.add_argument("-j", "--workers", type=int, default=1, help="processes that load data (default: %(default)s)")
    parser.add_argument("--asynchronous", type=int, metavar="N", help="replicas that do not wait for each other (Ray)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                        help="any other key of the recipe; can be given many times")  # fmt: skip
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train by one recipe, or several in sequence."""
    if args.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, by workers as well
    from atrous.training.config import override
    from atrous.training.recipes import load_recipe

    began, given = time.monotonic(), _given(args)
    seconds = _seconds_asked_for(args, given)
    if len(args.recipes) > 1:
        return _train_stages(args, given)
    if len(args.data) > 1:
        raise ValueError(f"1 recipe has {len(args.data)} --data, expected 1")
    (source,), (data,) = args.recipes, args.data
    folder = args.out or Path("runs") / Path(source).stem
    planned = folder / "recipe.yaml" if args.resume and (folder / "recipe.yaml").is_file() else None
    if source == "finetune":
        recipe: Recipe = _finetuned(data, given, planned, args.device)
    elif planned and seconds:
        recipe = override(load_recipe(planned), given)
    else:
        recipe = override(load_recipe(source), _kept_options(planned) | given)
    if planned and seconds:
        said = f"--time is not looked at again: {planned} has {recipe.schedule.iterations} steps"
        say(said)
    how: dict[str, Any] = {"resume": args.resume, "workers": args.workers, "device": args.device}
    if seconds and not planned:
        how["seconds"] = seconds - (time.monotonic() - began)
    measured: dict[str, Any] = {}
    if args.asynchronous is None:
        from atrous.training.loop import train

        best = train(recipe, data, folder, **how)
    else:
        from atrous.training.asynchronous.server import train_asynchronously

        outcome = train_asynchronously(recipe, data, folder, replicas=args.asynchronous, **how)
        best, measured = outcome.best, {"replicas": args.asynchronous, "staleness": outcome.staleness.as_dict()}
    best = None if best is not None and best != best else best  # JSON has no NaN
    if args.json:
        return print_json({"run": str(folder), "weights": str(folder / "best"), "miou": best, **measured})
    scored = f", val mIoU {best:.4f}" if best is not None else ""
    say(f"done{scored}; the weights are in {folder / 'best'}")
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the flags name."""
    from atrous.training.config import parse_assignments

    flags = (
        "output_stride", "batch_size", "grad_accum_steps", "iterations", "lr", "weights", "amp", "ema_decay", "seed",
    )  # fmt: skip
    values = {key: getattr(args, key) for key in flags if getattr(args, key) is not None}
    values |= {"reset_head": True} if args.reset_head else {}
    values |= {"weights": None} if args.weights == "none" else {}
    if data_options := dataset_options(args):
        values["options"] = data_options
    assigned = parse_assignments(args.assignments)
    if twice := sorted(values.keys() & assigned.keys()):
        flag = "flags of the data" if twice[0] == "options" else f"--{twice[0].replace('_', '-')}"
        raise ValueError(f"{twice[0]} is given twice, by {flag} and by --set")
    if args.workers < 0:
        raise ValueError(f"--workers is {args.workers}, expected at least 0")
    return {**values, **assigned}


def _seconds_asked_for(args: argparse.Namespace, given: dict[str, Any]) -> float | None:
    """What `--time` says, in seconds."""
    if args.time is None:
        return None
    seconds = duration(args.time)
    if others := sorted({"iterations", "schedule_iterations"} & given.keys()):
        raise ValueError(f"--time and {others[0]} are given; expected one of them: the time decides the steps")
    if len(args.recipes) > 1 or args.asynchronous is not None:
        raise ValueError("--time takes one recipe, and no --asynchronous")
    return seconds


def duration(text: str) -> float:
    """Seconds of a time such as ``20m``, ``1h30m``, ``90s`` or ``1.5h``.

    Raises:
        ValueError: for anything else, and for less than a minute.
    """
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip().lower())
    try:
        parts = [float(part) if part else 0.0 for part in (match.groups() if match else ())]
    except ValueError:
        parts = []
    if not any(parts):
        raise ValueError(f"--time is {text!r}, expected hours and minutes with their units, such as 20m or 1h30m")
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    if seconds < _LEAST_SECONDS:
        raise ValueError(
            f"--time is {text}, expected at least 1m: the speed is measured first, and a schedule is short"
        )
    return seconds


def _kept_options(before: Path | None) -> dict[str, Any]:
    """How the data of a run that is resumed was read, so that its flags need not be given again."""
    from atrous.training.recipes import load_recipe

    return {"options": load_recipe(before).data.options} if before else {}


def _finetuned(data: str, given: dict[str, Any], before: Path | None, device: str | None) -> Recipe:
    """The recipe that the data asks for, or that of a run that is resumed."""
    from atrous.training.autoconfig import BASE, finetune
    from atrous.training.config import override
    from atrous.training.recipes import load_recipe

    override(load_recipe(BASE), given)  # a slip is named before the data is read
    if before is not None:
        say(f"what was chosen before, in {before}")
        return override(load_recipe(before), given)
    recipe, reasons = finetune(data, _weights_asked_for(given), override(load_recipe(BASE), given).data.options, device)
    say(f"settings chosen for {data}:")
    for reason in reasons:
        say(f"- {reason}")
    if given:
        yours = ", ".join(f"{key} {value}" for key, value in given.items())
        say(f"- your settings replace these: {yours}")
    return override(recipe, given)


def _weights_asked_for(given: dict[str, Any]) -> str | None:
    """What `finetune` is to start from, by the flags; None for its own choice."""
    from atrous.models.weights import read_card, resolve
    from atrous.training.autoconfig import ANYTHING, STREETS

    if "weights" in given:
        return given["weights"] or "none"
    if given.keys() & {"head", "last_block"}:
        return "imagenet"
    if "backbone" not in given:
        return None
    known = {read_card(resolve(name)).arguments["backbone"]: name for name in (ANYTHING, STREETS)}
    return known.get(given["backbone"], "imagenet")


def _train_stages(args: argparse.Namespace, values: dict[str, Any]) -> int:
    from atrous.training.stages import plan_stages, train_stages

    if args.asynchronous is not None:
        raise ValueError("--asynchronous takes one recipe at a time")
    stages = plan_stages(args.recipes, args.data, args.out, values)
    best = train_stages(
        stages,
        resume=args.resume,
        workers=args.workers,
        device=args.device,
        said=say,
    )
    if args.json:
        runs = [str(stage.run) for stage in stages]
        return print_json({"runs": runs, "weights": str(stages[-1].run / "best"), "miou": best})
    say(f"done; the weights are in {stages[-1].run / 'best'}")
    return 0
