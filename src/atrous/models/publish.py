"""Write a model as a folder with a README that the Hugging Face hub understands, and upload it.

model.save_pretrained("folder")                       # model.safetensors and README.md
model.push_to_hub("user/name")
model = DeepLabV3.from_pretrained("user/name@revision")
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from atrous.atomic import written_whole
from atrous.colours import voc_palette
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import requirement
from atrous.models.hub import plain
from atrous.models.weights import MODEL_FILE, ModelCard, save

_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    "cc0-1.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "isc", "unlicense", "openrail",
)  # fmt: skip
_METRICS = {"miou": ("mean_iou", "mIoU"), "pixel_accuracy": ("accuracy", "pixel accuracy"),
            "mean_accuracy": ("mean_accuracy", "mean accuracy")}  # fmt: skip


def save_pretrained(model: DeepLabV3, folder: str | Path, card: ModelCard | None = None, *, half: bool = True) -> None:
    """Write ``model.safetensors`` and a ``README.md`` with the hub's metadata into a folder.

    Args:
        model: as for `atrous.save`.
        folder: is made if it is not there.
        card: describes the model; None for the one that it was loaded with, else one with numbered classes.
        half: False for float32.

    Raises:
        ValueError: as for `atrous.save`.
    """
    card = card or getattr(model, "card", None) or _numbered(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / MODEL_FILE, card, half=half)
    with written_whole(folder / "README.md") as file:
        file.write(readme(card, folder.resolve().name).encode())


def push_to_hub(
    model: DeepLabV3, name: str, card: ModelCard | None = None, *, private: bool = False, half: bool = True
) -> str:
    """Upload what `save_pretrained` writes, by the account that huggingface_hub is logged in with.

    Args:
        model: as there.
        name: ``user/name``; it is made if it is not there.
        card: as there.
        private: of a model that is made.
        half: as there.

    Returns:
        ``user/name@commit``, which `atrous.load` takes.

    Raises:
        ValueError: if huggingface_hub is missing, or the hub refuses or cannot be reached.
    """
    hub = requirement("huggingface_hub", "hub")
    api = hub.HfApi(library_name="atrous")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name.rpartition("/")[2]
        save_pretrained(model, folder, card, half=half)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a DeepLabv3 of atrous")
        except Exception as error:  # the hub's, and those of its client for HTTP, which differ by version
            raise ValueError(plain(error, name)) from None
    return f"{name}@{done.oid}"


def _numbered(model: DeepLabV3) -> ModelCard:
    count = model.num_classes
    return ModelCard(
        model.arguments, tuple(f"class {i}" for i in range(count)), voc_palette(count), model.mean, model.std,
        model.output_stride, model.longest_side,
    )  # fmt: skip


def readme(card: ModelCard, name: str) -> str:
    """A model card of the hub: its metadata, what the model is, how to load it, what was measured."""
    data = yaml.safe_dump(metadata(card, name), sort_keys=False, allow_unicode=True)
    backbone, stride = card.arguments.get("backbone", "?"), card.output_stride
    parts = [f"---\n{data}---", f"# {name}", card.description]
    parts.append(f"DeepLabv3 with {backbone} at output stride {stride}, for semantic segmentation.")
    parts.append(
        "```python\nfrom atrous import Predictor\n\n"
        f'predictor = Predictor.load("USER/{name}")  # or the path of this folder\n'
        'predictor("photo.jpg").overlay().save("out.png")\n```\n\n'
        "Needs `pip install 'atrous[hub]'`. `USER/NAME@COMMIT` loads the same weights for good."
    )
    parts += [f"## Data\n\n{card.data}"] if card.data else []
    if rows := _rows(card):
        parts.append("## Measured\n\n| split and setting | metric | value |\n| --- | --- | --- |\n" + "\n".join(
            f"| {setting} | {_METRICS[key][1]} | {value:.4f} |" for setting, key, value in rows))  # fmt: skip
    parts.append("## Classes\n\n" + ", ".join(f"{i} {label}" for i, label in enumerate(card.names)))
    parts.append(f"## Licence\n\n{card.licence or 'not stated'}")
    return "\n\n".join(part for part in parts if part) + "\n"


def metadata(card: ModelCard, name: str) -> dict[str, Any]:
    """The metadata of a README, by the hub's schema."""
    licence = card.licence.strip()
    data: dict[str, Any] = {"library_name": "atrous", "pipeline_tag": "image-segmentation"}
    if licence.lower() in _LICENCES:
        data["license"] = licence.lower()
    elif licence:
        data |= {"license": "other", "license_name": _slug(licence)}
    data["tags"] = ["semantic-segmentation", "deeplabv3", "pytorch"]
    results = []
    for setting, key, value in _rows(card):
        split, _, rest = setting.partition(", ")
        title = f"{_METRICS[key][1]} ({rest})" if rest else _METRICS[key][1]
        dataset = (card.data or "unknown").partition(":")[0].partition(",")[0]
        results.append({
            "task": {"type": "image-segmentation", "name": "Semantic segmentation"},
            "dataset": {"name": dataset, "type": _slug(dataset), "split": split},
            "metrics": [{"type": _METRICS[key][0], "value": value, "name": title}],
        })  # fmt: skip
    return {**data, "model-index": [{"name": name, "results": results}]} if results else data


def _rows(card: ModelCard) -> list[tuple[str, str, float]]:
    """Setting, metric and value of what was measured."""
    return [
        (str(setting), key, float(values[key]))
        for setting, values in card.metrics.items()
        if isinstance(values, dict)
        for key in _METRICS
        if isinstance(values.get(key), (int, float))
    ]


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:90] or "unknown"
