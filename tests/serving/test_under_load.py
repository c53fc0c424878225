"""Half an hour of everything at once: good requests, bad ones, clients that leave or crawl; then SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import statistics
import time
from collections import Counter

import psutil
import pytest

from atrous.prediction.predictor import Predictor
from benchmarks.serve import Case, ask, cases, load, measured, request_of, started
from reliability import counted, record
from serving import SIZES, bomb, photograph

NAME = "objects-mobilenetv2"
BAD = {413: bomb(), 415: b"hello" * 50, 422: photograph()[:900]}


class Traffic:
    """What clients send for some time, and what came of it."""

    def __init__(self, port: int, good: list[Case], end: float) -> None:
        self.port, self.good, self.end = port, good, end
        self.right = self.refused = self.busy = self.left = self.crawled = 0
        self.wrong = Counter[int]()
        """Answers that are neither right nor 429, by status."""

    async def client(self, seed: int) -> None:
        dice = random.Random(seed)
        while time.monotonic() < self.end:
            kind = dice.random()
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                if kind < 0.90:
                    for _ in range(20):
                        await self.ask(reader, writer, dice)
                elif kind < 0.95:
                    writer.write(dice.choice(self.good).request)
                    await writer.drain()
                    self.left += 1
                else:
                    for letter in b"POST /":
                        writer.write(bytes([letter]))
                        await asyncio.sleep(0.3)
                    self.crawled += 1
                writer.close()

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dice: random.Random) -> None:
        if dice.random() < 0.1:
            status, body = dice.choice(list(BAD.items()))
            got, _ = await ask(reader, writer, request_of("/predict", body))
            self.refused += got == status
        else:
            case = dice.choice(self.good)
            got, body = await ask(reader, writer, case.request)
            status = 200
            self.busy += got == 429
            self.right += got == 200 and body == case.answer
        if got not in (status, 429) or (got == 200 and body != case.answer):
            self.wrong[got] += 1


@pytest.mark.slow
def test_a_server_takes_everything_for_half_an_hour() -> None:
    minutes, predictor = counted(30, least=1), Predictor.load(NAME, device="cpu")
    good = [case for size in SIZES for stride in (None, 32) for case in cases(predictor, size, stride)[0]]
    process, port = started(NAME, 2)
    try:
        traffic, memory = under_traffic(psutil.Process(process.pid), port, good, minutes)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    quarter = max(1, len(memory) // 4)
    growth = statistics.median(memory[-quarter:]) / statistics.median(memory[:quarter]) - 1
    assert not traffic.wrong and traffic.right > 100 and traffic.refused > 10 and traffic.left > 1
    assert growth < 0.05, memory
    assert status == 0
    record(
        "a server",
        f"{minutes} min, 24 clients: {traffic.right} masks as alone, 0 others; {traffic.refused} bad requests refused, "
        f"{traffic.left} left, {traffic.crawled} crawled; memory {growth:+.1%}; status 0",
    )


def under_traffic(server: psutil.Process, port: int, good: list[Case], minutes: float) -> tuple[Traffic, list[float]]:
    """Traffic for some minutes, and the server's megabytes every 15 seconds, once its caches are full."""
    memory = list[float]()

    async def run(minutes: float) -> Traffic:
        traffic = Traffic(port, good, time.monotonic() + 60 * minutes)

        async def watch() -> None:
            while time.monotonic() < traffic.end:
                await asyncio.sleep(15)
                memory.append(server.memory_info().rss / 1e6)

        await asyncio.gather(watch(), *(traffic.client(seed) for seed in range(24)))
        return traffic

    asyncio.run(run(2))  # every size, alone and together, has been seen
    memory.clear()
    threads, files = server.num_threads(), server.num_fds()
    traffic = asyncio.run(run(minutes))
    time.sleep(2)
    assert server.num_threads() <= threads + 8 and server.num_fds() <= files + 2
    return traffic, memory


@pytest.mark.slow
def test_ten_thousand_requests() -> None:
    predictor = Predictor.load(NAME, device="cpu")
    made, _ = cases(predictor, (96, 64))
    process, port = started(NAME, 2)
    try:
        asyncio.run(load(port, made, 500, 64))
        for clients in (8, 64):
            result = measured(psutil.Process(process.pid), port, made, lambda _: 1.0, clients, counted(10_000), 10)
            assert result.wrong == 0 and result.memory_growth < 0.05
            record("a server", f"{result.requests} requests of {clients} clients, every mask as alone")
    finally:
        process.terminate()
    assert process.wait(30) == 0
