"""Write a data set in the plain layout, or in the format of a labelling tool: `atrous data convert DATA OUT`.

The plain layout has `dataset.yaml`, `images/SPLIT/`, `masks/SPLIT/`. Images are hard links where that can be, else
copies. A data set without a split to validate on is divided, seeded. A call that was interrupted can be repeated: it
goes on, and what it writes is the same.

    convert(source_of("cvat-export"), Path("my-data"))
    convert(source_of("my-data"), Path("for-cvat"), to="cvat")
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from atrous.atomic import sweep, write_text, written_whole
from atrous.data.datasets.base import WHOLE
from atrous.data.datasets.dataset import Item, SegmentationDataset
from atrous.data.datasets.mask_values import Drawn, palette_conflicts
from atrous.data.datasets.parts import is_undivided
from atrous.data.datasets.split import SHARE, divide
from atrous.data.images.image_file import IMAGE_SUFFIXES
from atrous.data.images.image_io import Pixels, read_image, read_note, read_size, write_image, write_mask
from atrous.data.labels import Colour, described_labels
from atrous.data.palette import drawn_palette, has_own_colours
from atrous.data.source import Source
from atrous.data.writers import coco, cvat, labelme, voc, yolo
from atrous.data.writers.base import Shapes, Writer
from atrous.messages import counted, did_you_mean, listed

WRITERS: dict[str, Writer] = {
    "coco": coco.WRITER,
    "yolo": yolo.WRITER,
    "voc": voc.WRITER,
    "labelme": labelme.WRITER,
    "cvat": cvat.WRITER,
}
"""Formats other than the plain layout, by the word that asks for them."""

_NOTE = "converted.txt"
_MASKS = Shapes()
_LONGEST = 200
"""Bytes of a file name without its suffix."""


@dataclass
class Converted:
    """The result of `convert`.

    Attributes:
        out: the folder.
        splits: number of images by split.
        written: number of images whose mask was written by this call.
        already: number of those that were there.
        failures: the reason for each image that could not be converted.
        said: one line each, for what else the user should know.
    """

    out: Path
    splits: dict[str, int] = field(default_factory=dict)
    written: int = 0
    already: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "out": str(self.out)}


def check_shapes(to: str, shapes: Shapes) -> None:
    """Raise ValueError if a format has no such shapes."""
    if shapes.polygons and WRITERS[to].regions == "masks":
        raise ValueError(f"{to} has masks and no polygons; expected coco, yolo, labelme or cvat with polygons")
    if not 0 <= shapes.tolerance < 1000:
        raise ValueError(f"tolerance is {shapes.tolerance}; expected 0 or more pixels")


def convert(
    source: Source,
    out: Path,
    *,
    to: str = "plain",
    copy: bool = False,
    val: float = SHARE,
    seed: int = 0,
    resplit: bool = False,
    shapes: Shapes = _MASKS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Write a data set in another layout.

    Args:
        source: see `source_of` and `predicted`.
        out: folder to write; made if there is none. It must be empty, or of an earlier call with the same arguments.
        to: plain, or one of `WRITERS`.
        copy: copy images, rather than to make hard links.
        val: the share of images that validate where the plain layout would have one split; 0 leaves it as it is.
        seed: of that division.
        resplit: put all splits together and divide anew.
        shapes: how formats of tools have regions.
        progress: called with the images done and their number.

    Raises:
        ValueError: if an argument is out of range, or `out` holds something else.
    """
    if to != "plain" and to not in WRITERS:
        raise ValueError(f"there is no format {to!r}{did_you_mean(to, ('plain', *WRITERS))}")
    if to != "plain":
        check_shapes(to, shapes)
    if not 0 <= val < 1:
        raise ValueError(f"val is {val}; expected a share of the images from 0 to below 1, such as {SHARE}")
    _refuse_renumbered(source)
    result = Converted(out, said=list(source.said))
    if not has_own_colours(source.labels):  # colours that can be told apart
        source = replace(source, labels=replace(source.labels, palette=drawn_palette(source.labels)))
    images = WRITERS[to].images if to != "plain" else "images/{split}"
    divided = _divided(source, val if to == "plain" or resplit else 0.0, seed, resplit, result)
    divided = _as_before(divided, out, images) if divided.keys() != source.splits.keys() or resplit else divided
    work = _Work(out, source, _named(divided, flat="{split}" not in images), images, copy, result, progress)
    work.claim(to, shapes, _how(source, divided, val, seed, result))
    if to == "plain":
        work.write_plain()
    else:
        work.write_format(WRITERS[to], shapes)
    result.splits = {split: sum(stem not in result.failures for stem in items) for split, items in work.named.items()}
    return result


