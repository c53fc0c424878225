"""Save and load safetensors weights with an embedded model card.

The tensors are float16, the header holds a `ModelCard`: how to build the model, the classes and their colours, the
normalisation, what was measured, on which data, with which recipe, under which licence. No code from a file is run.
Checkpoints of other libraries are read as if they had been converted (`atrous.models.interchange`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from atrous.atomic import written_whole
from atrous.colours import voc_palette
from atrous.messages import did_you_mean
from atrous.models.aspp import ASPP
from atrous.models.backbone import check_classes_from, mismatch
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import ExportedDeepLabV3, is_exported, open_file
from atrous.models.hub import fetch, is_hub_name
from atrous.models.interchange.base import Converted
from atrous.models.interchange.convert import convert
from atrous.models.interchange.files import PICKLES, TENSORFLOW, check_is_whole
from atrous.models.interchange.tensorflow import table_of
from atrous.models.output_stride import LONGEST_SIDE
from atrous.models.tflite import is_tflite

MODEL_FILE = "model.safetensors"
_HEADER_KEY = "atrous"
_FLOAT16_MAX = torch.finfo(torch.float16).max
_MOST_BRANCHES, _LONGEST_NAME = 16, 200
"""Limits of what a card may ask for, so that no file can fill the memory."""


@dataclass(frozen=True)
class ModelCard:
    """What a weight file says about its model.

    Attributes:
        arguments: of `DeepLabV3`.
        names: of the classes, by id.
        palette: red, green, blue of each class, 0 to 255.
        mean: of each colour, white being 1, that images are normalised with.
        std: likewise.
        output_stride: that it was trained at and predicts at unless told otherwise.
        longest_side: in pixels, that images are resized to for prediction; None for the images as they are.
        ignore: the label that does not count.
        value_range: the values of images of more than 8 bits that are black and white; None for their type's range.
        bands: of images of several bands, those that are read, counted from 1; empty for the file's colours.
        metrics: what was measured, named by data, split and setting; mIoU from 0 to 1.
        data: what it was trained on.
        recipe: every setting of its training, or empty.
        licence: of the weights.
        description: one line.
    """

    arguments: dict[str, Any]
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    output_stride: int = 16
    longest_side: int | None = None
    ignore: int = 255
    value_range: tuple[float, float] | None = None
    bands: tuple[int, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    description: str = ""

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read `to_json`'s form.

        Raises:
            ValueError: if a field is missing, unknown or of the wrong kind.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("the model card is no JSON object")
        known = {f.name for f in fields(cls)}
        required = {"arguments", "names", "palette", "mean", "std"}
        if raw.keys() - known or required - raw.keys():
            raise ValueError(
                f"the model card lacks {sorted(required - raw.keys())} and has the unknown {sorted(raw.keys() - known)}"
            )
        try:
            raw["names"] = tuple(str(name) for name in raw["names"])
            raw["palette"] = tuple((int(r), int(g), int(b)) for r, g, b in raw["palette"])
            raw["mean"], raw["std"] = (tuple(float(v) for v in raw[key]) for key in ("mean", "std"))
            assert isinstance(raw["arguments"], dict) and len(raw["mean"]) == len(raw["std"]) == 3
            most: dict[type, int] = {list: _MOST_BRANCHES, dict: 0, str: _LONGEST_NAME}
            assert all(len(v) <= most[type(v)] for v in raw["arguments"].values() if type(v) in most)
            assert len(raw["palette"]) == len(raw["names"]) == raw["arguments"]["num_classes"]
            assert all(0 <= part <= 255 for colour in raw["palette"] for part in colour) and min(raw["std"]) > 0
            assert len(raw["names"]) <= raw.get("ignore", 255) <= (255 if len(raw["names"]) <= 255 else 65535)
            raw["value_range"] = _value_range(raw.get("value_range"))
            raw["bands"] = tuple(raw.get("bands", ()))
            assert len(raw["bands"]) in (0, 1, 3) and all(type(band) is int and band > 0 for band in raw["bands"])
            side = raw.get("longest_side")
            assert side is None or (type(side) is int and 1 <= side <= LONGEST_SIDE)
        except AssertionError as error:
            raise ValueError(
                "the model card is not well formed: its values do not go together, or are too large"
            ) from error
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ValueError(f"the model card is not well formed: {error!r}") from error
        return cls(**raw)


def _value_range(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (float(each) for each in value)
    assert -math.inf < low < high < math.inf
    return low, high


def save(model: nn.Module, path: str | Path, card: ModelCard, *, half: bool = True) -> None:
    """Write a model's weights as float16 safetensors, whole or not at all.

    A tensor that float16 cannot hold stays float32.

    Args:
        model: a `DeepLabV3`, also inside ``torch.compile`` or ``DataParallel``.
        path: of the file.
        card: describes the model.
        half: False for float32.

    Raises:
        ValueError: before anything is written, if `load` could not open the file: an inference form, a pruned model, a
            card of another network, NaN or infinity.
    """
    state = unwrapped(model).state_dict()
    try:
        with torch.device("meta"):
            expected = _build(ModelCard.from_json(card.to_json())).state_dict()
    except ValueError as error:
        raise ValueError(f"{path} is not written: {error}") from error
    if problems := _misfits(expected, state, "the weights"):
        hint = "" if "NaN" in problems[0] else "; save the model as it is trained, not pruned, nor its inference form"
        raise ValueError(f"{path} is not written, for it could not be loaded: {problems[0]}{hint}")
    tensors = {key: _halve(value) if half else value.detach().cpu().contiguous() for key, value in state.items()}
    with written_whole(Path(path)) as file:  # not save_file: it leaves files that nobody but their owner may read
        file.write(serialize(tensors, metadata={_HEADER_KEY: card.to_json()}))


def load(source: str | Path, *, output_stride: int | None = None) -> tuple[DeepLabV3, ModelCard]:
    """A model in float32 and ``eval()``, with its card.

    Args:
        source: a name (`names` lists them), a weight file, a folder with one (a run's folder, or its ``best``), or a
            file that ``atrous export`` wrote, which is run by its own runtime; or a checkpoint of another library, or
            the folder of its ``save_pretrained``; or ``user/name@revision`` on the Hugging Face hub.
        output_stride: other than the one on the card.

    Raises:
        ValueError: if there is no such thing, or it is no weight file that is known, or does not fit its own card.
    """
    path = resolve(source)
    if is_exported(path):
        return _load_exported(path, output_stride)
    card = read_card(path)
    try:
        model = _build(card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    load_into(model, path)
    if output_stride is not None:
        model.output_stride = output_stride
    model.longest_side, model.card = card.longest_side, card
    return model.eval(), card


def _load_exported(path: Path, output_stride: int | None) -> tuple[DeepLabV3, ModelCard]:
    runtime = open_file(path)
    try:
        card = ModelCard.from_json(runtime.card)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    model = ExportedDeepLabV3(runtime, card.arguments, card.mean, card.std, card.longest_side)
    if output_stride is not None:
        model.output_stride = output_stride
    return model, card


def _build(card: ModelCard) -> DeepLabV3:
    try:
        # Without weights=None, a card could ask for a download.
        arguments = {**card.arguments, **layout_of(card.arguments)}
        return DeepLabV3(**arguments, weights=None, output_stride=card.output_stride)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"its model card does not describe a DeepLabV3: {error}") from error


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and ``AveragedModel``."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    while isinstance(
        inner := getattr(model, "module" if isinstance(model, wrappers) else "_orig_mod", None), nn.Module
    ):
        model = inner
    return model


def layout_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a saved model that are no keys of a recipe: it keeps the layers and rates it was trained with.

    Args:
        arguments: of `DeepLabV3`, from a card or a checkpoint. Before there was `consistent_rates`, ``first`` and all
            networks of timm had it, and ``first-dilated`` was ``first`` without.
    """
    stride_in = arguments.get("stride_in")
    others = {key: arguments[key] for key in _LAYOUT if key in arguments}
    before = stride_in == "first" or str(arguments.get("backbone")).startswith("timm/")
    stride_in = "first" if stride_in == "first-dilated" else stride_in
    return {**others, "stride_in": stride_in, "consistent_rates": arguments.get("consistent_rates", before)}


_LAYOUT = ("last_conv", "head_conv", "aspp_filters", "aspp_projection", "stem", "average_shortcut", "convention")
"""Arguments that no recipe has: a network has them from the weights that it starts from."""


def load_into(
    model: DeepLabV3, source: str | Path, *, reset_head: bool = False, classes_from: Sequence[int] = ()
) -> None:
    """Load the weights of `source` into a model, and the normalisation that they were trained with.

    Args:
        model: receives them.
        source: as for `load`.
        reset_head: keep the model's own classifier, for other classes, and the whole head where the shapes differ. 3×3
            branches of ASPP that the file does not have are added to its head, without effect until they are trained.
        classes_from: the class of `source` that each class of the model starts from, by id; empty for the same classes.

    Raises:
        ValueError: if they do not fit; names both numbers of classes, and the keys and shapes that differ. Or if they
            hold NaN or infinity.
    """
    path = resolve(source)
    card = read_card(path)
    theirs, ours = card.arguments["num_classes"], model.num_classes
    state, own = _read_tensors(path), model.state_dict()
    backbones = [str(arguments.get("backbone")) for arguments in (card.arguments, getattr(model, "arguments", {}))]
    problems = []
    if classes_from:
        rows, theirs = check_classes_from(classes_from, ours, theirs, path), ours
        state |= {key: state[key][rows] for key in ("classifier.weight", "classifier.bias") if key in state}
    if theirs != ours and not reset_head:
        problems.append(
            f"{path} has {theirs} classes, expected {ours}; "
            "with reset_head the classifier starts anew and the rest is kept"
        )
    if theirs != ours or reset_head:
        state = _with_own(state, own, "classifier.")
    if reset_head and isinstance(model.head, ASPP) and not card.arguments.get("aspp_rates"):
        state = _with_atrous_branches(state, own, model.head)
    if reset_head and _shapes(state) != _shapes(own):
        state = _with_own(state, own, *_HEAD)
    if misfits := _misfits(own, state, f"the weights in {path}"):
        other = f"; the file has the backbone {backbones[0]}, the model {backbones[1]}"
        problems.append(misfits[0] + (other if backbones[0] != backbones[1] else ""))
    if problems:
        raise ValueError("; ".join(problems))
    model.load_state_dict(state)
    model.backbone.mean, model.backbone.std = card.mean, card.std


_HEAD = ("head.", "head_conv.")


def _with_own(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *parts: str) -> dict[str, Tensor]:
    """A state dict that was read, with the model's own tensors for some parts."""
    kept = {key: value for key, value in state.items() if not key.startswith(parts)}
    return {**kept, **{key: value for key, value in own.items() if key.startswith(parts)}}


def _with_atrous_branches(state: Mapping[str, Tensor], own: Mapping[str, Tensor], aspp: ASPP) -> dict[str, Tensor]:
    """The head of a network without 3×3 branches for one that has them, whose logits are the same at first."""
    branches = {key: value for key, value in own.items() if key.startswith("head.atrous.")}
    projection = {key: aspp.with_branches(state[key]) for key in ("head.project.0.weight",) if key in state}
    return {**state, **branches, **projection}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items() if key.startswith(_HEAD)}


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> list[str]:
    try:
        mismatch(own, state, what)
    except ValueError as error:
        return [str(error)]
    sums = {key: value.sum(dtype=torch.float32) for key, value in state.items() if value.is_floating_point()}
    bad = [key for key, total in sums.items() if not total.isfinite() and not state[key].float().isfinite().all()]
    return [f"{what} hold NaN or infinity in {', '.join(bad[:3])}"] if bad else []


