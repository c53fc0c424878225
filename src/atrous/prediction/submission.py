"""Write and check submissions to the test servers of VOC 2012 and Cityscapes (Tables 7 and 13).

    atrous submit write MODEL --data voc:VOCdevkit --out for-voc --output-stride 8 --flip
    atrous submit check for-voc/results.tgz --data voc:VOCdevkit

VOC takes `results/VOC2012/Segmentation/comp6_test_cls/NAME.png`, palette PNGs of class ids, in a .tgz (comp5 for a
model trained on VOC's data alone). Cityscapes takes a .zip of gray PNGs of label ids, not of train ids. Every
prediction is written whole or not at all; an interrupted command can be repeated and predicts what is missing. The
archive is packed last, and only if it passes the check.
"""

from __future__ import annotations

import io
import json
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

from atrous.atomic import write_text, written_whole
from atrous.data.datasets.dataset import Item, Listing, kind_of, list_split, refuse_problems
from atrous.data.images.image_io import read_size, write_image, write_mask
from atrous.data.labels import CITYSCAPES_LABEL_IDS, CITYSCAPES_TRAIN_IDS, VOC, Labels
from atrous.evaluation.evaluate import class_difference
from atrous.messages import listed
from atrous.models.weights import digest, load
from atrous.prediction.predictor import Predictor

COMPETITIONS = ("comp5", "comp6")
"""Of VOC: trained on VOC's data alone, or on any data."""

_SETTINGS = "submission.json"
_MAX_BYTES = 1 << 26


@dataclass(frozen=True)
class Submission:
    """The result of `write`: the archive, the number of images in it, and how many of those this call predicted."""

    archive: Path
    images: int
    predicted: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"archive": str(self.archive), "images": self.images, "predicted": self.predicted}


@dataclass(frozen=True)
class _Server:
    """The form that a server expects.

    Attributes:
        archive: name of the file to upload.
        folder: in the archive, of a competition and a split.
        end: of a file's name, after the image's name.
        pattern: regular expression of a member of a split, with the image's name as its group.
        save: writes a mask of class ids.
        modes: of Pillow.
        ids: that a file may hold.
        palette: red, green, blue, red, ... of the first ids; empty for any.
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
    pad_to: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Submission:
    """Predict a split, or what is left of it, and pack the archive for the server.

    Args:
        model: a name, a weight file or a run folder, with VOC's or Cityscapes' classes.
        data: in VOC's or Cityscapes' layout.
        out: folder for the predictions and the archive.
        split: with or without masks.
        competition: of VOC, one of `COMPETITIONS`; comp6 if not given.
        device: as for `Predictor`, and so are `output_stride`, `scales` and `flip`.
        output_stride: of the features.
        scales: of the inputs.
        flip: average flipped inputs in.
        pad_to: least height and width that the network sees, in pixels: 513 for VOC (section 4.1).
        progress: called with the images done and their number.

    Raises:
        ValueError: if data or model have other classes, an image cannot be read, `out` holds predictions of another
            model, split or setting, or a prediction does not pass `check`.
        FileNotFoundError: if there is no such data, model or image.
    """
    kind, listing = _listing(data, split)
    if competition not in (None, *COMPETITIONS) or (competition and kind != "voc"):
        raise ValueError(f"competition is {competition!r}; expected one of VOC's, {' or '.join(COMPETITIONS)}")
    server, competition = _SERVERS[kind], competition or ("comp6" if kind == "voc" else "")
    network, card = load(model)
    labels = Labels(card.names, card.palette, card.ignore)
    if difference := class_difference(labels.names, listing.labels.names):
        raise ValueError(f"{listing.place}: {difference}; expected a model of these classes")
    settings = {
        "weights": digest(network),
        "split": split,
        "competition": competition,
        "output_stride": output_stride or network.output_stride,
        "scales": list(scales),
        "flip": flip,
        "pad_to": pad_to,
    }
    predictor = Predictor(
        network, labels, device=device, output_stride=output_stride, scales=scales, flip=flip, pad_to=pad_to
    )
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
    """The faults of an archive, one line each: names missing or not expected, wrong sizes, modes, palettes, ids.

    Raises:
        FileNotFoundError: if there is no such archive or data.
        ValueError: if the archive cannot be read, or the data is neither VOC's nor Cityscapes'.
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


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings into the folder, or refuse to mix predictions of two models or settings in it."""
    path = out / _SETTINGS
    if path.exists():
        try:
            old = json.loads(path.read_text("utf-8"))
        except ValueError:
            old = None
        old = old if isinstance(old, dict) else {}
        changed = [f"{key} {old.get(key)}, {value}" for key, value in settings.items() if old.get(key) != value]
        if changed:
            raise ValueError(
                f"{out} holds predictions of another setting (there, here): {'; '.join(changed)}; name another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1) + "\n")


def _pack(out: Path, name: str, members: Sequence[str], faults: Callable[[Path], list[str]]) -> None:
    with written_whole(out / name) as file:
        if name.endswith(".zip"):
            with zipfile.ZipFile(file, "w") as zipped:
                for member in members:
                    zipped.write(out / member, member)
        else:
            with tarfile.open(fileobj=file, mode="w:gz") as packed:
                for member in members:
                    packed.add(out / member, member, filter=_without_owner)
        file.flush()
        if lines := faults(Path(file.name)):
            raise ValueError(f"{out}: {listed(lines, 1)}; remove the wrong files there, and they are predicted again")


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid, member.gid, member.uname, member.gname, member.mode = 0, 0, "", "", 0o644
    return member


def _faults(archive: Path, server: _Server, listing: Listing, split: str) -> list[str]:
    images = {item.name: item for item in listing.items}
    pattern, counts, extra, lines = re.compile(server.pattern(split)), Counter[str](), [], []
    ids: set[int] = set()
    for member, content in _members(archive):
        match = pattern.fullmatch(member.removeprefix("./"))
        if match is None or match[1] not in images:
            extra.append(member)
            continue
        counts[match[1]] += 1
        fault = _fault(content, images[match[1]], server, ids)
        lines += [f"{member}: {fault}"] if fault else []
    absent = [name for name in images if name not in counts]
    twice = [name for name, count in counts.items() if count > 1]
    if absent:
        wanted = f"{server.folder('comp6', split)}/{absent[0]}{server.end}"
        lines.append(f"{len(absent)} of {len(images)} predictions are missing: {listed(absent)}; expected {wanted}")
    lines += [f"{len(extra)} files are not expected: {listed(extra)}"] if extra else []
    lines += [f"{len(twice)} images have more than one prediction: {listed(twice)}"] if twice else []
    if counts and server.end != ".png" and ids <= set(range(len(CITYSCAPES_LABEL_IDS))):
        lines.append(f"no file has an id above {max(ids, default=0)}: train ids, it seems; expected label ids, 7 to 33")
    return lines


def _fault(content: bytes, item: Item, server: _Server, ids: set[int]) -> str:
    """The fault of one PNG, or ""; adds the ids that it holds to `ids`."""
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
    return f"id {listed(wrong)}; expected {min(server.ids)}..{max(server.ids)}" if wrong else ""


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content, cut at a limit, of each member but folders; the content of a link is empty."""
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
