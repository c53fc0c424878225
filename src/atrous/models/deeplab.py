"""DeepLabv3 (section 3): an atrous backbone, a head, and logits at the size of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from atrous.models.aspp import ASPP, FILTERS, conv_bn_relu
from atrous.models.backbone import Backbone
from atrous.models.batch_norm import FreezableBatchNorm
from atrous.models.conventions import OF_RESNETS, OF_TIMM, Convention
from atrous.models.imagenet import imagenet
from atrous.models.pretrained import Pretrained
from atrous.models.resnet import UNITS, ResNet, StrideIn
from atrous.models.timm_backbone import TimmBackbone
from atrous.ops.resize import Upsampling, pad_image, upsample

Head = Literal["aspp", "cascade"]


class DeepLabV3(FreezableBatchNorm, Pretrained):
    """DeepLabv3 with every mechanism of the paper.

    Args:
        backbone: ``resnet18``, ``34``, ``50``, ``101``, ``152``, or ``timm/NAME`` for a network of timm.
        num_classes: K.
        head: ``aspp`` (section 3.3), or ``cascade``: the blocks alone and a 1×1 convolution (section 3.2).
        last_block: 4, or 5 to 7 with replicas of block4. With ``cascade`` it defaults to 7.
        multi_grid: unit rates for block4 and its replicas (section 3.2.1); None for ones, and for networks of timm for
            their rates as section 3.1 derives them.
        aspp_rates: rates of the 3×3 branches at output stride 16, scaled for others.
        aspp_pointwise: whether ASPP has its 1×1 branch.
        image_pooling: whether ASPP has image-level features.
        last_conv: channels of one more 1×1 convolution with batch norm between backbone and head, 0 for none. The paper
            has none; the authors' MobileNet-EdgeTPU does, and its published weights need it (`atrous.models.tflite`).
        head_conv: one more 3×3 convolution with batch norm before the classifier. The paper has none; torchvision and
            segmentation_models_pytorch do, and their weights need it (`atrous.models.convert`).
        aspp_filters: of each branch of ASPP and of its projection; mmsegmentation has 512.
        aspp_projection: side of the projection's filter: 1, or 3 as mmsegmentation has.
        output_stride: 4, 8, 16, 32, and up to 256 with replicas. Can be set at any time.
        weights: None for random ones, or ``imagenet`` for the backbone's; `atrous.load` opens whole models.
        stride_in: the unit that carries a block's stride, of our ResNets: ``first`` by default with ImageNet weights,
            which have it there, ``last`` by default without, as in the paper.
        consistent_rates: keep denser features, subsampled, equal to the strided ones where the stride sits in the first
            unit: that unit keeps the rate of its input. Off, all units of a block have one rate, as in the paper. For
            networks of timm it makes a `multi_grid` of ones the same as none.
        stem: of our ResNets: channels of three 3×3 convolutions in place of the 7×7 one; see `ResNet`.
        average_shortcut: of our ResNets: average where a shortcut is strided; `consistent_rates` does not hold then.
        convention: whose rates and padding the backbone has, for weights of other libraries that were trained with
            them: see `atrous.models.conventions`. Empty for those of section 3.1.
        upsampling: how images are padded and logits upsampled; weights of other libraries do best with their own way.

    Attributes:
        longest_side: in pixels; evaluation and prediction resize images to it before the model sees them. None for the
            images as they are, as in the paper. ``forward`` takes what it is given.
        card: the `ModelCard` that it was loaded with, or None.

    Raises:
        ValueError: for an argument that the network cannot take; says what it can.
    """

    def __init__(
        self,
        backbone: str = "resnet101",
        num_classes: int = 21,
        *,
        head: Head = "aspp",
        last_block: int | None = None,
        multi_grid: Sequence[int] | None = None,
        aspp_rates: Sequence[int] = (6, 12, 18),
        aspp_pointwise: bool = True,
        image_pooling: bool = True,
        last_conv: int = 0,
        head_conv: bool = False,
        aspp_filters: int = FILTERS,
        aspp_projection: int = 1,
        output_stride: int = 16,
        weights: str | None = None,
        stride_in: StrideIn | None = None,
        consistent_rates: bool = False,
        stem: Sequence[int] = (),
        average_shortcut: bool = False,
        convention: Convention = "",
        upsampling: Upsampling = "grid",
    ) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes is {num_classes!r}, expected a whole number of at least 1")
        if head not in get_args(Head):
            raise ValueError(f"head is {head!r}, expected 'aspp' or 'cascade'")
        if weights not in (None, "imagenet"):
            raise ValueError(f"weights is {weights!r}, expected None or 'imagenet'; atrous.load opens whole models")
        if upsampling not in get_args(Upsampling):
            raise ValueError(f"upsampling is {upsampling!r}, expected one of {', '.join(get_args(Upsampling))}")
        last_block = last_block or (7 if head == "cascade" else 4)
        stride_in = stride_in or ("first" if weights else "last")
        grid = list(multi_grid) if multi_grid else None
        self.arguments: dict[str, Any] = {
            "backbone": backbone, "num_classes": num_classes, "head": head, "last_block": last_block,
            "multi_grid": grid, "aspp_rates": list(aspp_rates), "aspp_pointwise": aspp_pointwise,
            "image_pooling": image_pooling, "last_conv": last_conv, "head_conv": head_conv, "stride_in": stride_in,
            "consistent_rates": consistent_rates, "aspp_filters": aspp_filters, "aspp_projection": aspp_projection,
            "stem": list(stem), "average_shortcut": average_shortcut, "upsampling": upsampling,
            "convention": convention,
        }  # fmt: skip
        self.num_classes, self._output_stride = num_classes, output_stride
        self.upsampling: Upsampling = upsampling
        self.longest_side: int | None = None
        self.card: Any = None
        self.backbone: Backbone = build_backbone(
            backbone,
            stride_in,
            stem=stem,
            average_shortcut=average_shortcut,
            convention=convention,
            multi_grid=grid,
            last_block=last_block,
            output_stride=output_stride,
            consistent_rates=consistent_rates,
        )
        self.last_conv = conv_bn_relu(self.backbone.channels, last_conv) if last_conv else nn.Identity()
        channels = last_conv or self.backbone.channels
        self.head = nn.Identity() if head == "cascade" else ASPP(
            channels, aspp_rates, pointwise=aspp_pointwise, image_pooling=image_pooling, filters=aspp_filters,
            projection=aspp_projection, output_stride=output_stride,
        )  # fmt: skip
        channels = self.head.channels if isinstance(self.head, ASPP) else channels
        self.head_conv = conv_bn_relu(channels, aspp_filters, 3) if head_conv else nn.Identity()
        self.classifier = nn.Conv2d(aspp_filters if head_conv else channels, num_classes, 1)
        self._initialise_head()
        if weights:
            self.backbone.load_imagenet(imagenet(backbone))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, B,3,H,W float of any H and W from 1 up, to logits, B,K,H,W float.

        Raises:
            ValueError: if `images` is not B,3,H,W float.
        """
        size = (images.shape[-2], images.shape[-1])
        return upsample(self.low_resolution_logits(images), size, self.output_stride, self.upsampling)  # section 4.1

    def low_resolution_logits(self, images: Tensor) -> Tensor:
        """Logits before upsampling, B,K,h,w float; on the grid, feature ``j`` is on pixel ``output_stride * j``.

        The loss (`atrous.ops.upsampled_loss`) and the argmax take them from here.
        """
        return self.network(pad_image(_checked(images), self.output_stride, self.upsampling))

    def network(self, images: Tensor) -> Tensor:
        """Logits without padding: B,3,H,W float to B,K,ceil(H / output_stride),ceil(W / output_stride)."""
        x = self.backbone(_checked(images).to(self.classifier.weight.dtype)).out  # sections 3.1 and 3.2
        x = self.head(self.last_conv(x))  # section 3.3
        logits: Tensor = self.classifier(self.head_conv(x))
        return logits.float() if logits.dtype != torch.float64 else logits

    @property
    def output_stride(self) -> int:
        """Pixels of the image for one feature: the one dial.

        Setting it gives every layer of backbone and head its stride and rate, in either mode; no parameter changes.
        """
        return self._output_stride

    @output_stride.setter
    def output_stride(self, value: int) -> None:
        self.backbone.set_output_stride(value)
        if isinstance(self.head, ASPP):
            self.head.set_output_stride(value)
        self._output_stride = value

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean of each colour, white being 1, that images are normalised with."""
        return self.backbone.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of each colour, white being 1, that images are normalised with."""
        return self.backbone.std

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that ImageNet does not know: the head's and the classifier's."""
        for part in (self.head, self.head_conv, self.classifier):
            yield from part.parameters()

    def _initialise_head(self) -> None:
        for module in (*self.last_conv.modules(), *self.head.modules(), *self.head_conv.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)


def build_backbone(
    name: str, stride_in: StrideIn, *, stem: Sequence[int] = (), average_shortcut: bool = False, **options: Any
) -> Backbone:
    """One of our ResNets, or ``timm/NAME``, by the arguments of `ResNet` and `TimmBackbone`.

    Raises:
        ValueError: for a name that is neither.
    """
    kind, _, rest = name.partition("/")
    known = OF_TIMM if kind == "timm" else OF_RESNETS
    if options.get("convention", "") not in known:
        raise ValueError(f"convention is {options['convention']!r}, expected one of {', '.join(map(repr, known))}")
    if kind == "timm":
        if stem or average_shortcut:
            raise ValueError(f"stem and average_shortcut are of our ResNets, and the backbone is {name}")
        return TimmBackbone(rest, **options)
    depths = {f"resnet{depth}": depth for depth in UNITS}
    if name not in depths:
        raise ValueError(
            f"there is no backbone {name!r}; there are {', '.join(depths)} and timm/NAME for those of timm"
        )
    return ResNet(depths[name], stride_in=stride_in, stem=stem, average_shortcut=average_shortcut, **options)


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images have the shape {tuple(images.shape)}, expected B,3,H,W with no side of 0")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, expected floating point, normalised by the model's mean and std")
    return images
