"""The queue: bounded, with deadlines, without what nobody waits for; masks in threads and together as alone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from atrous.prediction.predictor import Predictor
from atrous.serving.errors import Problem
from atrous.serving.limits import Limits
from atrous.serving.served import ServedModel, batches_agree
from atrous.serving.workers import ClientLeft, Job, WorkerPool
from serving import SIZES, Running, ids_of, photograph, running

NAME = "objects-mobilenetv2"
PHOTOS = ("cow.jpg", "aeroplane.jpg", "terrace.jpg", "pavilion.jpg")


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def held(pool: WorkerPool) -> Iterator[None]:
    """All workers busy until the end."""
    release = threading.Event()

    def wait(_: Any) -> list[Any]:
        release.wait(60)
        return []

    for _ in pool.threads:
        pool._put(Job([b""], wait, len))
    until(lambda: pool.active == len(pool.threads) and not pool.waiting)
    try:
        yield
    finally:
        release.set()


def run(pool: WorkerPool, job: Job, left: Callable[[], Any] = lambda: asyncio.Event().wait()) -> Any:
    async def go() -> Any:
        return await pool.run(job, left())

    return asyncio.run(go())


def quick(value: int = 1) -> Job:
    return Job([b"x"], lambda images: [value], lambda results: results[0])  # type: ignore[list-item]


def test_a_full_queue_says_when_to_come_back() -> None:
    pool = WorkerPool(1, Limits(queue=1, deadline=0.05))
    with held(pool):
        with pytest.raises(Problem) as late:
            run(pool, quick())
        assert late.value.status == 503 and pool.waiting == 0  # dropped, so that there is room
        pool._put(quick())
        with pytest.raises(Problem) as full:
            run(pool, quick())
        assert full.value.status == 429 and int(full.value.headers()["retry-after"]) >= 1
        pool._queue.clear()
    pool.limits = Limits()  # on a busy machine the next takes longer than that
    assert run(pool, quick(7)) == 7
    assert pool.close(10)


def test_an_image_that_takes_too_long_is_given_up() -> None:
    pool, release = WorkerPool(1, Limits(deadline=1)), threading.Event()
    with pytest.raises(Problem) as late:
        run(pool, Job([b""], lambda _: [release.wait(30)], len))  # type: ignore[list-item]
    assert late.value.status == 504
    release.set()
    until(lambda: pool.active == 0)
    pool.limits = Limits()
    assert run(pool, quick(3)) == 3
    assert pool.close(10)


def test_what_a_client_left_behind_is_dropped() -> None:
    pool, done = WorkerPool(1), list[int]()
    job = Job([b"x"], lambda images: [done.append(1)], len)  # type: ignore[func-returns-value, list-item]

    async def leave() -> None:
        return None

    with held(pool), pytest.raises(ClientLeft):
        run(pool, job, leave)
    assert run(pool, quick()) == 1 and not done and job.future.cancelled() is False
    assert pool.close(10) and not pool._queue


def test_the_rest_of_a_requests_images_is_dropped_with_it() -> None:
    pool, seen, gone = WorkerPool(1), list[bytes](), threading.Event()

    def segment(images: Any) -> list[Any]:
        seen.append(images[0])
        gone.wait(30)
        return [1]

    async def leave() -> None:
        while not seen:
            await asyncio.sleep(0.01)

    job = Job([b"1", b"2", b"3"], segment, len)
    with pytest.raises(ClientLeft):
        run(pool, job, leave)
    gone.set()
    until(lambda: pool.active == 0)
    assert seen == [b"1"] and pool.close(10)


def test_a_failure_is_of_one_job_alone() -> None:
    pool = WorkerPool(1)

    def segment(images: Any) -> list[Any]:
        if b"bad" in images:
            raise ValueError("bad")
        return [len(images)] * len(images)

    def job(image: bytes) -> Job:
        return Job([image], segment, lambda results: results[0], together="key")

    async def several() -> list[Any]:
        jobs = [job(image) for image in (b"a", b"bad", b"c")]
        return await asyncio.gather(*(pool.run(one, asyncio.Event().wait()) for one in jobs), return_exceptions=True)  # type: ignore[arg-type]

    with held(pool):
        result: list[Any] = []
        thread = threading.Thread(target=lambda: result.extend(asyncio.run(several())))
        thread.start()
        until(lambda: pool.waiting == 3)
    thread.join()
    assert result[0] == result[2] == 1 and isinstance(result[1], ValueError)
    assert pool.close(10)


def test_small_images_together_have_the_masks_of_each_alone(models: dict[str, ServedModel]) -> None:
    assert models[NAME].batches
    images = [photograph(PHOTOS[i % 4], kind="PNG" if i % 3 else "JPEG") for i in range(8)]
    with running(models, workers=1) as here, ThreadPoolExecutor(8) as clients:
        alone = [ids_of(here.client.post("/predict?answer=mask", content=image).content) for image in images]
        with held(here.service.pool):
            post = [clients.submit(here.client.post, "/predict?answer=mask", content=image) for image in images]
            until(lambda: here.service.pool.waiting == 8)
        together = [ids_of(one.result().content) for one in post]
        figures = here.client.get("/metrics").text
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    assert 'atrous_batch_size_bucket{le="2.0"} 9.0' in figures and 'atrous_batch_size_bucket{le="4.0"} 11.0' in figures


def test_a_model_that_averages_flips_has_no_batches() -> None:
    assert not batches_agree(Predictor.load(NAME, device="cpu", flip=True))


def masks_of(server: Running, predictor: Predictor, requests: int, clients: int) -> None:
    """Sizes, strides and models mixed, many at a time: every mask as alone."""
    cases = [(photograph(PHOTOS[i % 4], size), stride) for i, size in enumerate(SIZES) for stride in (16, 32)]
    expected = [predictor(image, output_stride=stride).mask for image, stride in cases]

    def ask(i: int) -> bool:
        image, stride = cases[i % len(cases)]
        query = f"/predict?answer=mask&output_stride={stride}" + ("&model=second" if i % 7 == 0 else "")
        answer = client.post(query, content=image)
        return answer.status_code == 200 and np.array_equal(ids_of(answer.content), expected[i % len(cases)])

    limits = httpx.Limits(max_connections=clients)
    with httpx.Client(base_url=server.url, timeout=300, limits=limits) as client, ThreadPoolExecutor(clients) as pool:
        assert all(pool.map(ask, range(requests)))


def test_every_mask_is_the_sequential_one(server: Running, predictor: Predictor) -> None:
    masks_of(server, predictor, 60, 16)


@pytest.mark.integration
def test_every_mask_is_the_sequential_one_with_64_clients(server: Running, predictor: Predictor) -> None:
    masks_of(server, predictor, 1000, 64)


def test_a_client_that_leaves_frees_its_place_and_its_bytes(models: dict[str, ServedModel]) -> None:
    image = photograph(kind="PNG")
    with running(models, workers=1) as here, held(here.service.pool):
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(image)}\r\n\r\n".encode()
        clients = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(5)]
        for client in clients:
            client.sendall(head + image)
        until(lambda: here.service.pool.waiting == 5)
        assert here.service.intake.held == 5 * len(image)
        for client in clients:
            client.close()
        until(lambda: here.service.pool.waiting == 0 and here.service.intake.held == 0)
        until(lambda: "atrous_clients_left_total 5.0" in here.client.get("/metrics").text)
