"""Latency of an exported network in ONNX Runtime, beside segmentation_models_pytorch's own export of the same network.

    pip install '.[bench]'
    python -m benchmarks.exported [--size 512x512] [--rounds 30] [--json FILE]

Both are DeepLabV3 on a ResNet-50 with random weights, 21 classes, output stride 8 in smp's encoder, the same parameters
(`atrous.models.convert`). Three pairs: normalised floats to logits from both, which is what smp exports; and ours as it
is exported by default, from uint8 pixels to the class of each, against smp's with an argmax behind it. Turn by turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from atrous.deployment.export import parse_size
from atrous.deployment.network import Interface, lean
from atrous.deployment.onnx import network_to_onnx, quiet, wrapped
from atrous.models.convert import take_over


class Classes(nn.Module):
    """Another library's network, from normalised images to the class of each pixel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        classes: Tensor = self.network(images).argmax(1)
        return classes.to(torch.uint8)


def theirs(network: nn.Module, path: Path, side: int) -> Path:
    """As a user of the library exports it: PyTorch's exporter, any batch and size."""
    dynamic = torch.export.Dim.AUTO
    with quiet():
        torch.onnx.export(
            network.eval(), (torch.randn(2, 3, side, side + 64),), str(path), dynamo=True,
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},), verbose=False, external_data=False,
        )  # fmt: skip
    return path


def ours(model: Any, path: Path, interface: Interface) -> Path:
    form = lean(model)
    onnx.save(wrapped(network_to_onnx(form, interface), form, interface), str(path))
    return path


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def turn_by_turn(files: dict[str, tuple[Path, np.ndarray]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each turn."""
    sessions = {name: (session(path), feed) for name, (path, feed) in files.items()}
    taken: dict[str, list[float]] = {name: [] for name in files}
    for turn in range(rounds + 2):
        for name, (runtime, feed) in sessions.items():
            started = time.perf_counter()
            runtime.run(None, {runtime.get_inputs()[0].name: feed})
            if turn >= 2:
                taken[name].append(1e3 * (time.perf_counter() - started))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    other = smp.DeepLabV3(args.encoder, encoder_weights=None, classes=21).eval()
    model, _ = take_over(other)
    height, width = parse_size(args.size) or (512, 512)
    floats = np.random.default_rng(0).standard_normal((1, 3, height, width)).astype(np.float32)
    pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files: dict[str, tuple[Path, npt.NDArray[Any]]] = {
            "smp, logits": (theirs(other, root / "smp.onnx", 256), floats),
            "atrous, logits": (ours(model, root / "logits.onnx", Interface(True, True)), floats),
            "smp, argmax": (theirs(Classes(other), root / "classes.onnx", 256), floats),
            "atrous, classes from pixels": (ours(model, root / "pixels.onnx", Interface()), pixels),
        }
        taken = turn_by_turn(files, args.rounds)
        sizes = {name: path.stat().st_size for name, (path, _) in files.items()}
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        print(f"{name:28} {median:8.1f} ms   {sizes[name] / 1e6:.1f} MB")
    ratios = {
        "logits": medians["atrous, logits"] / medians["smp, logits"],
        "classes": medians["atrous, classes from pixels"] / medians["smp, argmax"],
    }
    print(", ".join(f"{name}: {ratio:.3f} of smp's" for name, ratio in ratios.items()))
    if args.json:
        setting = {"encoder": args.encoder, "size": [height, width], "rounds": args.rounds,
                   "threads": torch.get_num_threads(), "torch": torch.__version__,
                   "onnxruntime": onnxruntime.__version__, "smp": smp.__version__}  # fmt: skip
        rows = {name: {"milliseconds": times, "bytes": sizes[name]} for name, times in taken.items()}
        args.json.write_text(json.dumps({"setting": setting, "ratios": ratios, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
