"""`atrous predict` on many small photographs: images a second, in parts, against one photograph after the other.

    python -m benchmarks.predict PHOTOGRAPHS... --images 3000 --out benchmarks/predict_HARDWARE_DATE.json

Three ways take turns on the same photographs in one process, so that what else the machine does falls on all of them:
`before`, one after the other with all threads in the network, PNGs of the overlays compressed by default; `now`,
`predict_files`; `network`, the network alone on photographs that are decoded, one after the other with all threads.
"""

from __future__ import annotations

import argparse
import glob
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from atrous import Predictor
from atrous.atomic import written_whole
from atrous.data.image_io import read_image, read_mask, read_size, to_tensor, write_mask
from atrous.evaluation.evaluate import predict_classes
from atrous.prediction.files import predict_files
from atrous.prediction.parallel import in_order


def before(predictor: Predictor, files: list[Path], out: Path) -> None:
    for folder in ("masks", "overlays"):
        (out / folder).mkdir(parents=True)
    for path in files:
        read_size(path)
        result = predictor(path)
        write_mask(out / "masks" / f"{path.stem}.png", result.mask, predictor.labels, predictor.settings())
        with written_whole(out / "overlays" / f"{path.stem}.png") as file:
            result.overlay().save(file, "PNG")


def network(predictor: Predictor, files: list[Path], workers: int) -> float:
    images = [to_tensor(read_image(path))[None] for path in files]
    started = time.perf_counter()
    for _ in in_order(lambda image: predict_classes(predictor._form(), image), images, workers, lambda _: workers == 1):
        pass
    return time.perf_counter() - started


def rates(predictor: Predictor, files: list[Path], folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    kept: dict[str, bytes] = {}
    for name, run in (("before", before), ("now", predict_files)):
        out = Path(tempfile.mkdtemp(dir=folder))
        started = time.perf_counter()
        run(predictor, files, out)
        found[name] = len(files) / (time.perf_counter() - started)
        masks = {path.name: read_mask(path).tobytes() for path in sorted((out / "masks").iterdir())}
        assert masks == (kept or masks), "the masks differ"
        kept = masks
        shutil.rmtree(out)
    found["network, all threads"] = len(files) / network(predictor, files, 1)
    found["network, a photograph a thread"] = len(files) / network(predictor, files, predictor.workers)
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photographs", nargs="+")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="turns, each on its share of the photographs")
    parser.add_argument("--side", type=int, default=0, help="make photographs smaller to this longest side, first")
    parser.add_argument("--model", default="objects-mobilenetv2")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sources = sorted(Path(path) for pattern in args.photographs for path in glob.glob(pattern, recursive=True))
    predictor = Predictor.load(args.model, device="cpu")
    predictor(sources[0])
    turns = []
    with tempfile.TemporaryDirectory() as scratch:
        (folder := Path(scratch) / "in").mkdir()
        files = []
        for i in range(args.images):
            source = sources[i % len(sources)]
            target = folder / f"{i:05}{source.suffix}"
            if args.side:
                with Image.open(source) as image:
                    image.thumbnail((args.side, args.side))
                    image.save(target, quality=92)
            else:
                shutil.copy(source, target)
            files.append(target)
        each = len(files) // args.rounds
        for turn in range(args.rounds):
            turns.append(rates(predictor, files[turn * each : (turn + 1) * each], Path(scratch)))
            print({name: round(rate, 2) for name, rate in turns[-1].items()}, file=sys.stderr)
    result: dict[str, Any] = {
        "hardware": platform.processor() or platform.machine(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "images": args.images, "side": args.side, "model": args.model,
        "turns": turns,
        "now / before": spread([turn["now"] / turn["before"] for turn in turns]),
        "now / network, all threads": spread([turn["now"] / turn["network, all threads"] for turn in turns]),
        "now / network, a photograph a thread": spread(
            [turn["now"] / turn["network, a photograph a thread"] for turn in turns]
        ),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