def card_of(converted: Converted, source: str) -> ModelCard:
    """The card of a converted checkpoint; its classes have VOC's colours where it does not say any."""
    names = converted.names
    palette = converted.palette if len(converted.palette) == len(names) else voc_palette(len(names))
    return ModelCard(
        {**converted.arguments, "num_classes": len(names)}, names, palette, converted.mean, converted.std,
        converted.output_stride, description=f"converted from {source}, a checkpoint of {converted.library}",
    )  # fmt: skip


def _is_foreign(path: Path) -> bool:
    """Whether a file is a checkpoint of another library."""
    if path.suffix.lower() in (PICKLES | TENSORFLOW | {".npz"}):
        return True
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return _HEADER_KEY not in (file.metadata() or {})
    except (SafetensorError, OSError, UnicodeDecodeError):
        return False  # what is wrong is said by whoever reads it


def check_foreign(path: Path) -> None:
    """Refuse a file that is known here and no checkpoint of another library.

    Raises:
        ValueError: if it is a weight file of ours, a damaged one, an exported file or a LiteRT file.
    """
    known = path.suffix == ".safetensors" or is_exported(path) or is_tflite(path)
    if known and not _is_foreign(path):
        read_card(path)
        raise ValueError(f"{path} is a weight file of atrous; convert --to LIBRARY gives one of that library")


