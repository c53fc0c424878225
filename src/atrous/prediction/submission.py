"""Predictions in the form that the test servers of VOC 2012 and Cityscapes take (Tables 7 and 13), and a check of it.

    atrous submit write MODEL --data voc:VOCdevkit --out for-voc --output-stride 8 --flip
    atrous submit check for-voc/results.tgz --data voc:VOCdevkit

VOC takes `results/VOC2012/Segmentation/comp6_test_cls/NAME.png`, palette PNGs of class ids, in a .tgz (comp5 for a
model that saw no data but VOC's). Cityscapes takes a .zip of gray PNGs of label ids, not of train ids. Every prediction
is written whole or not at all, and one that is there is not made again: an interrupted command goes on where it was.
The archive is packed last, once every prediction is in it and passes the check.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from atrous.atomic import write_text
from atrous.data.datasets.base import first_few
from atrous.data.datasets.dataset import Item, Listing, kind_of, list_split, refuse_problems
from atrous.data.image_io import read_size, write_image, write_mask
from atrous.data.labels import CITYSCAPES_LABEL_IDS, CITYSCAPES_TRAIN_IDS, VOC, Labels
from atrous.models.weights import load
from atrous.prediction.predictor import Predictor, weights_digest

COMPETITIONS = ("comp5", "comp6")
"""VOC's: trained on VOC's data alone, or on any."""

_SETTINGS = "submission.json"
_MAX_BYTES = 1 << 26


@dataclass(frozen=True)
class Submission:
    """What `write` did: the archive, the images in it, and how many of those this call predicted."""

    archive: Path
    images: int
    predicted: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"archive": str(self.archive), "images": self.images, "predicted": self.predicted}


@dataclass(frozen=True)
class _Server:
    """What a server takes.

    Attributes:
        archive: name of the file to upload.
        folder: in the archive, of a competition and a split.
        end: of a file's name, behind the image's.
        pattern: of a member, with the image's name as its group, given the split.
        save: writes a mask of classes.
        modes: of Pillow.
        ids: that may be in a file.
        palette: red, green, blue, red, ... of the first ids, or nothing.
    """

    archive: str
    folder: Callable[[str, str], str]
    end: str
    pattern: Callable[[str], str]
    save: Callable[[Path, npt.NDArray[np.uint8]], None]
    modes: tuple[str, ...]
    ids: frozenset[int]
    palette: tuple[int, ...] = ()


_SERVERS = {
    "voc": _Server(
        "results.tgz",
        lambda competition, split: f"results/VOC2012/Segmentation/{competition}_{split}_cls",
        ".png",
        lambda split: rf"results/VOC2012/Segmentation/comp[56]_{re.escape(split)}_cls/([^/]+)\.png",
        lambda path, mask: write_mask(path, mask, VOC),
        ("P",),
        frozenset(range(len(VOC))),
        tuple(part for colour in VOC.palette for part in colour),
    ),
    "cityscapes": _Server(
        "results.zip",
        lambda competition, split: "results",
        "_pred_labelIds.png",
        # The server's script looks for CITY_123456_123456*.png in any folder.
        lambda split: r"(?:.*/)?([^/_]+_\d{6}_\d{6})[^/]*\.png",
        lambda path, mask: write_image(path, np.array(CITYSCAPES_LABEL_IDS, dtype=np.uint8)[mask]),
        ("L", "P"),
        frozenset(label for label, train in enumerate(CITYSCAPES_TRAIN_IDS) if train >= 0 and label != 255),
    ),
}


def write(
    model: str | Path,
    data: str | Path,
    out: Path,
    *,
    split: str = "test",
    competition: str | None = None,
    device: str | None = None,
    output_stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Submission:
    """Predict a split, or what is left of it, and pack what the server takes.

    Args:
        model: a name, a weight file or a run folder, of VOC's or Cityscapes' classes.
        data: of one of those two layouts.
        out: folder for the predictions and the archive.
        split: with or without masks.
        competition: of VOC, one of `COMPETITIONS`; comp6 if not given.
        device: as for `Predictor`, and so are `output_stride`, `scales` and `flip`.
        output_stride: of the features.
        scales: of the inputs.
        flip: average flipped inputs in.
        progress: called with the images done and their number.

    Raises:
        ValueError: if data or model are of no such classes, an image cannot be read, `out` holds predictions of another
            model, split or setting, or a prediction does not pass `check`.
        FileNotFoundError: if there is no such data, model or image.
    """
    kind, listing = _listing(data, split)
    if competition not in (None, *COMPETITIONS) or (competition and kind != "voc"):
        raise ValueError(f"competition is {competition!r}; expected one of VOC's, {' or '.join(COMPETITIONS)}")
    server, competition = _SERVERS[kind], competition or ("comp6" if kind == "voc" else "")
    network, card = load(model)
    labels = Labels(card.names, card.palette, card.ignore)
    _check_classes(labels, listing)
    settings = {
        "weights": weights_digest(network),
        "split": split,
        "competition": competition,
        "output_stride": output_stride or network.output_stride,
        "scales": list(scales),
        "flip": flip,
    }
    predictor = Predictor(network, labels, device=device, output_stride=output_stride, scales=scales, flip=flip)
    _claim(out, settings)
    folder = server.folder(competition, split)
    members = {f"{folder}/{item.name}{server.end}": item for item in listing.items}
    (out / folder).mkdir(parents=True, exist_ok=True)
    predicted = 0
    for done, (member, item) in enumerate(members.items(), 1):
        if not (out / member).exists():
            server.save(out / member, predictor(item.image).mask)
            predicted += 1
        progress(done, len(members))
    _pack(out, server.archive, list(members), lambda archive: _faults(archive, server, listing, split))
    return Submission(out / server.archive, len(members), predicted)


def check(archive: Path, data: str | Path, *, split: str = "test") -> list[str]:
    """What is wrong with an archive, a line each: names that are missing or not expected, sizes, modes, palettes, ids.

    Raises:
        FileNotFoundError: if there is no such archive or data.
        ValueError: if the archive cannot be read as one, or the data is neither VOC's nor Cityscapes'.
    """
    kind, listing = _listing(data, split)
    return _faults(archive, _SERVERS[kind], listing, split)


def _listing(data: str | Path, split: str) -> tuple[str, Listing]:
    kind = kind_of(data)
    if kind not in _SERVERS:
        raise ValueError(f"{data}: a data set of layout {kind}; expected one with a server, {' or '.join(_SERVERS)}")
    listing = list_split(data, split)
    refuse_problems(listing)
    return kind, listing


def _check_classes(labels: Labels, listing: Listing) -> None:
    if labels.names != listing.labels.names:
        theirs, ours = f"{len(labels)} classes, {first_few(labels.names)}", first_few(listing.labels.names)
        raise ValueError(f"the model has {theirs}; expected the {len(listing.labels)} of {listing.place}, {ours}")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder ours, or refuse to mix two models' or two settings' predictions in it."""
    path = out / _SETTINGS
    if path.exists():
        try:
            there = json.loads(path.read_text("utf-8"))
        except ValueError:
            there = None
        there = there if isinstance(there, dict) else {}
        changed = [f"{key} {there.get(key)}, {value}" for key, value in settings.items() if there.get(key) != value]
        if changed:
            raise ValueError(
                f"{out} holds predictions of another setting (there, here): {'; '.join(changed)}; name another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1) + "\n")


def _pack(out: Path, name: str, members: Sequence[str], faults: Callable[[Path], list[str]]) -> None:
    partial = out / f".{os.getpid()}.{name}"
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(partial, "w") as zipped:
                for member in members:
                    zipped.write(out / member, member)
        else:
            with tarfile.open(partial, "w:gz") as packed:
                for member in members:
                    packed.add(out / member, member, filter=_without_owner)
        if found := faults(partial):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ValueError(f"{out}: {found[0]}{more}; remove what is wrong there, and it is made again")
        os.replace(partial, out / name)
    finally:
        partial.unlink(missing_ok=True)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    return member.replace(uid=0, gid=0, uname="", gname="", mode=0o644, deep=False)


def _faults(archive: Path, server: _Server, listing: Listing, split: str) -> list[str]:
    images = {item.name: item for item in listing.items}
    pattern, found, extra, lines = re.compile(server.pattern(split)), Counter[str](), [], []
    ids: set[int] = set()
    for member, content in _members(archive):
        match = pattern.fullmatch(member.removeprefix("./"))
        if match is None or match[1] not in images:
            extra.append(member)
            continue
        found[match[1]] += 1
        fault = _fault(content, images[match[1]], server, ids)
        lines += [f"{member}: {fault}"] if fault else []
    absent = [name for name in images if name not in found]
    twice = [name for name, count in found.items() if count > 1]
    if absent:
        wanted = f"{server.folder('comp6', split)}/{absent[0]}{server.end}"
        lines.append(f"{len(absent)} of {len(images)} predictions are missing: {first_few(absent)}; expected {wanted}")
    lines += [f"{len(extra)} files are not expected: {first_few(extra)}"] if extra else []
    lines += [f"{len(twice)} images have more than one prediction: {first_few(twice)}"] if twice else []
    if found and server.end != ".png" and ids <= set(range(len(CITYSCAPES_LABEL_IDS))):
        lines.append(f"no file has an id above {max(ids, default=0)}: train ids, it seems; expected label ids, 7 to 33")
    return lines


def _fault(content: bytes, item: Item, server: _Server, ids: set[int]) -> str:
    """What is wrong with one PNG, or nothing; adds what it holds to `ids`."""
    height, width = read_size(item.image)
    try:
        if len(content) > _MAX_BYTES or b"IEND\xaeB`\x82" not in content[-64:]:
            raise ValueError
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (width, height):
                return f"{image.width}x{image.height} pixels; expected {width}x{height}, the size of its photograph"
            if image.mode not in server.modes:
                return f"mode {image.mode}; expected {' or '.join(server.modes)}, 8 bits of ids"
            if image.mode == "L" and content[24] != 8:  # the header's depth: Pillow stretches fewer bits to 0..255
                return f"gray of {content[24]} bits; expected 8"
            if server.palette and tuple(image.getpalette() or ())[: len(server.palette)] != server.palette:
                return "another palette; expected VOC's colour map"
            counts = np.bincount(np.asarray(image).ravel(), minlength=256)
    # On hostile bytes Pillow raises whatever it stumbles over.
    except Exception:
        return "not a whole PNG"
    here = {int(value) for value in np.flatnonzero(counts)}
    ids |= here
    wrong = [f"{value} ({counts[value]} pixels)" for value in sorted(here - server.ids)]
    return f"id {first_few(wrong)}; expected {min(server.ids)}..{max(server.ids)}" if wrong else ""


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content, cut above a limit, of all that is no folder; links have none."""
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such file; expected an archive of predictions")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                for entry in (entry for entry in zipped.infolist() if not entry.is_dir()):
                    with zipped.open(entry) as content:
                        yield entry.filename, content.read(_MAX_BYTES + 1)
        else:
            with tarfile.open(archive) as packed:
                for member in (member for member in packed if not member.isdir()):
                    file = packed.extractfile(member) if member.isfile() else None
                    yield member.name, file.read(_MAX_BYTES + 1) if file else b""
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{archive}: {reason}; expected a whole .zip, .tar or .tgz") from None
