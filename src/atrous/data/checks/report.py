"""The result of `atrous data check`, as a value, for JSON and as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from atrous.data.checks.examine import Size
from atrous.data.checks.findings import Finding
from atrous.data.datasets.dataset import Listing
from atrous.data.datasets.mask_values import Counts
from atrous.data.labels import Colour
from atrous.messages import counted

_MISSING = re.compile(r": (\d+) (?:of \d+ )?(?:names have no image|images (?:of \S+ )?are not there)")


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        images: number of images listed.
        sound: number of those that can be read, with a mask that fits.
        counts: of the sound ones.
        sizes: (width, height) of the smallest, median and largest image by area, as min, median, max.
        unlabelled: why there are no masks, or "".
        left_out: by reason, how many images the layout's rule leaves out.
        read_as: the layout, and whose classes.
    """

    images: int
    sound: int
    counts: Counts
    sizes: dict[str, Size]
    unlabelled: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    read_as: str = ""


@dataclass(frozen=True)
class DataReport:
    """The result of `check`.

    Attributes:
        data: the argument of `check`.
        names: the classes.
        splits: one report each.
        findings: what is wrong, or looks like a mistake.
        palette: the colours to draw the classes in.
        listings: files of the splits.
    """

    data: str
    names: tuple[str, ...]
    splits: dict[str, SplitReport]
    findings: tuple[Finding, ...] = ()
    palette: tuple[Colour, ...] = ()
    listings: Mapping[str, Listing] = field(default_factory=dict, repr=False)

    @property
    def problems(self) -> list[str]:
        """One line each; with any of them the data set cannot be trained on."""
        return [str(finding) for finding in self.findings if finding.fatal]

    @property
    def warnings(self) -> list[str]:
        """One line each, for what looks like a mistake."""
        return [str(finding) for finding in self.findings if not finding.fatal]

    @property
    def saw(self) -> str:
        """What the data was taken for, and how much of it there is."""
        read_as = dict.fromkeys(split.read_as for split in self.splits.values() if split.read_as)
        images = sum(split.images for split in self.splits.values())
        # Where images are missing, what is listed are their annotations.
        missing = sum(int(count) for line in self.problems for count in _MISSING.findall(line))
        masks = missing + sum(split.images for split in self.splits.values() if not split.unlabelled)
        what = "; ".join(dict.fromkeys(text.partition("; ")[0] for text in read_as)) or "a data set"
        amount = f"{images or 'no'} images, {masks or 'no'} masks, {counted(len(self.names), 'class')}"
        return f"{what}: {amount}, {'splits' if len(self.splits) > 1 else 'split'} {', '.join(self.splits)}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain strings, numbers, lists and dicts; shares are 0..1 of the pixels not ignored."""
        return {
            "data": self.data,
            "saw": self.saw,
            "sound": not self.problems,
            "classes": list(self.names),
            "splits": {name: self._split_dict(split) for name, split in self.splits.items()},
            "problems": self.problems,
            "warnings": self.warnings,
            "fixes": {finding.text: finding.fix for finding in self.findings if finding.fix},
        }

    def _split_dict(self, split: SplitReport) -> dict[str, Any]:
        return {
            "read_as": split.read_as,
            "images": split.images,
            "sound_images": split.sound,
            "left_out": dict(split.left_out),
            "unlabelled": split.unlabelled,
            "sizes": {name: list(size) for name, size in split.sizes.items()},
            "ignored_share": split.counts.ignored_share,
            "class_pixels": dict(zip(self.names, split.counts.pixels.tolist(), strict=True)),
            "class_shares": dict(zip(self.names, split.counts.shares.tolist(), strict=True)),
            "class_images": dict(zip(self.names, split.counts.images.tolist(), strict=True)),
        }


def render(report: DataReport) -> RenderableType:
    """What was seen, tables of splits and classes, what is left out, problems and warnings, for rich's console."""
    guessed = dict.fromkeys(split.read_as.partition("; ")[2] for split in report.splits.values())
    lines = [escape(f"read so: {text}") for text in guessed if text]
    lines += [
        escape(f"{name}: {count} more images left out: {reason}")
        for name, split in report.splits.items()
        for reason, count in split.left_out.items()
    ]
    for kind, finding in by_severity(report.findings):
        lines.append(f"[{'red' if finding.fatal else 'yellow'}]{kind}[/] {escape(finding.text)}")
        lines += [f"        [green]->[/] {escape(finding.fix)}"] if finding.fix else []
    verdict = f"[red]{counted(len(report.problems), 'problem')}[/]" if report.problems else "[green]no problems[/]"
    lines.append(f"{escape(report.data)}: {verdict}, {counted(len(report.warnings), 'warning')}")
    shown = [Text.from_markup(line, emoji=False) for line in lines]  # a name such as voc:V: holds the code of one
    saw = Text.from_markup(f"[bold]{escape(report.saw)}[/]", emoji=False)
    return Group(saw, _split_table(report), _class_table(report), *shown)


SPLIT_HEADS = ("split", "images", "readable", "ignored", "smallest", "median", "largest")


def split_rows(report: DataReport) -> list[tuple[str, ...]]:
    """A row a split, of cells below `SPLIT_HEADS`."""
    rows = []
    for name, split in report.splits.items():
        sizes = [f"{width}x{height}" for width, height in split.sizes.values()] or ["-"] * 3
        ignored = "no masks" if split.unlabelled else f"{split.counts.ignored_share:.1%}"
        rows.append((name, str(split.images), str(split.sound), ignored, *sizes))
    return rows


def labelled(report: DataReport) -> dict[str, Counts]:
    """The counts of the splits that have masks."""
    return {name: split.counts for name, split in report.splits.items() if not split.unlabelled}


def by_severity(findings: Iterable[Finding]) -> list[tuple[str, Finding]]:
    """The findings, problems first, each with the word for it."""
    ordered = sorted(findings, key=lambda finding: not finding.fatal)
    return [("problem" if finding.fatal else "warning", finding) for finding in ordered]


def _split_table(report: DataReport) -> Table:
    table = Table(SPLIT_HEADS[0], title="Splits")
    for heading in SPLIT_HEADS[1:]:
        table.add_column(heading, justify="right")
    for row in split_rows(report):
        table.add_row(*map(escape, row))
    return table


def _class_table(report: DataReport) -> Table:
    table = Table("id", "class", title="Classes: share of the pixels not ignored, megapixels, images")
    for name in labelled(report):
        for heading in (escape(name), "Mpx", "images"):
            table.add_column(heading, justify="right")
    for index, name in enumerate(report.names):
        cells = [(c.shares[index], c.pixels[index], c.images[index]) for c in labelled(report).values()]
        texts = (text for share, pixels, n in cells for text in (f"{share:.2%}", f"{pixels / 1e6:.2f}", str(n)))
        table.add_row(str(index), escape(name), *texts)
    return table
