"""`atrous predict`: photographs, videos, a camera or a watched folder into masks and overlays."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrous.cli.arguments import (
    add_command,
    add_device,
    add_inference,
    add_json,
    add_longest_side,
    add_reading,
    dataset_options,
)
from atrous.cli.commands import bar, complain, print_json, print_table, say, stderr_console
from atrous.cli.tables import shares_table
from atrous.messages import did_you_mean

if TYPE_CHECKING:
    from atrous.prediction.files import FilesResult
    from atrous.prediction.predictor import Predictor


def add(commands: Any) -> None:
    """Add the command."""
    text = "segment photographs and videos into masks and overlays"
    example = "atrous predict objects-mobilenetv2 photos/ --out found"
    usage = "atrous predict [options] [MODEL] SOURCE ..."
    parser = add_command(commands, "predict", run_predict, text, example, usage=usage)
    text = "files, folders, globs, videos, webcam; before them, if not everyday objects, the model: a name (atrous "
    text += "models), a run folder, a weight file or an exported file"
    parser.add_argument("words", metavar="[MODEL] SOURCE", nargs="+", help=text)
    text = "folder for masks/ and overlays/ (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("atrous-out"), help=text)
    parser.add_argument(
        "--resume", action="store_true", help="skip files whose mask and overlay are there, made with the same settings"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of videos, every N-th frame (default: 1)")
    parser.add_argument("--watch", action="store_true", help="go on with what is put into the folder, until Ctrl-C")
    parser.add_argument("--allow-urls", action="store_true", help="download sources that begin with http")
    text = "side of the tiles of large images (default: 1601, for those seen at above 16.8 megapixels)"
    parser.add_argument("--window", type=int, metavar="SIDE", help=text)
    add_longest_side(parser)
    parser.add_argument("--max-pixels", type=int, metavar="N", help="refuse larger images (default: 178956970)")
    add_reading(parser)
    add_inference(parser)
    add_device(parser)
    add_json(parser)


def run_predict(args: argparse.Namespace) -> int:
    """Segment photographs and videos."""
    from atrous.prediction.files import FilesResult, find_photographs
    from atrous.prediction.urls import is_url
    from atrous.prediction.video import check_names, is_video

    model, sources = _model_and_sources(args.words)
    urls = [source for source in sources if is_url(source)]
    if urls and not args.allow_urls:
        raise ValueError(f"{urls[0]} is downloaded with --allow-urls alone; or save it, and give the file")
    if args.watch and (len(sources) != 1 or urls):
        raise ValueError(f"--watch takes one folder; found {len(sources)} sources")
    videos = [source for source in sources if is_video(source) and not is_url(source)]
    check_names(videos)
    with tempfile.TemporaryDirectory(prefix="atrous-") as folder:
        photographs: list[str | Path] = [source for source in sources if source not in (*videos, *urls)]
        fetched, unreachable = _fetch(urls, Path(folder))
        photographs += fetched
        files = find_photographs(photographs) if photographs and not args.watch else []
        predictor = _predictor(args, model)
        if sources is args.words:
            complain(f"segmenting with {model}; for another model name it first (atrous models)", 0)
        with _unwound_by_sigterm():
            if args.watch:
                return _watch(args, predictor, Path(sources[0]))
            answer: dict[str, Any] = {}
            status = _segment_files(args, predictor, files, answer) if files else 0
            answer |= {"videos": _segment_videos(args, predictor, videos)} if videos else {}
    if unreachable:
        status = 2
        answer = FilesResult().as_dict() | answer
        answer["failures"] |= unreachable
        for why in unreachable.values():
            complain(why, status)
    if args.json:
        print_json(answer)
    return status


def _fetch(urls: list[str], folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The photographs behind URLs, and why there is none behind the others."""
    from atrous.prediction.urls import fetch

    fetched, unreachable = [], {}
    for url in urls:
        try:
            fetched.append(fetch(url, folder))
        except ValueError as error:
            unreachable[url] = str(error)
    return fetched, unreachable


def _predictor(args: argparse.Namespace, model: str) -> Predictor:
    from atrous.data.images.image_io import MAX_PIXELS
    from atrous.prediction.predictor import Predictor

    return Predictor.load(
        model, device=args.device, output_stride=args.output_stride, scales=args.scales, flip=args.flip,
        longest_side=args.longest_side, window=args.window,
        max_pixels=MAX_PIXELS if args.max_pixels is None else args.max_pixels, **_reading(args),
    )  # fmt: skip


