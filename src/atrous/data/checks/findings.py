"""What is wrong with examined images and masks, each kind once: a count, two examples, and the line that mends it."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from atrous.data.checks.examine import Examined, alike
from atrous.data.datasets.class_files import HOLD_IDS
from atrous.data.datasets.dataset import Item, Listing
from atrous.data.datasets.mask_values import (
    Counts,
    class_problems,
    described,
    ignored_place,
    likely_fix,
    palette_conflicts,
)
from atrous.data.labels import Labels, names_alike
from atrous.data.palette import is_background
from atrous.messages import counted, listed


class SplitCounts(Protocol):
    """What is known of a split."""

    @property
    def sound(self) -> int:
        """Images that can be read, with a mask that fits."""

    @property
    def counts(self) -> Counts:
        """Their pixels."""

    @property
    def unlabelled(self) -> str:
        """Why there are no masks, or ""."""


Seen = Mapping[str, Sequence[Examined]]
"""By split."""

FEW_IMAGES, SMALL_SHARE = 3, 0.0005
"""A class in fewer images, or with a smaller share of the pixels, is hardly learnt."""
_MANY_VALUES = 40
_BLACK = (0, 0, 0)
_DELETE = "delete them, and their masks, from one of the two"

_RESIZE = "take the images that the masks were drawn on, or resize masks by nearest neighbour"
_OTHER_IMAGES = (
    "this is not the image that was annotated, or it was resized since: take the images that the tool had, or annotate "
    "these anew"
)
"""For masks of shapes, which cannot be resized."""
_FIXES = (
    (r"mask of \d+x\d+; expected", _RESIZE),
    (r"compression may change ids|changes colours", "export the masks as PNG; ids that JPEG has changed are lost"),
    (r"have no image|are not there", "put the images there, or give --images FOLDER"),
    (r"have no mask", "add the masks, or move these images elsewhere"),
    (r"not an image|truncated|cannot be decoded|damaged", "copy these files again, or delete image and mask"),
    (rf"colours .*{HOLD_IDS}", ""),
    (r"colours .* are not in|which is no class's", "name these colours among the classes, or --ignore R,G,B"),
)
"""By what a problem's text has: what mends it, where the text does not say so."""


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
        text: what is wrong, how often, with two examples.
        fix: what mends it, a line, or "".
        fatal: whether training on it would be wrong, rather than might be.
        items: examples to look at.
        split: of the examples.
    """

    text: str
    fix: str = ""
    fatal: bool = True
    items: tuple[Item, ...] = ()
    split: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.fix}" if self.fix else self.text


def of_listing(line: str, fatal: bool = True) -> Finding:
    """What a layout says about its files."""
    known = next((fix for pattern, fix in _FIXES if re.search(pattern, line)), "") if fatal else ""
    return Finding(line, known if known and "--" not in line and "; " not in line else "", fatal)


def file_problems(split: str, seen: Sequence[Examined], listing: Listing) -> Iterator[Finding]:
    """Problems of single files, one each kind."""
    by_kind: dict[str, list[Examined]] = defaultdict(list)
    for one in seen:
        if one.problem and one.unknown_ids is None:
            text = one.problem.replace(str(one.item.mask), "").replace(str(one.item.image), "")
            by_kind[re.sub(r"\d+", "#", text)].append(one)
    for ones in by_kind.values():
        items = tuple(one.item for one in ones[:2])
        for line in examples(split, [one.problem for one in ones]):
            fix = next((fix for pattern, fix in _FIXES if re.search(pattern, line)), "")
            if fix == _RESIZE and getattr(items[0].mask, "path", Path()).suffix.lower() in (".json", ".xml"):
                fix = _OTHER_IMAGES
            yield Finding(line, fix, items=items, split=split)
    yield from _unknown_ids(split, seen, listing)


def _unknown_ids(split: str, seen: Sequence[Examined], listing: Listing) -> Iterator[Finding]:
    """Masks with ids of no class; all ids of the split, and what they probably mean."""
    unknown = [one for one in seen if one.unknown_ids is not None]
    if not unknown:
        return
    every = (h for one in seen for h in (one.histogram, one.unknown_ids) if h is not None)
    width = max(len(one.unknown_ids) for one in unknown if one.unknown_ids is not None)
    histograms = [h for h in every if len(h) == width]
    total: npt.NDArray[np.int64] = np.sum(histograms, axis=0)
    advice = likely_fix(total, listing.labels) if listing.remap is None else ""
    values = f"; the masks of {split} have the ids {described(total, 12)}" if len(unknown) > 1 or advice else ""
    if not advice and np.count_nonzero(total) > max(_MANY_VALUES, 2 * len(listing.labels)):
        advice = "so many values come from resizing or JPEG: export the masks again, as PNG, without resizing"
    if not advice:
        known = {*range(len(listing.labels)), listing.labels.ignore} if listing.remap is None else set()
        strange = listed([str(value) for value in np.flatnonzero(total) if value not in known], 1)
        advice = f"name them all in names, read one as a class: --map {strange.split()[0]}=NAME, or --ignore it"
    *before, last = examples(split, [one.problem for one in unknown])
    items = tuple(one.item for one in unknown[:2])
    yield from (Finding(line, items=items, split=split) for line in before)
    yield Finding(last + values, advice, items=items, split=split)


def examples(split: str, lines: list[str]) -> list[str]:
    """The lines themselves, up to two; else one line with two examples."""
    return lines if len(lines) <= 2 else [f"{split}: {len(lines)} files like this: {lines[0]}; and {lines[1]}"]


def renumbered(seen: Seen, labels: Labels) -> Iterator[Finding]:
    """Palettes that draw ids in different colours."""
    drawn = [one.drawn for ones in seen.values() for one in ones if one.drawn]
    yield from (Finding(line) for line in examples(listed(list(seen)), palette_conflicts(drawn, labels)))


def black_elsewhere(seen: Seen, listings: Mapping[str, Listing]) -> Iterator[Finding]:
    """Palettes that draw another class than background in black: a tool has probably put the colours in order."""
    for split, ones in seen.items():
        names, remap = listings[split].labels.names, listings[split].remap or range(256)
        if not is_background(names[0]):
            continue
        such = []
        for one in ones:
            colours = one.drawn.colours if one.drawn else {}
            ground = [colour for value, colour in colours.items() if remap[value] == 0]
            black = [value for value, colour in colours.items() if colour == _BLACK and remap[value] > 0]
            if black and ground:
                such.append((one.item, ground[0], names[remap[black[0]]]))
        if such:
            items = tuple(item for item, _, _ in such[:2])
            _, colour, name = such[0]
            count, verb = counted(len(such), "mask"), "draws" if len(such) == 1 else "draw"
            text = f"{split}: {count} {verb} {names[0]} in {colour} and {name} in black, such as {items[0].mask}"
            fix = "if black is background, --names says so, in the order of the ids; look at atrous data show"
            yield Finding(text, fix, False, items, split)


def _pairs(seen: Seen) -> Iterator[tuple[str, str]]:
    """Pairs of splits that should share nothing: VOC's trainaug holds its train, Cityscapes has masks of two kinds."""
    shared = ({"train", "trainaug"}, {"train", "train_coarse"}, {"val", "val_coarse"})
    return (pair for pair in itertools.combinations(seen, 2) if set(pair) not in shared)


