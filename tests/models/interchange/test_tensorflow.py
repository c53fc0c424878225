"""TensorFlow's checkpoints and Keras's files are read as TensorFlow and Keras wrote them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atrous.models.interchange.convert import convert
from atrous.models.interchange.files import read_file
from atrous.models.interchange.tensorflow import names_of_layers
from atrous.models.weights import load
from foreign import mobilenet_of_transformers, tensorflow_names

HERE = Path(__file__).parent / "files"


@pytest.fixture(scope="module")
def net() -> nn.Module:
    pytest.importorskip("transformers", reason="transformers, whose network is the authors'")
    return mobilenet_of_transformers()


@torch.no_grad()
def agree(net: nn.Module, model: nn.Module) -> None:
    for size in ((33, 49), (65, 97), (49, 81)):
        image = torch.rand(1, 3, *size, dtype=torch.float64) * 2 - 1
        expected = F.interpolate(net.double()(image).logits, size, mode="bilinear", align_corners=True)
        assert (model.double()(image) - expected).abs().max() < 1e-6 * expected.abs().max(), size


def saved_checkpoint(variables: dict[str, np.ndarray], prefix: Path) -> None:
    """By TensorFlow's own operator, which its Saver runs."""
    tf = pytest.importorskip("tensorflow", reason="tensorflow, whose files they are")
    names = sorted(variables)
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names),
        tensors=[tf.constant(variables[name]) for name in names],
    )  # fmt: skip


@pytest.mark.integration
def test_a_checkpoint(net: nn.Module, tmp_path: Path) -> None:
    saved_checkpoint(tensorflow_names(net), tmp_path / "model.ckpt-3")
    model, converted = convert(tmp_path / "model.ckpt-3")
    assert converted.library == "research/deeplab" and converted.dropped == ("the optimizer's variables",)
    agree(net, model)
    for suffix in (".index", ".data-00000-of-00001"):
        assert load(tmp_path / f"model.ckpt-3{suffix}")[0].output_stride == 16


@pytest.mark.integration
def test_keras(net: nn.Module, tmp_path: Path) -> None:
    """A network of Keras with the layers of the port, by its names, in each of its files."""
    keras = pytest.importorskip("keras", reason="keras, whose files they are")
    pytest.importorskip("h5py", reason="h5py, which reads them")
    layers = _keras_layers(keras, tensorflow_names(net))
    for name in ("whole.keras", "whole.h5"):
        layers.save(tmp_path / name)
        model, converted = convert(tmp_path / name)
        assert "output stride 8, as the port to Keras has" in converted.guesses[0]
        model.output_stride = 16
        agree(net, model)
    layers.save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(ValueError, match="does not hold the names of its layers; save the whole model as .keras"):
        convert(tmp_path / "net.weights.h5")


def _keras_layers(keras: Any, variables: dict[str, np.ndarray]) -> Any:
    """A model of Keras that holds a layer for each of the authors', by the names of the port; it computes nothing."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, value in variables.items():
        if name.endswith(("Momentum", "global_step")):
            continue
        scope, _, variable = name.removeprefix("MobilenetV2/").rpartition("/")
        layer = scope.replace("/BatchNorm", "_BN").replace("/", "_")
        arrays.setdefault(layer, {})[variable] = value
    held, inputs, outputs = {}, [], []
    for layer, values in arrays.items():
        if "gamma" in values:
            one, channels = keras.layers.BatchNormalization(name=layer), len(values["gamma"])
        elif "depthwise_weights" in values:
            channels = values["depthwise_weights"].shape[2]
            one = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=layer)
        else:
            side, _, channels, filters = values["weights"].shape
            one = keras.layers.Conv2D(filters, side, padding="same", use_bias="biases" in values, name=layer)
        inputs.append(keras.Input((8, 8, channels), name=f"input_{len(inputs)}"))
        outputs.append(one(inputs[-1]))
        order = ("gamma", "beta", "moving_mean", "moving_variance", "weights", "depthwise_weights", "biases")
        held[layer] = [values[name] for name in order if name in values]
    model = keras.Model(inputs, outputs)
    for layer, values in held.items():
        model.get_layer(layer).set_weights(values)
    return model


def test_a_checkpoint_that_tensorflow_wrote() -> None:
    """Written once by TensorFlow 2.21: SaveV2 of float32, float64, int64, float16 and text, in the order of names."""
    tensors = read_file(HERE / "small.ckpt").tensors
    assert {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()} == {
        "a/weights": (torch.float32, (2, 3)), "a/weights/Momentum": (torch.float64, (3,)),
        "global_step": (torch.int64, ()), "half": (torch.float16, (1, 2)),
    }  # fmt: skip
    assert tensors["a/weights"].tolist() == [[0, 1, 2], [3, 4, 5]] and tensors["global_step"] == 30_000


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a graph of TensorFlow; expected the checkpoint beside it, NAME.index"):
        (tmp_path / "frozen_inference_graph.pb").write_bytes(b"graph")
        load(tmp_path / "frozen_inference_graph.pb")
    shutil.copy(HERE / "small.ckpt.index", tmp_path)
    with pytest.raises(ValueError, match="small.ckpt.index is not a whole checkpoint of TensorFlow: .*No such file"):
        load(tmp_path / "small.ckpt")
    shutil.copy(HERE / "small.ckpt.data-00000-of-00001", tmp_path)
    with pytest.raises(ValueError, match="a DeepLabv3 of none of .*; it has 4 tensors, the first a/weights"):
        load(tmp_path / "small.ckpt")
    values = tmp_path / "small.ckpt.data-00000-of-00001"
    values.write_bytes(values.read_bytes()[:20])
    with pytest.raises(ValueError, match="of the shape .* says that it has"):
        load(tmp_path / "small.ckpt")


def test_keras_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="h5py, which reads them")
    for name in ("weights.h5", "net.keras"):
        (tmp_path / name).write_bytes(b"anything")
        with pytest.raises(ValueError, match=f"{name}.*(cannot be read as HDF5|not a whole .keras file)"):
            load(tmp_path / name)


def test_names_of_the_port_to_keras() -> None:
    one = torch.zeros(1)
    paths = {
        "Conv/Conv/kernel:0": "MobilenetV2/Conv/weights",
        "model_weights/expanded_conv_depthwise/expanded_conv_depthwise/depthwise_kernel:0":
            "MobilenetV2/expanded_conv/depthwise/depthwise_weights",
        "layers/expanded_conv_3_expand_BN/vars/2": "MobilenetV2/expanded_conv_3/expand/BatchNorm/moving_mean",
        "layers/expanded_conv_3_depthwise/vars/0": "MobilenetV2/expanded_conv_3/depthwise/depthwise_weights",
        "aspp0_BN/aspp0_BN/gamma:0": "aspp0/BatchNorm/gamma",
        "custom_logits_semantic/custom_logits_semantic/bias:0": "logits/semantic/biases",
    }  # fmt: skip
    assert list(names_of_layers(dict.fromkeys(paths, one))) == list(paths.values())
