"""A sheet of photographs beside their masks, with a legend: `atrous data show DATA --out sheet.png`.

The rarest classes come first, and every class that occurs is shown. Each region has its class's name written in it, for
colours alone hide a swapped class. Where there are predictions, each photograph has truth and prediction beside it.

    sheet("my-data").save("sheet.png")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from atrous.data.datasets.dataset import Item, Listing, SegmentationDataset, list_split, splits
from atrous.data.datasets.mask_values import histogram_of
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions
from atrous.data.images.image_io import Pixels, read_size, write_image
from atrous.data.labels import Labels
from atrous.data.lettering import Font, lettering
from atrous.data.overlay import overlay
from atrous.data.palette import drawn_palette
from atrous.messages import counted

FEWEST, MOST = 12, 60
"""Pictures on a sheet, unless a number is asked for: as many as it takes to see every class, within these."""
MOST_EXAMINED = 1000
"""Masks of which classes are counted, evenly spaced over each split."""

_SIDE = 360
_GAP = 12
_SEEN = 0.002
"""The share of a picture's pixels above which its class is seen in it."""

Predict = Callable[[Item], Pixels]


@dataclass(frozen=True)
class _Candidate:
    split: str
    item: Item
    counts: npt.NDArray[np.int64]  # of `histogram_of`


@dataclass(frozen=True)
class Sheet:
    """What a sheet shows.

    Attributes:
        image: the sheet, RGB.
        shown: the names of the photographs on it, by split and name.
        unreadable: one line each, for images and masks that could not be read.
        examined: how many masks were looked at, of how many.
    """

    image: Image.Image
    shown: tuple[str, ...]
    unreadable: tuple[str, ...]
    examined: tuple[int, int]

    def save(self, path: str | Path) -> None:
        """Write it in the format that the suffix names."""
        write_image(path, self.image)


