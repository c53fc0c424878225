"""DeepLab graphs of TF-Lite as weights: what is written is read, and a published graph gives its own classes."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrous import DeepLabV3
from atrous.data.images.image_io import read_image
from atrous.models.initialize import initialize
from atrous.models.tflite import FoldedConv, layout_of_graph, load_tflite, read_graph

litert = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed")

MODELS = Path(__file__).parents[3] / "shared" / "models"
PASCAL = MODELS / "deeplabv3_mnv2_pascal_quant.tflite"
CITYSCAPES = MODELS / "deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite"
HEAD = ("image_pooling", "aspp0", "concat_projection", "logits/semantic")


def small(
    classes: int = 4, rates: tuple[int, ...] = (), backbone: str = "timm/mobilenetv2_035", last_conv: int = 0
) -> DeepLabV3:
    """A model whose batch norm shifts alone, as a folded one does."""
    torch.manual_seed(classes)
    model = DeepLabV3(backbone, classes, aspp_rates=rates, last_conv=last_conv, output_stride=16)
    for norm in model.batch_norms():
        nn.init.normal_(norm.bias, std=0.1)
        assert norm.running_var is not None
        norm.running_var.fill_(1 - norm.eps)
    nn.init.normal_(model.classifier.weight, std=0.5)
    return model.eval()


def folded(model: DeepLabV3) -> list[FoldedConv]:
    """Its convolutions in the order of the authors' graphs: the network's, then the head's, image pooling first."""
    layers = [*model.backbone.modules(), *model.last_conv.modules()]
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    actual = [
        FoldedConv(f"net/conv{i}", conv.weight, norm.bias)
        for i, (conv, norm) in enumerate(zip(convs, norms, strict=True))
    ]
    head: Any = model.head
    pointwise, pooling = head.project[0].weight.chunk(2, 1)
    weights = (
        (head.image_pooling.project[0].weight, head.image_pooling.project[1].bias),
        (head.pointwise[0].weight, head.pointwise[1].bias),
        (torch.cat([pooling, pointwise], 1), head.project[1].bias),
        (model.classifier.weight, model.classifier.bias),
    )
    return actual + [FoldedConv(name, *pair) for name, pair in zip(HEAD, weights, strict=True)]


def write_graph(
    path: Path, convs: list[FoldedConv], kind: str = "float32", scale: float = 1 / 64, *, shared: bool = False
) -> Path:
    """A chain of convolutions as a flat buffer: float32, uint8 with one scale, or int8 with one a channel."""
    model = schema.ModelT()
    model.version, model.description = 3, b"test"
    codes = {}
    for code in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D):
        entry = schema.OperatorCodeT()
        entry.builtinCode = entry.deprecatedBuiltinCode = code
        codes[code] = len(codes)
        model.operatorCodes = [*(model.operatorCodes or []), entry]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, model.buffers = [], [], [schema.BufferT()]

    def add(name: str, values: np.ndarray | None, shape: tuple[int, ...], type_: int, quantisation: Any = None) -> int:
        tensor, number = schema.TensorT(), 0
        if values is not None:
            number, held = len(model.buffers), schema.BufferT()
            held.data = np.frombuffer(values.tobytes(), dtype=np.uint8)
            model.buffers.append(held)
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), list(shape), type_, number
        tensor.quantization = quantisation or schema.QuantizationParametersT()
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    plane = (1, 33, 33, 3)
    float32 = schema.TensorType.FLOAT32
    bytes_ = {"uint8": (schema.TensorType.UINT8, 120), "int8": (schema.TensorType.INT8, -8)}
    type_, zero = bytes_.get(kind, (float32, 0))
    last = add("input", None, plane, type_, _params([scale], [zero]) if kind in bytes_ else None)
    graph.inputs = [last]
    inputs: list[int] = []
    for conv in convs:
        depthwise = conv.weight.shape[1] == 1 and len(conv.weight) > 1 and conv.weight.shape[2] > 1
        axis = 3 if depthwise else 0
        values = conv.weight.detach().permute((1, 2, 3, 0) if depthwise else (0, 2, 3, 1)).contiguous().numpy()
        bias = conv.bias.detach().numpy()
        if shared and inputs:
            pass
        elif kind == "float32":
            inputs = [
                add(conv.name, values, values.shape, float32),
                add(f"{conv.name}/bias", bias, bias.shape, float32),
            ]
        else:
            inputs = [_quantised(add, conv.name, values, kind, axis), _shifted(add, conv.name, bias)]
        code = schema.BuiltinOperator.DEPTHWISE_CONV_2D if depthwise else schema.BuiltinOperator.CONV_2D
        step = schema.OperatorT()
        step.opcodeIndex, step.inputs = codes[code], [last, *inputs]
        step.builtinOptionsType = (
            schema.BuiltinOptions.DepthwiseConv2DOptions if depthwise else schema.BuiltinOptions.Conv2DOptions
        )
        step.builtinOptions = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
        last = add(f"{conv.name}/out", None, plane, float32)
        step.outputs = [last]
        graph.operators.append(step)
    graph.outputs, model.subgraphs = [last], [graph]
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def _params(scale: list[float], zero: list[int], dimension: int = 0) -> Any:
    actual = schema.QuantizationParametersT()
    actual.scale, actual.zeroPoint, actual.quantizedDimension = scale, zero, dimension
    return actual


