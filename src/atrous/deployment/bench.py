"""`atrous bench`: the runtimes installed on this machine, turn by turn on one photograph.

Each runtime has a process of its own, which is idle while another has its turn, so that its peak memory is its own and
no thread of one is in the way of another. What is timed is one photograph, from uint8 pixels to the class of each.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from atrous.deployment.export import as_model, export
from atrous.deployment.network import Interface
from atrous.deployment.parity import inputs_of, photographs
from atrous.deployment.torch_export import compiler
from atrous.evaluation.as_trained import open_as_trained
from atrous.evaluation.evaluate import check_class_names, evaluate, predict_classes
from atrous.messages import did_you_mean
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import is_exported, open_file
from atrous.models.weights import ModelCard, load, resolve
from atrous.platforms import peak_memory

RUNTIMES = ("atrous", "eager", "compiled", "onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8")
"""Ours in its inference form, PyTorch layer by layer, ``torch.compile``, and exported files."""

_REST = 0.05
"""Seconds between two turns: threads of the one before wait actively for a while."""

_TOO_LONG = 1800.0


@dataclass(frozen=True)
class Row:
    """What was measured of one runtime.

    Attributes:
        runtime: one of `RUNTIMES`, or an exported file.
        milliseconds: median of a photograph.
        low: a quarter of the turns were faster.
        high: a quarter were slower.
        peak: largest memory of its process, in bytes, Python and the runtime's own code included; None where unknown.
        bytes: of its file.
        miou: on val, 0 to 1; None without data.
    """

    runtime: str
    milliseconds: float
    low: float
    high: float
    peak: int | None
    bytes: int
    miou: float | None


@dataclass(frozen=True)
class Report:
    """Rows, and which one to ship.

    Attributes:
        rows: of each runtime.
        advice: one sentence.
        size: H and W of the photograph.
        threads: of each runtime.
        skipped: the reason for each runtime that was left out.
    """

    rows: tuple[Row, ...]
    advice: str
    size: tuple[int, int]
    threads: int
    skipped: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bench(
    source: str | Path,
    *,
    data: str | None = None,
    size: tuple[int, int] = (360, 480),
    output_stride: int | None = None,
    runtimes: Sequence[str] | None = None,
    rounds: int = 20,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Time the runtimes that are installed.

    Args:
        source: a name, a run folder, a weight file, or an exported file, which is then timed alone.
        data: for mIoU, and for int8.
        size: H and W of the photograph.
        output_stride: other than the model's.
        runtimes: some of `RUNTIMES`; None for all that can run here.
        rounds: turns of each.
        threads: of each runtime; None for PyTorch's number.
        say: called with what goes on.

    Raises:
        ValueError: if there is no such runtime, or none can run.
    """
    if rounds < 1:
        raise ValueError(f"--rounds is {rounds}, expected at least 1")
    threads = threads or torch.get_num_threads()
    path = resolve(source)
    if is_exported(path) and (runtimes or output_stride):
        raise ValueError(f"{path} is exported: it has one runtime and one output stride")
    load(path, output_stride=output_stride)  # what is wrong with it is said before anything is exported or started
    with tempfile.TemporaryDirectory() as folder:
        if is_exported(path):
            files, skipped = {path.name: path}, dict[str, str]()
        else:
            chosen, skipped = choose(runtimes, data)
            for why in skipped.values() if chosen else ():
                say(why)
            files = _files(chosen, skipped, path, Path(folder), output_stride, data, say)
        if not files:
            raise ValueError("; ".join(skipped.values()))
        jobs = [_Job(name, str(file), output_stride, data, size, threads) for name, file in files.items()]
        rows = tuple(_timed(jobs, rounds, say))
    command = f"atrous export {source}" + (f" --output-stride {output_stride}" if output_stride else "")
    return Report(rows, advice(rows, command, data), size, threads, skipped)


