"""What `atrous data check` found as a page without other files, or as a picture, with an example of each problem.

write_page(check("my-data"), Path("check.html"))
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from atrous.atomic import write_text
from atrous.data.checks.report import SPLIT_HEADS, DataReport, by_severity, labelled, split_rows
from atrous.data.datasets.dataset import Item, SegmentationDataset
from atrous.data.images.image_io import read_image, write_image
from atrous.data.labels import Colour
from atrous.data.lettering import lettering
from atrous.data.overlay import overlay
from atrous.messages import counted

_SIDE = 240
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
.colour { display: inline-block; width: 1em; height: 1em; border: 1px solid #222; vertical-align: -.15em }
.bar { display: inline-block; height: .8em; background: #48c; vertical-align: -.1em }
.problem { border-left: 5px solid #c22 } .warning { border-left: 5px solid #da3 }
.problem, .warning { padding: .3em 1em; margin: 1em 0; background: #fafafa; overflow-wrap: anywhere }
.fix { color: #060 } figure { display: inline-block; margin: .5em 1em .5em 0; font-size: 12px; max-width: 250px }
figure img { display: block } .zero { color: #c22 }
"""


def write_page(report: DataReport, path: Path) -> None:
    """Write a report as .html or .png, atomically.

    Raises:
        ValueError: for another suffix.
    """
    check_suffix(path)
    if path.suffix.lower() == ".png":
        write_image(path, _picture(report))
    else:
        write_text(path, _page(report))


def check_suffix(path: Path) -> None:
    """Raise ValueError for a suffix that no report has."""
    if path.suffix.lower() not in (".html", ".htm", ".png"):
        raise ValueError(f"{path}: a report of suffix {path.suffix!r}; expected .html or .png")


def _page(report: DataReport) -> str:
    title = html.escape(f"Check of {report.data}")
    verdict = counted(len(report.problems), "problem") + ", " + counted(len(report.warnings), "warning")
    parts = [f"<h1>{title}</h1><p><b>{html.escape(report.saw)}</b><br>{verdict}</p>", _findings(report)]
    splits = _table(SPLIT_HEADS, [[html.escape(cell) for cell in row] for row in split_rows(report)])
    parts += [f"<h2>Splits</h2>{splits}", _classes(report)]
    head = f"<meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _findings(report: DataReport) -> str:
    blocks = []
    for kind, finding in by_severity(report.findings):
        fix = f"<div class=fix>&rarr; {html.escape(finding.fix)}</div>" if finding.fix else ""
        figures = "".join(
            f"<figure><img alt='' src='data:image/jpeg;base64,{_jpeg(picture)}'>{html.escape(caption)}</figure>"
            for picture, caption in _thumbnails(report, finding.items, finding.split)
        )
        blocks.append(f"<div class={kind}><b>{kind}</b> {html.escape(finding.text)}{fix}<div>{figures}</div></div>")
    return f"<h2>What is wrong</h2>{''.join(blocks) or '<p>Nothing.</p>'}"


def _classes(report: DataReport) -> str:
    splits = labelled(report)
    most = max((float(counts.shares.max(initial=0)) for counts in splits.values()), default=0) or 1
    rows = []
    for index, name in enumerate(report.names):
        colour = "#{:02x}{:02x}{:02x}".format(*report.palette[index])
        cells = [f"<span class=colour style='background:{colour}'></span> {index} {html.escape(name)}"]
        for counts in splits.values():
            share, images = float(counts.shares[index]), int(counts.images[index])
            bar = f"<span class=bar style='width:{max(1, round(120 * share / most))}px'></span>" if share else ""
            cells += [f"{bar} {share:.2%}", f"<span class={'some' if images else 'zero'}>{images}</span>"]
        rows.append(cells)
    heads = ["class", *(head for name in splits for head in (f"{html.escape(name)}: pixels", "images"))]
    return f"<h2>Classes</h2>{_table(heads, rows)}"


