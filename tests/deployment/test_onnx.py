"""The nodes that are written by hand around the network in an ONNX file, in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from atrous.deployment import onnx as module
from atrous.deployment.network import Interface
from atrous.models.exported import NETWORK_OUTPUT
from atrous.ops.resize import Upsampling, feature_count, padded_size, upsample

onnx = pytest.importorskip("onnx", reason="onnx, by which files are written")
runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime, which runs them")

SIZES = [(40, 50), (33, 49), (1, 21), (48, 64)]


class Model(nn.Module):
    """What the nodes need to know of a model."""

    num_classes = 3
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)

    def __init__(self, output_stride: int, upsampling: Upsampling) -> None:
        super().__init__()
        self.output_stride, self.upsampling = output_stride, upsampling


def session(nodes: module._Nodes, source: str, kind: int, output: str) -> runtime.InferenceSession:
    helper = onnx.helper
    graph = helper.make_graph(
        nodes.nodes, "part", [helper.make_tensor_value_info(source, kind, None)],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)], nodes.constants,
    )  # fmt: skip
    program = helper.make_model(graph, opset_imports=[helper.make_opsetid("", module.OPSET)], ir_version=10)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    return runtime.InferenceSession(program.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("upsampling", ["grid", "half_pixel", "corners"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("stride", [8, 16])
def test_upsampling_is_pytorchs(upsampling: Upsampling, fixed: bool, stride: int) -> None:
    for size in SIZES:
        small = torch.randn(2, 3, *(feature_count(side, stride, upsampling) for side in size))
        nodes = module._Nodes("after")
        interface = Interface(logits=True, size=size if fixed else None)
        module._write_after(nodes, nodes.integers(*size), Model(stride, upsampling), interface)
        run = session(nodes, NETWORK_OUTPUT, onnx.TensorProto.FLOAT, "logits")
        (actual,) = run.run(None, {NETWORK_OUTPUT: small.numpy()})
        expected = upsample(small, size, stride, upsampling).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("upsampling", ["grid", "corners"])
def test_images_are_normalised_and_padded(upsampling: Upsampling) -> None:
    from atrous.ops.normalization import Normalization
    from atrous.ops.resize import pad_image

    model, nodes = Model(16, upsampling), module._Nodes("before")
    module._write_before(nodes, model, Interface())
    run = session(nodes, "images", onnx.TensorProto.UINT8, "network_input")
    for size in SIZES:
        images = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
        (actual,) = run.run(None, {"images": images.numpy()})
        expected = pad_image(Normalization(model.mean, model.std)(images.permute(0, 3, 1, 2)), 16, upsampling)
        assert actual.shape[2:] == tuple(padded_size(side, 16, upsampling) for side in size)
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-5, atol=1e-5)
