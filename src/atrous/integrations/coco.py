"""Results as a COCO data set: images, categories, and an annotation for each class of each image.

document = coco.dataset([predictor("a.jpg"), predictor("b.jpg")])
Path("instances.json").write_text(json.dumps(document))
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from atrous.data.palette import is_background
from atrous.data.polygons import run_lengths
from atrous.messages import counted
from atrous.prediction.segmentation import Segmentation, box_of


def dataset(results: Iterable[Segmentation], *, background: bool = False) -> dict[str, Any]:
    """Results of one model as COCO's JSON; a category has the id that the class has in masks.

    Args:
        results: in the order of the image ids, which begin with 1. The file name is the result's `source`.
        background: annotate the class ``background``, too.

    Raises:
        ValueError: if a result has other classes than the first.
    """
    document: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    labels = None
    for image_id, result in enumerate(results, 1):
        labels = labels or result.labels
        if result.labels != labels:
            names = counted(len(result.labels), "class", "classes")
            raise ValueError(f"result {image_id} has {names} of another model; expected those of the first")
        height, width = result.mask.shape
        document["images"].append({"id": image_id, "file_name": result.source, "width": width, "height": height})
        first = len(document["annotations"]) + 1
        document["annotations"] += annotate(result, image_id, first, background=background)
    if labels is not None:
        document["categories"] = [
            {"id": i, "name": name} for i, name in enumerate(labels.names) if background or not is_background(name)
        ]
    return document


def annotate(
    result: Segmentation, image_id: int = 1, first_id: int = 1, *, background: bool = False
) -> list[dict[str, Any]]:
    """One annotation for each class, the mask as compressed run lengths; `score` where there is confidence."""
    annotations: list[dict[str, Any]] = []
    for i, name in result.names.items():
        if is_background(name) and not background:
            continue
        region = result.mask == i
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": i,
                "segmentation": run_lengths(region),
                "area": int(region.sum()),
                "bbox": box_of(region),
                "iscrowd": 0,
                **({} if result.confidence is None else {"score": result.confidences[name]}),
            }
        )
    return annotations
