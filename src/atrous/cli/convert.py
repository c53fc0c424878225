"""``atrous convert``: a checkpoint of another library to a weight file of ours, and back."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrous.cli.arguments import add_command, add_json
from atrous.cli.commands import complain, print_json, say

if TYPE_CHECKING:
    from torch import Tensor

    from atrous.models.deeplab import DeepLabV3
    from atrous.models.weights import ModelCard


def add(commands: Any) -> None:
    """Add the command."""
    text = "weights of torchvision, smp, mmsegmentation, detectron2, Hugging Face, ... to a file of ours, and back"
    example = "atrous convert deeplabv3_resnet50_coco.pth --out voc.safetensors"
    parser = add_command(commands, "convert", run, text, example)
    text = "a checkpoint, or the folder of save_pretrained; with --to, a model of ours"
    parser.add_argument("source", metavar="CHECKPOINT", help=text)
    parser.add_argument("--out", type=Path, required=True, help="file to write; with --to smp or huggingface a folder")
    parser.add_argument("--to", metavar="LIBRARY", help="torchvision, smp or huggingface: the way back")
    parser.add_argument("--backbone", help="timm/NAME, where the checkpoint does not say")
    parser.add_argument("--output-stride", type=int, help="that it was trained at, where the checkpoint does not say")
    parser.add_argument("--aspp-rates", type=int, nargs="+", metavar="RATE", help="at that output stride, likewise")
    parser.add_argument(
        "--name", action="append", default=[], dest="names", help="name of a class; once for each, in order"
    )
    parser.add_argument("--half", action="store_true", help="store float16: half the size, rounded")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, compare with the library's own network where it is installed, and write."""
    return _back(args) if args.to else _forth(args)


def _forth(args: argparse.Namespace) -> int:
    from atrous.models.hub import is_hub_name
    from atrous.models.interchange.base import Choices
    from atrous.models.interchange.convert import convert
    from atrous.models.weights import card_of, check_foreign, digest, resolve, save

    if args.out.suffix != ".safetensors":
        raise ValueError(f"--out is {args.out}, expected a file NAME.safetensors")
    choices = Choices(args.backbone, args.output_stride, tuple(args.aspp_rates or ()), tuple(args.names))
    path = resolve(args.source)
    check_foreign(path)
    model, converted = convert(path, choices)
    for clause in (*(f"assumed {guess}" for guess in converted.guesses), *(f"left out {d}" for d in converted.dropped)):
        complain(f"{args.source}: {clause}", 0)
    difference, told = _compared(model, converted.library)
    card = card_of(converted, args.source if is_hub_name(args.source) else Path(args.source).name)
    tensors = digest(model)
    save(model, args.out, replace(card, description=f"{card.description}; SHA-256 {tensors}"), half=args.half)
    said: dict[str, Any] = {"file": str(args.out), "library": converted.library, "classes": list(converted.names)}
    if args.json:
        said |= {"guesses": list(converted.guesses), "largest_difference": difference, "sha256": tensors}
        return print_json(said)
    what = f"{converted.library}, {model.arguments['backbone']}, {len(converted.names)} classes"
    say(f"{args.out}: from {what}; {told}")
    return 0


def _back(args: argparse.Namespace) -> int:
    from atrous.models.interchange.libraries import build, largest_difference, put_back
    from atrous.models.weights import load

    model, card = load(args.source)
    net = build(args.to, model)
    put_back(model, net, args.to)
    model.upsampling = "corners" if args.to == "smp" else "half_pixel"
    difference = largest_difference(model, net, _photographs(model))
    if not difference < 1e-4:
        raise RuntimeError(f"the logits of {args.to}'s network differ by {difference:.1e}; nothing was written")
    _write(net, args.out, card)
    if args.json:
        return print_json({"out": str(args.out), "library": args.to, "largest_difference": difference})
    note = "" if card.arguments.get("upsampling", "grid") != "grid" else "; it upsamples logits in its own way"
    say(f"{args.out}: {_told(difference, args.to)}{note}")
    return 0


def _write(net: Any, out: Path, card: ModelCard) -> None:
    import json

    import torch

    from atrous.atomic import written_folder, written_whole

    if hasattr(net, "save_pretrained"):
        if hasattr(net.config, "id2label"):
            net.config.id2label = dict(enumerate(card.names))
            net.config.label2id = {name: i for i, name in enumerate(card.names)}
        with written_folder(out) as folder:
            net.save_pretrained(folder)
            if hasattr(net.config, "id2label"):
                (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor(card), indent=2) + "\n")
        return
    with written_whole(out) as file:
        torch.save(net.state_dict(), file)


def _preprocessor(card: ModelCard) -> dict[str, Any]:
    """What Hugging Face's image processor does, and here `Preprocessor`: normalise alone."""
    return {
        "image_processor_type": "MobileNetV2ImageProcessor", "do_resize": False, "do_center_crop": False,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": card.mean,
        "image_std": card.std, "do_reduce_labels": False,
    }  # fmt: skip


def _compared(model: DeepLabV3, library: str) -> tuple[float | None, str]:
    """The largest difference between the logits of both on the bundled photographs, and what is said of it."""
    from atrous.models.interchange.libraries import build, largest_difference, library_word, put_back

    word = library_word(library)
    why = f"{library} is not installed to compare with"
    try:
        net = build(word, model) if word else None
    except ValueError as error:  # a user's own, which the library's parts can make and its builders do not
        net, why = None, f"not compared, for {error}"
    if word is None or net is None:
        return None, f"checked by the names and shapes of its tensors, whose SHA-256 is in the card ({why})"
    put_back(model, net, word)
    difference = largest_difference(model, net, _photographs(model))
    return difference, _told(difference, library)


def _photographs(model: DeepLabV3) -> list[Tensor]:
    """The bundled photographs at a size of whole strides, normalised."""
    import torch.nn.functional as F

    from atrous.data.images.image_io import read_image, to_tensor
    from atrous.ops.normalization import Normalization
    from atrous.prediction.demo import SCENES, bundled

    normalise, side = Normalization(model.mean, model.std), 16 * model.output_stride
    photographs = [normalise(to_tensor(read_image(bundled(scene.photograph)))[None]) for scene in SCENES[:2]]
    return [F.interpolate(photograph, (side, side + 32), mode="bilinear") for photograph in photographs]


def _told(difference: float, library: str) -> str:
    return f"its logits differ from {library}'s own network by {difference:.1e} of the largest, in float64"
