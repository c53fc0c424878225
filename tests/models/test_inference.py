"""The inference form computes what the model computes."""

import contextlib
import copy
import functools
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from atrous.models.backbone import Features
from atrous.models.deeplab import DeepLabV3
from atrous.models.inference import fold_batch_norm, inference_form, native_dtype, with_output_stride
from atrous.models.resnet import ResNet
from atrous.ops import packed_conv
from atrous.ops.conv_kernels import depthwise, tap_gemm
from atrous.ops.conv_kernels.dispatch import forward_form
from atrous.ops.packed_conv import PackedConv2d, fuses


def shaken(backbone: str, **options: object) -> DeepLabV3:
    """A model whose batch norms are far from the identity, with logits of some size."""
    model = copy.deepcopy(built(backbone, tuple(options.items())))
    torch.manual_seed(1)
    return model


@functools.lru_cache(maxsize=4)
def built(backbone: str, pairs: tuple[tuple[str, object], ...]) -> DeepLabV3:
    options = dict(pairs)
    torch.manual_seed(0)
    model = DeepLabV3(backbone, 5, **options)  # type: ignore[arg-type]
    for norm in model.batch_norms():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    nn.init.normal_(model.classifier.weight, std=0.1)
    model.train()
    for _ in range(3):  # statistics of its own activations
        model.set_batch_norm_decay(0.3)
        with torch.no_grad():
            model(torch.randn(4, 3, 65, 65))
    return model.eval()


larger = functools.partial(pytest.param, marks=pytest.mark.integration)
BACKBONES = [
    "resnet18", larger("resnet50"), "timm/tf_efficientnet_lite0", "timm/convnext_atto", larger("timm/densenet121"),
]  # fmt: skip


