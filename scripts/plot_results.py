"""Draw the plots of docs/results/ from the CSV files beside them.

    python scripts/plot_results.py

``paper-against-ours.png``: our mIoU over the paper's, one panel a table. ``own-data.png``: mIoU over the number of
images and over the training, from weights of two kinds.
"""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "docs" / "results"
# Number of the table, what its cells vary, and the column that chooses the colour.
PANELS = {
    1: ("output stride", None),
    2: ("blocks in cascade", "last block"),
    3: ("multi-grid, blocks in cascade", "last block"),
    5: ("ASPP", None),
    8: ("training", None),
    9: ("batch size", None),
    10: ("stride of training and evaluation", "train output_stride"),
}
NUMBERS = ("images", "steps", "step", "miou")
SHORT = 150
SERIES = (("objects-mobilenetv2", None), ("objects-mobilenetv2", SHORT), ("imagenet", SHORT))
"""Weights to start from, and the length of the trainings; None for `finetune`'s own."""
COLOURS = ("#c0392b", "#2c5f8a", "#4a8f4a", "#c0792b")


def paper_against_ours() -> None:
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    for axes, (number, (title, grouped)) in zip(panels, PANELS.items(), strict=False):
        with open(FOLDER / f"table-{number}.csv", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["paper"] and row["mean"]]
        groups = list(dict.fromkeys(row[grouped] if grouped else "" for row in rows))
        for colour, group in zip(COLOURS, groups, strict=False):
            chosen = [row for row in rows if not grouped or row[grouped] == group]
            columns = [[float(row[key] or 0) for row in chosen] for key in ("paper", "mean", "deviation")]
            axes.errorbar(
                columns[0], columns[1], yerr=columns[2], fmt="o", color=colour, capsize=2, markersize=4, label=group
            )
        axes.set_title(f"Table {number}: {title}", fontsize=9)
        if grouped:
            axes.legend(fontsize=7, title=grouped, title_fontsize=7, loc="best")
        axes.grid(color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("the paper's mIoU, %", fontsize=8)
        axes.set_ylabel("ours, %", fontsize=8)
    panels[-1].axis("off")
    text = "A table that comes out as in the paper\nrises from left to right.\nBars: deviation of two seeds."
    text += "\nTables 1 to 3: shorter trainings."
    panels[-1].text(0.0, 0.5, text, fontsize=9, va="center")
    figure.savefig(FOLDER / "paper-against-ours.png", dpi=130)


def own_data() -> None:
    with open(FOLDER / "own-data.csv", encoding="utf-8") as file:
        rows = [row | {key: float(row[key]) for key in NUMBERS} for row in csv.DictReader(file)]
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    by_images, by_steps = figure.subplots(1, 2, sharey=True)
    whole = [row for row in rows if row["steps"] != SHORT]
    for (weights, length), marker, colour in zip(SERIES, "os^", COLOURS, strict=False):
        chosen = [row for row in (rows if length else whole) if row["weights"] == weights]
        ends = [row for row in chosen if row["step"] == row["steps"] and (not length or row["steps"] == length)]
        points = sorted((row["images"], row["miou"]) for row in ends)
        label = f"from {weights}, {length or 'as many steps as finetune chooses'}{' steps' if length else ''}"
        by_images.plot(*zip(*points, strict=True), marker=marker, color=colour, label=label)
    for images, colour in zip(sorted({row["images"] for row in whole}), COLOURS, strict=False):
        steps = sorted((row["step"], row["miou"]) for row in whole if row["images"] == images)
        by_steps.plot(*zip(*steps, strict=True), marker="o", color=colour, label=f"{images:.0f} images", markersize=4)
    by_images.set_xscale("log")
    ticks = sorted({row["images"] for row in rows})
    by_images.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    by_images.minorticks_off()
    by_images.set_xlabel("images to train on")
    by_images.set_ylabel("mIoU on val, %")
    by_steps.set_xlabel("steps of 8 crops")
    for axes in (by_images, by_steps):
        axes.legend(fontsize=7, loc="lower right")
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / "own-data.png", dpi=130)


if __name__ == "__main__":
    paper_against_ours()
    own_data()
