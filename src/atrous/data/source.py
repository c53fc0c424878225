"""What `atrous data convert` reads: a data set in any layout, or images with masks that a model makes or has made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atrous.data.datasets.annotations import expecting
from atrous.data.datasets.dataset import Item, Listing, list_split, refuse_problems, splits
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.data.labels import CLASSES, Labels, difference
from atrous.messages import counted, listed
from atrous.yaml_io import parse_yaml


@dataclass(frozen=True)
class Source:
    """What is converted.

    Attributes:
        name: for the note of where it came from.
        read_as: what it was taken for.
        labels: its classes.
        splits: images and masks.
        said: one line each, for what is not converted.
        whole: whether it stays undivided.
    """

    name: str
    read_as: str
    labels: Labels
    splits: Mapping[str, Listing]
    said: tuple[str, ...] = ()
    whole: bool = False


def source_of(data: str | Path, options: DatasetOptions = NO_OPTIONS) -> Source:
    """A data set in any layout that is read.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if it is no data set, a split lacks files, the splits have different classes, or none has masks.
    """
    listings = {name: list_split(data, name, options) for name in splits(data) if name != "trainval"}
    masked = {name: listing for name, listing in listings.items() if not listing.unlabelled}
    said = [
        f"{name}: {counted(len(listing.items), 'image')} without masks left out: {listing.unlabelled}"
        for name, listing in listings.items()
        if listing.unlabelled
    ]
    if not masked:
        raise ValueError(f"{data}: no split with masks; expected one or more{'; ' + said[0] if said else ''}")
    first = next(iter(masked))
    for name, listing in masked.items():
        refuse_problems(listing)
        if listing.labels != masked[first].labels:
            raise ValueError(f"{data}: {name} has {difference(listing.labels, masked[first].labels, first)}")
        said += [*listing.warnings, *(f"{name}: {n} images left out: {why}" for why, n in listing.left_out.items())]
    listing = masked[first]
    name = Path(str(data).rpartition(":")[2] or str(data)).resolve().name
    return Source(name, listing.read_as, listing.labels, masked, tuple(said))


def predicted(folder: Path, photographs: Mapping[Path, str]) -> Source:
    """The output folder of `atrous predict`.

    Args:
        folder: with `masks/` and `classes.yaml`.
        photographs: the name of its mask for each photograph.

    Raises:
        FileNotFoundError, ValueError: if a file is missing there.
    """
    labels = _written_labels(folder / CLASSES)
    items = [Item(Path(name).stem, path, folder / "masks" / name) for path, name in photographs.items()]
    without = [str(item.image) for item in items if isinstance(item.mask, Path) and not item.mask.is_file()]
    if len(without) == len(items):
        raise ValueError(
            f"{folder / 'masks'}: no mask of {listed(without)}; expected the photographs that were segmented"
        )
    said = (f"{counted(len(without), 'photograph')} without a mask left out: {listed(without)}",) if without else ()
    return source_of_masks(folder, labels, [item for item in items if str(item.image) not in without], said)


def _written_labels(path: Path) -> Labels:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the output folder of atrous predict, which writes it")
    with expecting(path, "it as atrous predict wrote it"):
        document = parse_yaml(path.read_text("utf-8"))
        return Labels(tuple(document["names"]), tuple(map(tuple, document["palette"])), document["ignore"])


def source_of_masks(place: Path, labels: Labels, items: Sequence[Item], said: Sequence[str] = ()) -> Source:
    """Images with masks that a model makes or has made, as one split, which is not divided."""
    listing = Listing(str(place), tuple(items), labels, read_as="a model's masks")
    return Source(place.resolve().name, listing.read_as, labels, {"train": listing}, tuple(said), whole=True)
