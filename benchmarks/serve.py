"""Requests a second of `atrous serve` beside those of the network alone, every mask compared with the sequential one.

    python -m benchmarks.serve --requests 10000 --clients 8 64 --out benchmarks/serve_MACHINE_DATE.json

Server, clients and the network alone run on this machine, in turns: a round is a number of images through the network
alone (as many threads as the server has workers, images ready as tensors), then as many requests. What is reported is
the median over the rounds, so that a machine whose speed changes still gives a ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

from atrous.data.images.image_io import to_tensor
from atrous.evaluation.evaluate import predict_classes
from atrous.prediction.demo import bundled
from atrous.prediction.predictor import Predictor
from atrous.serving.answers import mask_png
from atrous.serving.workers import cores
from benchmarks.timing import describe_machine

PHOTOS = ("cow.jpg", "aeroplane.jpg", "terrace.jpg", "pavilion.jpg")


@dataclass
class Case:
    """A request, and the body of its answer."""

    request: bytes
    answer: bytes


@dataclass
class Load:
    """What was measured with a number of clients: seconds, requests or images a second, milliseconds of processor time.

    `ratio` compares requests a second with images of the network alone, by the wall's clock. Processor time, which
    other programs disturb less, is that of a request in the server, and that of an image in the network.
    """

    clients: int
    requests: int = 0
    wrong: int = 0
    p50: float = 0.0
    p99: float = 0.0
    per_second: float = 0.0
    network_per_second: float = 0.0
    ratio: float = 0.0
    network_cpu_ms: float = 0.0
    server_cpu_ms: float = 0.0
    ratios: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    memory_growth: float = 0.0


def cases(predictor: Predictor, size: tuple[int, int], stride: int | None = None) -> tuple[list[Case], list[Any]]:
    """Requests of the bundled photographs made smaller, their answers one after another, and their tensors."""
    made, tensors = [], []
    for name in PHOTOS:
        with Image.open(bundled(name)) as image:
            file = io.BytesIO()
            image.convert("RGB").resize(size).save(file, "JPEG", quality=90)
        result = predictor(file.getvalue(), output_stride=stride)
        query = "?answer=mask" + (f"&output_stride={stride}" if stride else "")
        made.append(Case(request_of(f"/predict{query}", file.getvalue()), mask_png(result)))
        tensors.append(to_tensor(result.image)[None])
    return made, tensors


def request_of(path: str, body: bytes) -> bytes:
    """A POST as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Send a request on an open connection; status and body of the answer."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split(None, 2)[1]), await reader.readexactly(length)


async def load(port: int, made: Sequence[Case], requests: int, clients: int) -> tuple[list[float], int, float]:
    """Send requests by some clients, each on its connection; their seconds, how many were wrong, the seconds of all."""
    seconds, wrong, left = list[float](), 0, iter(range(requests))

    async def client() -> None:
        nonlocal wrong
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in left:
            began, case = time.perf_counter(), made[i % len(made)]
            status, body = await ask(reader, writer, case.request)
            seconds.append(time.perf_counter() - began)
            wrong += status != 200 or body != case.answer
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds, wrong, time.perf_counter() - began


def network_alone(predictor: Predictor, tensors: Sequence[Any], images: int, threads: int) -> float:
    """Images a second of the network, argmax at the image's size included, in some threads of one core each."""
    form, left = predictor.inference_model(), iter(range(images))

    def work() -> None:
        torch.set_num_threads(1)
        for i in left:
            predict_classes(form, tensors[i % len(tensors)])

    workers = [threading.Thread(target=work) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return images / (time.perf_counter() - began)


def started(model: str, workers: int) -> tuple[subprocess.Popen[str], int]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-m", "atrous", "serve", model, "--port", "0", "--json", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "-j", str(workers)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    return process, int(json.loads(process.stdout.readline())["address"].rpartition(":")[2])


def measured(
    server: psutil.Process, port: int, made: Sequence[Case], alone: Any, clients: int, requests: int, rounds: int
) -> Load:
    """Load the server in rounds, each after one of the network alone."""
    result, seconds, each = Load(clients), list[float](), max(1, requests // rounds)
    rates, networks = [], []
    for i in range(rounds):
        images, began = max(20, each // 4), time.process_time()
        networks.append(alone(images))
        result.network_cpu_ms += 1e3 * (time.process_time() - began) / images / rounds
        before = sum(server.cpu_times()[:2])
        took, wrong, whole = asyncio.run(load(port, made, each, clients))
        result.server_cpu_ms += 1e3 * (sum(server.cpu_times()[:2]) - before) / each / rounds
        rates.append(each / whole)
        seconds += took
        result.wrong += wrong
        result.memory_mb.append(round(server.memory_info().rss / 1e6, 1))
        said = f"{clients} clients, round {i + 1} of {rounds}: {rates[-1]:.1f} a second, network {networks[-1]:.1f}"
        print(f"{said}, {result.memory_mb[-1]:.0f} MB", file=sys.stderr, flush=True)
    result.requests, ordered = len(seconds), sorted(seconds)
    result.p50, result.p99 = statistics.median(ordered), ordered[int(0.99 * (len(ordered) - 1))]
    result.per_second, result.network_per_second = statistics.median(rates), statistics.median(networks)
    result.ratios = [round(rate / network, 3) for rate, network in zip(rates, networks, strict=True)]
    result.ratio = statistics.median(result.ratios)
    settled = result.memory_mb[len(result.memory_mb) // 5 :]  # the first rounds fill the pools
    result.memory_growth = settled[-1] / settled[0] - 1
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print one JSON object; 1 if a mask was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="objects-mobilenetv2", help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=300, help="for each number of clients (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64], help="(default: 8 64)")
    parser.add_argument("--size", type=int, nargs=2, default=[320, 240], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=cores(), help="(default: one a core)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON, too")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    predictor = Predictor.load(args.model, device="cpu")
    made, tensors = cases(predictor, tuple(args.size))
    process, port = started(args.model, args.workers)
    try:
        asyncio.run(load(port, made, 50, 8))  # warm
        network_alone(predictor, tensors, 20, args.workers)
        runs = [
            measured(
                psutil.Process(process.pid), port, made,
                lambda images: network_alone(predictor, tensors, images, args.workers),
                clients, args.requests, args.rounds,
            )
            for clients in args.clients
        ]  # fmt: skip
    finally:
        process.terminate()
    setting = {"model": args.model, "size": args.size, "workers": args.workers, "rounds": args.rounds}
    answer = {"setting": setting, "runs": [asdict(run) for run in runs], "status": process.wait(60)}
    answer["machine"] = describe_machine()
    if args.out:
        args.out.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(answer))
    return int(any(run.wrong for run in runs) or answer["status"] != 0)


if __name__ == "__main__":
    sys.exit(main())
