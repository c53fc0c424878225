"""A network ready for export: float32, batch norm folded, without what a runtime would compute for nothing.

`Network` is what every runtime gets: normalised images on the feature grid in, small logits out. What is around it in
an exported file (normalisation, padding, upsampling, argmax) is `WholeNetwork` for PyTorch, and
`atrous.deployment.onnx` for ONNX and OpenVINO.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atrous.models.activation_checkpointing import set_checkpointing
from atrous.models.aspp import ASPP
from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import fold_batch_norm, put
from atrous.ops.conv import AtrousConv2d, AtrousConv2dSame
from atrous.ops.resize import pad_image, upsample


@dataclass(frozen=True)
class Interface:
    """What an exported file takes and gives.

    Attributes:
        raw_input: it takes normalised float B,3,H,W, in place of uint8 RGB B,H,W,3.
        logits: it gives float B,K,H,W, in place of a class map B,H,W.
        size: the H and W that it takes; None for any.
    """

    raw_input: bool = False
    logits: bool = False
    size: tuple[int, int] | None = None


class Network(nn.Module):
    """Normalised images, B,3,H,W float, to small logits, B,K,h,w float; padded images, unless the network `pads`."""

    def __init__(self, model: DeepLabV3, *, pads: bool = False) -> None:
        super().__init__()
        self.model, self.pads = model, pads

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        stride, upsampling = self.model.output_stride, self.model.upsampling
        return self.model.network(pad_image(images, stride, upsampling) if self.pads else images)


class WholeNetwork(nn.Module):
    """All that is in an exported file, from the pixels of an image to its classes or logits."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: DeepLabV3, interface: Interface) -> None:
        super().__init__()
        self.network, self.interface, self.stride = Network(model), interface, model.output_stride
        self.register_buffer("scale", torch.tensor([255 * part for part in model.std]).view(3, 1, 1))
        shift = [mean / std for mean, std in zip(model.mean, model.std, strict=True)]
        self.register_buffer("shift", torch.tensor(shift).view(3, 1, 1))
        self.dtype, self.upsampling = class_map_dtype(model.num_classes), model.upsampling

    def forward(self, images: Tensor) -> Tensor:
        """Images to classes or logits, as the interface says."""
        size = (images.shape[2], images.shape[3]) if self.interface.raw_input else (images.shape[1], images.shape[2])
        if not self.interface.raw_input:
            images = images.permute(0, 3, 1, 2).float().div(self.scale).sub(self.shift)
        logits = upsample(
            self.network(pad_image(images, self.stride, self.upsampling)), size, self.stride, self.upsampling
        )
        return logits if self.interface.logits else logits.argmax(1).to(self.dtype)


def check_padding(model: DeepLabV3, interface: Interface) -> None:
    """Refuse a network whose convolutions are padded by the size of the image, where that is not known or is uneven.

    Those of a ``tf_`` backbone are. On the grid, where our own networks get their images, they are padded alike.

    Raises:
        ValueError: with the sizes that can be exported, where there are any.
    """
    padded = any(isinstance(layer, AtrousConv2dSame) and layer.stride != (1, 1) for layer in model.modules())
    if not padded or model.upsampling == "grid":
        return
    stride, why = model.output_stride, f"{model.backbone.name} pads as TensorFlow does, by the size of the image"
    if model.upsampling == "corners":
        raise ValueError(f"{why}, which cannot be exported with the upsampling of its weights, {model.upsampling}")
    if interface.size is None or any((side - 1) % stride for side in interface.size):
        one = 512 // stride * stride + 1
        raise ValueError(f"{why}; give a --size of sides one above a multiple of {stride}, such as {one}x{one}")


def class_map_dtype(num_classes: int) -> torch.dtype:
    """The smallest integers that hold every class id."""
    return torch.uint8 if num_classes <= 256 else torch.int16 if num_classes <= 1 << 15 else torch.int32


def lean(model: DeepLabV3) -> DeepLabV3:
    """A copy in float32 on the CPU, in ``eval()``, with batch norm folded and ASPP's image-level branch made cheap."""
    form = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    set_checkpointing(form, False)
    fold_batch_norm(form)
    for path, layer in list(form.named_modules()):
        if type(layer) is AtrousConv2d or (type(layer) is AtrousConv2dSame and layer.stride == (1, 1)):
            put(form, path, _plain(layer))
    if isinstance(form.head, ASPP) and _is_folded(form.head):
        form.head = _LeanASPP(form.head)  # type: ignore[assignment]
    return form.to(memory_format=torch.contiguous_format)


def _plain(layer: AtrousConv2d) -> nn.Conv2d:
    """PyTorch's own convolution: ours adds its bias afterwards, which would be a node more."""
    centred = tuple(layer.rate * (side // 2) for side in layer.kernel_size)
    padding = layer.padding if type(layer) is AtrousConv2d else centred
    with torch.device("meta"):
        conv = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,  # type: ignore[arg-type]
            padding, layer.dilation, layer.groups,  # type: ignore[arg-type]
            layer.bias is not None,
        )  # fmt: skip
    conv.weight, conv.bias = layer.weight, layer.bias
    return conv.eval()


def _is_folded(head: ASPP) -> bool:
    """Whether there is something to gain: image-level features beside others, and batch norm folded away."""
    if head.image_pooling is None or (head.pointwise is None and not len(head.atrous)):
        return False
    if not isinstance(head.project[0], nn.Conv2d) or head.project[0].kernel_size != (1, 1):
        return False  # a wider filter sees where the map ends
    return all(isinstance(layers[1], nn.Identity) for layers in (head.project, head.image_pooling.project))


class _LeanASPP(nn.Module):
    """`ASPP` that projects the image-level features before they are repeated at every pixel: the same sum."""

    def __init__(self, head: ASPP) -> None:
        super().__init__()
        assert head.image_pooling is not None
        self.pointwise, self.atrous, self.pooling = head.pointwise, head.atrous, head.image_pooling.project
        conv = head.project[0]
        assert isinstance(conv, nn.Conv2d)
        local = conv.in_channels - self.pooling[0].out_channels  # type: ignore[operator]
        self.local = _part(conv, slice(0, local), bias=False)
        self.whole = _part(conv, slice(local, None), bias=True)

    def forward(self, x: Tensor) -> Tensor:
        maps = [] if self.pointwise is None else [self.pointwise(x)]
        maps += [branch(x) for branch in self.atrous]
        local = torch.cat(maps, 1) if len(maps) > 1 else maps[0]
        y: Tensor = self.local(local) + self.whole(self.pooling(x.mean((-2, -1), keepdim=True)))
        return y.relu()


def _part(conv: nn.Conv2d, channels: slice, *, bias: bool) -> nn.Conv2d:
    """A 1×1 convolution of some of the channels."""
    weight = conv.weight[:, channels].clone()
    part = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias).requires_grad_(False)
    part.weight.copy_(weight)
    if part.bias is not None and conv.bias is not None:
        part.bias.copy_(conv.bias)
    return part
