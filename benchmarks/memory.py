"""What a training step holds at its peak, counted without running it: whether a recipe fits a GPU that is not here.

    python benchmarks/memory.py                                             # the paper's: ResNet-101, 16 of 513×513
    python benchmarks/memory.py --backbones resnet50 --strides 16 --batch 2 --size 512

A step in bfloat16 autocast is traced on tensors without data, and what PyTorch would allocate is added up: parameters,
momentum, gradients, activations kept for the backward pass, and what an operator needs for a while. A library's own
workspace (cuDNN's) and the CUDA context come on top, a GB or two.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from atrous.models.activation_checkpointing import set_checkpointing
from atrous.models.deeplab import DeepLabV3
from atrous.ops.upsampled_loss import upsampled_cross_entropy_sum

CLASSES = 21
LINE = "{:12} {:>6} {:>6} {:>13} {:>12} {:>11}"


def main() -> None:
    args = arguments()
    warnings.simplefilter("ignore")
    print(LINE.format("backbone", "stride", "batch", "checkpointing", "activations", "all, GiB"))
    for backbone in args.backbones:
        for stride in args.strides:
            for checkpointing in (False, True):
                peak = step_memory(backbone, stride, args.batch, args.size, checkpointing)
                cells = (backbone, stride, args.batch, "yes" if checkpointing else "no")
                print(LINE.format(*cells, f"{peak['Activation'] / 2**30:.2f}", f"{peak['Total'] / 2**30:.2f}"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["resnet101"])
    parser.add_argument("--strides", type=int, nargs="+", default=[16, 8])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=513)
    return parser.parse_args()


def step_memory(backbone: str, stride: int, batch: int, size: int, checkpointing: bool) -> dict[str, int]:
    """Bytes at the peak of the second step, the first with momentum, by what they are for."""
    with FakeTensorMode():
        model = DeepLabV3(backbone, CLASSES, output_stride=stride).train()
        set_checkpointing(model, checkpointing)
        optimizer = torch.optim.SGD(model.parameters(), 0.007, momentum=0.9)
        images = torch.empty(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(batch, size, size, dtype=torch.uint8)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, images, labels)
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()
                with torch.autocast("cpu", torch.bfloat16):
                    logits = model.low_resolution_logits(images)
                loss = upsampled_cross_entropy_sum(logits, labels, stride) / labels.numel()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return {getattr(kind, "value", kind): count for kind, count in peak.items()}


if __name__ == "__main__":
    main()
