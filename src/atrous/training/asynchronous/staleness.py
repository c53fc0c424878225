"""Count the staleness of gradients in asynchronous training (appendix B), and log it push by push."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atrous.atomic import write_text


@dataclass
class Staleness:
    """Counts the pushes of other replicas between a replica's pull and its push.

    Attributes:
        counts: from a staleness to the number of pushes that had it.
    """

    counts: Counter[int] = field(default_factory=Counter)

    @property
    def pushes(self) -> int:
        """In all."""
        return self.counts.total()

    @property
    def mean(self) -> float:
        """Over the pushes; 0 without any."""
        return sum(value * count for value, count in self.counts.items()) / max(1, self.pushes)

    @property
    def largest(self) -> int:
        """Of any push; 0 without any."""
        return max(self.counts, default=0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: mean, max and the counts."""
        histogram = {str(value): self.counts[value] for value in sorted(self.counts)}
        return {"pushes": self.pushes, "mean": round(self.mean, 4), "max": self.largest, "histogram": histogram}

    def render(self) -> str:
        """Mean, max and a histogram, in lines."""
        rows = [f"staleness of {self.pushes} pushes: mean {self.mean:.2f}, max {self.largest}"]
        for value in sorted(self.counts):
            share = self.counts[value] / self.pushes
            rows.append(f"{value:5d}  {self.counts[value]:7d}  {share:6.1%}  {'#' * round(40 * share)}".rstrip())
        return "\n".join(rows)


class PushLog:
    """``staleness.csv`` in a run's folder: a row for each push; those after step `start` are dropped."""

    def __init__(self, run: Path, start: int) -> None:
        self.path = run / "staleness.csv"
        rows = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        # Rows of pushes after the checkpoint, and one half written, are of pushes that will be done again.
        whole = [row for row in rows if row.count(",") == 2 and row.split(",")[0].isdecimal()]
        kept = [row for row in whole if int(row.split(",")[0]) <= start]
        write_text(self.path, "\n".join(["step,replica,staleness", *kept]) + "\n")

    def write(self, step: int, replica: int, staleness: int) -> None:
        """After the push that made `step`."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow([step, replica, staleness])