def leaks(seen: Seen) -> Iterator[Finding]:
    """The same pictures in two splits; and as a warning, pictures that look almost the same."""
    for first, second in _pairs(seen):
        known = {one.digest: one.item for one in seen[first] if one.digest}
        same = [one for one in seen[second] if one.digest in known]
        each = [f"{known[one.digest].image} and {one.item.image}" for one in same]
        each = [f"{pair}: the same picture in {first} and {second}; expected none" for pair in each]
        items = tuple(one.item for one in same[:2])
        once = all(known[one.digest].image == one.item.image for one in same)
        fix = "they are the same files: name others for one of the two" if once else _DELETE
        for line in examples(f"{first} and {second}", each):
            yield Finding(line, fix, items=items, split=second)
        ours = [b"" if one.problem else one.look.fingerprint for one in seen[first]]
        theirs = [b"" if one.digest in known or one.problem else one.look.fingerprint for one in seen[second]]
        near = alike(ours, theirs)
        if near:
            shown = [f"{seen[first][i].item.image} and {seen[second][j].item.image}" for i, j in near]
            fix = "keep frames of one video, and versions of one picture, on one side"
            count = counted(len(near), "pair")
            text = f"{first} and {second}: {count} of pictures look almost the same: {listed(shown, 2)}"
            yield Finding(text, fix, False, tuple(seen[second][j].item for _, j in near[:2]), second)