def _refuse_renumbered(source: Source) -> None:
    """Raise ValueError where palettes draw an id in several colours, which the masks that are written would hide."""
    datasets = map(SegmentationDataset.of, source.splits.values())
    pairs = [(dataset, item) for dataset in datasets for item in dataset.items]

    def palette(pair: tuple[SegmentationDataset, Item]) -> tuple[Colour, ...]:
        with contextlib.suppress(ValueError, OSError):  # named when it is to be written
            return tuple(pair[0].palette_of(pair[1].mask) or ())
        return ()

    def drawn(pair: tuple[SegmentationDataset, Item]) -> Drawn | None:
        with contextlib.suppress(ValueError, OSError):
            return pair[0].read_checked(pair[1], read_size(pair[1].image))[1]
        return None

    with ThreadPoolExecutor() as pool:
        palettes = list(pool.map(palette, pairs))
        if len({*palettes} - {()}) < 2:
            return
        of_palettes = [pair for pair, colours in zip(pairs, palettes, strict=True) if colours]
        conflicts = palette_conflicts(filter(None, pool.map(drawn, of_palettes)), source.labels)
    if conflicts:
        more = f" (and {counted(len(conflicts) - 1, 'more mask')}: atrous data check)" if len(conflicts) > 1 else ""
        raise ValueError(conflicts[0] + more)


Divided = dict[str, list[tuple[SegmentationDataset, Item]]]


def _divided(source: Source, val: float, seed: int, resplit: bool, result: Converted) -> Divided:
    """The items of each split; those of the only split, or of all but the test, divided into train and val."""
    opened = {split: SegmentationDataset.of(listing) for split, listing in source.splits.items()}
    everything = {split: [(dataset, item) for item in dataset.items] for split, dataset in opened.items()}
    if not val or source.whole or (len(everything) > 1 and not resplit and not is_undivided([*everything])):
        return everything
    several = len(everything) > 1 and not resplit
    kept = {split: pairs for split, pairs in everything.items() if several and split != WHOLE}
    together = [pair for split, pairs in everything.items() for pair in pairs if split not in kept]
    if len(together) < 2:
        return {"train": together, **kept}
    with ThreadPoolExecutor() as pool:
        classes = list(pool.map(lambda pair: _classes_of(*pair), together))
    train, held = divide([item.name for _, item in together], classes, val, seed)
    chosen = {"train": [together[index] for index in train], "val": [together[index] for index in held]}
    what = f"divided {counted(len(together), 'image')} into {len(train)} train, {len(held)} val, with seed {seed}"
    result.said.append(f"{what}; classes are on both sides where they can be")
    return chosen | kept


def _as_before(divided: Divided, out: Path, images: str) -> Divided:
    """The division of an earlier call, whose images are all there: corrected annotations would give another one."""
    folders = {split: out / images.format(split=split) for split in divided}
    stems = {split: {path.stem for path in at.iterdir()} if at.is_dir() else set() for split, at in folders.items()}
    together = _named({"": [pair for pairs in divided.values() for pair in pairs]}, flat=True)[""]
    before = {stem: split for split, there in stems.items() for stem in there}
    if before.keys() != together.keys() or sum(map(len, stems.values())) != len(together):
        return divided
    return {split: [pair for stem, pair in together.items() if before[stem] == split] for split in divided}


def _classes_of(dataset: SegmentationDataset, item: Item) -> list[int]:
    try:
        ids = dataset.read_ids(item, read_size(item.image))
    except (ValueError, OSError):
        return []  # named when it is to be written
    return [value for value in np.unique(ids).tolist() if value != dataset.labels.ignore]


