"""Write the images that LabelMe's JSON holds (`imageData`) into a folder, once, where they are not beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from atrous.data.datasets.archive import unpacked_by
from atrous.data.datasets.base import files_by_stem
from atrous.data.datasets.json_records import load_json

_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}


def embedded_images(folder: Path, paths: Sequence[Path]) -> dict[str, Path]:
    """The images in some JSON files of a folder, by stem, in FOLDER-images beside it or in the cache folder.

    Raises:
        ValueError: naming the file, if its imageData is no image.
        OSError: if they cannot be written anywhere.
    """
    if not paths:
        return {}
    stamp = "/".join(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths)
    place = folder.absolute().with_name(f"{folder.absolute().name}-images")
    return files_by_stem(unpacked_by(place, stamp, partial(_fill, paths), folder))[0]


def _fill(paths: Sequence[Path], folder: Path) -> None:
    for path in paths:
        try:
            data = base64.b64decode(load_json(path, "LabelMe's JSON")["imageData"])
            with Image.open(io.BytesIO(data), formats=[*_SUFFIXES]) as image:
                suffix = _SUFFIXES[str(image.format)]
        except (ValueError, TypeError, OSError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: imageData is no image ({reason}); expected PNG or JPEG in base64") from None
        (folder / f"{path.stem}{suffix}").write_bytes(data)
