"""The model traced and exported (TorchScript, torch.export, ONNX, OpenVINO): eager's sizes and logits at any size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import openvino_runtime

Run = Callable[[Tensor], Any]

SIZES = [(40, 50), (33, 49), (32, 32), (1, 21)]
EXAMPLES = [(40, 50), (33, 49)]
"""Off the grid and on it: a branch on the size would be recorded as the example takes it."""
DYNAMIC = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
BACKBONES = ["resnet18", "timm/lcnet_050", "timm/tf_efficientnet_lite0"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(before)


def model_of(backbone: str, **options: Any) -> DeepLabV3:
    torch.manual_seed(0)
    model = DeepLabV3(backbone, 3, aspp_rates=(1, 2), **options).eval()
    nn.init.normal_(model.classifier.weight, std=0.3)
    return model


def assert_same(
    model: DeepLabV3, run: Run, *, sizes: list[tuple[int, int]] = SIZES, batches: tuple[int, ...] = (2, 3)
) -> None:
    for size in sizes:
        for batch in batches:
            images = torch.randn(batch, 3, *size)
            with torch.no_grad():
                expected = model(images)
            logits = torch.as_tensor(run(images))
            assert logits.shape == expected.shape, (size, logits.shape)
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("example", EXAMPLES)
def test_torchscript(backbone: str, example: tuple[int, int]) -> None:
    model = model_of(backbone)
    assert_same(model, torch.jit.trace(model, torch.randn(2, 3, *example)))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("backbone", "example"), [*zip(BACKBONES, [*EXAMPLES, EXAMPLES[0]], strict=True), ("resnet18", EXAMPLES[1])]
)
def test_torch_export_with_any_height_and_width(backbone: str, example: tuple[int, int]) -> None:
    model = model_of(backbone)
    program = torch.export.export(model, (torch.randn(2, 3, *example),), dynamic_shapes=(DYNAMIC,))
    assert_same(model, program.module())


def test_torch_export_of_one_size_refuses_others() -> None:
    model = model_of("timm/lcnet_050")
    run = torch.export.export(model, (torch.randn(2, 3, 40, 50),)).module()
    assert_same(model, run, sizes=[(40, 50)], batches=(2,))
    with pytest.raises(AssertionError, match="Guard failed"):
        run(torch.randn(2, 3, 33, 49))


def onnx_session(file: Path) -> Run:
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime, which runs the exported file")
    runtime.set_default_logger_severity(4)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})[0]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("backbone", "dynamo", "example"),
    [
        ("resnet18", True, EXAMPLES[0]),
        ("resnet18", True, EXAMPLES[1]),
        ("resnet18", False, EXAMPLES[0]),
        ("timm/lcnet_050", False, EXAMPLES[1]),
        ("timm/tf_efficientnet_lite0", False, EXAMPLES[0]),
    ],
)
def test_onnx_of_any_size(backbone: str, dynamo: bool, example: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript, which PyTorch exports by")
    model, file = model_of(backbone), tmp_path / "model.onnx"
    axes = {0: "batch", 2: "height", 3: "width"}
    options: dict[str, Any] = (
        {"dynamic_shapes": (DYNAMIC,)} if dynamo else {"input_names": ["x"], "dynamic_axes": {"x": axes}}
    )
    torch.onnx.export(model, (torch.randn(2, 3, *example),), file, dynamo=dynamo, verbose=False, **options)
    assert_same(model, onnx_session(file))


@pytest.mark.integration
@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_of_one_size_refuses_others(dynamo: bool, example: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript, which PyTorch exports by")
    model, file = model_of("timm/lcnet_050"), tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.randn(2, 3, *example),), file, dynamo=dynamo, verbose=False)
    run = onnx_session(file)
    assert_same(model, run, sizes=[example], batches=(2,))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run(torch.randn(2, 3, 32, 32))


@pytest.mark.integration
@pytest.mark.parametrize(("backbone", "example"), [("resnet18", EXAMPLES[0]), ("timm/lcnet_050", EXAMPLES[1])])
def test_openvino(backbone: str, example: tuple[int, int]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO, which converts and runs the model")
    openvino, model = openvino_runtime(), model_of(backbone)
    converted = openvino.convert_model(model, example_input=torch.randn(2, 3, *example))
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_same(model, lambda images: compiled(images.numpy())[0])


@pytest.mark.parametrize(
    "options", [{"output_stride": 8}, {"head": "cascade", "last_block": 5}, {"stride_in": "first"}]
)
def test_other_networks(options: dict[str, Any]) -> None:
    model = model_of("resnet18", **options)
    assert_same(model, torch.jit.trace(model, torch.randn(2, 3, 40, 50)), batches=(2,))


def test_a_part_of_the_network_with_maps_off_the_grid_is_refused() -> None:
    model = model_of("timm/tf_efficientnet_lite0")
    with pytest.raises(ValueError, match="export with a map of 40×50 at stride 2; expected images on the grid"):
        torch.jit.trace(model.backbone.net, torch.randn(1, 3, 40, 50))