Named = dict[str, dict[str, tuple[SegmentationDataset, Item]]]


def _named(divided: Divided, flat: bool) -> Named:
    """The items of each split by the stem of their files: the last part of their names, or all where two collide."""
    named: Named = {}
    taken: dict[str, set[str]] = {}
    pairs = [(split, pair) for split, items in divided.items() for pair in items]
    scopes = {split: "" if flat else split for split in divided}
    last = [(scopes[split], Path(item.name).name.casefold()) for split, (_, item) in pairs]
    often = {key for key in last if last.count(key) > 1} if len(set(last)) < len(last) else set()
    for (split, (dataset, item)), key in zip(pairs, last, strict=True):
        stem = item.name.strip("/").replace("\\", "/").replace("/", "__") if key in often else Path(item.name).name
        stem = _shortened(stem.lstrip(".") or "image")
        used = taken.setdefault(scopes[split], set())
        number = 1
        while (candidate := stem if number == 1 else f"{stem}-{number}").casefold() in used:
            number += 1
        used.add(candidate.casefold())
        named.setdefault(split, {})[candidate] = (dataset, item)
    return named


def _shortened(stem: str) -> str:
    raw = os.fsencode(stem)
    if len(raw) <= _LONGEST:
        return stem
    return f"{raw[: _LONGEST - 9].decode('utf-8', 'ignore')}-{hashlib.sha256(raw).hexdigest()[:8]}"


def _how(source: Source, divided: Divided, val: float, seed: int, result: Converted) -> list[str]:
    """Where the data came from, as lines of a note."""
    counts = ", ".join(f"{split} {len(items)}" for split, items in divided.items())
    how = [f"Converted by `atrous data convert` from {source.name}: {source.read_as}", f"Images: {counts}"]
    if divided.keys() != source.splits.keys() or any(line.startswith("divided ") for line in result.said):
        how[-1] += f"; divided with --val {val} --seed {seed}"
    remap = next((listing.remap for listing in source.splits.values() if listing.remap), ())
    for index, name in enumerate(source.labels.names):
        stored = [value for value, mapped in enumerate(remap) if mapped == index]
        how.append(f"id {index}: {name}" + (f", there {listed([*map(str, stored)], 10)}" if stored else ""))
    return how


