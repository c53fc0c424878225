"""LoveDA: `Train/Urban/images_png` with `Train/Urban/masks_png`, `Rural` and `Val` likewise; 1 to 7, 0 is ignored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from atrous.data.datasets.arrangement import Place
from atrous.data.datasets.base import Item, Layout, Listing, by_split, split_name, subfolders
from atrous.data.datasets.options import DatasetOptions
from atrous.data.datasets.pairs import files_in, listing_of, plain_mask
from atrous.data.labels import Labels

LOVEDA = Labels(
    ("background", "building", "road", "water", "barren", "forest", "agriculture"),
    ((255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128)),
)
_PUBLISHED = "LoveDA is published at https://zenodo.org/records/5706578"
_REMAP = (255, *range(7), *[-1] * 247, 255)
_AREAS = ("rural", "urban")


def _areas(folder: Path) -> list[Path]:
    places = (folder / name for name in subfolders(folder) if name.lower() in _AREAS)
    return [place for place in places if (place / "images_png").is_dir()]


def _folders(root: Path) -> dict[str, list[Path]]:
    """The folders of Urban and Rural by split; the splits come in archives of their own."""
    if places := _areas(root):
        return {split_name(root.name.lower()): places}
    return by_split(root, {name.lower(): places for name in subfolders(root) if (places := _areas(root / name))})


def _recognise(root: Path) -> Path | None:
    return root if _folders(root) else None


def _read(root: Path, split: str, _: DatasetOptions) -> Listing:
    listings = [_read_area(place) for place in _folders(root)[split]]
    areas = ((place.name, listing) for place, listing in zip(_folders(root)[split], listings, strict=True))
    items = tuple(_named(f"{area}/{item.name}", item) for area, listing in areas for item in listing.items)
    problems = tuple(line for listing in listings for line in listing.problems)
    warnings = tuple(line for listing in listings for line in listing.warnings)
    place = listings[0].place if len(listings) == 1 else str(Path(listings[0].place).parents[1])
    return replace(listings[0], place=place, items=items, problems=problems, warnings=warnings, remap=_REMAP)


def _read_area(place: Path) -> Listing:
    masks = place / "masks_png"
    files = files_in(Place(place / "images_png", masks if masks.is_dir() else None))
    return listing_of(files, plain_mask, LOVEDA, "LoveDA, with its 7 classes; 0, no data, is ignored")


def _named(name: str, item: Item) -> Item:
    return item._replace(name=name)  # Urban and Rural number their images alike


LAYOUT = Layout(
    "Train/Urban/images_png/ and Train/Urban/masks_png/",
    _PUBLISHED,
    _recognise,
    lambda root: list(_folders(root)),
    _read,
)