@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_are_the_same_and_the_dial_stays(backbone: str) -> None:
    # Random layers multiply rounding: in double precision none of it shows.
    model = shaken(backbone, aspp_rates=(1, 2)).double()
    form = model.for_inference(dtype=torch.float64)
    image = torch.randn(1, 3, 65, 49, dtype=torch.float64)
    for stride in (16, 8):
        model.output_stride = form.output_stride = stride
        with torch.inference_mode():
            expected, actual = model(image), form(image)
        assert (actual - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.integration
def test_the_compiled_form_computes_the_same_at_every_stride() -> None:
    model = shaken("resnet18", aspp_rates=(1, 2))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    form = model.for_inference(dtype=torch.float32, compile=backend)  # type: ignore[arg-type]
    image = torch.randn(1, 3, 65, 49)
    for stride in (16, 8):
        model.output_stride = form.output_stride = stride
        with torch.inference_mode():
            expected, actual = model(image), form(image)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert len(graphs) == 2, "one whole graph for each stride: nothing broke it"
    twin = copy.deepcopy(form)
    with torch.no_grad():
        twin.classifier.weight.zero_()
        twin.classifier.bias.zero_()
        assert not twin(image).any() and form(image).any(), "a copy computes with its own weights"


@pytest.mark.parametrize("backbone", ["resnet18", "timm/tf_efficientnet_lite0"])
@pytest.mark.parametrize("packed", [True, False])
def test_copies_at_other_output_strides_share_the_weights_and_serve_threads(backbone: str, packed: bool) -> None:
    plain = shaken(backbone, aspp_rates=(1, 2))
    model = plain.for_inference(dtype=torch.float32) if packed else plain
    image = torch.randn(1, 3, 65, 49)
    with torch.inference_mode():
        for _ in range(2):
            model(image)  # laid out for this size
    twins = {stride: with_output_stride(model, stride) for stride in (8, 16, 32)}
    assert model.output_stride == 16 and {key: twin.output_stride for key, twin in twins.items()} == {
        8: 8,
        16: 16,
        32: 32,
    }
    ours = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert all({tensor.data_ptr() for tensor in twin.state_dict().values()} == ours for twin in twins.values())

    def predict(stride: int) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [twins[stride](image) for _ in range(3)]

    with ThreadPoolExecutor() as pool:
        actual = dict(zip([8, 16, 32] * 3, pool.map(predict, [8, 16, 32] * 3), strict=True))
    for stride, logits in actual.items():
        plain.output_stride = stride
        with torch.inference_mode():
            expected = plain(image)
        for value in logits:
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    with pytest.raises(ValueError, match="cannot reach output_stride 64"):
        with_output_stride(model, 64)


@pytest.mark.parametrize("backbone", ["resnet18", "timm/tf_efficientnet_lite0"])
def test_no_batch_norm_is_left(backbone: str) -> None:
    model = shaken(backbone, aspp_rates=(1, 2))
    count = len(list(model.batch_norms()))
    form = model.for_inference(dtype=torch.float32)
    assert not list(form.batch_norms()) and not form.training
    assert len(list(model.batch_norms())) == count, "the model itself is left alone"
    assert not any(parameter.requires_grad for parameter in form.parameters())


def test_a_batch_norm_before_its_convolution_stays() -> None:
    model = shaken("timm/densenet121", aspp_rates=(1, 2))  # its layers normalise first
    total = len(list(model.batch_norms()))
    folded = len(fold_batch_norm(model))
    assert 0 < folded < total and len(list(model.batch_norms())) == total - folded


class Net(nn.Module):
    """Layers by name, and a forward pass of them."""

    def __init__(self, forward: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.forward = functools.partial(forward, self)


class Clamped(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight.clamp(-0.1, 0.1), self.bias, padding=1)


class Rectified(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def norm(**options: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(3, **options)


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


def in_a_block_too() -> Net:
    net = Net(lambda net, x: net.block(x), conv=conv(), bn=norm())
    net.block = nn.Sequential(net.conv, net.bn)
    return net


UNUSUAL = {
    "statistics of the image": lambda: nn.Sequential(conv(), norm(track_running_stats=False), nn.ReLU()),
    "two names": in_a_block_too,
    "convolution after its norm again": lambda: nn.Sequential(c := conv(), norm(), c),
    "both twice": lambda: nn.Sequential(c := conv(), n := norm(), nn.ReLU(), c, n),
    "changed in place": lambda: nn.Sequential(conv(), nn.ReLU(inplace=True), norm()),
    "read by an addition": lambda: Net(lambda net, x: net.bn(y := net.conv(x)) + y, conv=conv(), bn=norm()),
    "two norms": lambda: Net(lambda net, x: net.a(y := net.conv(x)) + net.b(y), conv=conv(), a=norm(), b=norm()),
    "a norm a level": lambda: Net(
        lambda net, x: net.a(net.conv(x)) + net.b(net.conv(2 * x)), conv=conv(), a=norm(), b=norm()
    ),
    "a norm of two convolutions": lambda: Net(
        lambda net, x: net.bn(net.c(x)) + net.bn(net.d(x)), c=conv(), d=conv(), bn=norm()
    ),
    "weights changed before": lambda: nn.Sequential(Clamped(3, 3, 3), norm()),
    "a norm that does more": lambda: nn.Sequential(conv(), Rectified(3)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_cannot_be_folded_stays(name: str) -> None:
    torch.manual_seed(0)
    net = UNUSUAL[name]().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(inference_form(net, torch.float32)(x), net(x))


class Otherwise(ResNet):
    def forward(self, images: torch.Tensor) -> Features:
        features = super().forward(images)
        return features._replace(out=features.out.sin())


@pytest.mark.parametrize("what", ["statistics of the image", "group norm", "another rectifier", "another class"])
def test_a_resnet_that_is_not_the_usual_one(what: str) -> None:
    model = shaken("resnet18")
    unit = model.backbone.get_submodule("layer2.0")
    if what == "group norm":
        unit.bn2 = nn.GroupNorm(4, 128)
    elif what == "another rectifier":
        unit.relu = nn.SiLU()
    elif what == "another class":
        model.backbone.__class__ = Otherwise
    else:
        unit.bn2.running_mean = unit.bn2.running_var = None
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        expected, actual = model(x), model.for_inference(dtype=torch.float32)(x)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4


def test_bf16_takes_and_gives_float32_and_rounds_as_autocast_does() -> None:
    model = shaken("resnet18")
    form = model.for_inference(dtype=torch.bfloat16)
    image = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        expected, actual = model(image), form(image)
        with torch.autocast("cpu", torch.bfloat16):
            usual = model(image)
    assert actual.dtype == torch.float32 and form.classifier.weight.dtype == torch.bfloat16
    assert (actual - expected).abs().mean() < 2 * (usual - expected).abs().mean()


@pytest.mark.parametrize(
    ("amx", "pairs", "intel", "expected"),
    [
        (True, True, True, torch.bfloat16),
        (False, True, False, torch.bfloat16),
        (False, True, True, torch.float32),  # 1.1 to 1.6 times as fast there
        (False, False, False, torch.float32),
    ],
)
def test_the_format_is_the_fastest(
    monkeypatch: pytest.MonkeyPatch, amx: bool, pairs: bool, intel: bool, expected: torch.dtype
) -> None:
    for name, value in (("has_amx", amx), ("has_avx512_bf16", pairs), ("is_intel", intel)):
        monkeypatch.setattr(tap_gemm, name, lambda value=value: value)
    assert native_dtype(torch.device("cpu")) == expected


def test_who_made_the_processor_is_what_the_system_says() -> None:
    maker = platform.processor() + (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
    assert tap_gemm.is_intel() == ("GenuineIntel" in maker)


FUSED = ["resnet18", larger("resnet50"), "timm/tf_efficientnet_lite0", larger("timm/mobilenetv3_large_100"),
         larger("timm/resnet18d"), "timm/densenet121"]  # fmt: skip


@pytest.mark.parametrize("backbone", FUSED)
def test_float32_is_no_less_exact_with_what_follows_in_the_convolutions(backbone: str) -> None:
    model = shaken(backbone, aspp_rates=(1, 2))
    form = model.for_inference(dtype=torch.float32)
    image = torch.randn(1, 3, 65, 49)
    for stride in (16, 8):
        model.output_stride = form.output_stride = stride
        with torch.inference_mode():
            usual = model(image)
            exact = copy.deepcopy(model).double()(image.double())
            actual = [form(image) for _ in range(3)]  # weights are laid out when a size comes again
        scale = exact.abs().max()
        allowed = 4 * (usual - exact).abs().max() + 2e-6 * scale
        assert all((y - exact).abs().max() < allowed for y in actual)


@pytest.mark.parametrize(("backbone", "options"), [
    ("resnet18", {}), larger("resnet50", {"stride_in": "first"}), ("resnet50", {"stride_in": "last"}),
    ("resnet18", {"head": "cascade", "last_block": 6, "multi_grid": (1, 2)}),
    ("timm/mobilenetv2_035", {"last_block": 5, "output_stride": 64}),
])  # fmt: skip
def test_the_stages_are_not_written_over(backbone: str, options: dict[str, object]) -> None:
    model = shaken(backbone, aspp_rates=(1,), **options)
    form = model.for_inference(dtype=torch.float32)
    image = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        expected, actual = model.backbone(image).stages, form.backbone(image).stages
    assert expected.keys() == actual.keys()
    for name, stage in expected.items():
        torch.testing.assert_close(actual[name], stage, rtol=1e-3, atol=1e-4 * float(stage.abs().max()))


def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with AVX2, on any processor, and for images of 65×65."""
    for module in (packed_conv, depthwise):
        monkeypatch.setattr(module, "CAPABILITY", "AVX2")
    monkeypatch.setattr(packed_conv, "LEAST_IN_BLOCKS", 65 * 65)


@pytest.mark.skipif(not fuses(torch.float32, nn.ReLU), reason="no fused convolutions on this machine")
@pytest.mark.parametrize(("backbone", "side", "output_stride", "blocks"), [
    ("timm/mobilenetv2_035", 65, 16, True),
    ("timm/mobilenetv2_035", 49, 16, False),  # too small to gain
    ("timm/mobilenetv2_035", 65, 4, False),  # filters that reach beyond what oneDNN is fast at
    ("timm/tf_efficientnet_lite0", 80, 16, True),  # beside the grid: uneven padding
    ("timm/mobilenet_edgetpu_075", 65, 16, False),  # has units that gain nothing
])  # fmt: skip
def test_a_mobile_network_in_onednns_own_layout(
    monkeypatch: pytest.MonkeyPatch, backbone: str, side: int, output_stride: int, blocks: bool
) -> None:
    in_blocks(monkeypatch)
    seen, pointwise = [], packed_conv._pointwise

    def noted(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        seen.append(x.is_mkldnn)
        return pointwise(x, *arguments)

    monkeypatch.setattr(packed_conv, "_pointwise", noted)
    model = shaken(backbone, aspp_rates=(1,), output_stride=output_stride)
    form, image = model.for_inference(dtype=torch.float32), torch.randn(1, 3, side, side)
    with torch.inference_mode():
        expected, actual = model.backbone(image), form.backbone(image)
        assert (any(seen), all(seen)) == (blocks, blocks)
        assert torch.equal(form.backbone(image).out, actual.out)
    with_gradients = form.backbone(image).out  # switched on, but none is wanted
    with torch.inference_mode():
        monkeypatch.setattr(packed_conv, "CAPABILITY", "AVX512")
        seen.clear()
        form.backbone(image)
        assert seen and not any(seen)
    assert torch.equal(with_gradients, actual.out)
    assert actual.out.is_contiguous(memory_format=torch.channels_last)
    for stage in expected.stages:
        here, there = actual.stages[stage], expected.stages[stage]
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4 * float(there.abs().max()))


def _first_mean(output: object) -> float:
    return float(output[0, 0].mean()) if isinstance(output, torch.Tensor) else 0.0


@pytest.mark.skipif(not fuses(torch.float32, nn.ReLU), reason="no fused convolutions on this machine")
@pytest.mark.parametrize("what", ["hook before", "hook after", "global hook", "other activation", "pruned"])
def test_what_is_no_packed_layer_gets_maps_as_pytorch_has_them(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    in_blocks(monkeypatch)
    model, image, seen = shaken("timm/mobilenetv2_035", aspp_rates=(1,)), torch.randn(1, 3, 65, 65), []
    unit = model.backbone.net.blocks[1][0]
    if what == "hook before":
        unit.conv_dw.register_forward_hook(lambda *given: seen.append(float(given[2][0, 0].mean())))
    elif what == "other activation":
        unit.bn1.act = nn.LeakyReLU(0.1)
    elif what == "pruned":
        with torch.no_grad():
            prune.l1_unstructured(unit.conv_pw, "weight", 0.3)
    form = model.for_inference(dtype=torch.float32)
    if what == "hook after":
        form.backbone.net.blocks[1].register_forward_hook(lambda *given: seen.append(float(given[2][0, 0].mean())))
    with contextlib.ExitStack() as hooks, torch.inference_mode():
        expected = model.backbone(image).out
        if what == "global hook":
            hooks.callback(register_module_forward_hook(lambda *given: seen.append(_first_mean(given[2]))).remove)
        actual = form.backbone(image).out
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert bool(seen) == ("hook" in what)


@pytest.mark.skipif(not fuses(torch.float32, nn.ReLU), reason="no fused convolutions on this machine")
def test_a_layer_that_cannot_run_in_onednns_layout_goes_by_a_dense_copy() -> None:
    torch.manual_seed(0)
    layer = PackedConv2d(nn.Conv2d(256, 256, 3, padding=9, dilation=9, groups=256), nn.ReLU()).requires_grad_(False)
    assert forward_form(x := torch.randn(1, 256, 80, 80), layer.weight, 9) != "library"
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), 1, 9, 9, 256).relu()
    with torch.inference_mode():
        y = layer(x.to_mkldnn())
    assert y.is_mkldnn
    torch.testing.assert_close(y.to_dense().double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not fuses(torch.float32, nn.ReLU), reason="no fused convolutions on this machine")
@pytest.mark.parametrize("where", ["image", "weight"])
def test_nan_passes_a_mobile_network_in_onednns_own_layout(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    in_blocks(monkeypatch)
    model = shaken("timm/mobilenetv2_035", aspp_rates=(1,))
    form, image = model.for_inference(dtype=torch.float32), torch.randn(1, 3, 65, 65)
    if where == "image":
        image[0, 0, 3, 3] = torch.nan
    else:
        for network in (model, form):
            network.backbone.net.blocks[1][0].conv_pw.weight.data[3] = torch.nan
    with torch.inference_mode():
        expected, actual = model.backbone(image).out.isfinite(), form.backbone(image).out.isfinite()
    assert torch.equal(actual, expected) and not expected.all()


@pytest.mark.skipif(not fuses(torch.float32, nn.ReLU), reason="no fused convolutions on this machine")
def test_every_convolution_holds_its_rectifier() -> None:
    form = shaken("resnet50", head_conv=True).for_inference(dtype=torch.float32)
    left = [type(m) for m in form.modules() if isinstance(m, nn.Conv2d) and not isinstance(m, PackedConv2d)]
    assert not left
    lite = shaken("timm/tf_efficientnet_lite0").for_inference(dtype=torch.float32)
    alone = [m for m in lite.modules() if isinstance(m, nn.ReLU6)]
    assert len(alone) == sum(isinstance(m, PackedConv2d) and isinstance(m.activation, nn.ReLU6) for m in lite.modules())


@pytest.mark.filterwarnings("ignore")  # of tracing itself
@pytest.mark.parametrize("name", ["resnet18", "timm/lcnet_050"])
def test_the_form_can_be_traced(name: str) -> None:
    torch.manual_seed(0)
    form = DeepLabV3(name, 3, aspp_rates=(2,)).eval().for_inference(dtype=torch.float32)
    images = torch.randn(1, 3, 49, 33)
    with torch.no_grad():
        for _ in range(2):
            expected = form(images)  # laid out for this size
        traced = torch.jit.trace(form, images)
        torch.testing.assert_close(traced(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["resnet18", "timm/tf_efficientnet_lite0"])
def test_hooked_and_parametrized_layers_are_called_in_the_form(backbone: str) -> None:
    model, image = shaken(backbone, aspp_rates=(1, 2)), torch.randn(1, 3, 65, 49)
    convs = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    norms = [name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    for name in (convs[3], convs[-2]):
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: output * 1.5)
    model.get_submodule(norms[5]).register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.1,))
    weight_norm(model.get_submodule(convs[8]))
    form = model.for_inference(dtype=torch.float32)
    with torch.no_grad():
        expected = model(image)
        for _ in range(2):
            torch.testing.assert_close(form(image), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "path", ["0.0.weight", "0.1.running_var", "1.weight", "1.running_mean", "2.0.weight", "3.bias"]
)
def test_nan_in_any_layer_reaches_the_output(path: str) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
    net = nn.Sequential(
        nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU()),
        nn.BatchNorm2d(8),  # is not folded
        nn.Sequential(second, nn.BatchNorm2d(8), nn.ReLU6()),
        nn.Conv2d(8, 4, 1),
    ).eval()
    net.state_dict()[path].view(-1)[0] = torch.nan
    x = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        expected = net(x)
        result = inference_form(net, torch.float32)(x)
    assert expected.isnan().any()
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_a_nan_pixel_is_seen_where_the_first_layer_is_not_packed() -> None:
    torch.manual_seed(0)
    model = DeepLabV3("timm/convnext_atto", 3).eval()
    form = model.for_inference(dtype=torch.float32)
    images = torch.randn(1, 3, 65, 65)
    images[0, 0, 30, 30] = torch.nan
    with torch.inference_mode():
        assert torch.equal(form(images).isnan(), model(images).isnan())
        clean = torch.randn(1, 3, 65, 65)
        assert form(clean).isfinite().all()


def test_a_form_made_in_inference_mode_sees_new_weights() -> None:
    x, first, second = torch.randn(1, 3, 65, 65), shaken("resnet18"), shaken("resnet18")
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.1)
    with torch.inference_mode():
        form, other = (model.for_inference(dtype=torch.float32) for model in (first, second))
        assert not any(weight.is_inference() for weight in form.parameters())
        for _ in range(3):
            form(x)
        form.load_state_dict(other.state_dict())
        torch.testing.assert_close(form(x), other(x))


def test_weights_that_are_inference_tensors_are_laid_out_anew() -> None:
    x = torch.randn(1, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        layer = PackedConv2d(nn.Conv2d(8, 8, 3, padding=1)).requires_grad_(False)
        for _ in range(3):
            before = layer(x)
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)


@pytest.mark.parametrize("folded", [False, True])
def test_forward_derivatives_are_differences(folded: bool) -> None:
    model = shaken("resnet18", aspp_rates=(1, 3)).double()
    network = model.for_inference(dtype=torch.float32).double() if folded else model
    x, direction = torch.randn(1, 3, 65, 65).double(), 1e-6 * torch.randn(1, 3, 65, 65).double()
    _, actual = torch.func.jvp(network, (x,), (direction,))
    with torch.no_grad():
        expected = (model(x + direction) - model(x - direction)) / 2
    assert float((actual - expected).norm() / expected.norm()) < 1e-4


def test_forward_derivatives_pass_the_operators_of_a_form() -> None:
    form, x = shaken("resnet18").for_inference(dtype=torch.float32), torch.randn(1, 3, 33, 33)
    assert float(torch.func.jvp(form, (x,), (torch.randn(1, 3, 33, 33),))[1].norm()) > 0


def test_a_bias_alone_can_be_trained() -> None:
    form = shaken("resnet18").for_inference(dtype=torch.float32)
    biases = [bias.requires_grad_() for name, bias in form.named_parameters() if name.endswith("bias")]
    form(torch.randn(1, 3, 33, 33)).sum().backward()
    assert all(bias.grad is not None for bias in biases)


def test_rates_that_were_set_by_hand_stay_in_a_copy_at_the_same_stride() -> None:
    model, x = shaken("resnet18", aspp_rates=(1, 2)), torch.randn(1, 3, 129, 129)
    layer = model.head.get_submodule("atrous.1.0")
    layer.dilation = layer.padding = (3, 3)
    with torch.no_grad():
        assert torch.equal(with_output_stride(model, 16)(x), model(x))