@dataclass(frozen=True)
class _Work:
    """What is written: see `convert`; `named` has the images by split and stem, `images` is the folder of a split's."""

    out: Path
    source: Source
    named: Named
    images: str
    copy: bool
    result: Converted
    progress: Callable[[int, int], None]

    def claim(self, to: str, shapes: Shapes, how: Sequence[str]) -> None:
        """Write the note of where it came from; refuse a folder that holds anything else.

        Raises:
            ValueError: naming what is there.
        """
        out, source = self.out, self.source
        firsts = (item for listing in source.splits.values() for item in listing.items[:1])
        if out.resolve() in {path.resolve() for item in firsts for path in item.image.parents}:
            raise ValueError(f"{out} holds what is to be converted; expected another folder to write")
        note = out / ("dataset.yaml" if to == "plain" else _NOTE)
        text = "".join(f"# {' '.join(line.split())}\n" for line in how)
        text += self._dataset_yaml() if to == "plain" else f"# Written as {to}, {shapes}\n"
        if note.is_file():
            if note.read_bytes() != text.encode("utf-8", "surrogateescape"):
                raise ValueError(
                    f"{note} is of another data set or other settings; expected an empty folder: give another OUT"
                )
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            there = listed(sorted(path.name for path in out.iterdir())) if out.is_dir() else "a file"
            raise ValueError(f"{out} holds something else ({there}); expected an empty folder, or none")
        for split, items in self.named.items():
            folder = out / self.images.format(split=split)
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            known = {*items} if "{split}" in self.images else {stem for stems in self.named.values() for stem in stems}
            others = [p.name for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.stem not in known]
            if others:
                raise ValueError(
                    f"{folder} has {listed(sorted(others))}, which {source.name} has not; expected none: give another "
                    "OUT"
                )
        write_text(note, text)

    def _dataset_yaml(self) -> str:
        document = described_labels(self.source.labels)
        rule = next(iter(self.source.splits.values())).rule
        document |= {"value_range": list(rule.value_range)} if rule.value_range else {}
        document |= {"bands": list(rule.bands)} if rule.bands else {}
        return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1 << 16)

    def write_plain(self) -> None:
        """Write masks as PNGs of ids, those that are not there yet."""
        todo = [(split, stem, *pair) for split, items in self.named.items() for stem, pair in items.items()]
        for split in self.named:
            (self.out / "masks" / split).mkdir(parents=True, exist_ok=True)
            sweep(self.out / "masks" / split)
        meaning = (self.source.labels, [listing.remap for listing in self.source.splits.values()])
        note = hashlib.sha256(repr(meaning).encode()).hexdigest()[:16]

        def one(what: tuple[str, str, SegmentationDataset, Item]) -> bool | None:
            split, stem, dataset, item = what
            target = self.out / "masks" / split / f"{stem}.png"
            with _noted(stem, self.result.failures):
                there = _is_newer(target, item) and read_note(target) == note
                mask = None if there else dataset.read_checked(item, read_size(item.image))[0]
                _place(dataset, item, self.out / "images" / split, stem, self.copy)
                if mask is not None:
                    write_mask(target, mask, self.source.labels, note)
                return mask is not None
            return None

        with ThreadPoolExecutor() as pool:
            for done, written in enumerate(pool.map(one, todo), start=1):
                self.progress(done, len(todo))
                self.result.written += written is True
                self.result.already += written is False

    def write_format(self, writer: Writer, shapes: Shapes) -> None:
        """Write images and the annotations of a tool."""
        result, ignore = self.result, self.source.labels.ignore
        total, ignored, pixels = sum(map(len, self.named.values())), 0, 0

        def samples(split: str) -> Iterator[tuple[str, Pixels]]:
            nonlocal ignored, pixels
            folder = self.out / writer.images.format(split=split)
            for stem, (dataset, item) in self.named[split].items():
                with _noted(stem, result.failures):
                    mask = dataset.read_checked(item, read_size(item.image))[0]
                    name = _place(dataset, item, folder, stem, self.copy).name
                    ignored, pixels = ignored + int((mask == ignore).sum()), pixels + mask.size
                    result.written += 1
                    yield name, mask
                self.progress(result.written + len(result.failures), total)

        writer.write(self.out, self.source.labels, {split: samples(split) for split in self.named}, shapes)
        if ignored and not writer.ignores:
            share = f"{ignored / pixels:.1%}"
            result.said.append(f"{share} of the pixels are ignored, for which this format has no word: now background")
        if writer.regions == "polygons" or shapes.polygons:
            result.said.append(f"polygons leave the outlines by up to {shapes.tolerance:g} px (--tolerance)")


@contextlib.contextmanager
def _noted(stem: str, failures: dict[str, str]) -> Iterator[None]:
    """Note why an image or mask cannot be read, so that the others can be converted."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        failures[stem] = " ".join(str(error).split())


def _is_newer(target: Path, item: Item) -> bool:
    """Whether a file was written after the annotation that it is made from."""
    path = item.mask if isinstance(item.mask, Path) else getattr(item.mask, "path", None)
    try:
        return path is not None and target.stat().st_mtime_ns > Path(path).stat().st_mtime_ns
    except OSError:
        return False


def _place(dataset: SegmentationDataset, item: Item, folder: Path, stem: str, copy: bool) -> Path:
    """The image in the folder, linked, copied, or as PNG if data sets do not read its format."""
    suffix = item.image.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        target = folder / f"{stem}.png"
        if not target.is_file():
            write_image(target, read_image(item.image, rule=dataset.rule))
        return target
    target = folder / f"{stem}{suffix}"
    if target.exists():
        ours, theirs = target.stat(), item.image.stat()
        same = (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
        if same or os.path.samestat(ours, theirs):
            return target
    if not copy:
        with contextlib.suppress(OSError):  # as between disks
            target.unlink(missing_ok=True)
            os.link(item.image.resolve(), target)
            return target
    with item.image.open("rb") as original, written_whole(target) as file:
        shutil.copyfileobj(original, file)
    shutil.copystat(item.image, target)
    return target
