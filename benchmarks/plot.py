"""The picture of `docs/performance.md`, from the newest result of each benchmark.

    python benchmarks/plot.py --machine zen5        # benchmarks/*zen5*.json to docs/performance.png
    python benchmarks/plot.py --machine zen3 --out docs/performance-avx2.png
    python benchmarks/plot.py --machine NAME --results FOLDER --out FILE.png

A bar is the time of another over the time of ours in the same precision, in the same run: right of the line at 1, ours
is faster. The thin line on it spans the quartiles over the rounds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TITLES = {
    "infer-os8": "inference, ResNet-50, output stride 8, 513×513",
    "infer-os16": "inference, ResNet-50, output stride 16, 512×512",
    "train-os16": "training step, ResNet-50, output stride 16, batch 2",
    "loss": "loss, 33×33 to 513×513, batch 4",
    "data": "training crops from JPEG files",
}
FASTER, SLOWER = "#2a78a8", "#c2602c"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE)
    parser.add_argument("--machine", required=True, help="part of the files' names: zen5, zen3")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "performance.png")
    args = parser.parse_args()
    groups = {title: bars(result) for title, result in newest(args.results, args.machine).items()}
    if not any(groups.values()):
        parser.error(f"no result of a machine {args.machine!r} in {args.results}")
    draw({title: rows for title, rows in groups.items() if rows}, args.out)


def newest(folder: Path, machine: str) -> dict[str, dict[str, Any]]:
    """Title to the result whose file has the latest date in its name."""
    chosen = {}
    for key, title in TITLES.items():
        files = sorted(folder.glob(f"{key}_*{machine}*.json"), key=lambda path: path.stem.rpartition("_")[2])
        if files:
            chosen[title] = json.loads(files[-1].read_text(encoding="utf-8"))
    return chosen


def bars(result: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Name, ratio and its quartiles of everything that is not ours, against ours of the same precision."""
    rows = [row for row in result["rows"] if not row["skipped"]]
    ours = {
        precision(row["name"]): row
        for row in rows
        if row["name"].startswith("atrous") and not any(word in row["name"] for word in ("cached", "padded"))
    }
    first = rows[0]
    bars_of_result = []
    for row in rows:
        if row["name"].startswith(("atrous", "Pillow")):
            continue
        against = ours.get(precision(row["name"]), first)
        scale = first["seconds"] / against["seconds"]
        bars_of_result.append((row["name"], *(scale * row[key] for key in ("ratio", "ratio_low", "ratio_high"))))
    return bars_of_result


def precision(name: str) -> str:
    """``bf16`` or ``fp32``; what names none is float32."""
    return "bf16" if "bf16" in name else "fp32"


def draw(groups: dict[str, list[tuple[str, float, float, float]]], out: Path) -> None:
    """One row of axes a group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights = [len(rows) for rows in groups.values()]
    widest = max(high for rows in groups.values() for *_, high in rows)
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(6.4, 0.32 * sum(heights) + 0.45 * len(groups) + 0.4), sharex=True, squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for axis, (title, rows) in zip(axes[:, 0], groups.items(), strict=True):
        names, ratios, lows, highs = zip(*rows, strict=True)
        axis.barh(names, ratios, color=[FASTER if ratio >= 1 else SLOWER for ratio in ratios], height=0.7)
        axis.hlines(names, lows, highs, color="black", linewidth=1)
        for name, ratio, high in zip(names, ratios, highs, strict=True):
            axis.annotate(
                f"{ratio:.2f}",
                (max(ratio, high), name),
                (3, 0),
                textcoords="offset points",
                va="center",
                size=7,
                bbox=box,
            )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(title, size=8, loc="left", pad=2)
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlim(0, widest * 1.12)
    axes[-1, 0].set_xlabel("time over ours in the same precision; above 1, ours is faster", size=8)
    figure.tight_layout(h_pad=0.4)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    main()
