"""Turn a run's best weights into one of the package's named models: measure, describe, write.

python scripts/ship_weights.py runs/camvid-efficientnet_lite0 camvid-efficientnet_lite0 --data camvid \
    --licence "academic use, as CamVid's images" --trained-on "CamVid, SegNet's split, train: 367 images"
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from atrous.data.datasets.dataset import open_dataset
from atrous.evaluation.evaluate import PAPER_SCALES, checked_longest_side, evaluate
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import load, save
from atrous.training.config import Recipe, differences, override, settings_of
from atrous.training.recipes import RECIPES
from atrous.training.state import build_model

SETTINGS: dict[str, tuple[int, tuple[float, ...], bool]] = {
    "output stride 16": (16, (1.0,), False),
    "output stride 8": (8, (1.0,), False),
    "output stride 16, scales 0.75, 1, 1.25 and flip": (16, (0.75, 1.0, 1.25), True),
    "output stride 8, scales 0.75, 1, 1.25 and flip": (8, (0.75, 1.0, 1.25), True),
    "output stride 16, scales and flip": (16, PAPER_SCALES, True),
    "output stride 8, scales and flip": (8, PAPER_SCALES, True),
}


@torch.no_grad()
def average(model: DeepLabV3, other: DeepLabV3, share: float) -> None:
    """Mean of the weights of two models with one start, into the first, with `share` of the second.

    Of two runs it is a little better than either (Wortsman et al. 2022, "model soups"). With the start itself it holds
    more of what that knows of other streets than the end of the training does (2021, "WiSE-FT").
    """
    others = other.state_dict()
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value.lerp_(others[key], share)


def start_of(recipe: str, model: DeepLabV3) -> DeepLabV3:
    """The network that a recipe begins with."""
    return build_model(RECIPES[recipe].model, model.num_classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--licence", required=True)
    parser.add_argument("--trained-on", required=True)
    parser.add_argument("--description", default="")
    parser.add_argument("--measured", type=Path, help="the run of the same recipe to measure, if this one has seen val")
    parser.add_argument("--recipe", choices=RECIPES, help="the named one that the run followed, for the card")
    parser.add_argument("--longest-side", type=int, help="other than the run's; 0 for pictures as they are")
    parser.add_argument("--mean-with", metavar="MODEL", help="average with another model, half each")
    parser.add_argument("--start-of", choices=RECIPES, help="then average with what this recipe starts from")
    parser.add_argument("--start-share", type=float, default=0.25, help="of that start (default: %(default)s)")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--miou", nargs="+", default=[], metavar="WHERE=MIOU", help="measured before, for the card")
    args = parser.parse_args()
    if args.measured and args.mean_with:
        parser.error("--measured is of one run, --mean-with of two; give one of them")
    model, card = load(args.run)
    if args.mean_with:
        average(model, load(args.mean_with)[0], 0.5)
    if args.start_of:
        average(model, start_of(args.start_of, model), args.start_share)
    if args.longest_side is not None:
        model.longest_side = checked_longest_side(args.longest_side)
        card = replace(card, longest_side=model.longest_side)
    if args.recipe:
        print("the run differs from the recipe in", differences(override(Recipe(), card.recipe), RECIPES[args.recipe]))
        card = replace(card, recipe=settings_of(RECIPES[args.recipe]))
    dataset = open_dataset(args.data, args.split)
    metrics: dict[str, dict[str, float]] = {
        where: {"miou": float(miou)} for where, _, miou in (text.rpartition("=") for text in args.miou)
    }
    measured = load(args.measured)[0] if args.measured else model
    if args.measured and args.start_of:
        average(measured, start_of(args.start_of, measured), args.start_share)
    measured.longest_side = model.longest_side
    for setting in args.settings:
        stride, scales, flip = SETTINGS[setting]
        result = evaluate(measured.for_inference(), dataset, output_stride=stride, scales=scales, flip=flip)
        metrics[f"{args.split}, {setting}"] = {key: round(value, 4) for key, value in result.scores}
        print(f"{setting}: {result.scores.miou:.4f} in {result.seconds:.0f} s", result.as_dict()["iou"], flush=True)
    target = Path(__file__).parent.parent / "src" / "atrous" / "models" / "zoo" / f"{args.name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    card = replace(card, metrics=metrics, licence=args.licence, data=args.trained_on, description=args.description)
    save(model, target, card)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
