"""Results as tables for people, drawn by rich."""

from __future__ import annotations

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


def models_table(rows: dict[str, dict[str, Any]], hardware: str = "") -> Any:
    """The named weights: a row for each setting that was measured, then what each model is."""
    from rich.console import Group
    from rich.table import Table

    table = Table("name", "MB", "measured on", "mIoU", "ms", padding=(0, 1, 0, 0))
    table.caption = f"ms: {hardware}" if hardware else None
    table.columns[0].min_width = max(map(len, rows), default=0)  # a name must be read whole, for it is to be typed
    told = []
    for name, row in rows.items():
        first = (name, f"{row['megabytes']:.1f}")
        for setting, found in row["metrics"].items():
            miou = "-" if found.get("miou") is None else f"{found['miou']:.2%}"
            table.add_row(*first, setting, miou, f"{found.get('milliseconds', '')}")
            first = ("", "")
        if first[0]:
            table.add_row(*first, "", "", "")
        told.append(f"{name}: {len(row['classes'])} classes; {row['description']}. Licence: {row['licence']}.")
    return Group(table, *told)


def listing_table(rows: list[dict[str, Any]]) -> Any:
    """What can be reproduced."""
    from rich.table import Table

    table = Table("what", "cells", "title", "written")
    for row in rows:
        table.add_row(row["what"], str(row["cells"] or ""), row["title"], row["written"] or "")
    return table
