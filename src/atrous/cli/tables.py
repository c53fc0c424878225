"""Results as tables for people, drawn by rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shares_table(files: dict[str, dict[str, float]]) -> Any:
    """The classes found in each file."""
    from rich.table import Table

    table = Table("file", "classes, by share of the pixels")
    for name, areas in files.items():
        table.add_row(name, ", ".join(f"{label} {share:.1%}" for label, share in areas.items()))
    return table


def scores_table(result: Any) -> Any:
    """What an evaluation found, by class."""
    from rich.table import Table

    scores = result.scores
    setting = f"output stride {result.output_stride}, scales {', '.join(map(str, result.scales))}"
    title = f"{result.images} images in {result.seconds:.1f} s, {setting}{', flipped' if result.flip else ''}"
    left_out = f"left out of the mean, in neither truth nor prediction: {', '.join(scores.left_out)}"
    table = Table(
        "class", "IoU", "accuracy", title=title, caption=left_out if scores.left_out else None, show_footer=True
    )
    for name, iou, accuracy in zip(scores.names, scores.iou, scores.accuracy, strict=True):
        table.add_row(name, *("-" if value != value else f"{value:.2%}" for value in (iou, accuracy)))
    table.columns[0].footer = "mean"
    table.columns[1].footer = f"{scores.miou:.2%}"
    table.columns[2].footer = f"{scores.mean_accuracy:.2%} (of pixels {scores.pixel_accuracy:.2%})"
    return table


def models_table(rows: dict[str, dict[str, Any]], hardware: str = "", *, told: bool = True) -> Any:
    """The named weights: a row for each setting that was measured, then a line for each model if `told`."""
    from rich.console import Group
    from rich.table import Table

    table = Table("name", "MB", "measured on", "mIoU", "ms", padding=(0, 1, 0, 0))
    table.caption = f"ms: {hardware}" if hardware else None
    table.columns[0].min_width = max(map(len, rows), default=0)  # a name must be read whole, for it is to be typed
    lines = []
    for name, row in rows.items():
        first = (name, f"{row['megabytes']:.1f}")
        for setting, metrics in row["metrics"].items():
            miou = "-" if metrics.get("miou") is None else f"{metrics['miou']:.2%}"
            table.add_row(*first, setting, miou, f"{metrics.get('milliseconds', '')}")
            first = ("", "")
        if first[0]:
            table.add_row(*first, "", "", "")
        lines.append(f"{name}: {len(row['classes'])} classes; {row['description']}. Licence: {row['licence']}.")
    return Group(table, *(lines if told else ()))


def model_table(name: str, row: dict[str, Any], hardware: str = "") -> Any:
    """All about one named model."""
    from rich.console import Group

    about = (
        f"{row['description']}. Trained on {row['data']}. Licence: {row['licence']}.",
        f"It sees images at a longest side of {row['longest_side'] or 'any'} pixels, at output stride "
        f"{row['output_stride']}.",
        f"classes: {', '.join(f'{i} {label}' for i, label in enumerate(row['classes']))}",
        f"segment photographs: atrous predict {name} photos/ --out found",
    )
    return Group(models_table({name: row}, hardware, told=False), *about)


def recipes_table(recipes: Mapping[str, Any]) -> Any:
    """The named recipes: network, output stride, steps, what they start from and train on."""
    from rich.table import Table

    table = Table("recipe", "backbone", "stride", "steps", "starts from", "train split")
    table.columns[0].min_width = max(map(len, recipes))  # to be typed, so to be read whole
    table.add_row("finetune", "chosen from the data", "", "", "the package's weights", "")
    for name, recipe in recipes.items():
        model, steps, split = recipe.model, recipe.schedule.iterations, recipe.data.train_split
        cells = (model.backbone, model.output_stride, steps, model.weights, split)
        table.add_row(name, *(str(cell) for cell in cells))
    return table


def listing_table(rows: list[dict[str, Any]]) -> Any:
    """What can be reproduced."""
    from rich.table import Table

    table = Table("what", "cells", "title", "written")
    for row in rows:
        table.add_row(row["what"], str(row["cells"] or ""), row["title"], row["written"] or "")
    return table
