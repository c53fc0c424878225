"""`atrous export`: a model as a file for ONNX Runtime, OpenVINO, LiteRT or plain PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrous.cli.arguments import add_command, add_json, add_model, add_output_stride
from atrous.cli.commands import print_json, print_out, say

if TYPE_CHECKING:
    from atrous.deployment.export import Export


def add(commands: Any) -> None:
    """Add the command."""
    text = "write a model as a file for ONNX Runtime, OpenVINO, LiteRT or plain PyTorch, and compare the two"
    example = "atrous export runs/mine --format onnx --out mine.onnx --data my-data"
    parser = add_command(commands, "export", run, text, example)
    add_model(parser, exported=False)
    text = (
        "onnx, openvino, torch: a torch.export program that runs without this package, or litert, with --size "
        "(default: %(default)s)"
    )
    parser.add_argument("--format", type=str.lower, default="onnx", help=text)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: the model's name, in this folder)"
    )
    add_output_stride(parser)
    text = "the one size that it takes, or dynamic for any (default: %(default)s); a batch has any number of images"
    parser.add_argument("--size", default="dynamic", metavar="HxW", help=text)
    text = "float logits B,K,H,W come out, in place of the class of each pixel, B,H,W"
    parser.add_argument("--logits", action="store_true", help=text)
    text = "normalised float B,3,H,W goes in, in place of uint8 RGB B,H,W,3"
    parser.add_argument("--raw-input", action="store_true", help=text)
    text = "with --format torch: a library compiled for this kind of processor (AOTInductor)"
    parser.add_argument("--aot", action="store_true", help=text)
    text = "with --data: int8 weights and activations, calibrated on its train split"
    parser.add_argument("--int8", action="store_true", help=text)
    text = "measure mIoU of the model and of the file on its val split; layouts as of atrous eval"
    parser.add_argument("--data", help=text)
    text = "points of mIoU that int8 may lose (default: 1)"
    parser.add_argument("--max-loss", type=float, metavar="POINTS", help=text)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Export a model."""
    from atrous.deployment.export import export, parse_size
    from atrous.deployment.network import Interface

    interface = Interface(args.raw_input, args.logits, parse_size(args.size))
    report = export(
        args.model, args.out, format=args.format, output_stride=args.output_stride, interface=interface, aot=args.aot,
        int8=args.int8, data=args.data, max_loss=args.max_loss,
        say=say,
    )  # fmt: skip
    if args.json:
        return print_json(report.as_dict())
    for line in lines_of(report):
        say(line)
    print_out(str(report.path))
    return 0


def lines_of(report: Export) -> list[str]:
    """What there is to say about a file."""
    from atrous.models.exported import is_exported

    info, parity, lines = report.info, report.parity, []
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    opset = f"opset {info['opset']}; " if info["opset"] else ""
    lines.append(
        f"{report.path}: {report.bytes / 1e6:.2f} MB, output stride {info['output_stride']}; {opset}{versions}"
    )
    lines.append(report.about)
    if parity is not None:
        error = "" if parity.error is None else f", logits within {parity.error:.0e} of the largest"
        sizes = ", ".join(f"{height}×{width}" for height, width in dict.fromkeys(parity.sizes))
        lines.append(f"the model's class for {parity.agreement:.3%} of the pixels{error}; photographs of {sizes}, "
                     f"{' and '.join(map(str, parity.batches))} at once")  # fmt: skip
    if report.int8 is not None:
        lines.append(f"int8: ranges by {report.int8.method}, {len(report.int8.float_layers)} layers in float")
    if report.miou is not None:
        lines.append(f"mIoU on val: model {100 * report.miou['model']:.2f}, file {100 * report.miou['file']:.2f}")
    around = "atrous predict does them around the file" if is_exported(report.path) and not info["aot"] else "all yours"
    lines.append(f"not inside: windows, scales and flips; {around}")
    return lines
