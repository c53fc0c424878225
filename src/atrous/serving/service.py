"""What the routes of the service share: the models, the workers, the limits, the figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import Request

from atrous.prediction.segmentation import Segmentation
from atrous.serving.limits import Intake, Limits, checked_size
from atrous.serving.metrics import Metrics
from atrous.serving.served import ServedModel
from atrous.serving.workers import Job, WorkerPool

_LAST_SECONDS = 2.0
"""For workers to end; what they still do is of requests that were given up."""


class Service:
    """Models, workers and limits.

    Args:
        models: by name; the first is the default.
        limits: of requests.
        workers: threads that segment; None for one a core.
        label_studio_files: folder of Label Studio's uploads, or None.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        limits: Limits,
        workers: int | None = None,
        label_studio_files: Path | None = None,
    ) -> None:
        self.models, self.limits, self.files = models, limits, label_studio_files
        self.metrics, self.intake, self.draining = Metrics(), Intake(limits), False
        self.pool = WorkerPool(workers, limits, self.metrics.observe)
        self.readers = ThreadPoolExecutor(2, "headers")
        self.metrics.watch("queue_length", "Requests that wait for a worker", lambda: self.pool.waiting)
        self.metrics.watch("request_bytes_held", "Bytes of requests in memory", lambda: self.intake.held)

    async def segment(
        self,
        request: Request,
        model: ServedModel,
        images: Sequence[bytes],
        finish: Callable[[list[Segmentation]], Any],
        output_stride: int | None = None,
        confidence: bool = False,
        fields: Sequence[str] = ("body",),
    ) -> Any:
        """Segment the images of a request in a worker, and return what `finish` makes of the results there.

        `fields` are those of the request that the images came from, for errors.

        Raises:
            Problem: if an image is refused, or the service is too busy.
            ClientLeft: if the client leaves.
        """
        model.check_output_stride(output_stride)
        named = zip(images, fields, strict=True)
        sizes = [await self.aside(checked_size, image, self.limits, field) for image, field in named]
        for size, field in zip(sizes, fields, strict=True):
            model.check_size(size, field)
        facts = request.state.noted
        facts["model"] = model.name
        facts["size"] = f"{sizes[0][1]}x{sizes[0][0]}" if len(sizes) == 1 else f"{len(sizes)} images"
        alone = len(images) > 1 or confidence
        key = None if alone else model.together(sizes[0], output_stride)
        job = Job(images, lambda several: model.segment(several, output_stride, confidence), finish, fields, key)
        answer = await self.pool.run(job, _left(request))
        self.metrics.images.labels(model.name).inc(len(images))
        return answer

    async def aside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that may take a while in a thread, so that other requests go on."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *arguments)

    def close(self) -> bool:
        """End the workers, once the server has drained; whether they ended."""
        self.readers.shutdown(wait=False, cancel_futures=True)
        return self.pool.close(_LAST_SECONDS)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
