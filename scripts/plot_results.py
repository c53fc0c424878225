"""Draw docs/results/paper-against-ours.png from the CSV files beside it: our mIoU over the paper's, one panel a table.

python scripts/plot_results.py
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


def main() -> None:
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    for axes, (number, (title, grouped)) in zip(panels, PANELS.items(), strict=False):
        with open(FOLDER / f"table-{number}.csv", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["paper"] and row["mean"]]
        groups = list(dict.fromkeys(row[grouped] if grouped else "" for row in rows))
        for colour, group in zip(COLOURS, groups, strict=False):
            chosen = [row for row in rows if not grouped or row[grouped] == group]
            columns = [[float(row[key]) for row in chosen] for key in ("paper", "mean", "deviation")]
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
    panels[-1].text(0.0, 0.5, text, fontsize=9, va="center")
    figure.savefig(FOLDER / "paper-against-ours.png", dpi=130)


if __name__ == "__main__":
    main()
