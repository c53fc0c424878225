"""`atrous export`: a model as a file for another runtime, compared with the model before it is put in place.

    report = export("objects-mobilenetv2", Path("objects.onnx"), format="onnx")
    report.parity.agreement, report.bytes

The file takes the pixels of an image, uint8 RGB B,H,W,3, and gives the class of each, uint8 B,H,W. Normalisation,
padding, upsampling and argmax are inside. The card's longest side, scales, flips and windows are the caller's:
`atrous.Predictor` does them around an exported file.
"""

from __future__ import annotations

import errno
import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from atrous import __version__
from atrous.atomic import put_in_place, sweep, work_folder
from atrous.data.datasets.dataset import SegmentationDataset
from atrous.deployment import formats
from atrous.deployment.formats import FORMATS
from atrous.deployment.network import Interface, check_padding, lean
from atrous.deployment.onnx import OPSET, quiet
from atrous.deployment.parity import Parity, first_difference, measure, require
from atrous.deployment.quantize import Int8, Loss, quantise
from atrous.evaluation.as_trained import open_as_trained
from atrous.evaluation.evaluate import check_class_names, evaluate
from atrous.messages import did_you_mean
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import ExportedDeepLabV3, Runtime, is_exported, requirement
from atrous.models.output_stride import LONGEST_SIDE
from atrous.models.weights import ModelCard, load, resolve

ELSEWHERE = {
    "coreml": "its files run, and so can be compared with their model, on macOS alone; there ONNX Runtime runs the "
    "ONNX file by Core ML (CoreMLExecutionProvider)",
    "tensorrt": "trtexec, or ONNX Runtime with its TensorRT provider, takes the ONNX file",
}
"""Formats that are asked for, and why they are not offered."""

ALIASES = {
    "tflite": "litert", "mlmodel": "coreml", "mlpackage": "coreml", "trt": "tensorrt", "engine": "tensorrt",
    "torchscript": "torch", "pt2": "torch", "pytorch": "torch", "ir": "openvino", "xml": "openvino",
}  # fmt: skip
"""Other words for a format, and the one that is meant."""

_DISK = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG")}


@dataclass(frozen=True)
class Export:
    """An exported file.

    Attributes:
        path: of the file, for OpenVINO the .xml.
        bytes: of it, and of its second file where it has one.
        info: what it takes and gives, as in its metadata.
        about: the same in words.
        parity: how near it is to the model; None for int8.
        miou: with data, of the model and of the file on the same images, 0 to 1.
        int8: how it was quantised; None for float32.
    """

    path: Path
    bytes: int
    info: dict[str, Any]
    about: str
    parity: Parity | None
    miou: dict[str, float] | None
    int8: Int8 | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class Scored:
    """The images on which mIoU is measured, and those that int8 is calibrated on."""

    val: SegmentationDataset
    train: SegmentationDataset | None


