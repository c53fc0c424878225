"""The paper's figures: valid weights of an atrous filter (4); grids of photo, ground truth and prediction (6, 7, 8)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from atrous.data.datasets.dataset import SegmentationDataset
from atrous.data.images.image_io import Pixels, write_image
from atrous.data.overlay import overlay
from atrous.data.sampling import open_splits
from atrous.evaluation.distributed import pick_device
from atrous.evaluation.evaluate import Setting, in_eval_mode, predict_classes
from atrous.evaluation.metrics import ConfusionMatrix
from atrous.messages import markdown_table
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import load
from atrous.reproduction.plan import Plan
from atrous.reproduction.report import save_figure
from atrous.training.loader import hardest_classes

MAP_SIDE = 65
"""Of Figure 4's feature map."""

COUNTS = (1, 2, 3, 4, 6, 9)
"""Possible numbers of valid weights of a 3×3 filter: 1, 2 or 3 rows times 1, 2 or 3 columns."""

SEARCHED = 50
"""Images among which the failure of a figure's last row is searched."""


def valid_weights(rate: int, side: int = MAP_SIDE) -> dict[int, Fraction]:
    """Share of a map's positions at which 1, 2, 3, 4, 6 or 9 weights of a 3×3 filter fall on it (Figure 4), exactly."""
    reached = [sum(0 <= position + step * rate < side for step in (-1, 0, 1)) for position in range(side)]
    shares = {count: Fraction(reached.count(count), side) for count in (1, 2, 3)}
    valid = dict.fromkeys(COUNTS, Fraction(0))
    for (down, share), (across, other) in product(shares.items(), repeat=2):
        valid[down * across] += share * other
    return valid


def figure_4_csv(rates: Sequence[int] = range(1, 101)) -> str:
    """The curves as CSV: rate, share of positions with 1, 2, 3, 4, 6 and 9 valid weights, and their mean over 9."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rate", *(f"{count} valid" for count in COUNTS), "mean valid of 9"])
    for rate in rates:
        shares = valid_weights(rate)
        mean = sum(count * share for count, share in shares.items())
        writer.writerow([rate, *(f"{float(share):.6f}" for share in shares.values()), f"{float(mean):.4f}"])
    return text.getvalue()


def figure_4_markdown(rates: Sequence[int] = (1, 6, 12, 18, 24, 32, 36, 48, 60, 64)) -> str:
    """The curves at some rates, ASPP's among them."""
    lines = [["rate", *(f"{count} valid" for count in COUNTS)]]
    lines += [[str(rate), *(f"{float(share):.3f}" for share in valid_weights(rate).values())] for rate in rates]
    return (
        f"# Figure 4. Valid weights of a 3×3 filter on a {MAP_SIDE}×{MAP_SIDE} map\n\n"
        f"Share of the positions at which so many of the 9 weights fall on the map.\n\n{markdown_table(lines)}\n"
    )