def _quantised(add: Any, name: str, values: np.ndarray, kind: str, axis: int) -> int:
    if kind == "uint8":
        scale = float(values.max() - values.min()) / 255
        zero = round(-float(values.min()) / scale)
        raw = np.clip(np.round(values / scale) + zero, 0, 255).astype(np.uint8)
        return int(add(name, raw, values.shape, schema.TensorType.UINT8, _params([scale], [zero])))
    others = tuple(i for i in range(4) if i != axis)
    scales = np.abs(values).max(others) / 127
    raw = np.round(values / scales.reshape([-1 if i == axis else 1 for i in range(4)])).astype(np.int8)
    actual = _params(scales.tolist(), [0] * len(scales), axis)
    return int(add(name, raw, values.shape, schema.TensorType.INT8, actual))


def _shifted(add: Any, name: str, bias: np.ndarray) -> int:
    scale = 2.0**-20
    raw = np.round(bias / scale).astype(np.int32)
    return int(add(f"{name}/bias", raw, bias.shape, schema.TensorType.INT32, _params([scale], [0])))


@pytest.mark.parametrize("rates", [(), (6, 12)])
def test_a_model_written_as_a_graph_comes_back(rates: tuple[int, ...], tmp_path: Path) -> None:
    theirs, ours = small(), small(rates=rates, classes=4)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    load_tflite(ours, write_graph(tmp_path / "m.tflite", folded(theirs)))
    x = torch.randn(1, 3, 65, 49, generator=torch.Generator().manual_seed(0))
    # Atrous branches, which the graph has not, are there and have no effect yet.
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert theirs(x).std() > 0.1
    assert ours.mean == (0.5,) * 3 and ours.std == (0.5,) * 3  # of a float graph, which takes -1 to 1


@pytest.mark.parametrize(("kind", "steps"), [("uint8", 255), ("int8", 254)])
def test_bytes_are_read_to_half_a_step(kind: str, steps: int, tmp_path: Path) -> None:
    theirs, ours = small(), small(classes=4)
    load_tflite(ours, write_graph(tmp_path / "m.tflite", folded(theirs), kind))
    actual, wanted = ours.state_dict(), theirs.state_dict()
    for key, value in wanted.items():
        if value.ndim == 4 and not key.startswith("head.project"):
            span = 2 * value.abs().amax((1, 2, 3), keepdim=True) if kind == "int8" else value.max() - value.min()
            assert bool(((actual[key] - value).abs() <= span / steps * 0.501).all()), key
        elif key.endswith("bias"):
            torch.testing.assert_close(actual[key], value, rtol=0, atol=2.0**-21 + 1e-7)
    # The input's byte q is scale * (q - zero) to the network; ours is (q / 255 - mean) / std.
    assert ours.mean == pytest.approx((120 / 255,) * 3) and ours.std == pytest.approx((64 / 255,) * 3)


def test_other_classes_start_the_classifier_anew(tmp_path: Path) -> None:
    graph, ours = write_graph(tmp_path / "m.tflite", folded(small())), small(7)
    with pytest.raises(ValueError, match="has 4 classes, expected 7; with reset_head the classifier starts anew"):
        initialize(ours, graph)
    before = ours.classifier.weight.clone()
    initialize(ours, graph, reset_head=True)
    assert torch.equal(ours.classifier.weight, before)
    assert torch.equal(ours.head.state_dict()["pointwise.0.weight"], small().head.state_dict()["pointwise.0.weight"])