def sheet(
    data: str | Path,
    options: DatasetOptions = NO_OPTIONS,
    *,
    only: Sequence[str] = (),
    count: int | None = None,
    predict: Predict | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sheet:
    """Draw photographs of a data set with their masks.

    Args:
        data: as for `open_dataset`.
        options: likewise.
        only: splits to take pictures from; all by default.
        count: pictures; by default as many as it takes to see every class, `FEWEST` to `MOST`.
        predict: the predicted ids of an item, uint8 H,W, to be drawn beside the truth; errors as of a mask.
        progress: called with the masks read and their number.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if it is no data set that can be read, or none of its masks can.
    """
    if count is not None and count < 1:
        raise ValueError(f"{count} pictures; expected 1 or more")
    listings = _listings(data, options, only)
    labels = next(iter(listings.values())).labels
    candidates, unreadable, total = _examined(listings, progress)
    if not candidates:
        raise ValueError(f"{data}: no mask can be read, so that there is nothing to show: {unreadable[0]}")
    counts = np.stack([one.counts for one in candidates])
    chosen = choose(counts[:, : len(labels)], count)
    tiles, shown = [], []
    for one in (candidates[index] for index in chosen):
        try:
            tiles.append(_tile(one, listings[one.split], labels, predict))
            shown.append(f"{one.split}/{one.item.name}")
        except (ValueError, OSError) as error:
            unreadable.append(" ".join(str(error).split()))
    if not tiles:
        raise ValueError(f"{data}: no photograph can be shown: {unreadable[-1]}")
    said = f"{counted(len(tiles), 'picture')} of {total}, rarest classes first"
    said += f"; classes counted in {len(candidates)} masks" if len(candidates) < total else ""
    said += "; each: photograph, truth, prediction" if predict else ""
    legend = _legend(f"{data}: {said}", counts, labels, 2 * tiles[0].width + 3 * _GAP)
    return Sheet(_laid_out(legend, tiles), tuple(shown), tuple(unreadable), (len(candidates), total))


def choose(counts: npt.NDArray[np.int64], count: int | None = None) -> list[int]:
    """The rows to show, so that all classes are seen, the rarest first.

    Args:
        counts: pixels of each class in each image, int64 N,K.
        count: as for `sheet`.
    """
    most = MOST if count is None else count
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    rarest_first = [int(index) for index in np.argsort(counts.sum(axis=0), kind="stable") if counts[:, index].any()]
    chosen: list[int] = []
    for index in rarest_first:
        if not any(shares[row, index] >= _SEEN for row in chosen) and len(chosen) < most:
            row = int(shares[:, index].argmax())
            chosen += [row] if row not in chosen else []
    # Then more of the rare ones, in turns.
    wanted = min(len(counts), max(len(chosen), FEWEST) if count is None else count)
    ranked = {index: iter(np.argsort(-shares[:, index], kind="stable").tolist()) for index in rarest_first}
    while len(chosen) < wanted:
        before = len(chosen)
        for index in rarest_first:
            more = next((row for row in ranked[index] if row not in chosen and counts[row, index]), None)
            if more is not None and len(chosen) < wanted:
                chosen.append(more)
        if len(chosen) == before:
            chosen += [row for row in range(len(counts)) if row not in chosen][: wanted - before]
    return chosen


def _listings(data: str | Path, options: DatasetOptions, only: Sequence[str]) -> dict[str, Listing]:
    """The splits that have masks, and the classes of the first of them."""
    names = [*only] or [name for name in splits(data) if name != "trainval"]
    listings = {name: list_split(data, name, options) for name in names}
    masked = {name: listing for name, listing in listings.items() if listing.items and not listing.unlabelled}
    if not masked:
        problems = [line for listing in listings.values() for line in (*listing.problems, listing.unlabelled) if line]
        raise ValueError(f"{data}: no split with images and masks{'; ' + problems[0] if problems else ''}")
    labels = next(iter(masked.values())).labels
    return {name: listing for name, listing in masked.items() if listing.labels == labels}


def _examined(
    listings: dict[str, Listing], progress: Callable[[int, int], None]
) -> tuple[list[_Candidate], list[str], int]:
    """Masks with their counts, a line for each that cannot be read, and how many there are in all."""
    todo = [
        (split, listing.items[place])
        for split, listing in listings.items()
        for place in np.unique(np.linspace(0, len(listing.items) - 1, MOST_EXAMINED, dtype=int))
    ]
    datasets = {split: SegmentationDataset.of(listing) for split, listing in listings.items()}

    def examine(one: tuple[str, Item]) -> _Candidate | str:
        split, item = one
        try:
            ids = datasets[split].read_ids(item, read_size(item.image))
            return _Candidate(split, item, histogram_of(ids, listings[split].labels))
        except (ValueError, OSError) as error:
            return " ".join(str(error).split())

    candidates, unreadable = [], []
    with ThreadPoolExecutor() as pool:
        for done, one in enumerate(pool.map(examine, todo), start=1):
            progress(done, len(todo))
            if isinstance(one, str):
                unreadable.append(one)
            else:
                candidates.append(one)
    return candidates, unreadable, sum(len(listing.items) for listing in listings.values())


def _tile(one: _Candidate, listing: Listing, labels: Labels, predict: Predict | None) -> Image.Image:
    """Photograph, truth and, where it is predicted, prediction side by side, over a line that says what they hold."""
    sample = SegmentationDataset.of(listing).with_items([one.item])[0]
    image, masks = sample.image.permute(1, 2, 0).numpy(), [sample.mask.numpy()]
    ious = ""
    if predict:
        masks.append(predict(one.item))
        if masks[1].shape != masks[0].shape:
            (high, wide), (rows, columns) = masks[0].shape, masks[1].shape
            raise ValueError(f"{one.item.image}: the prediction is {columns}x{rows}; expected {wide}x{high}")
        ious = _agreement(masks[0], masks[1], labels)
    pictures = [_fitted(image), *(_drawn(image, mask, labels) for mask in masks)]
    tile = Image.new("RGB", (len(pictures) * (_SIDE + 4), max(picture.height for picture in pictures) + 20), "white")
    for place, picture in enumerate(pictures):
        tile.paste(picture, (place * (_SIDE + 4) + (_SIDE - picture.width) // 2, 0))
    shares = one.counts[: len(labels)] / one.counts.sum()
    there = sorted(np.flatnonzero(shares).tolist(), key=lambda index: shares[index])
    text = f"{one.split}/{one.item.name}   " + (ious or ", ".join(f"{labels.names[i]} {shares[i]:.1%}" for i in there))
    text, font = lettering(text, 12)
    ImageDraw.Draw(tile).text((0, tile.height - 17), _cut(text, font, tile.width - _GAP), fill="black", font=font)
    return tile


def _agreement(truth: Pixels, prediction: Pixels, labels: Labels) -> str:
    """IoU of each class in truth or prediction, the worst first."""
    counts = truth != labels.ignore
    ious = {}
    for index in np.unique(np.concatenate([truth[counts], prediction[counts]])).tolist():
        ours, theirs = (prediction == index) & counts, truth == index
        name = labels.names[index] if index < len(labels) else f"id {index}"
        ious[name] = (ours & theirs).sum() / max(1, (ours | theirs).sum())
    return "IoU " + ", ".join(f"{name} {iou:.2f}" for name, iou in sorted(ious.items(), key=lambda pair: pair[1]))


def _fitted(picture: npt.NDArray[Any], nearest: bool = False) -> Image.Image:
    image = Image.fromarray(picture)
    scale = min(_SIDE / image.width, 0.75 * _SIDE / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if nearest or scale >= 1 else Image.Resampling.BOX)


def _drawn(image: Pixels, mask: Pixels, labels: Labels) -> Image.Image:
    small, ids = np.asarray(_fitted(image)), np.asarray(_fitted(mask, nearest=True))
    return overlay(small, ids, labels, alpha=0.6, legend=False, names=True)


def _legend(title: str, counts: npt.NDArray[np.int64], labels: Labels, width: int) -> Image.Image:
    """Title, then each class with its colour, its share of the pixels and the images that have it, rarest first."""
    size = 15
    title, _ = lettering(title, size)
    _, font = lettering("".join((title, *labels.names)), size)
    pixels, images = counts.sum(axis=0)[: len(labels)], (counts > 0).sum(axis=0)
    order = np.argsort(pixels, kind="stable").tolist()
    total, palette = max(1, int(pixels.sum())), drawn_palette(labels)
    texts = {
        i: f"{lettering(labels.names[i], size)[0]}  {pixels[i] / total:.2%}, {counted(int(images[i]), 'image')}"
        for i in order
    }
    column = max(font.getlength(text) for text in texts.values()) + 2.5 * size
    columns = max(1, int((width - 2 * _GAP) // column))
    rows = -(-len(order) // columns)
    picture = Image.new("RGB", (width, round(2.2 * size + rows * 1.5 * size)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_GAP, 4), _cut(title, font, width - 2 * _GAP), fill="black", font=font)
    for place, index in enumerate(order):
        x, y = _GAP + (place // rows) * column, 2 * size + (place % rows) * 1.5 * size
        draw.rectangle((x, y + 2, x + size, y + 2 + size), fill=palette[index], outline="black")
        draw.text((x + 1.5 * size, y), texts[index], fill="black" if pixels[index] else "red", font=font)
    return picture


def _cut(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text} ...") > width:
        text = text[:-1]
    return f"{text} ..."


def _laid_out(legend: Image.Image, tiles: Sequence[Image.Image]) -> Image.Image:
    """The legend over two columns of tiles."""
    rows = [tiles[start : start + 2] for start in range(0, len(tiles), 2)]
    heights = [max(tile.height for tile in row) + _GAP for row in rows]
    page = Image.new("RGB", (legend.width, legend.height + sum(heights)), "white")
    page.paste(legend, (0, 0))
    top = legend.height
    for row, height in zip(rows, heights, strict=True):
        for place, tile in enumerate(row):
            page.paste(tile, (_GAP + place * (tile.width + _GAP), top))
        top += height
    return page
