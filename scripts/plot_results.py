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
        rows = [row | {key: float(row[key]) for key in ("images", "step", "miou")} for row in csv.DictReader(file)]
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    by_images, by_steps = figure.subplots(1, 2, sharey=True)
    last = max(row["step"] for row in rows)
    for weights, marker in zip(dict.fromkeys(row["weights"] for row in rows), "os", strict=False):
        chosen = [row for row in rows if row["weights"] == weights]
        ends = sorted((row["images"], row["miou"]) for row in chosen if row["step"] == last)
        by_images.plot(*zip(*ends, strict=True), marker=marker, color=COLOURS[marker == "s"], label=f"from {weights}")
        for images, colour in zip(sorted({row["images"] for row in chosen}), COLOURS, strict=False):
            steps = sorted((row["step"], row["miou"]) for row in chosen if row["images"] == images)
            label = f"{images:.0f} images" if marker == "o" else None
            line = "-" if marker == "o" else "--"
            by_steps.plot(*zip(*steps, strict=True), line, marker=marker, color=colour, label=label, markersize=4)
    by_images.set_xscale("log")
    ticks = sorted({row["images"] for row in rows})
    by_images.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    by_images.minorticks_off()
    by_images.set_xlabel(f"images to train on, {last:.0f} steps")
    by_images.set_ylabel("mIoU on val, %")
    by_steps.set_xlabel("steps of 8 crops")
    for axes in (by_images, by_steps):
        axes.legend(fontsize=8)
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / "own-data.png", dpi=130)


if __name__ == "__main__":
    paper_against_ours()
    own_data()