def test_a_graph_with_a_layer_before_the_head_gives_the_backbone_alone(tmp_path: Path) -> None:
    theirs, ours = small(), small(5)
    convs = folded(theirs)
    convs.insert(-4, FoldedConv("net/Conv_1", torch.zeros(8, 112, 1, 1), torch.zeros(8)))
    head = {key: value.clone() for key, value in ours.head.state_dict().items()}
    load_tflite(ours, write_graph(tmp_path / "m.tflite", convs), reset_head=True)
    assert all(torch.equal(value, head[key]) for key, value in ours.head.state_dict().items())
    for key, value in theirs.backbone.state_dict().items():
        torch.testing.assert_close(ours.backbone.state_dict()[key], value)


def test_a_layer_before_the_head_is_loaded_where_the_model_has_it(tmp_path: Path) -> None:
    theirs = small(last_conv=400)
    graph = write_graph(tmp_path / "m.tflite", folded(theirs))
    assert layout_of_graph(graph) == {"aspp_filters": 256, "last_conv": 400}
    assert layout_of_graph(write_graph(tmp_path / "plain.tflite", folded(small()))) == {
        "aspp_filters": 256, "last_conv": 0,
    }  # fmt: skip
    assert layout_of_graph(write_graph(tmp_path / "classifier.tflite", folded(small())[:-4])) == {}
    ours = small(5, last_conv=400)
    load_tflite(ours, graph, classes_from=(3, 3, 0, 1, 2))
    x = torch.randn(1, 3, 65, 65)
    torch.testing.assert_close(
        ours.network(x), theirs.network(x)[:, [3, 3, 0, 1, 2]], rtol=1e-4, atol=1e-5, msg="five classes from four"
    )


@pytest.mark.parametrize("rows", [(0, 1), (0, 1, 2, 3, 4), (0, 1, 4), (0, -1, 2)])
def test_classes_that_the_graph_does_not_have_are_refused(rows: tuple[int, ...], tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "m.tflite", folded(small()))
    with pytest.raises(ValueError, match=r"classes_from is .*, expected for each of 3 .* one of .*m.tflite, 0 to 3"):
        initialize(small(3), graph, classes_from=rows)


def test_another_network_names_the_layer(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "m.tflite", folded(small()))
    with pytest.raises(ValueError, match=r"is not of timm/mobilenetv2_050: net/conv\d+ has the shape \(.*net\.blocks"):
        load_tflite(small(backbone="timm/mobilenetv2_050"), graph)
    with pytest.raises(ValueError, match=r"has 4 convolutions, timm/mobilenetv2_035 51"):
        load_tflite(small(), write_graph(tmp_path / "few.tflite", folded(small())[-4:]))