def export(
    source: str | Path,
    out: Path | None = None,
    *,
    format: str = "onnx",
    output_stride: int | None = None,
    interface: Interface = Interface(),  # noqa: B008  it cannot change
    aot: bool = False,
    int8: bool = False,
    data: str | None = None,
    max_loss: float | None = None,
    seconds: float = 300.0,
    say: Callable[[str], None] = lambda line: None,
) -> Export:
    """Export a model, compare the file with it, and put it in place.

    Args:
        source: a name, a run folder or a weight file.
        out: the file; None for the model's name with the format's ending, in the current folder.
        format: one of `FORMATS`; ``litert`` needs a size.
        output_stride: other than the one on the card.
        interface: what the file takes and gives.
        aot: with ``torch``, a library compiled for this kind of processor.
        int8: quantise weights and activations; needs `data` with a train and a val split.
        data: a data set, on whose val split mIoU of model and file are measured.
        max_loss: points of mIoU that int8 may lose; None for 1.
        seconds: that the search for layers that int8 must leave alone may take.
        say: called with what goes on.

    Raises:
        ValueError: for what cannot be exported, or written; nothing is left of it.
        ParityError: if the file and the model disagree.
    """
    kind = _format(format, aot, int8, data, interface)
    with quiet():
        for package in (*kind.packages, *([kind.quantiser] if int8 and issubclass(kind, formats.Onnx) else [])):
            requirement(package, kind.extra)
    check_size(interface.size)
    if max_loss is not None and not int8:
        raise ValueError("--max-loss is for --int8: a float32 file must have the classes of its model")
    if data is not None and interface.size:
        raise ValueError("--data measures mIoU on images of any size; leave out --size, or --data")
    if is_exported(path := resolve(source)):
        raise ValueError(f"{path} is exported already; expected a name, a run folder or a weight file")
    model, card = load(source, output_stride=output_stride)
    check_padding(model, interface)
    card = replace(card, output_stride=model.output_stride)
    target = target_of(out, str(source), kind.suffix, ("-aot" if aot else "") + ("-int8" if int8 else ""))
    scored = None if data is None else _open(data, card, int8)
    if target.exists():
        say(f"{target} is there already: it is replaced once the new one has passed")
    try:
        sweep(target.parent)
        with work_folder(target) as work:
            return _exported(model, card, kind, interface, work / target.name, target, scored,
                             (1.0 if max_loss is None else max_loss) if int8 else None, seconds, say)  # fmt: skip
    except OSError as error:
        if error.errno in _DISK:
            raise ValueError(f"{target}: {error.strerror}; nothing was written") from error
        raise


def _exported(
    model: DeepLabV3,
    card: ModelCard,
    kind: type[formats.Format],
    interface: Interface,
    file: Path,
    target: Path,
    scored: Scored | None,
    max_loss: float | None,
    seconds: float,
    say: Callable[[str], None],
) -> Export:
    say(f"exporting {card.arguments['backbone']} at output stride {model.output_stride}")
    made = kind(lean(model), interface)
    info = describe(model, interface, kind)
    quantised = None
    if max_loss is not None:
        assert scored is not None and scored.train is not None and isinstance(made, formats.Onnx)
        quantised = quantise(made, model, scored.train, file, card, info, max_loss, seconds, say)
        info["int8"] = asdict(quantised)
    made.save(file, card, info)
    runtime = made.open(file)
    parity: Parity | None = None
    if quantised is None:
        parity = measure(model, runtime, interface, batches=kind.batches)
        require(parity, str(target), lambda: _culprit(model, made, runtime, file))
    else:  # mIoU below is that of the network in it, so the rest of the file is compared with that
        assert isinstance(runtime, Runtime)
        around = measure(model, runtime, interface, reference=runtime.network)
        require(around, str(target), lambda: "what lies around the int8 network differs")
    miou = None if scored is None else _scores(model, card, runtime, scored.val, say)
    if quantised is not None and max_loss is not None and miou is not None:
        Loss(miou["model"], miou["file"]).require(max_loss, str(target))
    files = [part for part in (file.with_suffix(".bin"), file) if part.is_file()]
    total = sum(part.stat().st_size for part in files)
    if len(files) > 1:
        target.unlink(missing_ok=True)  # of an older pair no half stays beside a half of the new one
    put_in_place({part: target.with_suffix(part.suffix) for part in files})
    return Export(target, total, info, formats.about(card, info), parity, miou, quantised)


def _culprit(model: DeepLabV3, made: formats.Format, runtime: Runtime | formats.Whole, file: Path) -> str:
    if isinstance(runtime, formats.Whole):
        return f"it is {runtime.name}'s compiler that changed something; --format torch alone says more"
    return first_difference(lean(model), list(made.layers()), lambda layers, images: made.taps(file, layers, images))


