"""Check a data set (`atrous data check DATA`): read every file, count classes, list problems and warnings.

A bad file does not stop the check. Class shares and image sizes are known before a training run (section 4.1) starts.

    report = check("camvid")
    rich.print(render(report))
"""

import hashlib
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from atrous.data.datasets.dataset import Item, Listing, SegmentationDataset, kind_of, list_split, splits
from atrous.data.datasets.mask_values import (
    Counts,
    Drawn,
    UnknownIdError,
    class_counts,
    class_problems,
    described,
    histogram_of,
    likely_fix,
    palette_conflicts,
)
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.data.image_io import read_image
from atrous.data.labels import Labels
from atrous.data.samples import ImageRule
from atrous.data.value_range import decided
from atrous.messages import counted, listed

Size = tuple[int, int]


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
        problems: one line each; with any of them the data set cannot be trained on.
        warnings: one line each, for what looks like a mistake.
    """

    data: str
    names: tuple[str, ...]
    splits: dict[str, SplitReport]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain strings, numbers, lists and dicts; shares are 0..1 of the pixels not ignored."""
        return {
            "data": self.data,
            "sound": not self.problems,
            "classes": list(self.names),
            "splits": {name: self._split_dict(split) for name, split in self.splits.items()},
            "problems": list(self.problems),
            "warnings": list(self.warnings),
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


@dataclass(frozen=True)
class _Examined:
    """One image and its mask: digest and size of a readable image, histogram of a readable mask, or the problem.

    `unknown_ids` is the histogram of a mask with ids of no class, `drawn` the colours of a palette image.
    """

    item: Item
    digest: str = ""
    size: Size | None = None
    histogram: npt.NDArray[np.int64] | None = None
    problem: str = ""
    unknown_ids: npt.NDArray[np.int64] | None = None
    drawn: Drawn | None = None


def check(
    data: str | Path,
    options: DatasetOptions = NO_OPTIONS,
    *,
    allow_empty_classes: bool = False,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DataReport:
    """Read every file of every split and say what is wrong.

    Args:
        data: as for `open_dataset`: `NAME:PATH` or a path.
        options: likewise.
        allow_empty_classes: what `class_problems` finds in the splits to train on are warnings, not problems.
        workers: threads that decode; by default one a processor, at most 8.
        progress: called with the split, the images done and their number.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if there is no data set to read there: layout, `dataset.yaml`, no split at all.
    """
    names = [name for name in splits(data) if name != "trainval"]  # VOC's trainval repeats train and val
    if not names:
        raise ValueError(f"{data}: no splits; expected folders such as images/train and images/val")
    listings, problems = _listings(data, names, options)
    if not listings:
        raise ValueError(problems[0])
    labels = next(iter(listings.values())).labels
    seen: dict[str, list[_Examined]] = {}
    rule, said = _rule(listings)
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for name, listing in listings.items():
            seen[name] = list(_examined(pool, name, replace(listing, rule=rule), progress))
            problems += [*listing.problems, *_file_problems(name, seen[name], listing)]
    reports = {name: _split_report(ones, listings[name]) for name, ones in seen.items()}
    empty = _empty_classes(reports, labels)
    problems += _renumbered(seen, labels) + _leaks(seen) + ([] if allow_empty_classes else empty)
    warnings = [line for listing in listings.values() for line in listing.warnings]
    warnings += [*_repeats(seen), *_same_names(seen), *_all_ignored(reports, labels)]
    warnings += [*(empty if allow_empty_classes else []), *_binary(seen, labels), *said]
    warnings += [*([] if "val" in names else [_no_val(data)]), *_not_in_val(reports, labels, empty)]
    return DataReport(str(data), labels.names, reports, problems, warnings)


def _listings(data: str | Path, names: Sequence[str], options: DatasetOptions) -> tuple[dict[str, Listing], list[str]]:
    """The splits that can be listed and have the classes of the first, and a line for each of the others."""
    listings: dict[str, Listing] = {}
    problems = []
    for name in names:
        try:
            listing = list_split(data, name, options)
        except ValueError as error:
            problems.append(str(error))
            continue
        first = next(iter(listings), name)
        if listings and listing.labels != listings[first].labels:
            problems.append(f"{name}: the classes {listed(listing.labels.names)}; expected those of {first}")
        else:
            listings[name] = listing
    return listings, problems


def _rule(listings: Mapping[str, Listing]) -> tuple[ImageRule, list[str]]:
    """How all images are read, as training decides it by its split, and a line where that is a guess."""
    name = next((name for name in ("trainaug", "train") if name in listings), next(iter(listings)))
    dataset, said = decided(SegmentationDataset.of(listings[name]))
    return dataset.rule, [f"{name}: {said}"] if said else []


def _examined(
    pool: ThreadPoolExecutor, name: str, listing: Listing, progress: Callable[[str, int, int], None] | None
) -> Iterator[_Examined]:
    dataset = SegmentationDataset.of(listing)
    for done, one in enumerate(pool.map(lambda item: _examine(dataset, item), listing.items), start=1):
        if progress:
            progress(name, done, len(listing.items))
        yield one


def _examine(dataset: SegmentationDataset, item: Item) -> _Examined:
    digest, size = "", None
    try:
        # First, for it does not wait on what is no file.
        height, width = read_image(item.image, rule=dataset.rule).shape[:2]
        size = (width, height)
        with item.image.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        ids, drawn = dataset.read_checked(item, (height, width))
        return _Examined(item, digest, size, histogram_of(ids, dataset.labels), drawn=drawn)
    except UnknownIdError as error:
        return _Examined(item, digest, size, problem=error.reason, unknown_ids=error.histogram)
    except (ValueError, OSError) as error:
        return _Examined(item, digest, size, problem=" ".join(str(error).split()))


def _file_problems(split: str, seen: list[_Examined], listing: Listing) -> list[str]:
    """Problems of single files, a line each kind: its number of files and two examples."""
    unknown = [one for one in seen if one.unknown_ids is not None]
    by_kind: dict[str, list[str]] = defaultdict(list)
    for one in seen:
        if one.problem and one.unknown_ids is None:
            text = one.problem.replace(str(one.item.mask), "").replace(str(one.item.image), "")
            by_kind[re.sub(r"\d+", "#", text)].append(one.problem)
    lines = [line for kind in by_kind.values() for line in _examples(split, kind)]
    if not unknown:
        return lines
    every = (h for one in seen for h in (one.histogram, one.unknown_ids) if h is not None)
    width = max(len(one.unknown_ids) for one in unknown if one.unknown_ids is not None)
    histograms = [h for h in every if len(h) == width]
    total: npt.NDArray[np.int64] = np.sum(histograms, axis=0)
    advice = likely_fix(total, listing.labels) if listing.remap is None else ""
    values = [f"the masks of {split} have the ids {described(total, 12)}"] if len(unknown) > 1 or advice else []
    end = "; ".join(["", *values, *([advice] if advice else [])])
    *before, last = _examples(split, [one.problem for one in unknown])
    return [*lines, *before, last + end]


def _examples(split: str, lines: list[str]) -> list[str]:
    """The lines themselves, up to two; else one line with two examples."""
    return lines if len(lines) <= 2 else [f"{split}: {len(lines)} files like this: {lines[0]}; and {lines[1]}"]


def _split_report(seen: list[_Examined], listing: Listing) -> SplitReport:
    histograms = [one.histogram for one in seen if one.histogram is not None]
    counts = class_counts(_stacked(histograms, listing.labels), listing.labels)
    by_area = sorted((one.size for one in seen if one.size is not None), key=lambda size: (size[0] * size[1], size))
    places = {"min": 0, "median": len(by_area) // 2, "max": -1}
    sizes = {name: by_area[i] for name, i in places.items()} if by_area else {}
    return SplitReport(len(seen), len(histograms), counts, sizes, listing.unlabelled, listing.left_out, listing.read_as)


def _stacked(histograms: list[npt.NDArray[np.int64]], labels: Labels) -> npt.NDArray[np.int64]:
    width = len(histogram_of(np.zeros((0,), dtype=np.uint8), labels))
    return np.array(histograms, dtype=np.int64).reshape(-1, width)


def _pairs(seen: dict[str, list[_Examined]]) -> Iterator[tuple[str, str]]:
    """Pairs of splits that should share nothing: VOC's trainaug holds its train, Cityscapes has masks of two kinds."""
    shared = ({"train", "trainaug"}, {"train", "train_coarse"}, {"val", "val_coarse"})
    return (pair for pair in itertools.combinations(seen, 2) if set(pair) not in shared)


def _renumbered(seen: dict[str, list[_Examined]], labels: Labels) -> list[str]:
    drawn = [one.drawn for ones in seen.values() for one in ones if one.drawn]
    return _examples(listed(list(seen)), palette_conflicts(drawn, labels))


def _leaks(seen: dict[str, list[_Examined]]) -> list[str]:
    lines = []
    for first, second in _pairs(seen):
        known = {one.digest: one.item.image for one in seen[first] if one.digest}
        same = [f"{known[one.digest]} and {one.item.image}" for one in seen[second] if one.digest in known]
        each = [f"{pair}: the same picture in {first} and {second}; expected none" for pair in same]
        lines += _examples(f"{first} and {second}", each)
    return lines


def _repeats(seen: dict[str, list[_Examined]]) -> list[str]:
    lines = []
    for name, ones in seen.items():
        by_digest = defaultdict(list)
        for one in ones:
            if one.digest:
                by_digest[one.digest].append(one.item.name)
        repeated = [names for names in by_digest.values() if len(names) > 1]
        if repeated:
            lines.append(f"{name}: {len(repeated)} pictures occur more than once: {listed(repeated[0])}")
    return lines


def _same_names(seen: dict[str, list[_Examined]]) -> list[str]:
    lines = []
    for first, second in _pairs(seen):
        shared = sorted({one.item.name for one in seen[first]} & {one.item.name for one in seen[second]})
        if shared:
            lines.append(f"{first} and {second}: {len(shared)} pictures have the same name: {listed(shared)}")
    return lines


def _empty_classes(reports: dict[str, SplitReport], labels: Labels) -> list[str]:
    """`class_problems` of the splits to train on, those named so or the only one, and of those with 0 and 255 only."""
    names = reports if len(reports) == 1 else [name for name in reports if name.startswith("train")]
    others = [name for name, report in reports.items() if report.counts.ignored and not report.counts.pixels[1:].any()]
    sound = [name for name in (*names, *others) if reports[name].sound and not reports[name].unlabelled]
    return [f"{n}: {line}" for n in dict.fromkeys(sound) for line in class_problems(reports[n].counts, labels)]


def _no_val(data: str | Path) -> str:
    """That there is no split to validate on, and how to make one."""
    makes = {
        "folder": "move some files from images/train to images/val, and those of the same stem from masks/train to "
        "masks/val",
        "voc": "move some names from ImageSets/Segmentation/train.txt to val.txt beside it",
    }
    otherwise = (
        "divide the images, and their masks or annotations, into train and val, such as images/train, images/val"
    )
    make = makes.get(kind_of(data), otherwise)
    return f"no split val: finetune validates nothing, and keeps the last weights, not the best; to make one, {make}"


def _not_in_val(reports: dict[str, SplitReport], labels: Labels, said: list[str]) -> list[str]:
    """The classes that validation cannot score, unless a line of `said` has them."""
    val = reports.get("val")
    if val is None or val.unlabelled or not val.counts.pixels.any() or any(line.startswith("val: ") for line in said):
        return []
    absent = [labels.names[index] for index in np.flatnonzero(val.counts.pixels == 0)]
    if not absent:
        return []
    return [f"val: no pixel of {', '.join(absent)}, so that no IoU is measured there; expected every class"]


def _binary(seen: dict[str, list[_Examined]], labels: Labels) -> list[str]:
    """Masks with id 0 and the ignored id only, among others without it: probably 255 is an object in them."""
    lines = []
    for name, ones in seen.items():
        masks = [(one.item.mask, [*np.flatnonzero(one.histogram)]) for one in ones if one.histogram is not None]
        binary = [str(mask) for mask, ids in masks if ids == [0, labels.ignore]]
        ignoring = sum(labels.ignore in ids for _, ids in masks)
        if binary and len(binary) == ignoring < len(masks):
            lines.append(
                f"{name}: {len(binary)} of {len(masks)} masks have the ids 0 and {labels.ignore} only, and no other "
                f"has {labels.ignore}: {listed(binary, 2)}; expected {labels.ignore} for pixels to ignore"
            )
    return lines


def _all_ignored(reports: dict[str, SplitReport], labels: Labels) -> list[str]:
    ignored = [n for n, r in reports.items() if r.sound and not r.unlabelled and not r.counts.pixels.any()]
    return [
        f"{name}: every pixel is ignored; expected some of the {counted(len(labels), 'class', 'classes')}"
        for name in ignored
    ]


def render(report: DataReport) -> RenderableType:
    """Tables of splits and classes, what is left out, then the problems and warnings, for rich's console."""
    by_layout: dict[str, list[str]] = defaultdict(list)
    for name, split in report.splits.items():
        by_layout[split.read_as].append(name)
    lines = [escape(f"{', '.join(names)}: read as {layout}") for layout, names in by_layout.items() if layout]
    lines += [
        escape(f"{name}: {count} more images left out: {reason}")
        for name, split in report.splits.items()
        for reason, count in split.left_out.items()
    ]
    lines += [f"[red]problem[/] {escape(line)}" for line in report.problems]
    lines += [f"[yellow]warning[/] {escape(line)}" for line in report.warnings]
    verdict = f"[red]{counted(len(report.problems), 'problem')}[/]" if report.problems else "[green]no problems[/]"
    lines.append(f"{escape(report.data)}: {verdict}, {counted(len(report.warnings), 'warning')}")
    shown = [Text.from_markup(line, emoji=False) for line in lines]  # a name such as voc:V: holds the code of one
    return Group(_split_table(report), _class_table(report), *shown)


def _split_table(report: DataReport) -> Table:
    table = Table("split", title="Splits")
    for heading in ("images", "readable", "ignored", "smallest", "median", "largest"):
        table.add_column(heading, justify="right")
    for name, split in report.splits.items():
        sizes = [f"{width}x{height}" for width, height in split.sizes.values()] or ["-"] * 3
        ignored = "no masks" if split.unlabelled else f"{split.counts.ignored_share:.1%}"
        table.add_row(escape(name), str(split.images), str(split.sound), ignored, *sizes)
    return table


def _class_table(report: DataReport) -> Table:
    table = Table("id", "class", title="Classes: share of the pixels not ignored, megapixels, images")
    labelled = {name: split.counts for name, split in report.splits.items() if not split.unlabelled}
    for name in labelled:
        for heading in (escape(name), "Mpx", "images"):
            table.add_column(heading, justify="right")
    for index, name in enumerate(report.names):
        cells = [(c.shares[index], c.pixels[index], c.images[index]) for c in labelled.values()]
        texts = (text for share, pixels, n in cells for text in (f"{share:.2%}", f"{pixels / 1e6:.2f}", str(n)))
        table.add_row(str(index), escape(name), *texts)
    return table
