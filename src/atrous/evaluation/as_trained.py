"""Open a data set with the options that a model was trained with: value range, bands, classes folded into others."""

from __future__ import annotations

from pathlib import Path

from atrous.data.datasets.dataset import SegmentationDataset, list_split, open_dataset
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.models.weights import ModelCard


def open_as_trained(
    data: str | Path, split: str, card: ModelCard, given: DatasetOptions = NO_OPTIONS
) -> tuple[SegmentationDataset, str]:
    """One split of a data set, for a model.

    Args:
        data: as for `open_dataset`.
        split: likewise.
        card: of the model. Its value range and bands count in place of those of `dataset.yaml`. Its training's other
            options count where the data has other classes without them.
        given: options that a person gave; they overrule, and the training's are then left out.

    Returns:
        The data set; and a line about the options of the training, if they count.

    Raises:
        ValueError: as `open_dataset`.
        FileNotFoundError: likewise.
    """
    pictures = DatasetOptions(value_range=card.value_range, bands=card.bands)
    trained = DatasetOptions.parse(card.recipe.get("options") or {})
    if given or not trained or _classes(data, split) == card.names:
        return open_dataset(data, split, given.over(pictures)), ""
    return open_dataset(data, split, trained.over(pictures)), f"{data} is read as in training: {trained}"


def _classes(data: str | Path, split: str) -> tuple[str, ...]:
    try:
        return list_split(data, split).labels.names
    except ValueError:  # an export without its images, for one
        return ()