def choose(asked: Sequence[str] | None, data: str | None) -> tuple[list[str], dict[str, str]]:
    """The runtimes that can run here, and why the others cannot.

    Raises:
        ValueError: if one is asked for that there is not.
    """
    for name in asked or ():
        if name not in RUNTIMES:
            raise ValueError(f"there is no runtime {name!r}{did_you_mean(name, RUNTIMES)}")
    skipped = {}
    for name in asked or RUNTIMES:
        package = {"onnxruntime": "onnxruntime", "openvino": "openvino"}.get(name.partition("-")[0])
        extra = "onnx" if package == "onnxruntime" else package
        needed = [package, "onnx", "onnxscript", *(["nncf"] if name == "openvino-int8" else [])] if package else []
        if missing := [each for each in needed if each and importlib.util.find_spec(each) is None]:
            skipped[name] = f"{name}: {missing[0]} is not installed: pip install 'atrous[{extra}]'"
        elif name == "compiled" and compiler() is None:
            skipped[name] = "compiled: torch.compile needs a C++ compiler"
        elif name.endswith("int8") and data is None:
            skipped[name] = f"{name}: needs --data, to calibrate on and to measure"
    return [name for name in asked or RUNTIMES if name not in skipped], skipped


def advice(rows: Sequence[Row], command: str, data: str | None = None, most: float = 0.01) -> str:
    """Which to ship: the fastest of those that lose no more than `most` of mIoU against the best of all.

    Args:
        rows: of the runtimes.
        command: exports the model, but for its format.
        data: that calibrates int8.
        most: of mIoU, 0 to 1.
    """
    known = [row.miou for row in rows if row.miou is not None]
    sound = [row for row in rows if row.miou is None or row.miou >= max(known) - most]
    best = min(sound, key=lambda row: row.milliseconds)
    slowest = max(rows, key=lambda row: row.milliseconds)
    ratio = f", {slowest.milliseconds / best.milliseconds:.1f} times as fast as {slowest.runtime}"
    miou = "" if best.miou is None else f", mIoU {100 * best.miou:.1f}, the best being {100 * max(known):.1f}"
    return (
        f"Ship {best.runtime}: {best.milliseconds:.1f} ms{ratio if best is not slowest else ''}, "
        f"{best.bytes / 1e6:.1f} MB{miou}{_how(best.runtime, command, data)}."
    )


def _how(name: str, command: str, data: str | None) -> str:
    """The command that makes a runtime's file, as the end of a sentence; empty where the weights are all it needs."""
    runtime, _, int8 = name.partition("-")
    if name not in RUNTIMES or runtime not in ("onnxruntime", "openvino"):
        return ""
    options = f" --int8 --data {data}" if int8 else ""
    return f"; made by: {command} --format {runtime.replace('onnxruntime', 'onnx')}{options}"


def _files(
    names: Sequence[str],
    skipped: dict[str, str],
    path: Path,
    folder: Path,
    output_stride: int | None,
    data: str | None,
    say: Callable[[str], None],
) -> dict[str, Path]:
    """The file of each runtime, exported where it has to be."""
    files = {}
    for name in names:
        if name in ("atrous", "eager", "compiled"):
            files[name] = path
            continue
        runtime, _, int8 = name.partition("-")
        suffix = ".onnx" if runtime == "onnxruntime" else ".xml"
        try:
            files[name] = export(
                path, folder / f"{name}{suffix}", format="onnx" if runtime == "onnxruntime" else "openvino",
                output_stride=output_stride, int8=bool(int8), data=data if int8 else None,
                max_loss=100.0 if int8 else None, say=say,
            ).path  # fmt: skip
        except (ValueError, RuntimeError) as error:
            skipped[name] = f"{name}: {error}"
            say(skipped[name])
    return files


@dataclass(frozen=True)
class _Job:
    """What a process is to run."""

    name: str
    file: str
    output_stride: int | None
    data: str | None
    size: tuple[int, int]
    threads: int


