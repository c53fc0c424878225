"""DeepLabv3: a backbone made atrous, a head, and logits at the size of the input.

``forward`` is the paper in four lines: pad to the grid, features at the output stride (sections 3.1 and 3.2), head
(section 3.3), upsample (section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from atrous.models.activation_checkpointing import set_checkpointing
from atrous.models.aspp import ASPP, FILTERS, conv_bn_relu
from atrous.models.backbone import Backbone
from atrous.models.imagenet import imagenet
from atrous.models.inference import compiled, inference_form
from atrous.models.resnet import UNITS, ResNet, StrideIn
from atrous.models.timm_backbone import TimmBackbone
from atrous.ops.resize import pad_to_grid, upsample

Head = Literal["aspp", "cascade"]


class DeepLabV3(nn.Module):
    """DeepLabv3 with every mechanism of the paper.

    Args:
        backbone: ``resnet18``, ``34``, ``50``, ``101``, ``152``, or ``timm/NAME`` for a network of timm.
        num_classes: K.
        head: ``aspp`` (section 3.3), or ``cascade``: the blocks alone and a 1×1 convolution (section 3.2).
        last_block: 4, or 5 to 7 with replicas of block4. With ``cascade`` it defaults to 7.
        multi_grid: unit rates for block4 and its replicas (section 3.2.1); None for ones.
        aspp_rates: rates of the 3×3 branches at output stride 16, scaled for others.
        aspp_pointwise: whether ASPP has its 1×1 branch.
        image_pooling: whether ASPP has image-level features.
        head_conv: one more 3×3 convolution with batch norm before the classifier. The paper has none; torchvision and
            segmentation_models_pytorch do, and their weights need it (`atrous.models.convert`).
        output_stride: 4, 8, 16, 32, and up to 256 with replicas. Can be set at any time.
        weights: None for random ones, or ``imagenet`` for the backbone's; those of whole models are named in
            `atrous.load`.
        stride_in: the unit that carries a block's stride, of our ResNets: ``first`` by default with ImageNet weights,
            whose layout it is, ``last`` by default without, as in the paper; ``first-dilated`` for weights of
            segmentation_models_pytorch.

    Attributes:
        longest_side: in pixels, that evaluation and prediction bring pictures to before the network sees them; None for
            pictures as they are, as in the paper. ``forward`` takes what it is given.
        training_form: computes in ``train()`` what `plain_network` does; None for that itself (`atrous.training`).

    Raises:
        ValueError: for an argument that the network cannot take, with what it can.
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
        head_conv: bool = False,
        output_stride: int = 16,
        weights: str | None = None,
        stride_in: StrideIn | None = None,
    ) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes is {num_classes!r}, expected a whole number of at least 1")
        if head not in get_args(Head):
            raise ValueError(f"head is {head!r}, expected 'aspp' or 'cascade'")
        if weights not in (None, "imagenet"):
            raise ValueError(f"weights is {weights!r}, expected None or 'imagenet'; atrous.load opens whole models")
        last_block = last_block or (7 if head == "cascade" else 4)
        stride_in = stride_in or ("first" if weights else "last")
        self.arguments: dict[str, Any] = {
            "backbone": backbone,
            "num_classes": num_classes,
            "head": head,
            "last_block": last_block,
            "multi_grid": list(multi_grid) if multi_grid else None,
            "aspp_rates": list(aspp_rates),
            "aspp_pointwise": aspp_pointwise,
            "image_pooling": image_pooling,
            "head_conv": head_conv,
            "stride_in": stride_in,
        }
        self.num_classes = num_classes
        self.backbone = build_backbone(
            backbone, multi_grid=multi_grid, last_block=last_block, output_stride=output_stride, stride_in=stride_in
        )
        self.head = (
            ASPP(
                self.backbone.channels,
                aspp_rates,
                pointwise=aspp_pointwise,
                image_pooling=image_pooling,
                output_stride=output_stride,
            )
            if head == "aspp"
            else nn.Identity()
        )
        channels = self.head.channels if isinstance(self.head, ASPP) else self.backbone.channels
        self.head_conv = conv_bn_relu(channels, FILTERS, 3) if head_conv else nn.Identity()
        self.classifier = nn.Conv2d(FILTERS if head_conv else channels, num_classes, 1)
        self.longest_side: int | None = None
        self._output_stride = output_stride
        self._frozen: Literal["no", "statistics", "all"] = "no"
        self._frozen_head = True
        self.training_form: Callable[[Tensor], Tensor] | None = None
        self._initialise_head()
        if weights:
            self.backbone.load_imagenet(imagenet(backbone))

    @property
    def output_stride(self) -> int:
        """Pixels of the input for one feature: the one dial.

        Setting it places every layer of backbone and head anew, in either mode, with no parameter changed.
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

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, B,3,H,W float of any H and W from 1 up, to logits, B,K,H,W float.

        Raises:
            ValueError: if `images` is not B,3,H,W.
        """
        return upsample(self.low_resolution_logits(images), (images.shape[-2], images.shape[-1]), self.output_stride)

    def low_resolution_logits(self, images: Tensor) -> Tensor:
        """Logits before they are upsampled: B,K,h,w float, feature ``j`` on pixel ``output_stride * j``.

        The loss and the argmax in `atrous.ops.resize` take them from here.
        """
        _check(images)
        return self.network(pad_to_grid(images, self.output_stride))

    def network(self, images: Tensor) -> Tensor:
        """Logits of images that are padded, or are not to be: B,3,H,W float to B,K,ceil(H / s),ceil(W / s) float.

        Raises:
            ValueError: if `images` is not B,3,H,W.
        """
        _check(images)
        run = self.training_form if self.training and self.training_form else self.plain_network
        logits: Tensor = run(images.to(self.classifier.weight.dtype))
        return logits.float() if logits.dtype != torch.float64 else logits

    def plain_network(self, inputs: Tensor) -> Tensor:
        """From padded images in the type of the weights to logits, layer by layer: what other forms are made of."""
        logits: Tensor = self.classifier(self.head_conv(self.head(self.backbone(inputs).out)))
        return logits

    def for_inference(self, *, dtype: torch.dtype | None = None, compile: bool | str = False) -> DeepLabV3:
        """A copy for inference alone: batch norm folded, ``channels_last``, in the machine's best number format.

        Args:
            dtype: of weights and activations; ``torch.float32`` holds it to that, None lets the machine decide.
            compile: by ``torch.compile``, at the first images of a size and output stride: True for its own backend,
                which on a CPU needs a C++ compiler, or a backend's name. Meant for GPUs; on a CPU our own convolutions,
                which are then left out, are faster.

        Returns:
            A model whose logits are this one's up to rounding, float32 as before; its `output_stride` can be set.
        """
        form = inference_form(self, dtype, packed=not compile)
        if compile:
            form.plain_network = compiled(form.plain_network, compile)  # type: ignore[method-assign]
        return form

    def set_checkpointing(self, on: bool) -> None:
        """Train in less memory and more time: keep what enters each unit of the backbone, and compute the rest anew."""
        set_checkpointing(self.backbone, on)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that ImageNet does not know: the head's and the classifier's."""
        yield from self.head.parameters()
        yield from self.head_conv.parameters()
        yield from self.classifier.parameters()

    def batch_norms(self) -> Iterator[nn.modules.batchnorm._BatchNorm]:
        """Every batch norm, synchronised ones and timm's included."""
        yield from batch_norms_of(self)

    def set_batch_norm_decay(self, decay: float) -> None:
        """Decay of the running statistics (section 4.1): 0.9997 is PyTorch's ``momentum=0.0003``."""
        for norm in self.batch_norms():
            norm.momentum = 1 - decay

    def freeze_batch_norm(self, *, affine: bool = True, head: bool = True) -> None:
        """Freeze batch norm, as in the second stage of section 4.1; `train` does not thaw it.

        Args:
            affine: freeze scale and shift too; otherwise only the statistics are frozen, and these two go on training.
            head: freeze it in the head, too; otherwise in the backbone alone.
        """
        self.unfreeze_batch_norm()
        self._frozen, self._frozen_head = "all" if affine else "statistics", head
        self._apply_freeze()

    @property
    def frozen(self) -> tuple[str, bool] | None:
        """What of batch norm is frozen, ``statistics`` or ``all``, and whether in the head, too; None for nothing."""
        return None if self._frozen == "no" else (self._frozen, self._frozen_head)

    def unfreeze_batch_norm(self) -> None:
        """Train batch norm again."""
        self._frozen = "no"
        for norm in self.batch_norms():
            norm.train(self.training)
            for parameter in norm.parameters():
                parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> DeepLabV3:
        """As ``nn.Module.train``; frozen batch norm stays frozen."""
        super().train(mode)
        self._apply_freeze()
        return self

    def _apply_freeze(self) -> None:
        if self._frozen == "no":
            return
        for norm in self.batch_norms() if self._frozen_head else batch_norms_of(self.backbone):
            norm.eval()
            for parameter in norm.parameters():
                parameter.requires_grad_(self._frozen == "statistics")

    def _initialise_head(self) -> None:
        for module in (*self.head.modules(), *self.head_conv.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images have the shape {tuple(images.shape)}, expected B,3,H,W with no side of 0")


def batch_norms_of(module: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    """Every batch norm of a module or of a part of it, synchronised ones and timm's included."""
    return (layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))


def build_backbone(
    name: str, *, multi_grid: Sequence[int] | None, last_block: int, output_stride: int, stride_in: StrideIn
) -> Backbone:
    """One of our ResNets, or ``timm/NAME``.

    Raises:
        ValueError: for a name that is neither.
    """
    if name.startswith("timm/"):
        return TimmBackbone(
            name.removeprefix("timm/"), multi_grid=multi_grid, last_block=last_block, output_stride=output_stride
        )
    depth = name.removeprefix("resnet")
    if not name.startswith("resnet") or not depth.isdecimal() or int(depth) not in UNITS:
        ours = ", ".join(f"resnet{depth}" for depth in UNITS)
        raise ValueError(f"there is no backbone {name!r}; there are {ours} and timm/NAME for the networks of timm")
    return ResNet(
        int(depth), stride_in=stride_in, multi_grid=multi_grid, last_block=last_block, output_stride=output_stride
    )
