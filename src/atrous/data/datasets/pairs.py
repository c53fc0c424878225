"""Folders of images and of masks, arranged as in `arrangement.py`, with or without a file that names the classes.

With a file of `class_files.py`, the classes are those that it names by colour or by id; without one, they come from the
values that the masks store (`inferred_classes.py`). Lists of names, `train.txt`, `val.txt` and `test.txt` as of CamVid,
say which images are of which split.

The plain layout has `dataset.yaml`, `images/SPLIT/NAME.jpg|png` and `masks/SPLIT/NAME.png` of the same stem:

    names: [background, leaf, stem]
    palette: [[0, 0, 0], [0, 200, 0], [200, 100, 0]]   # for masks in colours, and for overlays; by default VOC's
    ignore: 255                                        # this id neither trains nor counts; by default 255
    map: {128: 1, 255: stem}                           # masks store 128 for leaf and 255 for stem

Other arrangements with a dataset.yaml have its classes, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from atrous.data.datasets.arrangement import Place, places_of, unread_masks
from atrous.data.datasets.array_mask import ArrayMask
from atrous.data.datasets.base import WHOLE, Item, Items, Layout, Listing, MaskSource, names_in, split_name, subfolders
from atrous.data.datasets.class_files import ColourMask, find_class_file, read_classes, read_lines
from atrous.data.datasets.folding import own_labels
from atrous.data.datasets.inferred_classes import infer_classes, step_of
from atrous.data.datasets.options import FILE, DatasetOptions, read_options
from atrous.data.datasets.pairing import (
    ARRAY_SUFFIXES,
    MASK_SUFFIXES,
    Pairing,
    files_below,
    is_mask_name,
    paired,
    stem,
    suffixed,
)
from atrous.data.images.image_file import IMAGE_SUFFIXES, say_once
from atrous.data.labels import Labels
from atrous.messages import counted, listed

_LISTS = ("train", "val", "valid", "validation", "test", "trainval")


@dataclass(frozen=True)
class Files:
    """The files of one split.

    Attributes:
        place: their folders.
        pairing: of images and masks.
        others: files that are neither.
        left_out: images by the reason for which they are left out.
        absent: names in the list of the split that no image has.
    """

    place: Place
    pairing: Pairing
    others: tuple[str, ...]
    left_out: Mapping[str, int]
    absent: tuple[str, ...] = ()

    def masks(self, step: int = 1) -> list[Path]:
        """The masks that have an image, or each of some steps."""
        return [self.place.masks / mask for _, _, mask in self.pairing.pairs[::step]] if self.place.masks else []

    def items(self, source: Callable[[Path], Path | MaskSource]) -> Items:
        """Images with masks, each mask as `source`, which pickles, makes it of its path."""
        images, masks = str(self.place.images), str(self.place.masks)
        if self.place.masks is None:
            return Items(((stem(name), name) for name in self.pairing.unmasked), partial(_unmasked, images))
        return Items(self.pairing.pairs, partial(item_of, images, masks, source))

    def problems(self, where: str = "", advice: str = "expected its name, or that with _mask") -> list[str]:
        """A line for each kind of file that has no partner; `where` says where masks are sought."""
        if self.place.masks is None:
            return []
        unmasked, count = self.pairing.unmasked, len(self.pairing.pairs) + len(self.pairing.unmasked)
        lines = [f"{self.place.images}: {listed(self.pairing.ambiguous)}; expected one file a name"]
        lines = lines if self.pairing.ambiguous else []
        if self.absent:
            names = f"{len(self.absent)} names in the list of the split have no image: {listed(self.absent)}"
            lines.append(f"{self.place.images}: {names}")
        if unmasked:
            names = listed([stem(name) for name in unmasked[:4]] + unmasked[4:])
            where = where or str(self.place.masks)
            advice = f"; {advice}" if advice else ""
            lines.append(
                f"{self.place.images}: {len(unmasked)} of {count} images have no mask in {where}: {names}{advice}"
            )
        return lines

    def warnings(self) -> tuple[str, ...]:
        """A line for each kind of file that is not read."""
        orphans = self.pairing.orphans
        lines = [f"{self.place.masks}: {len(orphans)} masks have no image: {listed(orphans)}"] if orphans else []
        if self.others:
            lines.append(f"{self.place.images}: {len(self.others)} files are no images: {listed(self.others)}")
        return tuple(lines)


def files_of(root: Path) -> dict[str, Files]:
    """The files by split, divided by lists of names where there are some."""
    places = places_of(root)
    if (whole := places.get(WHOLE)) is None:
        lists = _lists(root)
        known = {split: names for split, names in lists.items() if split in places and names & _stems(places[split])}
        return {split: files_in(place, known.get(split)) for split, place in places.items()}
    if lists := _lists_of(root, whole):
        return {split: files_in(whole, names) for split, names in lists.items()}
    return {WHOLE: files_in(whole)}


def splits_of(root: Path) -> list[str]:
    """The splits, without pairing their files."""
    places = places_of(root)
    whole = places.get(WHOLE)
    return [*((_lists_of(root, whole) if whole else {}) or places)]


def files_in(place: Place, names: set[str] | None = None) -> Files:
    """The files of a place, paired; of the images in `names`, stems, if there is a list of them."""
    inside = files_below(place.images, place.deep)
    images = suffixed(inside, IMAGE_SUFFIXES)
    if place.masks == place.images:
        masks = [name for name in suffixed(inside, MASK_SUFFIXES) if is_mask_name(name)]
        images = sorted({*images} - {*masks})
    else:
        masks = [] if place.masks is None else suffixed(files_below(place.masks, place.deep), MASK_SUFFIXES)
    known = {*images, *masks}
    others = tuple(name for name in inside if name not in known)
    left_out: dict[str, int] = {}
    absent: tuple[str, ...] = ()
    if names is not None:
        kept = [name for name in images if _own_stem(name) in names]
        absent = tuple(sorted(names - {_own_stem(name) for name in kept}))
        if len(kept) < len(images):
            left_out["not in the list of the split"] = len(images) - len(kept)
            images, masks = kept, [mask for _, _, mask in paired(kept, masks).pairs]
    pairing = Pairing(unmasked=images) if place.masks is None else paired(images, masks)
    return Files(place, pairing, others, left_out, absent)


def _stems(place: Place) -> set[str]:
    return {_own_stem(name) for name in suffixed(files_below(place.images, place.deep), IMAGE_SUFFIXES)}


def _own_stem(name: str) -> str:
    return stem(name.rpartition("/")[2])


def _lists_of(root: Path, place: Place) -> dict[str, set[str]]:
    """The lists of a folder that holds all splits; none unless they name images of it.

    Where only val is listed, as by fast.ai, the others train.
    """
    lists = _lists(root)
    everywhere = _stems(place)
    listed_there = set().union(*lists.values())
    if not listed_there & everywhere:
        return {}
    return lists if "train" in lists or "val" not in lists else {"train": everywhere - listed_there, **lists}


def _lists(root: Path) -> dict[str, set[str]]:
    """Stems of images by split, of files such as train.txt: a name or the path of an image a line, perhaps its mask."""
    lists: dict[str, set[str]] = {}
    for folder in (root, root / "splits", root / "lists"):
        for name in _LISTS:
            if (path := folder / f"{name}.txt").is_file():
                lists.setdefault(split_name(name), {_stem_in(line) for line in read_lines(path)})
                if not lists[split_name(name)] and split_name(name) in ("train", "val"):
                    raise ValueError(f"{path}: an empty list; expected names of images, or no such file")
    return lists


def _stem_in(line: str) -> str:
    """The stem of the image that a line of a list names, whose path may have spaces; its mask may follow it."""
    lower = line.lower()
    ends = [lower.find(suffix) + len(suffix) for suffix in IMAGE_SUFFIXES if suffix in lower]
    first = line[: min(ends)] if ends else line
    first = first.strip('"').replace("\\", "/")
    return stem(PurePosixPath(first).name) if ends else PurePosixPath(first).name


def _unmasked(images: str, own: str, image: str) -> Item:
    return Item(own, Path(images, image), None)


def item_of(
    images: str, masks: str, source: Callable[[Path], Path | MaskSource], own: str, image: str, mask: str
) -> Item:
    """An item of `Items`."""
    return Item(own, Path(images, image), source(Path(masks, mask)))


def colour_mask(labels: Labels, class_file: Path, path: Path) -> MaskSource:
    """A mask whose colours are classes."""
    return ColourMask(path, labels, class_file)


def plain_mask(path: Path, largest: int = 255) -> Path | MaskSource:
    """A mask of ids as they are stored: an image that is read as such, or what `array_mask.py` reads."""
    return ArrayMask(path, largest) if path.suffix.lower() in (*ARRAY_SUFFIXES, ".gif") else path


def _recognise(root: Path) -> Path | None:
    # Whose names are in a file that Roboflow's layout did not understand.
    if any((root / name / "_classes.csv").is_file() for name in (".", *subfolders(root))):
        return None
    return root if places_of(root) else None


def _read(root: Path, split: str, options: DatasetOptions) -> Listing:
    every = files_of(root)
    listing, place = listing_by(root, every, split, options), every[split].place
    spare = unread_masks(place)
    line = f"{place.masks} has the masks that are read; not {listed(spare)} beside it"
    return replace(listing, warnings=(*listing.warnings, line)) if spare else listing


class MaskClasses(NamedTuple):
    """What masks hold.

    Attributes:
        labels: the classes.
        remap: class id by stored id, or None, as of `Listing`.
        source: what makes a mask of its path; it pickles.
        how: the end of `Listing.read_as`, which says where the classes come from.
    """

    labels: Labels
    remap: tuple[int, ...] | None
    source: Callable[[Path], Path | MaskSource]
    how: str


def classes_of(
    root: Path,
    count: int,
    masks: Callable[[int], list[Path]],
    options: DatasetOptions,
    class_file: Path | None = None,
) -> MaskClasses:
    """The classes that the options name, or a file of classes, or that the masks of all splits have.

    Args:
        root: of the data set.
        count: how many masks there are.
        masks: each of some steps of them.
        options: those of `dataset.yaml`; errors name it.
        class_file: the layout's own; None for one of `find_class_file`.
    """
    if options.names:
        try:
            labels, remap = own_labels(options)
        except ValueError as error:
            raise ValueError(f"{root / FILE}: {error}") from None
        source = partial(plain_mask, largest=max(labels.largest_id, len(remap or ()) - 1))
        return MaskClasses(labels, remap, source, f", with the {counted(len(options.names), 'class')} that are named")
    if class_file := class_file or find_class_file((root,)):
        labels, by_colour = read_classes(class_file)
        of = partial(colour_mask, labels, class_file) if by_colour else partial(plain_mask, largest=labels.largest_id)
        return MaskClasses(labels, None, of, f", with the {counted(len(labels), 'class')} of {class_file.name}")
    if not (some := masks(step_of(count))):
        return MaskClasses(Labels(("background",), ((0, 0, 0),)), None, plain_mask, "")
    classes = infer_classes(root, some, count, options.binary)
    say_once(f"{root}: {classes.said}")
    return MaskClasses(classes.labels, None, classes.mask, f"; {classes.said}")


def listing_by(root: Path, every: Mapping[str, Files], split: str, options: DatasetOptions) -> Listing:
    """A listing with the classes of `classes_of`."""

    def masks(step: int) -> list[Path]:
        return [mask for each in every.values() for mask in each.masks(step)]

    count = sum(len(each.pairing.pairs) for each in every.values())
    labels, remap, source, how = classes_of(root, count, masks, options)
    return replace(listing_of(every[split], source, labels, f"images with masks{how}"), remap=remap)


def listing_of(files: Files, source: Callable[[Path], Path | MaskSource], labels: Labels, read_as: str) -> Listing:
    """A listing of the files of a split."""
    return Listing(
        str(files.place.images),
        files.items(source),
        labels,
        problems=tuple(files.problems()),
        warnings=files.warnings(),
        unlabelled="" if files.place.masks else "there is no folder of masks for it",
        left_out=files.left_out,
        read_as=read_as,
    )


def _is_plain(root: Path) -> bool:
    """Whether the folders are images/SPLIT, or there are none of another arrangement."""
    return bool(subfolders(root / "images")) or not places_of(root)


def _plain_splits(root: Path) -> list[str]:
    return subfolders(root / "images") if _is_plain(root) else splits_of(root)


def _read_plain(root: Path, split: str, options: DatasetOptions) -> Listing:
    if not (root / FILE).is_file():
        read_options(root / FILE)  # which says what it is
    if not _is_plain(root):
        return listing_by(root, files_of(root), split, options)
    if not options.names:
        read = {name: files_in(Place(root / "images" / name, root / "masks" / name)) for name in _plain_splits(root)}
    else:
        read = {split: files_in(Place(root / "images" / split, root / "masks" / split))}
    listing = listing_by(root, read, split, options)
    read_as = "a plain folder with the classes of dataset.yaml" if options.names else listing.read_as
    return replace(listing, problems=tuple(_plain_problems(read[split], split)), read_as=read_as)


def _plain_problems(files: Files, split: str) -> list[str]:
    assert files.place.masks is not None
    advice = _other_files(files.place.masks, {*files.pairing.unmasked})
    return files.problems(f"masks/{split}, of the same stem", advice)


def _other_files(folder: Path, images: Collection[str]) -> str:
    """What a folder holds in place of the masks of these images, for a message."""
    if not folder.is_dir():
        return "there is no such folder"
    stems = {stem(name) for name in images}
    others = [name for name in names_in(folder) if stem(name) in stems or not name.lower().endswith((*MASK_SUFFIXES,))]
    return f"it has {listed(others)}: name each mask as its image, with .png" if others else ""


LAYOUT = Layout(
    "folders of images and of masks, such as images/ and masks/; or X.jpg with X_mask.png",
    "",
    _recognise,
    splits_of,
    _read,
)

PLAIN = Layout(
    "dataset.yaml, images/SPLIT/ and masks/SPLIT/",
    "",
    lambda root: root if (root / FILE).exists() else None,  # a pipe is one, too, and is refused by its reader
    _plain_splits,
    _read_plain,
)
