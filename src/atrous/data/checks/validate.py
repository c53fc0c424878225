"""Check a data set (`atrous data check DATA`): read every file, count classes, list problems and warnings.

A bad file does not stop the check. Class shares and image sizes are known before a training run (section 4.1) starts.

    report = check("camvid")
    rich.print(render(report))
"""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from atrous.data.checks import findings
from atrous.data.checks.examine import Examined, examine
from atrous.data.checks.findings import Finding
from atrous.data.checks.report import DataReport, SplitReport, render
from atrous.data.datasets.dataset import Listing, SegmentationDataset, list_split, splits
from atrous.data.datasets.layouts import kind_of, takes
from atrous.data.datasets.mask_values import class_counts, histogram_of
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.data.datasets.parts import is_undivided
from atrous.data.images.samples import ImageRule
from atrous.data.labels import Labels, difference
from atrous.data.palette import drawn_palette
from atrous.data.value_range import decided

__all__ = ["DataReport", "SplitReport", "check", "render"]


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
    listings, refused = _listings(data, names, options)
    if not listings:
        raise ValueError(refused[0])
    labels = next(iter(listings.values())).labels
    seen: dict[str, list[Examined]] = {}
    rule, said = _rule(listings)
    listings = {name: replace(listing, rule=rule) for name, listing in listings.items()}
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for name, listing in listings.items():
            seen[name] = list(_examined(pool, name, listing, progress))
    reports = {name: _split_report(ones, listings[name]) for name, ones in seen.items()}
    problems = [Finding(line) for line in refused]
    for name, listing in listings.items():
        problems += [findings.of_listing(line) for line in listing.problems]
        problems += findings.file_problems(name, seen[name], listing)
    problems += [Finding(line, fatal=False) for listing in listings.values() for line in (*listing.warnings,)]
    problems += _of_all(seen, reports, labels, allow_empty_classes)
    problems += findings.black_elsewhere(seen, listings)
    problems += [Finding(line, fatal=False) for line in said] + ([] if "val" in names else [_no_val(names)])
    quoted, searched = shlex.quote(str(data)), takes(kind_of(data), "images")
    fixes = (finding.fix.replace("DATA", quoted) for finding in problems)
    fixes = (fix if searched else fix.replace(", or give --images FOLDER", "") for fix in fixes)
    mended = tuple(replace(finding, fix=fix) for finding, fix in zip(problems, fixes, strict=True))
    return DataReport(str(data), labels.names, reports, mended, drawn_palette(labels), listings)


def _of_all(
    seen: Mapping[str, list[Examined]], reports: Mapping[str, SplitReport], labels: Labels, allow_empty: bool
) -> list[Finding]:
    """What is wrong with the splits as wholes, and with each other."""
    empty = findings.empty_classes(reports, labels, fatal=not allow_empty)
    problems = [*findings.renumbered(seen, labels), *findings.leaks(seen), *empty, *findings.repeats(seen)]
    problems += [*findings.looks(seen), *findings.all_ignored(reports, labels), *findings.binary(seen, labels)]
    problems += findings.similar_names(reports, labels)
    return [*problems, *findings.rare_classes(reports, labels), *findings.not_in_val(reports, labels, problems)]


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
            problems.append(f"{name}: {difference(listing.labels, listings[first].labels, first)}")
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
) -> Iterator[Examined]:
    dataset = SegmentationDataset.of(listing)
    for done, one in enumerate(pool.map(lambda item: examine(dataset, item), listing.items), start=1):
        if progress:
            progress(name, done, len(listing.items))
        yield one


def _split_report(seen: list[Examined], listing: Listing) -> SplitReport:
    histograms = [one.histogram for one in seen if one.histogram is not None]
    empty = histogram_of(np.zeros((0,), dtype=np.uint8), listing.labels)[None][:0]
    counts = class_counts(np.concatenate([empty, *(one[None] for one in histograms)]), listing.labels)
    by_area = sorted((one.size for one in seen if one.size is not None), key=lambda size: (size[0] * size[1], size))
    places = {"min": 0, "median": len(by_area) // 2, "max": -1}
    sizes = {name: by_area[i] for name, i in places.items()} if by_area else {}
    return SplitReport(len(seen), len(histograms), counts, sizes, listing.unlabelled, listing.left_out, listing.read_as)


def _no_val(names: Sequence[str]) -> Finding:
    """That there is no split to validate on, and how to make one."""
    if is_undivided(names):
        text = "no splits: training divides the images, by a seed, and a fifth of them validate"
        return Finding(text, "to write the division down: atrous data convert DATA OUT", fatal=False)
    text = "no split val: finetune validates nothing, and keeps the last weights, not the best"
    return Finding(text, "to make one: atrous data convert DATA OUT --resplit", fatal=False)
