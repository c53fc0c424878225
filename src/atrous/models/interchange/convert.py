"""From a checkpoint of another library to a `DeepLabV3` and what a model card says.

    model, converted = convert("deeplabv3_resnet50_coco.pth")

`READERS` lists the libraries; each has a file of its own in this folder. Nothing in a file is run
(`atrous.models.interchange.files`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from atrous.messages import counted, listed
from atrous.models.backbone import mismatch
from atrous.models.batch_norm import batch_norms_of
from atrous.models.deeplab import DeepLabV3
from atrous.models.interchange import detectron2, huggingface, mmsegmentation, research, smp, torchvision, vainf
from atrous.models.interchange.base import Checkpoint, Choices, Converted, Reader
from atrous.models.interchange.files import read_file
from atrous.models.output_stride import Dial

READERS: dict[str, Reader] = {
    "torchvision": torchvision.read,
    "segmentation_models_pytorch": smp.read,
    "Hugging Face": huggingface.read,
    "mmsegmentation": mmsegmentation.read,
    "VainF": vainf.read,
    "detectron2": detectron2.read,
    "research/deeplab": research.read,
}
"""By the name of the library."""

NO_CHOICES = Choices()


def convert(path: str | Path, choices: Choices = NO_CHOICES) -> tuple[DeepLabV3, Converted]:
    """Read a checkpoint of another library.

    Args:
        path: of the file, or of a folder with ``config.json``.
        choices: what the checkpoint does not say.

    Returns:
        The network with its weights, in float32 and ``eval()``; and what the checkpoint said, with the names of the
        classes completed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the output stride is none that there is, or the file cannot be read as data alone, is of no
            library that is known, of another network, or does not fit the network that it says it is; all differences
            in one line.
    """
    if choices.output_stride is not None:
        Dial(choices.output_stride)
    checkpoint = read_file(Path(path))
    for read in READERS.values():
        try:
            converted = read(checkpoint, choices)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"{path}: it lacks a tensor or setting that its network has: {error}") from error
        if converted is not None:
            return _built(Path(path), converted, choices)
    raise ValueError(f"{path}: without atrous's model card, and {_unknown(checkpoint)}")


def _unknown(checkpoint: Checkpoint) -> str:
    """What a checkpoint is that no reader knows."""
    head = next((key for key in ("fc.weight", "classifier.weight", "head.fc.weight") if checkpoint.has(key)), "")
    if head and checkpoint.tensors[head].ndim == 2:
        return (
            f"a classifier of images, of {len(checkpoint.tensors[head]):,} classes; expected a DeepLabv3; a backbone "
            "starts from it by --set backbone=NAME --set weights=FILE"
        )
    keys = list(checkpoint.tensors)
    return (
        f"a DeepLabv3 of none of {', '.join(READERS)}; it has {counted(len(keys), 'tensor')}, the first "
        f"{', '.join(keys[:3])}; docs/checkpoints.md says what is read"
    )


def _built(path: Path, converted: Converted, choices: Choices) -> tuple[DeepLabV3, Converted]:
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in converted.tensors.items()}
    classifier = tensors.get("classifier.weight")
    if classifier is None or classifier.ndim != 4:
        raise ValueError(f"{path}: it has no classifier")
    names, guesses = choices.names or converted.names, converted.guesses
    problems: list[str] = []
    if len(classifier) == 1:  # a sigmoid's, which is the softmax of 0 and it
        tensors |= {key: torch.cat([torch.zeros_like(value), value]) for key, value in tensors.items()
                    if key in ("classifier.weight", "classifier.bias")}  # fmt: skip
        names = names if len(names) > 1 else ("background", *(names or ("foreground",)))
        guesses += ("two classes, the second where its one logit is above 0",)
    count = len(tensors["classifier.weight"])
    names = names or tuple(f"class {i}" for i in range(count))
    if len(names) != count:
        problems.append(f"{path} has {count} classes; expected as many names, found {len(names)}")
    elif twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{path} has several classes named {listed(twice)}; expected different names")
    try:
        with torch.device("meta"):  # no random weights are drawn that would be replaced at once
            model = DeepLabV3(**converted.arguments, num_classes=count, output_stride=converted.output_stride)
        tensors = {**_counters(model), **tensors}
        mismatch(model.state_dict(), tensors, f"the weights in {path}, read as {converted.library}'s,")
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error
    except ValueError as error:
        hint = f"; expected {converted.library}'s own DeepLabV3, whole and unchanged"
        problems.append(f"{error}{hint}" if str(path) in str(error) else f"{path}: {error}")
    if not all(
        0 < std < math.inf and abs(mean) < math.inf for mean, std in zip(converted.mean, converted.std, strict=True)
    ):
        problems.append(f"{path} normalises by mean {converted.mean} and deviation {converted.std}; expected numbers")
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        problems.append(f"{path} holds NaN or infinity in {', '.join(bad[:3])}")
    if problems:
        raise ValueError("; ".join(problems))
    kinds = {key: value.dtype for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.to(kinds[key]) for key, value in tensors.items()}, assign=True)
    _keep_epsilon(model, converted.epsilon)
    model.backbone.mean, model.backbone.std = converted.mean, converted.std
    return model.eval(), replace(converted, names=names, guesses=guesses)


def _counters(model: DeepLabV3) -> dict[str, torch.Tensor]:
    """Batch norm's counters of steps, which older checkpoints lack."""
    return {key: torch.tensor(0) for key in model.state_dict() if key.endswith("num_batches_tracked")}


@torch.no_grad()
def _keep_epsilon(model: DeepLabV3, epsilon: tuple[float | None, float | None]) -> None:
    """Move what their batch norm adds to the variance, beyond what ours adds, into the variance."""
    for part, theirs in zip(((model.backbone,), (model.head, model.head_conv)), epsilon, strict=True):
        for norm in (norm for module in part for norm in batch_norms_of(module)):
            assert norm.running_var is not None
            norm.running_var += (norm.eps if theirs is None else theirs) - norm.eps