def _table(heads: Sequence[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _thumbnails(report: DataReport, items: tuple[Item, ...], split: str) -> Iterator[tuple[Image.Image, str]]:
    """Each image, with its mask drawn over it where it can be read, and a line on it."""
    if (listing := report.listings.get(split)) is None:
        return
    dataset = SegmentationDataset.of(listing)
    for item in items:
        try:
            image = read_image(item.image, rule=listing.rule)
        except (ValueError, OSError):
            yield Image.new("RGB", (_SIDE, _SIDE // 2), (200, 200, 200)), f"{item.name}: the image cannot be read"
            continue
        try:
            mask, caption = dataset.read_ids(item, image.shape[:2]), item.name
        except (ValueError, OSError):
            mask, caption = None, f"{item.name}: without its mask, which does not fit"
        small = Image.fromarray(image)
        small.thumbnail((_SIDE, _SIDE))
        if mask is not None:
            ids = np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST))
            small = overlay(np.asarray(small), ids, listing.labels, legend=False, names=True)
        yield small, caption


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


_WIDTH = 1100


def _picture(report: DataReport) -> Image.Image:
    """The same as a picture: lines, bars of the classes, and thumbnails, from the top down."""
    rows = [_line(f"Check of {report.data}", size=24), _line(report.saw)]
    for kind, finding in by_severity(report.findings):
        rows.append(_line(f"{kind}: {finding.text}", "#b00" if finding.fatal else "#a60"))
        rows += [_line(f"-> {finding.fix}", "#060", indent=30)] if finding.fix else []
        pictures = [*_thumbnails(report, finding.items, finding.split)]
        rows += [_beside(pictures)] if pictures else []
    rows += [] if report.findings else [_line("nothing is wrong", "#060")]
    for name, split in report.splits.items():
        rows.append(_line(f"{name}: {counted(split.images, 'image')}, {split.sound} readable", size=18))
        for index, label in enumerate(report.names if not split.unlabelled else ()):
            share, images = float(split.counts.shares[index]), int(split.counts.images[index])
            text = f"{index} {label}: {share:.2%}, {counted(images, 'image')}"
            rows.append(_bar(text, share, report.palette[index]))
    page = _row(20 + sum(row.height for row in rows))
    tops = itertools.accumulate((row.height for row in rows), initial=10)
    for row, top in zip(rows, tops, strict=False):
        page.paste(row, (0, top))
    return page


def _row(height: int) -> Image.Image:
    return Image.new("RGB", (_WIDTH, height), "white")


def _line(text: str, fill: str = "black", *, size: int = 15, indent: int = 0) -> Image.Image:
    text, font = lettering(text, size)
    lines = textwrap.wrap(text, max(20, int((_WIDTH - 40 - indent) / (0.55 * size)))) or [""]
    row = _row(round(1.4 * size) * len(lines) + 6)
    for number, line in enumerate(lines):
        ImageDraw.Draw(row).text((20 + indent, 3 + number * round(1.4 * size)), line, fill=fill, font=font)
    return row


def _bar(text: str, share: float, colour: Colour) -> Image.Image:
    row = _row(22)
    draw = ImageDraw.Draw(row)
    draw.rectangle((20, 3, 20 + max(2, round(500 * share)), 18), fill=colour, outline="black")
    text, font = lettering(text, 14)
    draw.text((540, 2), text, fill="black" if share else "#b00", font=font)
    return row


def _beside(pictures: list[tuple[Image.Image, str]]) -> Image.Image:
    row = _row(max(picture.height for picture, _ in pictures) + 24)
    for place, (picture, caption) in enumerate(pictures):
        left, (text, font) = 50 + place * (_SIDE + 200), lettering(caption[:60], 12)
        row.paste(picture, (left, 0))
        ImageDraw.Draw(row).text((left, row.height - 20), text, fill="black", font=font)
    return row