def test_what_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    whole = write_graph(tmp_path / "m.tflite", folded(small())[:3]).read_bytes()
    for name, content in {"empty": b"", "text": b"not a graph at all", "cut": whole[: len(whole) // 2]}.items():
        (tmp_path / f"{name}.tflite").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.tflite: cannot be read as a TF-Lite graph"):
            read_graph(tmp_path / f"{name}.tflite")
    with pytest.raises(FileNotFoundError, match=r"none\.tflite: no such file"):
        read_graph(tmp_path / "none.tflite")


CRASHES = (
    "c-qZYdu&rx82@fNO1qY|-MV)-*<erTy0y%e-o~*9lOV`LQ53QWvgi`oNGQZa%=IEBI89`U8Y2&pi6#(`Agq8O4`qWfd33myJz5KM"
    "V_P@oSO;CZdpxJTqs6F+f9XlSe)sGB9_Rdi-*;Ly06br|NDuxM0db)6KZzj>Ti~~53IS$gQHcStf+<*J_+b$RFiPUFgkfpo5F&aW"
    "mRW@qytI^p*47D>dJdpw4~Nzn5W0Muf+sTpqRT0`B<7G^CV)@l5GwRg5H-dj@lr3+Xefw5fm}PVa09Zs(({^{p;OWd=I7lVx{i;d"
    "tiFORS9^?8Ml-BxEpsFDO2$KG+F|j;3#CaEBW04}8EF<fn_<=S-)~FzDifH96PEh>8&vV`xj!acxXFm)pN4#<WL4$9gRI){L`84q"
    "nmw-L<*~P!q5|QC-jwE9QDvJi%?KauUMyH?bIiK#V6D<`9-iG>%5q0h@SGMCht_YSK>0R@_D==4oFV{SF+euQq2@+>-ZLD^zbgRm"
    "6$%dR#W-TU90w+TK*34mLjWQ_)*>FmBN)?m)Seujz51%eZFb!9I_;ST%FcY!z2rf=L-wH9EuQbN-W*um(YCo>z7<u)PPClqkuoD%"
    "{WHr%RGFj2X_uUDV&wwL``d|}nX9|LaJzf8s9U9vENPP$Csrwn7HaGV*XM<^$M;K=toZbBT@q)v+{@71d1^&x<HEeYi$7i4S(~wB"
    "K=r+z^>n^mmU%2Z+f(rw6b_5jse+3MuDTBkihNOKTe(P?zUriH>l^R&<jGov?2KlsFLp+!OgqfJmQXMSeP@VCzm+MDD>^V{TQ>#|"
    "I7Tz>yg#BW(Bv2tqM-rFX*xc2G^%89LBE<s$9;XCw(Pi;;mARsF5PD=v1It#4a*|yMQ&|`vVGq4R<?1x|A%UI|3-V-?@G^DxQChQ"
    "8|oWZq?I^qHcwlfD-Xb3Ui8b+8)?!umAfgaufFCgt62Qe;G7X*LsmyaapUK1QF@=;vy;6Yo9pb=rRZhJcWm+6#49-?=Q^7-F~1fz"
    "rwl>Yi(aQ^@1CRT;X$R-;$n6tH$-IkVwp%`y4UJdM#tO}=~G?u1>$bG%d4IU^n<x#qnXSOrVtclM)33~@F(F{#(%d93vL7W3X1^C"
    "YJSEhXOH+xLuQY-DfnlScRQ{{H0c*1FJb&lk{l|3onQ_{AO|&B{}LZR89TXO0k1{8CJVPSoWoAL@XK5*F8tyM{;rg-sl)Rw^Pdwy"
    "P3{S7Ps6&Z!mNF@x@vQtwtAD9_a!+~cp-Hg@IJ_1=kV{z7EA;mA41}g^M<Z~{Z4+wV>Q-RuGtvGoM4cEqoa7-i7&oxz!yBPB#<bQ"
    "_a}bf-$f+vL+tHA?Eb^W;00js*PFEKI%uwClwK(aGwn{hPTTI?q1{<B)7<15`dZH^I%iWC&1H4cvun+C^|uy!)w>tyTloiQT}cBi"
    "3B@afkI5dG#7*I6GI;kZc$w~x3G>H=@|*h){C<ss{0c(&-NOAleslkV-?%^VOLBDw^GWU!o3Hc#;4!d=-75t2w!_`V*J~r_R63gO"
    "@_LQ+VGiTkeTR%^b;<NG>r(pSbJOTomP_dNH^+@%Ry&N;TT1#_OCs&9sD6ycTpo8t2#>-?cYp%qAv}`VH1OD%{2d?US;qIfg2(S6"
    "3M`%r6S-F^t2X>C&w@w&f&UBezl+3_`R|~>T*-p7C;S6H`~!9"
)
"""A small file, compressed, whose damage ends ai-edge-litert 2.3 by a segmentation fault."""


def test_a_graph_that_crashes_its_reader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "crash.tflite"
    path.write_bytes(zlib.decompress(base64.b85decode(CRASHES)))
    with pytest.raises(ValueError, match=r"crash\.tflite: cannot be read as a TF-Lite graph"):
        read_graph(path)


@pytest.mark.parametrize("what", ["a bias of one value", "a weight that is NaN", "an input of scale 0"])
def test_a_graph_that_cannot_be_meant_is_refused(what: str, tmp_path: Path) -> None:
    convs, scale = folded(small())[:2], 1 / 64
    if "bias" in what:
        convs[1] = FoldedConv("short", convs[1].weight, convs[1].bias[:1])
    elif "NaN" in what:
        convs[1].weight.data[0, 0, 0, 0] = torch.nan
    else:
        scale = 0.0
    path = write_graph(tmp_path / "m.tflite", convs, "uint8" if scale == 0 else "float32", scale)
    with pytest.raises(ValueError, match=r"m\.tflite: cannot be read.*(bias of \(1,\)|NaN or infinity|zero)"):
        read_graph(path)


def test_a_tensor_that_many_layers_share_is_held_once(tmp_path: Path) -> None:
    conv = FoldedConv("shared", torch.arange(64.0).view(8, 8, 1, 1), torch.zeros(8))
    graph = read_graph(write_graph(tmp_path / "m.tflite", [conv] * 50, "uint8", shared=True))
    assert len({conv.weight.data_ptr() for conv in graph.convs}) == 1 and len(graph.convs) == 50


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_graphs_are_read_or_refused_by_name(count: int, tmp_path: Path) -> None:
    whole = write_graph(tmp_path / "m.tflite", folded(small())[:3], "uint8").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for number in range(count):
        content = bytearray(whole)
        for spot in rng.integers(0, len(content), rng.integers(1, 4)):
            content[spot] = rng.integers(0, 256)
        path = tmp_path / f"{number}.tflite"
        path.write_bytes(content)
        try:
            assert all(conv.weight.dtype == torch.float32 for conv in read_graph(path).convs)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > count / 20


def _published(path: Path) -> Any:
    if not path.is_file():
        pytest.skip(f"no TF-Lite graph at {path}")
    plain = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    graph = litert.Interpreter(str(path), experimental_preserve_all_tensors=True, experimental_op_resolver_type=plain)
    graph.allocate_tensors()
    return graph


def _page() -> np.ndarray:
    pixels = torch.from_numpy(read_image(MODELS.parent / "photos" / "train.jpg")).permute(2, 0, 1)[None].float()
    page = F.interpolate(pixels, (513, 513), mode="bilinear", antialias=True).round().to(torch.uint8)
    return page[0].permute(1, 2, 0).numpy()


def _run(graph: Any, page: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """What the graph itself computes: its last tensor of a shape, dequantised."""
    graph.set_tensor(graph.get_input_details()[0]["index"], page[None])
    graph.invoke()
    actual = [tensor for tensor in graph.get_tensor_details() if tuple(tensor["shape"]) == shape][-1]
    scale, zero = actual["quantization"]
    raw = torch.from_numpy(graph.get_tensor(actual["index"])).float()
    return ((raw - zero) * scale).permute(0, 3, 1, 2)


def _normalised(model: DeepLabV3, page: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(page).permute(2, 0, 1)[None].float() / 255
    return (pixels - torch.tensor(model.mean).view(3, 1, 1)) / torch.tensor(model.std).view(3, 1, 1)


def test_the_published_pascal_graph_gives_its_own_classes() -> None:
    graph, page = _published(PASCAL), _page()
    model = DeepLabV3("timm/mobilenetv2_100", 21, aspp_rates=(), output_stride=16).eval()
    load_tflite(model, PASCAL)
    theirs = _run(graph, page, (1, 33, 33, 21))
    with torch.inference_mode():
        ours = model.low_resolution_logits(_normalised(model, page))
    # Theirs are rounded to bytes after every layer.
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() > 0.98
    assert (ours - theirs).pow(2).mean().sqrt() < 0.1 * theirs.std()
    assert set(theirs.argmax(1).unique().tolist()) >= {0, 19}  # a train


def test_the_published_cityscapes_graph_gives_its_own_features() -> None:
    graph, page = _published(CITYSCAPES), _page()
    model = DeepLabV3("timm/mobilenet_edgetpu_075", 11, output_stride=16).eval()
    load_tflite(model, CITYSCAPES, reset_head=True)
    theirs = _run(graph, page, (1, 33, 33, 144))
    with torch.inference_mode():
        ours = model.backbone(_normalised(model, page)).out
    # Theirs are rounded to bytes after each of 72 layers, in steps of up to 1.6.
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.98


def test_the_published_cityscapes_graph_gives_its_own_classes() -> None:
    graph, page = _published(CITYSCAPES), _page()
    layout = layout_of_graph(CITYSCAPES)
    assert layout == {"aspp_filters": 128, "last_conv": 1280}
    model = DeepLabV3("timm/mobilenet_edgetpu_075", 19, aspp_rates=(), **layout).eval()
    load_tflite(model, CITYSCAPES)
    theirs = _run(graph, page, (1, 33, 33, 19))
    with torch.inference_mode():
        ours = model.low_resolution_logits(_normalised(model, page))
    # Theirs are rounded to bytes after each of 76 layers, and a train in a station is no street of Cityscapes.
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() > 0.9
    assert (ours - theirs).pow(2).mean().sqrt() < 0.2 * theirs.std()


def test_a_head_that_does_not_fit_starts_no_class_from_its_own(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "m.tflite", folded(small()))
    model = DeepLabV3("timm/mobilenetv2_035", 2, aspp_rates=(), image_pooling=False, output_stride=16)
    with pytest.raises(ValueError, match="has another head than the model, so that no class can start"):
        initialize(model, graph, classes_from=(0, 1))
    assert layout_of_graph(write_graph(tmp_path / "head.tflite", folded(small())[-4:])) == {}
