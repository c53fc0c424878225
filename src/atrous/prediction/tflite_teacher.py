"""Teachers for pseudo-labels: a model of ours, or a trained TF-Lite graph.

A teacher gives the probability of every class at every pixel of a photograph; `atrous.prediction.pseudo_label` writes
masks from them.

    teacher = open_teacher("deeplabv3_mnv2_pascal_quant.tflite", labels=VOC)
    teacher.probabilities("cat.jpg")  # float32 21,H,W
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from atrous.data.images.image_io import read_image
from atrous.data.labels import Labels
from atrous.data.transforms import resized
from atrous.evaluation.evaluate import check_scales, class_difference
from atrous.models.tflite import check_graph
from atrous.prediction.predictor import Predictor

_GRAY = 127


class Teacher(Protocol):
    """A model that gives the probabilities of its classes: see `open_teacher`."""

    labels: Labels

    def probabilities(self, source: Path, /) -> npt.NDArray[np.float32]:
        """Probability of every class at every pixel of a photograph, K,H,W."""


def open_teacher(
    source: str | Path,
    *,
    labels: Labels | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    output_stride: int | None = None,
    device: str | None = None,
) -> Teacher:
    """A teacher from a name, a run folder, a weight file, or a ``.tflite`` file.

    Args:
        source: of its weights.
        labels: the classes of a TF-Lite graph, which holds no names; those that a model of ours must have.
        scales: average the probabilities over these scales; for a TF-Lite graph, 1 fits the longest side to its input.
        flip: average over left-right flipped inputs, too.
        output_stride: of our own models; a TF-Lite graph has its own.
        device: of our own models.

    Raises:
        ValueError: if there is no such model, or it has other classes.
    """
    check_scales(scales)
    if Path(source).suffix != ".tflite":
        teacher = Predictor.load(source, scales=scales, flip=flip, output_stride=output_stride, device=device)
        if labels and (difference := class_difference(teacher.labels.names, labels.names)):
            raise ValueError(f"{source}: {difference}; expected a teacher of the same classes")
        return teacher
    if labels is None:
        raise ValueError(f"{source} holds no class names; expected a dataset.yaml that has them")
    return TFLiteTeacher(Path(source), labels, scales=scales, flip=flip)


class TFLiteTeacher:
    """A TF-Lite segmentation graph, run by ai-edge-litert.

    Its input is 1,S,S,3 uint8. Its output is a grid of K logits, or their argmax, as in the DeepLab graphs that the
    authors publish. A photograph is resized so that its longest side is S times the scale. A smaller one is padded with
    gray; a larger one is segmented by a sliding window.

    Args:
        path: of the graph.
        labels: its K classes.
        scales: see `open_teacher`.
        flip: likewise.

    Raises:
        ValueError: if ai-edge-litert is not installed, or the graph is not as above.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: Path, labels: Labels, *, scales: Sequence[float] = (1.0,), flip: bool = False) -> None:
        check_graph(path)
        self.labels, self.scales, self.flip = labels, tuple(scales), flip
        self._graph, details = _interpreter(path)
        self._input, shape, dtype = details["index"], list(details["shape"]), details["dtype"]
        self.side = int(shape[1])
        if shape != [1, self.side, self.side, 3] or dtype is not np.uint8:
            raise ValueError(f"{path}: its input is {dtype.__name__} of shape {shape}; expected uint8 of 1, S, S, 3")
        self._logits = self._find_logits(path)

    def probabilities(self, source: Path) -> npt.NDArray[np.float32]:
        """Probability of every class, averaged over scales and flips, float32 K,H,W; errors as `read_image`."""
        image = torch.from_numpy(read_image(source)).permute(2, 0, 1)
        height, width = image.shape[1:]
        total = torch.zeros(len(self.labels), height, width)
        views = [(scale, flipped) for scale in self.scales for flipped in ((False, True) if self.flip else (False,))]
        for scale, flipped in views:
            factor = self.side * scale / max(height, width)
            size = (max(1, round(height * factor)), max(1, round(width * factor)))
            scaled = resized(image.flip(-1) if flipped else image, size)
            logits = F.interpolate(self._by_windows(scaled)[None], (height, width), mode="bilinear")[0]
            probabilities = logits.softmax(0)
            total += probabilities.flip(-1) if flipped else probabilities
        array: npt.NDArray[np.float32] = (total / len(views)).numpy()
        return array

    def _by_windows(self, image: Tensor) -> Tensor:
        """Logits of a photograph of any size, uint8 3,H,W to float K,H,W: the mean where windows overlap."""
        height, width = image.shape[1:]
        total, count = torch.zeros(len(self.labels), height, width), torch.zeros(height, width)
        for top in _starts(height, self.side):
            for left in _starts(width, self.side):
                part = image[:, top : top + self.side, left : left + self.side]
                high, wide = part.shape[1:]
                total[:, top : top + high, left : left + wide] += self._window(part)
                count[top : top + high, left : left + wide] += 1
        return total / count

    def _window(self, part: Tensor) -> Tensor:
        padded = np.full((1, self.side, self.side, 3), _GRAY, dtype=np.uint8)
        high, wide = part.shape[1:]
        padded[0, :high, :wide] = part.permute(1, 2, 0).numpy()
        self._graph.set_tensor(self._input, padded)
        self._graph.invoke()
        raw = self._graph.get_tensor(self._logits["index"]).astype(np.float32)
        scale, zero = self._logits["quantization"]
        grid = torch.from_numpy((raw - zero) * scale if scale else raw).permute(0, 3, 1, 2)
        # In DeepLab's graphs the first and the last feature lie on the first and the last pixel.
        return F.interpolate(grid, (self.side, self.side), mode="bilinear", align_corners=True)[0, :, :high, :wide]

    def _find_logits(self, path: Path) -> dict[str, Any]:
        """The smallest tensor of K channels at the end of the graph: logits before upsampling and argmax."""
        classes, logits = len(self.labels), None
        for tensor in reversed(self._graph.get_tensor_details()):
            shape = list(tensor["shape"])
            if len(shape) == 4 and shape[3] == classes and shape[1] == shape[2]:
                if logits is None or shape[1] <= logits["shape"][1]:
                    logits = tensor
            elif logits is not None:
                break
        if logits is None:
            raise ValueError(f"{path}: no layer has {classes} channels, one for each class of the data")
        return dict(logits)


def _interpreter(path: Path) -> tuple[Any, dict[str, Any]]:
    litert = importlib.import_module("ai_edge_litert.interpreter")
    # The default delegate fuses layers, so that the logits cannot be read.
    plain = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        graph = litert.Interpreter(
            str(path),
            num_threads=torch.get_num_threads(),
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=plain,
        )
        graph.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read as a TF-Lite graph: {' '.join(str(error).split())}") from None
    return graph, graph.get_input_details()[0]


def _starts(length: int, side: int) -> Iterator[int]:
    """First pixels of windows of `side` that cover `length`; the last window ends with it."""
    count = max(1, -(-length // side))
    for i in range(count):
        yield round(i * (length - side) / max(1, count - 1)) if count > 1 else 0
