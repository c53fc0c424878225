"""Milliseconds of every named model on this machine, turn by turn, for the table of `atrous models`.

python scripts/measure_models.py "two cores of an AMD EPYC (Zen 5)"
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from atrous.models.weights import cards, names
from atrous.prediction.predictor import Predictor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.timing import Candidate, compare  # noqa: E402

STRIDES = (16, 8)
TARGET = ROOT / "src" / "atrous" / "models" / "zoo" / "speed.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hardware", help="in words")
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    image = torch.randint(0, 256, (args.height, args.width, 3), dtype=torch.uint8).numpy()
    predictors = {(name, stride): Predictor.load(name, output_stride=stride) for name in names() for stride in STRIDES}
    candidates = [
        Candidate(f"{name} at {stride}", lambda predictor=predictor: predictor(image))
        for (name, stride), predictor in predictors.items()
    ]
    result = compare("models", {"size": [args.height, args.width]}, candidates, rounds=args.rounds)
    speeds: dict[str, Any] = {}
    for (name, stride), row in zip(predictors, result.rows, strict=True):
        for what in cards()[name][1].metrics:  # a card may have none at this stride, or several
            if what.endswith(f"output stride {stride}"):
                speeds.setdefault(name, {})[what] = round(row.seconds * 1000, 1)
        print(f"{row.name}: {row.seconds * 1000:.1f} ms, spread {row.spread:.0%}")
    written = {"hardware": args.hardware, "size": [args.height, args.width], "milliseconds": speeds}
    TARGET.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