def figure_4_plot(path: Path) -> None:
    """The curves of 1, 4 and 9 valid weights, as in the paper.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    rates = range(1, 101)
    for count, colour in ((1, "#2c5f8a"), (4, "#c0792b"), (9, "#4a8f4a")):
        shares = [float(valid_weights(rate)[count]) for rate in rates]
        axes.plot(rates, shares, color=colour, label=f"{count} valid weight{'s' if count > 1 else ''}")
    axes.set_xlabel("atrous rate")
    axes.set_ylabel("normalised count")
    axes.legend(frameon=False)
    save_figure(figure, path)


def write_pictures(plan: Plan, path: Path) -> None:
    """Figure 6, 7 or 8 of a plan whose trainings are finished."""
    models = {}
    for cell, uses in zip(plan.grid.cells, plan.uses, strict=True):
        training, setting = plan.trainings[uses[0][0]], uses[0][1]
        model, _ = load(training.model or training.run, output_stride=setting.output_stride)
        caption = "prediction" if len(plan.grid.cells) == 1 else cell.label
        models[caption] = model.to(pick_device(plan.options.device)).for_inference()
    assert training.data
    dataset = open_splits(training.data, (training.recipe.data.val_split if training.recipe else None) or "val")
    if plan.what == "figure-7":
        assert training.recipe
        chosen = training.recipe.data.bootstrap
        classes = hardest_classes(training.recipe.model.weights) if chosen == "auto" else tuple(chosen)
        indices = images_with_most(dataset, classes)
    else:
        indices = spread_with_failure(next(iter(models.values())), dataset, setting)
    write_image(path, picture_grid(models, dataset, indices, setting))


def predicted(model: DeepLabV3, image: torch.Tensor, setting: Setting) -> Pixels:
    """The classes of an image, uint8 3,H,W, as uint8 H,W."""
    mask: Pixels = (
        predict_classes(in_eval_mode(model, setting.output_stride), image[None], pad_to=setting.pad_to)[0].cpu().numpy()
    )
    return mask


def spread_with_failure(model: DeepLabV3, dataset: SegmentationDataset, setting: Setting, count: int = 5) -> list[int]:
    """Indices spread over a data set, and last the image of lowest mIoU, as in Figure 6."""
    searched = np.linspace(0, len(dataset) - 1, min(SEARCHED, len(dataset))).astype(int).tolist()
    scores: dict[int, float] = {}
    for index in searched:
        sample = dataset[index]
        confusion = ConfusionMatrix(len(dataset.labels), ignore=dataset.labels.ignore)
        confusion.update(torch.from_numpy(predicted(model, sample.image, setting)), sample.mask)
        scores[index] = confusion.scores(dataset.labels.names).miou
    worst = min(scores, key=lambda index: (scores[index] != scores[index], scores[index]))
    others = [index for index in searched if index != worst]
    places = np.linspace(0, len(others) - 1, min(count, len(others))).astype(int)
    return [*dict.fromkeys(others[place] for place in places), worst]


def images_with_most(dataset: SegmentationDataset, classes: Sequence[str], count: int = 6) -> list[int]:
    """Indices of the images with the largest share of some classes, for Figure 7."""
    ids = [dataset.labels.names.index(name) for name in classes]
    shares = [float(np.isin(dataset[i].mask.numpy(), ids).mean()) for i in range(len(dataset))]
    most = sorted(range(len(dataset)), key=lambda i: (-shares[i], i))
    return [i for i in most[:count] if shares[i] > 0]


def picture_grid(
    models: dict[str, DeepLabV3], dataset: SegmentationDataset, indices: Sequence[int], setting: Setting
) -> Image.Image:
    """Rows of photo, ground truth and the prediction of each model."""
    rows = [_row(models, dataset, index, setting) for index in indices]
    width = max(row[0].shape[1] for row in rows)
    captions = ["photo", "ground truth", *models]
    size = max(12, width // 16)
    head, gap = round(size * 1.8), max(2, width // 80)
    height = sum(row[0].shape[0] + gap for row in rows)
    sheet = Image.new("RGB", (len(captions) * (width + gap) - gap, head + height - gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=size)
    for column, caption in enumerate(captions):
        draw.text((column * (width + gap) + width // 2, head // 2), caption, fill="black", font=font, anchor="mm")
    top = head
    for row in rows:
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (column * (width + gap) + (width - picture.shape[1]) // 2, top))
        top += row[0].shape[0] + gap
    return sheet


def _row(
    models: dict[str, DeepLabV3], dataset: SegmentationDataset, index: int, setting: Setting
) -> list[np.ndarray[Any, Any]]:
    sample = dataset[index]
    photo = sample.image.permute(1, 2, 0).contiguous().numpy()
    masks = [sample.mask.numpy(), *(predicted(model, sample.image, setting) for model in models.values())]
    return [photo, *(np.asarray(overlay(photo, mask, dataset.labels, alpha=0.7, legend=False)) for mask in masks)]