def repeats(seen: Seen) -> Iterator[Finding]:
    """Pictures that occur more than once in a split, and names that occur in two."""
    for name, ones in seen.items():
        by_digest = defaultdict(list)
        for one in ones:
            if one.digest:
                by_digest[one.digest].append(one.item.name)
        repeated = [names for names in by_digest.values() if len(names) > 1]
        if repeated:
            verb = "occurs" if len(repeated) == 1 else "occur"
            text = f"{name}: {counted(len(repeated), 'picture')} {verb} more than once: {listed(repeated[0])}"
            yield Finding(text, "delete all but one of each", False)
    for first, second in _pairs(seen):
        shared = sorted({one.item.name for one in seen[first]} & {one.item.name for one in seen[second]})
        if shared:
            text = f"{first} and {second}: {len(shared)} pictures have the same name: {listed(shared)}"
            yield Finding(text, "look whether they are the same scene", False)


def looks(seen: Seen) -> Iterator[Finding]:
    """Pictures that are almost black, of one colour, turned by EXIF, or of unusual modes."""
    kinds = (
        ("dark", "almost black", "give --value-range LOW,HIGH if they have more than 8 bits, else leave them out"),
        ("flat", "of one colour", "leave them out, or copy them again"),
        ("turned", "turned by EXIF", "masks must be those of the upright picture: look at atrous data show"),
    )
    for split, ones in seen.items():
        for attribute, what, fix in kinds:
            such = [one for one in ones if getattr(one.look, attribute)]
            if such:
                yield _about_images(split, such, what, fix)
        modes = Counter(one.look.mode for one in ones if one.look.mode)
        for mode in modes:
            such = [one for one in ones if one.look.mode == mode]
            yield _about_images(split, such, f"of mode {mode}", "they are read as RGB: look at atrous data show")


def _about_images(split: str, ones: Sequence[Examined], what: str, fix: str) -> Finding:
    names = listed([str(one.item.image) for one in ones], 2)
    verb = "is" if len(ones) == 1 else "are"
    text = f"{split}: {counted(len(ones), 'image')} {verb} {what}: {names}"
    return Finding(text, fix, False, tuple(one.item for one in ones[:2]), split)


def empty_classes(reports: Mapping[str, SplitCounts], labels: Labels, fatal: bool) -> list[Finding]:
    """`class_problems` of the splits to train on, those named so or the only one, and of those with 0 and 255 only."""
    names = reports if len(reports) == 1 else [name for name in reports if name.startswith("train")]
    others = [name for name, report in reports.items() if report.counts.ignored and not report.counts.pixels[1:].any()]
    sound = [name for name in (*names, *others) if reports[name].sound and not reports[name].unlabelled]
    missing = []
    for name in dict.fromkeys(sound):
        absent = np.flatnonzero(reports[name].counts.pixels == 0).tolist()
        fix = _division(reports, absent) if len(absent) < len(labels) else ""
        for line in class_problems(reports[name].counts, labels):
            text, accept, options = line.partition("to accept that")
            missing.append(
                Finding(f"{name}: {text.removesuffix('; ')}", "; ".join(filter(None, (fix, accept + options))), fatal)
            )
    return missing


def _division(reports: Mapping[str, SplitCounts], absent: Sequence[int]) -> str:
    """How to divide anew, if a class that a split lacks is in two images or more of the others."""
    counts = [report.counts.images for report in reports.values() if not report.unlabelled]
    there = len(counts) > 1 and any(sum(images[index] for images in counts) > 1 for index in absent)
    return "atrous data convert DATA OUT --resplit divides anew, each class on both sides" if there else ""


