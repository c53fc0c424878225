"""What eight bits cost the shipped weights: mIoU and time in ONNX Runtime, float32 beside int8.

    pip install '.[bench]'
    python benchmarks/int8.py camvid-mobilenet_edgetpu_075 --data camvid --calibrate train [--output-stride 16]
    python benchmarks/int8.py runs/mine --data my-folder --calibrate train --json mine-int8.json

The network up to its small logits is exported once, for maps of any size. Int8 is ONNX Runtime's own quantisation after
training, as its users have it: weights for each filter, activations for each map, whose ranges come from some images of
a split that is not measured. Both forms see the same images and are counted by the same evaluation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from atrous.data.datasets.dataset import SegmentationDataset, open_dataset
from atrous.evaluation.evaluate import evaluate, predict_classes
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import load


class Network(nn.Module):
    """The part that is exported: images padded to the grid to small logits."""

    def __init__(self, model: DeepLabV3) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.network(images)


class Runtime:
    """An exported network in place of a model's own."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name
        self.seconds: list[float] = []

    def __call__(self, images: Tensor) -> Tensor:
        started = time.perf_counter()
        (logits,) = self.session.run(None, {self.name: np.ascontiguousarray(images.numpy())})
        self.seconds.append(time.perf_counter() - started)
        return torch.from_numpy(logits)


class Seen(CalibrationDataReader):
    """What the network sees of some images, evenly over a split."""

    def __init__(self, model: DeepLabV3, dataset: SegmentationDataset, count: int, name: str) -> None:
        self.name, self.images = name, self._of(model, dataset, count)

    def _of(self, model: DeepLabV3, dataset: SegmentationDataset, count: int) -> Iterator[Tensor]:
        real = model.network
        for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist():
            seen: list[Tensor] = []

            def note(images: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(images)
                return real(images)

            model.network = note  # type: ignore[method-assign]
            with torch.inference_mode():
                predict_classes(model, dataset[index].image[None])
            model.network = real  # type: ignore[method-assign]
            yield from seen

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {self.name: np.ascontiguousarray(image.numpy())}


def exported(model: DeepLabV3, path: Path) -> Path:
    """The network as ONNX, for images of any height and width."""
    with torch.no_grad():
        program = torch.onnx.export(
            Network(model).eval(), (torch.randn(1, 3, 257, 321),), dynamo=True,
            dynamic_shapes={"images": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(str(path))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--calibrate", default="train", help="split whose images give the ranges (default: train)")
    parser.add_argument("--images", type=int, default=32, help="of that split (default: 32)")
    parser.add_argument("--output-stride", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.images < 1 or args.calibrate == args.split:
        parser.error("the ranges want at least one image, of a split that is not measured")
    model, _ = load(args.model)
    model.eval()
    if args.output_stride:
        model.output_stride = args.output_stride
    dataset, calibration = open_dataset(args.data, args.split), open_dataset(args.data, args.calibrate)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path, ready, small = (Path(folder) / name for name in ("f32.onnx", "ready.onnx", "int8.onnx"))
        exported(model, path)
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        name = onnx.load(str(ready), load_external_data=False).graph.input[0].name
        quantize_static(
            str(ready), str(small), Seen(model, calibration, args.images, name), quant_format=QuantFormat.QDQ,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax, extra_options={"ActivationSymmetric": False},
        )  # fmt: skip
        for form, file in (("float32", path), ("int8", small)):
            runtime = Runtime(file, args.threads)
            model.network = runtime  # type: ignore[method-assign, assignment]
            scores = evaluate(model, dataset).scores
            rows[form] = {
                "miou": scores.miou,
                "pixel_accuracy": scores.pixel_accuracy,
                "milliseconds": 1e3 * statistics.median(runtime.seconds),
                "bytes": file.stat().st_size + sum(p.stat().st_size for p in file.parent.glob(f"{file.name}.data")),
            }
            print(f"{form:8} mIoU {100 * scores.miou:.2f}  pixel accuracy {100 * scores.pixel_accuracy:.2f}  "
                  f"{rows[form]['milliseconds']:.0f} ms a pass")  # fmt: skip
    if args.json:
        images = min(args.images, len(calibration))
        setting = {"model": args.model, "split": args.split, "output_stride": model.output_stride,
                   "calibrated_on": f"{images} images of {args.calibrate}", "threads": args.threads,
                   "onnxruntime": onnxruntime.__version__}  # fmt: skip
        args.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