def _scores(
    model: DeepLabV3, card: ModelCard, runtime: Runtime | formats.Whole, dataset: SegmentationDataset,
    say: Callable[[str], None],
) -> dict[str, float] | None:  # fmt: skip
    """MIoU of the model in float32 and of the file."""
    if isinstance(runtime, formats.Whole):
        say("mIoU of a compiled library is not measured; that of --format torch is the same network's")
        return None
    say(f"measuring mIoU on {len(dataset)} images")
    exported = as_model(runtime, card)
    reference = model.for_inference(dtype=torch.float32)
    return {
        "model": evaluate(reference, dataset).scores.miou,
        "file": evaluate(exported, dataset).scores.miou,
    }


def as_model(runtime: Runtime, card: ModelCard) -> ExportedDeepLabV3:
    """An opened file as a model."""
    return ExportedDeepLabV3(runtime, card.arguments, card.mean, card.std, card.longest_side)


def _format(name: str, aot: bool, int8: bool, data: str | None, interface: Interface) -> type[formats.Format]:
    meant = ALIASES.get(name, name)
    if meant in ELSEWHERE:
        raise ValueError(f"there is no format {name!r}: {ELSEWHERE[meant]}")
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS) if meant == name else f"; --format {meant} is what comes nearest"
        raise ValueError(f"there is no format {name!r}{hint}")
    if aot and name != "torch":
        raise ValueError(f"--aot compiles a torch program; found --format {name}")
    if name == "litert" and interface.size is None:
        raise ValueError("a LiteRT file takes images of one size: say which, as in --size 480x640")
    if int8 and not issubclass(FORMATS[name], formats.Onnx):
        raise ValueError(f"int8 is for onnx and openvino; found --format {name}")
    if int8 and data is None:
        raise ValueError("int8 needs --data: ranges come from its train split, and mIoU is measured on its val split")
    return formats.AheadOfTime if aot else FORMATS[name]


def _open(data: str, card: ModelCard, int8: bool) -> Scored:
    val, _ = open_as_trained(data, "val", card)
    check_class_names(card.names, val.labels.names, len(card.names), "other data")
    return Scored(val, open_as_trained(data, "train", card)[0] if int8 else None)


def check_size(size: tuple[int, int] | None) -> None:
    """Refuse a size that no image has.

    Raises:
        ValueError: if a side is out of range.
    """
    if size is not None and not all(1 <= side <= LONGEST_SIDE for side in size):
        raise ValueError(f"size is {size[0]}x{size[1]}, expected 1 to {LONGEST_SIDE} pixels a side")


def parse_size(text: str) -> tuple[int, int] | None:
    """``dynamic``, or height and width such as ``480x640``.

    Raises:
        ValueError: for anything else.
    """
    if text == "dynamic":
        return None
    if not (match := re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", text)):
        raise ValueError(f"--size is {text!r}, expected HEIGHTxWIDTH, such as 480x640, or dynamic")
    return int(match[1]), int(match[2])


def target_of(out: Path | None, source: str, suffix: str, mark: str) -> Path:
    """Where a file goes.

    Raises:
        ValueError: if its ending is another format's, or its folder is not there.
    """
    if out is None:
        path = Path(source)
        stem = path.parent.name if path.stem == "model" or path.name == "best" else path.stem
        return Path(f"{stem or 'model'}{mark}{suffix}")
    if out.suffix.lower() != suffix:
        raise ValueError(f"--out is {out}, expected a name that ends in {suffix}")
    if out.is_dir():
        raise ValueError(f"{out} is a folder, expected a file to write")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent}; make it first")
    return out


def describe(model: DeepLabV3, interface: Interface, kind: type[formats.Format]) -> dict[str, Any]:
    """What a file takes and gives, for its metadata."""
    packages = {name: importlib.metadata.version(name) for name in kind.packages}
    return {
        "output_stride": model.output_stride,
        "raw_input": interface.raw_input,
        "logits": interface.logits,
        "size": list(interface.size) if interface.size else None,
        "batch": kind.batches[0] if len(kind.batches) == 1 else None,
        "opset": OPSET if issubclass(kind, formats.Onnx) else None,
        "int8": None,
        "aot": kind is formats.AheadOfTime,
        "versions": {"atrous": __version__, **packages},
    }