def _converted(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    stamp = path.stat()
    return _convert_once(path, stamp.st_mtime_ns, stamp.st_size)


@functools.lru_cache(maxsize=1)
def _convert_once(path: Path, *_: int) -> tuple[ModelCard, dict[str, Tensor]]:
    model, converted = convert(path)
    said = [f"read as a checkpoint of {converted.library}", *(f"assumed {guess}" for guess in converted.guesses)]
    warnings.warn(f"{path}: {'; '.join(said)}; atrous convert takes what is otherwise", stacklevel=2)
    return card_of(converted, path.name), model.state_dict()


def read_card(path: Path) -> ModelCard:
    """The card in a weight file's header, without reading its tensors; that of a foreign checkpoint, converted.

    Raises:
        ValueError: if the file is no safetensors file, or none that is known.
    """
    if is_exported(path):
        raise ValueError(f"{path} is an exported file, which can only be run; expected a name, a run or a weight file")
    if is_tflite(path):
        raise ValueError(
            f"{path} is a LiteRT file, which runs whole and by LiteRT alone; expected a weight file, or one that was "
            "exported as .onnx, .xml or .pt2"
        )
    if _is_foreign(path):
        return _converted(path)[0]
    try:
        check_is_whole(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a safetensors file of weights: {error}") from error
    if _HEADER_KEY not in header:
        raise ValueError(f"{path} is a safetensors file without atrous's model card in its header")
    try:
        return ModelCard.from_json(header[_HEADER_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def resolve(source: str | Path) -> Path:
    """The weight file, or exported file, that a name, a file or a folder stands for.

    Raises:
        ValueError: if there is none, with the nearest name.
    """
    path = Path(source)
    if str(source) in names():
        return _zoo()[str(source)]
    if table := table_of(path):
        return table
    if os.path.isfile(path):  # unlike Path's, false for a name too long for any file
        return path
    if os.path.isdir(path):
        for file in (path / MODEL_FILE, path / "best" / MODEL_FILE):
            if file.is_file():
                return file
        if (path / "pytorch_model.bin").is_file():  # an older save_pretrained
            return path / "pytorch_model.bin"
        raise ValueError(f"{path} holds neither {MODEL_FILE} nor best/{MODEL_FILE}")
    if is_hub_name(source):
        return fetch(str(source))
    hint = did_you_mean(source, names(), otherwise="the names are")
    raise ValueError(f"there is no weight file, run folder or named model {str(source)!r}{hint}")


def digest(model: nn.Module) -> str:
    """SHA-256 of a model's tensors and their names, as 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()


def names() -> list[str]:
    """The names of the weights that the package carries."""
    return sorted(_zoo())


def cards() -> dict[str, tuple[Path, ModelCard]]:
    """File and card of every named model."""
    return {name: (path, read_card(path)) for name, path in sorted(_zoo().items())}


def speeds() -> tuple[str, dict[str, dict[str, float]]]:
    """The hardware, and the milliseconds a photograph took on it, by model and metric of its card."""
    file = _folder() / "speed.json"
    if not file.exists():
        return "", {}
    speed = json.loads(file.read_text(encoding="utf-8"))
    return f"{speed['hardware']}, {speed['size'][0]}×{speed['size'][1]} pixels", speed["milliseconds"]


def _zoo() -> Mapping[str, Path]:
    return {path.stem: path for path in _folder().glob("*.safetensors")}


def _folder() -> Path:
    return Path(str(resources.files("atrous") / "models" / "zoo"))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if _is_foreign(path):
        return dict(_converted(path)[1])
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def _halve(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point() or value.abs().max() > _FLOAT16_MAX:
        return value
    return value.half()