def rare_classes(reports: Mapping[str, SplitCounts], labels: Labels) -> Iterator[Finding]:
    """Classes with so few pixels or images to train on that they will hardly be learnt."""
    for split, report in reports.items():
        if report.unlabelled or (len(reports) > 1 and not split.startswith("train")):
            continue
        counts: Counts = report.counts
        rare = [
            f"{name} ({counts.shares[index]:.2%} of the pixels, {counted(int(counts.images[index]), 'image')})"
            for index, name in enumerate(labels.names)
            if counts.pixels[index] and not is_background(name)
            and (counts.shares[index] < SMALL_SHARE or counts.images[index] < FEW_IMAGES)
        ]  # fmt: skip
        if rare and report.sound >= 2 * FEW_IMAGES:
            fix = "label more images with it, or fold it into another class: --map NAME=OTHER"
            yield Finding(f"{split}: hardly learnt, for there is little of it: {listed(rare, 4)}", fix, False)


def similar_names(reports: Mapping[str, SplitCounts], labels: Labels) -> Iterator[Finding]:
    """Classes whose names differ in case or spaces alone: probably one class, written in two ways."""
    images = np.sum([report.counts.images for report in reports.values()], axis=0)
    for group in names_alike(labels.names):
        # Rarer ones are joined to the most common one; spaces are shown.
        target, *others = sorted(group, key=lambda index: -images[index])
        named = [f"{labels.names[index]!r} ({counted(int(images[index]), 'image')})" for index in (target, *others)]
        text = f"{' and '.join(named)} are {len(group)} classes whose names differ in case or spaces alone"
        kept = labels.names[target]
        words = [(labels.names[index], kept) for index in others]
        if all(name == name.strip() for name in labels.names):  # a flag loses spaces
            joined = " ".join(f"--map {shlex.quote(f'{name}={to}')}" for name, to in words)
        else:
            joined = f"map: {{{', '.join(f'{name!r}: {to!r}' for name, to in words)}}} in dataset.yaml"
        yield Finding(text, f"if they are one, rename one in the tool, or join them: {joined}", False)


def not_in_val(reports: Mapping[str, SplitCounts], labels: Labels, said: Sequence[Finding]) -> list[Finding]:
    """The classes that validation cannot score, unless a finding of `said` has them."""
    val = reports.get("val")
    if val is None or val.unlabelled or not val.counts.pixels.any() or any(f.text.startswith("val: ") for f in said):
        return []
    absent = np.flatnonzero(val.counts.pixels == 0).tolist()
    if not absent:
        return []
    names = ", ".join(labels.names[index] for index in absent)
    text = f"val: no pixel of {names}, so that no IoU is measured there; expected every class"
    return [Finding(text, _division(reports, absent), fatal=False)]


def binary(seen: Seen, labels: Labels) -> Iterator[Finding]:
    """Masks with id 0 and the ignored id only, among others without it: probably 255 is an object in them."""
    ignored = ignored_place(labels)
    for name, ones in seen.items():
        masks = [(one.item, [*np.flatnonzero(one.histogram)]) for one in ones if one.histogram is not None]
        such = [item for item, ids in masks if ids == [0, ignored]]
        ignoring = sum(ignored in ids for _, ids in masks)
        if such and len(such) == ignoring < len(masks):
            text = (
                f"{name}: {len(such)} of {len(masks)} masks have the ids 0 and {labels.ignore} only, and no other "
                f"has {labels.ignore}: {listed([str(item.mask) for item in such], 2)}; expected {labels.ignore} for "
                "pixels to ignore"
            )
            fix = f"if it is an object: --binary object, or --map {labels.ignore}=NAME"
            yield Finding(text, fix, False, tuple(such[:2]), name)


def all_ignored(reports: Mapping[str, SplitCounts], labels: Labels) -> Iterator[Finding]:
    """Splits whose pixels are all ignored."""
    expected = counted(len(labels), "class")
    for name, report in reports.items():
        if report.sound and not report.unlabelled and not report.counts.pixels.any():
            yield Finding(f"{name}: every pixel is ignored; expected some of the {expected}", fatal=False)
