"""Segment the frames of videos and cameras: a mask for each, and a video with the overlays.

Read and written by PyAV (``pip install 'atrous[video]'``). Frames are decoded, segmented and written a few at a time,
so that a video of any length takes the same memory.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from atrous.atomic import sweep, written_whole
from atrous.data.images.image_io import read_note, write_mask
from atrous.prediction.predictor import Predictor

VIDEO_SUFFIXES = frozenset(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split())
"""Suffixes, in lower case, of what counts as a video."""

CAMERA = "webcam"

DEFAULT_RATE = Fraction(25)

_NOTE = "frame"
"""In the masks of frames: a later run removes those alone."""


@dataclass(frozen=True)
class VideoResult:
    """What has come of a video.

    Attributes:
        frames: that were segmented.
        masks: folder of their palette PNGs, named by the number of the frame, from 0.
        overlay: video of the overlays.
        areas: mean share of each class over the frames, by name.
    """

    frames: int
    masks: Path
    overlay: Path
    areas: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"frames": self.frames, "masks": str(self.masks), "overlay": str(self.overlay), "areas": self.areas}


def is_video(source: str | Path) -> bool:
    """Whether a source is a video or a camera, by its name: ``webcam`` is the first one, ``webcam:1`` the next."""
    return Path(source).suffix.lower() in VIDEO_SUFFIXES or camera_of(source) is not None


def camera_of(source: str | Path) -> int | None:
    """The number of a camera, or None for what is none."""
    name, _, number = str(source).partition(":")
    if name != CAMERA or not (number or "0").isdecimal() or os.path.lexists(source):
        return None
    return int(number or 0)


def camera_address(number: int, platform: str = sys.platform) -> tuple[str, str]:
    """File and format that FFmpeg has for a camera."""
    if platform == "darwin":
        return str(number), "avfoundation"
    if platform == "win32":
        return f"video={number}", "dshow"
    return f"/dev/video{number}", "v4l2"


def predict_video(
    predictor: Predictor,
    source: str | Path,
    out: Path,
    *,
    every: int = 1,
    frames: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> VideoResult:
    """Segment every n-th frame into ``out/masks/NAME/NUMBER.png`` and ``out/overlays/NAME.mp4``.

    Ctrl-C ends a camera; what was seen until then is written. An earlier run's masks of other frames are removed.

    Args:
        predictor: the model with its settings.
        source: a video file, or a camera: see `is_video`.
        out: folder to write.
        every: n; the video of overlays is as long as the source.
        frames: end after this many.
        progress: called with the share, 0 to 1, that is done, where the source says how long it is.

    Raises:
        ValueError: if PyAV is not installed, `every` is not positive, the source cannot be read as a video, or it
            lies where the overlays go.
        FileNotFoundError: if there is no such file or camera.
    """
    if every < 1:
        raise ValueError(f"--every is {every}; expected 1 or more")
    av, camera, name = _library(), camera_of(source), output_name(source)
    masks, target = out / "masks" / name, out / "overlays" / f"{name}.mp4"
    if os.path.realpath(target) == os.path.realpath(source):
        raise ValueError(f"{target} is the video itself and would be overwritten; give another --out")
    totals: dict[str, float] = {}
    count = 0
    with _opened(av, source, camera) as video:
        stream = video.streams.video[0]
        for folder in (masks, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
        rate = Fraction(stream.average_rate or DEFAULT_RATE) / every
        chosen = _chosen(video, stream, every, frames, progress)
        with written_whole(target) as file, av.open(file, "w", format="mp4") as made:
            overlays = _Overlays(av, made, rate)
            with contextlib.suppress(KeyboardInterrupt) if camera is not None else contextlib.nullcontext():
                for result in predictor(chosen):
                    write_mask(masks / _mask_name(count * every), result.mask, predictor.labels, _NOTE)
                    overlays.add(result.overlay())
                    for label, share in result.areas.items():
                        totals[label] = totals.get(label, 0.0) + share
                    count += 1
            overlays.close()
    written = {_mask_name(number) for number in range(0, count * every, every)}
    for mask in masks.glob("[0-9]*.png"):
        if mask.name not in written and _is_frames(mask):
            mask.unlink()
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return VideoResult(count, masks, target, {label: share / count for label, share in ordered})


def _mask_name(number: int) -> str:
    return f"{number:06}.png"


def _is_frames(mask: Path) -> bool:
    """Whether a run wrote this mask: other numbered masks, of a data set say, can lie in the same folder."""
    try:
        return read_note(mask) == _NOTE
    except (ValueError, OSError):
        return False


def output_name(source: str | Path) -> str:
    """What the masks' folder and the overlay video of a video or camera are named after it."""
    camera = camera_of(source)
    return Path(source).stem if camera is None else f"{CAMERA}{camera}"


def check_names(videos: Sequence[str]) -> None:
    """Refuse videos whose outputs would have one name.

    Raises:
        ValueError: naming two of them.
    """
    taken: dict[str, str] = {}
    for video in videos:
        if other := taken.get(name := output_name(video)):
            raise ValueError(f"{other} and {video} would both be written to {name}.mp4; segment them into two folders")
        taken[name] = video


def _library() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        raise ValueError("videos are read by PyAV; pip install 'atrous[video]'") from None


@contextlib.contextmanager
def _opened(av: Any, source: str | Path, camera: int | None) -> Iterator[Any]:
    path, kind = (str(source), None) if camera is None else camera_address(camera)
    if camera is None and not os.path.exists(path):
        raise FileNotFoundError(f"there is no video {path!r}")
    try:
        video = av.open(path, format=kind)
    except (av.FFmpegError, ValueError) as error:
        what = "a video" if camera is None else f"a camera ({CAMERA}:{camera})"
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read as {what}: {reason}") from None
    with video:
        if not video.streams.video:
            raise ValueError(f"{path}: has no video stream; expected a video")
        yield video


def _chosen(
    video: Any, stream: Any, every: int, most: int | None, progress: Callable[[float], None]
) -> Iterator[Image.Image]:
    """Every n-th frame, upright."""
    total = stream.frames or 0
    for number, frame in enumerate(video.decode(stream)):
        if most is not None and number >= most * every:
            return
        if number % every == 0:
            image = frame.to_image()
            turn = round(getattr(frame, "rotation", 0)) % 360
            yield image.rotate(turn, expand=True) if turn else image
        if total:
            progress(min(1.0, (number + 1) / total))


class _Overlays:
    """A video that is being written; its size is that of the first frame, made even as H.264 wants it."""

    def __init__(self, av: Any, container: Any, rate: Fraction) -> None:
        self._av, self._container, self._rate = av, container, rate
        self._stream: Any = None

    def add(self, picture: Image.Image) -> None:
        """Append a frame."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.width, self._stream.height = (-(-side // 2) * 2 for side in picture.size)
            self._stream.pix_fmt = "yuv420p"
        size = (self._stream.width, self._stream.height)
        even = picture if picture.size == size else _padded(picture, size)
        for packet in self._stream.encode(self._av.VideoFrame.from_image(even)):
            self._container.mux(packet)

    def close(self) -> None:
        """Write what the encoder still holds.

        Raises:
            ValueError: if there was no frame.
        """
        if self._stream is None:
            raise ValueError("the video has no frame that can be read")
        for packet in self._stream.encode():
            self._container.mux(packet)


def _padded(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    page = Image.new("RGB", size)
    page.paste(picture)
    return page