def _timed(jobs: Sequence[_Job], rounds: int, say: Callable[[str], None]) -> Iterator[Row]:
    """Give each process its turn, and then have it measure mIoU."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for job in jobs:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(job, theirs), daemon=True)
        process.start()
        theirs.close()
        workers.append((job, process, ours))
    try:
        for job, process, pipe in workers:
            _answer(job, process, pipe)  # it has run once
        say(f"{rounds} turns of each")
        seconds: dict[str, list[float]] = {job.name: [] for job in jobs}
        for _ in range(rounds):
            for job, process, pipe in workers:
                time.sleep(_REST)
                pipe.send("run")
                seconds[job.name].append(_answer(job, process, pipe))
        for job, process, pipe in workers:
            pipe.send("finish")
            peak, miou = _answer(job, process, pipe)
            turns = sorted(1e3 * each for each in seconds[job.name])
            quarters = statistics.quantiles(turns, n=4) if len(turns) > 1 else [turns[0]] * 3
            yield Row(job.name, quarters[1], quarters[0], quarters[2], peak, _bytes(Path(job.file)), miou)
    finally:
        for _, process, pipe in workers:
            pipe.close()
            process.join(5)
            if process.is_alive():
                process.terminate()


def _answer(job: _Job, process: Any, pipe: Any) -> Any:
    if not pipe.poll(_TOO_LONG):
        raise RuntimeError(f"{job.name} did not answer for {_TOO_LONG / 60:.0f} minutes")
    try:
        kind, value = pipe.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{job.name} ended with exit status {process.exitcode}") from None
    if kind == "error":
        raise RuntimeError(f"{job.name}: {value}")
    return value


def _work(job: _Job, pipe: Any) -> None:
    """In a process of its own: run once, then on demand, then say how much memory it took and how well it does."""
    try:
        torch.set_num_threads(job.threads)
        run, model, card = _ready(job)
        run()
        pipe.send(("ready", None))
        while pipe.recv() == "run":
            started = time.perf_counter()
            run()
            pipe.send(("seconds", time.perf_counter() - started))
        peak = _peak()  # before anything else than the photograph is run
        pipe.send(("finished", (peak, None if job.data is None else _miou(_scored(job, model, card), card, job.data))))
    except EOFError:
        pass
    except Exception as error:  # whatever it is, it is for the process that asked
        pipe.send(("error", str(error).strip() or type(error).__name__))


def _scored(job: _Job, model: DeepLabV3, card: ModelCard) -> DeepLabV3:
    """The model whose mIoU is measured: ``torch.compile`` would compile anew for each size of a data set."""
    if job.name == "compiled":
        return load(Path(job.file), output_stride=job.output_stride)[0].for_inference(dtype=torch.float32)
    model.longest_side = card.longest_side
    return model


def _ready(job: _Job) -> tuple[Callable[[], object], DeepLabV3, ModelCard]:
    """What runs one photograph, the model for mIoU, and its card."""
    path = Path(job.file)
    if is_exported(path):
        return _ready_file(job, path)
    if job.name == "eager":
        os.environ["ATROUS_KERNELS"] = "library"  # PyTorch's own, as other models have them
    model, card = load(path, output_stride=job.output_stride)
    photograph = next(iter(photographs(job.size)))[None]
    if job.name == "atrous":
        model = model.for_inference()
    elif job.name == "compiled":
        model = model.for_inference(dtype=torch.float32, compile=True)
    model.longest_side = None  # what is timed is the network at the size that was asked for
    return lambda: predict_classes(model, photograph), model, card


def _ready_file(job: _Job, path: Path) -> tuple[Callable[[], object], DeepLabV3, ModelCard]:
    runtime = open_file(path, job.threads)
    card, info = ModelCard.from_json(runtime.card), runtime.info
    if info["size"] and tuple(info["size"]) != job.size:
        raise ValueError(f"it takes {info['size'][0]}x{info['size'][1]} alone; give that as --size")
    model, interface = as_model(runtime, card), Interface(info["raw_input"], info["logits"])
    given = inputs_of(next(iter(photographs(job.size)))[None], model, interface)
    return lambda: runtime.run(given), model, card


def _peak() -> int | None:
    """Peak memory of this process; Linux's other counter begins with that of the process that started it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return peak_memory()


def _miou(model: DeepLabV3, card: ModelCard, data: str) -> float:
    dataset, _ = open_as_trained(data, "val", card)
    check_class_names(card.names, dataset.labels.names, len(card.names), "other data")
    return evaluate(model, dataset).scores.miou


def _bytes(path: Path) -> int:
    second = path.with_suffix(".bin")
    return path.stat().st_size + (second.stat().st_size if path.suffix == ".xml" and second.is_file() else 0)