def _segment_files(args: argparse.Namespace, predictor: Predictor, files: list[Path], answer: dict[str, Any]) -> int:
    from rich.progress import Progress

    from atrous.prediction.files import predict_files

    console = stderr_console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks = progress.add_task("", total=len(files)), progress.add_task("", total=1.0)
        places = {path: place for place, path in enumerate(files)}

        def tell(path: Path, share: float) -> None:
            progress.update(tasks[0], completed=places[path] + (share == 1.0))
            progress.update(tasks[1], completed=share, description=path.name)

        batch = predict_files(predictor, files, args.out, resume=args.resume, progress=tell)
    answer |= batch.as_dict()
    return _tell(batch, len(files), args.out)


def _tell(batch: FilesResult, count: int, out: Path) -> int:
    """Show what has come of the files; the exit status."""
    if batch.areas:
        print_table(shares_table({str(path): areas for path, areas in batch.areas.items()}))
        say(f"{len(batch.areas)} of {count} segmented into {out}")
    if batch.skipped:
        say(f"{len(batch.skipped)} of {count} were done before")
    for path, name in batch.shortened.items():
        say(f"{path}: a long name; its outputs are named {name}")
    for why in batch.failures.values():
        complain(why, 2)
    return 2 if batch.failures else 0


def _segment_videos(args: argparse.Namespace, predictor: Predictor, videos: list[str]) -> dict[str, Any]:
    from atrous.prediction.video import predict_video

    answer = {}
    for video in videos:
        with bar(Path(video).name) as tell:
            result = predict_video(
                predictor, video, args.out, every=args.every,
                progress=lambda share, tell=tell: tell(share, 1.0),  # type: ignore[misc]
            )  # fmt: skip
        print_table(shares_table({f"{video}, {result.frames} frames": result.areas}))
        say(f"masks in {result.masks}, overlays in {result.overlay}")
        answer[video] = result.as_dict()
    return answer


def _watch(args: argparse.Namespace, predictor: Predictor, folder: Path) -> int:
    from atrous.prediction.watch import watch

    complain(f"watching {folder}; Ctrl-C ends it", 0)

    def said(batch: FilesResult) -> None:
        _tell(batch, len(batch.areas) + len(batch.skipped) + len(batch.failures), args.out)
        if args.json:
            print_json(batch.as_dict())

    watch(predictor, folder, args.out, said=said)
    return 0


def _reading(args: argparse.Namespace) -> dict[str, Any]:
    """What `Predictor` takes of `--value-range` and `--bands`; without them it reads as the model's training did."""
    options = dataset_options(args)
    values = {"value_range": options.value_range, "bands": options.bands}
    return {key: value for key, value in values.items() if value}


def _model_and_sources(words: list[str]) -> tuple[str, list[str]]:
    """The model, everyday objects by default, and what it is to segment.

    Raises:
        ValueError: if the first word is neither a model nor a photograph, or nothing follows a model.
    """
    from atrous.models.exported import SUFFIXES
    from atrous.models.hub import is_hub_name
    from atrous.models.interchange.files import PICKLES, TENSORFLOW
    from atrous.models.weights import names, resolve
    from atrous.prediction.predictor import DEFAULT_MODEL
    from atrous.prediction.urls import is_url
    from atrous.prediction.video import camera_of

    first, *rest = words
    folder = Path(first)
    is_run = any((folder / name).exists() for name in ("recipe.yaml", "best", "model.safetensors", "pytorch_model.bin"))
    is_file = folder.suffix.lower() in {".safetensors", ".npz", ".tflite", *SUFFIXES, *PICKLES, *TENSORFLOW}
    if first in names() or is_file or is_run or (rest and is_hub_name(first)):
        resolve(first)
        if not rest:
            raise ValueError(f"{first} is a model; expected photographs after it: atrous predict {first} photo.jpg")
        return first, rest
    named_otherwise = is_url(first) or camera_of(first) is not None
    if not os.path.lexists(first) and not glob.has_magic(first) and not named_otherwise:
        beside = [str(path) for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = did_you_mean(first, [*names(), *beside], otherwise="")
        raise ValueError(f"there is no photograph and no model {first!r}{near or '; atrous models lists the models'}")
    return DEFAULT_MODEL, words


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves as Ctrl-C does, past whatever removes a file that is half written."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
