"""What Winograd in bfloat16 costs in accuracy: logits of a whole network, products emulated on any processor.

    python -m benchmarks.bfloat16 [--side 257] [--seeds 2]                       ResNet-50 at output strides 16 and 8
    python -m benchmarks.bfloat16 --model camvid-efficientnet_lite0 --data CAMVID --images 11

Products of bfloat16 numbers are summed in float32 and rounded once, as AVX512-BF16 does it; every map between two
layers is rounded. Errors are of the logits, against float64; classes are those of the pixels, against float64 or, for
``--model``, float32. The ResNet has random weights, its batch norm the statistics of the bundled photographs,
and the last batch norm of each unit a scale of 0.25, as trained ones have: with 1 a random ResNet amplifies rounding
until half of the logits is noise, with Winograd and without.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atrous
from atrous import DeepLabV3
from atrous.data.datasets.dataset import open_dataset
from atrous.data.images.image_io import read_image, to_tensor
from atrous.evaluation.evaluate import predict_classes
from atrous.models.inference import with_output_stride
from atrous.ops.conv_kernels import winograd
from atrous.ops.conv_kernels.winograd import Winograd
from atrous.ops.packed_conv import PackedConv2d
from atrous.ops.resize import upsample
from atrous.prediction.demo import SCENES, bundled

Model = TypeVar("Model", bound=nn.Module)


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def in_bfloat16(model: Model, by_winograd: bool) -> Model:
    """A float32 inference form whose convolutions compute as in bfloat16."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, PackedConv2d):
            module.forward = Emulated(module, by_winograd)  # type: ignore[method-assign]
    return model


class Emulated:
    def __init__(self, conv: PackedConv2d, by_winograd: bool) -> None:
        self.conv, self.by_winograd = conv, by_winograd
        self.weight = conv.weight.detach().bfloat16()
        self.bias = None if conv.bias is None else conv.bias.detach().bfloat16()
        self.used = False

    def __call__(self, x: Tensor, other: Tensor | None = None, *, keep: bool = True) -> Tensor:
        x, padding = self.conv._padded(x)
        y = self.convolved(x.bfloat16(), padding)
        y = y if other is None else y + rounded(other)
        return rounded(self.conv.activation(y))

    def convolved(self, x: Tensor, padding: str | tuple[int, ...]) -> Tensor:
        conv = self.conv
        plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1
        if self.by_winograd and plain and winograd.gains(x, self.weight, conv.rate) and winograd.is_tame(x):
            self.used = True
            return Winograd(self.weight, self.bias, x.shape, conv.rate)(x).float()
        bias = None if self.bias is None else self.bias.float()
        return F.conv2d(x.float(), self.weight.float(), bias, conv.stride, padding, conv.dilation, conv.groups)


def used(model: nn.Module) -> int:
    return sum(isinstance(form := vars(module).get("forward"), Emulated) and form.used for module in model.modules())


def resnet(output_stride: int, side: int, seed: int) -> None:
    torch.manual_seed(seed)
    pixels = [to_tensor(read_image(Path(str(bundled(scene.photograph)))))[None].float() / 255 for scene in SCENES[:3]]
    images = torch.cat([F.interpolate(image, (side, side), mode="bilinear") for image in pixels]).sub(0.45).div(0.225)
    model = DeepLabV3("resnet50", 21, output_stride=output_stride)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            if name.endswith("bn3"):
                nn.init.constant_(module.weight, 0.25)
    with torch.no_grad():
        model.train()(torch.cat([images, images.flip(3)]))
        exact = copy.deepcopy(model.eval()).double().low_resolution_logits(images[:1].double())
        form = model.for_inference(dtype=torch.float32)
        forms = [in_bfloat16(form, by_winograd) for by_winograd in (False, True)]
        logits = [form.low_resolution_logits(images[:1]) for form in forms]
    errors = [float((y.double() - exact).norm() / exact.norm()) for y in logits]
    classes = [upsample(y.float(), (side, side), output_stride, "grid").argmax(1) for y in (exact, *logits)]
    changed = [100 * float((other != classes[0]).float().mean()) for other in classes[1:]]
    print(
        f"ResNet-50, output stride {output_stride}, {side}×{side}, seed {seed}, {used(forms[1])} layers by Winograd: "
        f"error of the logits {errors[0]:.4f}, with it {errors[1]:.4f} ({errors[1] / errors[0]:.3f} times); "
        f"class of {changed[0]:.2f}% of the pixels, with it {changed[1]:.2f}%",
        flush=True,
    )


def shipped(name: str, data: str, output_stride: int, count: int) -> None:
    form = with_output_stride(atrous.load(name)[0], output_stride).for_inference(dtype=torch.float32)
    forms = [in_bfloat16(form, by_winograd) for by_winograd in (False, True)]
    dataset = open_dataset(data, "val")
    chosen = range(0, len(dataset), max(1, len(dataset) // count))
    changed = [0.0, 0.0]
    for index in chosen:
        pixels = dataset[index].image[None]
        with torch.inference_mode():
            exact, *others = (predict_classes(network, pixels) for network in (form, *forms))
        for i, classes in enumerate(others):
            changed[i] += 100 * float((classes != exact).float().mean()) / len(chosen)
    print(
        f"{name}, output stride {output_stride}, {len(chosen)} images, {used(forms[1])} layers by Winograd: class of "
        f"{changed[0]:.3f}% of the pixels, with it {changed[1]:.3f}%",
        flush=True,
    )


def _emulate_products() -> None:
    def multiplied(x: Tensor, weight: Tensor, groups: int) -> Tensor:
        return F.conv2d(x.float(), weight.float(), groups=groups).to(x.dtype)

    winograd._laid_out = lambda weight, *_: weight
    winograd._multiplied = multiplied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--side", type=int, default=257)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--model", help="a shipped model in place of the ResNet")
    parser.add_argument("--data", help="whose val split it sees")
    parser.add_argument("--images", type=int, default=11)
    args = parser.parse_args()
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together")
    _emulate_products()
    for output_stride in (16, 8):
        if args.model:
            shipped(args.model, args.data, output_stride, args.images)
        else:
            for seed in range(args.seeds):
                resnet(output_stride, args.side, seed)


if __name__ == "__main__":
    main()
