"""`atrous predict` on many small photographs: images a second, in parts, against one photograph after the other.

    python -m benchmarks.predict --out benchmarks/predict_HARDWARE_DATE.json     3,000 bundled photographs of 320 px
    python -m benchmarks.predict --images 200 --side 640 --rounds 5              200 of 640 px, as a camera's preview
    python -m benchmarks.predict 'photos/*.jpg' --images 200 --side 0            others, at their own size
    python -m benchmarks.predict --parts --images 100                            processor time of each part, no rates

Five ways take turns on the same photographs in one process, so that what else the machine does falls on all of them:
`before`, one after the other with all threads in the network, PNGs of the overlays compressed by default; `now`,
`predict_files`; `onnxruntime`, our export in the loop that a user writes with Pillow, which writes masks and overlays,
too, as PNG like ours and once more as JPEG; `network`, the network alone on photographs that are decoded, one after the
other with all threads.
`--parts` counts processor time, which says where the work is on a machine that does other things, too.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image

from atrous import Predictor
from atrous.atomic import written_whole
from atrous.data.images.image_io import read_image, read_mask, read_size, to_tensor, write_image, write_mask
from atrous.deployment.export import export
from atrous.evaluation.evaluate import classes_of, predict_classes
from atrous.evaluation.preprocessor import Preprocessor
from atrous.ops.tta import View
from atrous.prediction.demo import SCENES, bundled
from atrous.prediction.files import predict_files
from atrous.prediction.parallel import in_order
from atrous.prediction.segmentation import Segmentation


def before(predictor: Predictor, files: list[Path], out: Path) -> None:
    for folder in ("masks", "overlays"):
        (out / folder).mkdir(parents=True)
    for path in files:
        read_size(path)
        result = predictor(path)
        write_mask(out / "masks" / f"{path.stem}.png", result.mask, predictor.labels, predictor.settings())
        with written_whole(out / "overlays" / f"{path.stem}.png") as file:
            result.overlay().save(file, "PNG")


def by_onnxruntime(
    session: onnxruntime.InferenceSession, palette: list[int], files: list[Path], out: Path, suffix: str
) -> None:
    """A user's own loop around the exported file; overlays are PNG or JPEG."""
    for folder in ("masks", "overlays"):
        (out / folder).mkdir(parents=True)
    name = session.get_inputs()[0].name
    for path in files:
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        mask = Image.fromarray(session.run(None, {name: np.asarray(photo)[None]})[0][0])
        mask.putpalette(palette)
        mask.save(out / "masks" / f"{path.stem}.png")
        Image.blend(photo, mask.convert("RGB"), 0.5).save(out / "overlays" / f"{path.stem}{suffix}")


def agreement(masks: Path, others: Path) -> float:
    """The share of the pixels that have the same class, over the masks of two folders."""
    return float(np.mean([np.mean(read_mask(path) == read_mask(others / path.name)) for path in masks.iterdir()]))


def network(predictor: Predictor, files: list[Path], workers: int) -> float:
    images = [to_tensor(read_image(path))[None] for path in files]
    started = time.perf_counter()
    for _ in in_order(
        lambda image: predict_classes(predictor.inference_model(), image), images, workers, lambda _: workers == 1
    ):
        pass
    return time.perf_counter() - started


def rates(
    predictor: Predictor, session: onnxruntime.InferenceSession, files: list[Path], folder: Path
) -> dict[str, float]:
    per_second: dict[str, float] = {}
    palette = [value for colour in predictor.labels.palette for value in colour]
    ways: dict[str, Callable[[Path], Any]] = {
        "before": lambda out: before(predictor, files, out),
        "now": lambda out: predict_files(predictor, files, out),
        "onnxruntime": lambda out: by_onnxruntime(session, palette, files, out, ".png"),
        "onnxruntime, overlays as JPEG": lambda out: by_onnxruntime(session, palette, files, out, ".jpg"),
    }
    for name, run in ways.items():
        started = time.perf_counter()
        run(folder / name)
        per_second[name] = len(files) / (time.perf_counter() - started)
    assert agreement(folder / "now" / "masks", folder / "before" / "masks") == 1, "the masks differ"
    per_second["pixels as in ONNX Runtime"] = agreement(folder / "now" / "masks", folder / "onnxruntime" / "masks")
    for name in ways:
        shutil.rmtree(folder / name)
    per_second["network, all threads"] = len(files) / network(predictor, files, 1)
    per_second["network, a photograph a thread"] = len(files) / network(predictor, files, predictor.workers)
    return per_second


def parts(predictor: Predictor, files: list[Path], folder: Path) -> dict[str, float]:
    """Milliseconds of processor time an image, one after the other with one thread."""
    torch.set_num_threads(1)
    spent: dict[str, float] = {}

    def part(name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        began = time.process_time()
        result = run(*arguments)
        spent[name] = spent.get(name, 0.0) + 1000 * (time.process_time() - began) / len(files)
        return result

    form = predictor.inference_model()
    preprocess = Preprocessor(form)
    for path in files:
        image = part("decode", read_image, path)
        size = image.shape[:2]
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        with torch.inference_mode():
            seen = part("resize and normalise", preprocess, pixels)
            logits = part("network", form.low_resolution_logits, seen)
            view = View(logits, (seen.shape[-2], seen.shape[-1]), False, form.upsampling)
            mask = part("upsample and argmax", classes_of, [view], size, form.output_stride)[0].numpy()
        result = Segmentation(mask, image, predictor.labels)
        part("mask's PNG", write_mask, folder / "mask.png", mask, predictor.labels, "note")
        drawn = part("draw the overlay", result.overlay)
        part("overlay's PNG", write_image, folder / "overlay.png", drawn)
        part("areas", lambda result: result.areas, result)
    return {name: round(value, 2) for name, value in spent.items()}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photographs", nargs="*", help="(default: those that the package carries)")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5, help="turns, each on its share of the photographs")
    parser.add_argument("--side", type=int, default=320, help="first make photographs smaller to this longest side")
    parser.add_argument("--parts", action="store_true", help="processor time of each part in place of rates")
    parser.add_argument("--model", default="objects-mobilenetv2")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sources = sorted(Path(path) for pattern in args.photographs for path in glob.glob(pattern, recursive=True))
    sources = sources or [Path(str(bundled(scene.photograph))) for scene in SCENES]
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
        if args.parts:
            parts(predictor, files[:2], Path(scratch))
            print(json.dumps(parts(predictor, files, Path(scratch)), indent=1))
            return
        exported = export(args.model, Path(scratch) / "model.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(exported.path), options)
        each = len(files) // args.rounds
        for turn in range(args.rounds):
            turns.append(rates(predictor, session, files[turn * each : (turn + 1) * each], Path(scratch)))
            print({name: round(rate, 4) for name, rate in turns[-1].items()}, file=sys.stderr)
    result: dict[str, Any] = {
        "hardware": platform.processor() or platform.machine(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "images": args.images, "side": args.side, "model": args.model,
        "turns": turns,
        "now / before": spread([turn["now"] / turn["before"] for turn in turns]),
        "now / onnxruntime": spread([turn["now"] / turn["onnxruntime"] for turn in turns]),
        "now / onnxruntime, overlays as JPEG": spread(
            [turn["now"] / turn["onnxruntime, overlays as JPEG"] for turn in turns]
        ),
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
