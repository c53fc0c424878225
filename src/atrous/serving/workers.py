"""Worker threads behind a bounded queue: images in, answers out, what nobody waits for dropped.

    pool = WorkerPool(workers=2, limits=Limits())
    answer = await pool.run(Job(...), left=request_left)

Small images of one size are segmented together, where a trial showed the masks to be the same bit for bit.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import torch

from atrous.prediction.segmentation import Segmentation
from atrous.serving.errors import Problem
from atrous.serving.limits import Limits

MOST_TOGETHER = 4
"""Jobs of one batch."""

Segment = Callable[[Sequence[bytes]], list[Segmentation]]


@dataclass(eq=False)
class Job:
    """The images of one request, and what is to become of them.

    Attributes:
        images: content of the files.
        segment: segments images; called with those of several jobs if they have the same `together`.
        finish: makes the answer of the results, in the worker, too.
        fields: of the request, that the images came from; a damaged image is reported under its own.
        together: jobs with the same key, other than None, hold one image each that may be segmented together.
        future: the answer.
        began: whether a worker has taken it.
        abandoned: whether nobody waits for it any more.
    """

    images: Sequence[bytes]
    segment: Segment
    finish: Callable[[list[Segmentation]], Any]
    fields: Sequence[str] = ()
    together: Hashable | None = None
    future: Future[Any] = field(default_factory=Future)
    began: bool = False
    abandoned: bool = False


class ClientLeft(Exception):
    """The client closed its connection before it had its answer."""


class WorkerPool:
    """Threads that work off a queue of jobs.

    Args:
        workers: number of threads; None for one a core.
        limits: of the queue, and the deadline.
        observe: told the seconds of each group of jobs, and how many they were.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        observe: Callable[[float, int], None] = lambda seconds, jobs: None,
    ) -> None:
        self.limits, self.observe = limits or Limits(), observe
        self.cores = cores()
        self.active, self.seconds_of_a_job = 0, 0.1
        self._queue: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self.threads = [
            threading.Thread(target=self._work, name=f"segment-{i}", daemon=True) for i in range(workers or self.cores)
        ]
        for thread in self.threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that no worker has taken yet."""
        return len(self._queue)

    async def run(self, job: Job, left: Awaitable[None]) -> Any:
        """The answer to a job.

        Args:
            job: is dropped if its client leaves or its deadline passes.
            left: done when the client has left.

        Raises:
            Problem: 429 if the queue is full, 503 if no worker was free before the deadline, 504 if it took too long;
                or what the job raised.
            ClientLeft: if the client has left.
        """
        gone = asyncio.ensure_future(left)
        try:
            self._put(job)
            answer = asyncio.wrap_future(job.future)
            await asyncio.wait({answer, gone}, timeout=self.limits.deadline, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientLeft
            raise self._late(job)
        finally:
            gone.cancel()
            self._drop(job)

    def close(self, seconds: float) -> bool:
        """Let the workers end what they have begun; whether they ended within that time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)

    def _put(self, job: Job) -> None:
        with self._changed:
            if self._closed:
                raise Problem(503, "the server is stopping", retry_after=5)
            if len(self._queue) >= self.limits.queue:
                wait = (len(self._queue) + self.active) * self.seconds_of_a_job / len(self.threads)
                found = f"{len(self._queue)} requests waiting"
                raise Problem(
                    429, "the queue is full", found=found, expected="a retry later", retry_after=min(wait, 60)
                )
            self._queue.append(job)
            self._changed.notify()

    def _drop(self, job: Job) -> None:
        job.abandoned = True
        with self._changed, contextlib.suppress(ValueError):
            self._queue.remove(job)

    def _late(self, job: Job) -> Problem:
        expected = f"at most {self.limits.deadline:g} s"
        if job.began:
            return Problem(504, "the image takes too long", expected=expected)
        return Problem(503, "no worker was free in time", expected=expected, retry_after=5)

    def _work(self) -> None:
        while jobs := self._take():
            began = time.perf_counter()
            torch.set_num_threads(self._threads_of_one())
            _segment(jobs)
            seconds, count = time.perf_counter() - began, len(jobs)
            del jobs  # an idle worker holds no image
            with self._changed:
                self.active -= count
                self.seconds_of_a_job += 0.1 * (seconds / count - self.seconds_of_a_job)
            self.observe(seconds, count)

    def _threads_of_one(self) -> int:
        """All cores for a job that is alone; the masks are the same with any number of threads."""
        busy = self.active + len(self._queue)
        return max(1, self.cores // min(len(self.threads), max(1, busy)))

    def _take(self) -> list[Job]:
        """The next jobs, of one batch; none once the pool is closed."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if not self._queue:
                return []
            first = self._queue.popleft()
            same = [job for job in self._queue if first.together is not None and job.together == first.together]
            jobs = [first, *same[: MOST_TOGETHER - 1]]
            for job in jobs[1:]:
                self._queue.remove(job)
            for job in jobs:
                job.began = True
            self.active += len(jobs)
            return jobs


def _segment(jobs: Sequence[Job]) -> None:
    """Set the answers of jobs that may be segmented together; where that fails, of each alone."""
    if len(jobs) > 1:
        try:
            results = jobs[0].segment([job.images[0] for job in jobs])
        except Exception:  # one of them is damaged: which one, each alone will say
            for job in jobs:
                _segment([job])
            return
        for job, result in zip(jobs, results, strict=True):
            _settle(job, lambda job=job, result=result: job.finish([result]))  # type: ignore[misc]
        return
    _settle(jobs[0], lambda: jobs[0].finish(_one_by_one(jobs[0])))


def _one_by_one(job: Job) -> list[Segmentation]:
    results: list[Segmentation] = []
    for i, image in enumerate(job.images):
        if job.abandoned:
            raise ClientLeft
        try:
            results += job.segment([image])
        except Problem as problem:
            if problem.field and job.fields:
                problem.field = job.fields[i]
            raise
    return results


def _settle(job: Job, work: Callable[[], Any]) -> None:
    if job.abandoned:
        job.future.cancel()
        return
    with contextlib.suppress(InvalidStateError):  # whoever waited has left
        try:
            answer = work()
        except Exception as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(answer)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
