"""Segment several photographs at once, with results in order and bounded memory.

A photograph is decoded, segmented and written by one thread from first to last. On a CPU each of them computes with one
thread: two that compute a photograph each do not wait for each other, as two that share one do after every layer. So
decoding and writing overlap with the network, and all cores are busy. On a GPU one photograph at a time is computed.

    for result in in_order(segment, paths, workers=2): ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Photographs, for each thread, that are begun or done before their turn has come."""


def in_order(
    run: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    alone: Callable[[Item], bool] = lambda item: False,
) -> Iterator[Result]:
    """`run` on each item, by several threads that have one thread of PyTorch's each; the results in order.

    Args:
        run: may be called by any thread; what it raises is raised here, after all that is begun has ended.
        items: taken as they are needed, `AHEAD` times `workers` ahead.
        workers: threads, at least one.
        alone: whether an item is to be run here, while nothing else runs: one that takes much memory.
    """
    threads, begun = torch.get_num_threads(), deque[Future[Result]]()
    pool = ThreadPoolExecutor(max(1, workers), "atrous", initializer=_compute_with_one_thread)
    try:
        for item in items:
            if alone(item):
                while begun:
                    yield begun.popleft().result()
                torch.set_num_threads(threads)
                yield run(item)
                continue
            begun.append(pool.submit(run, item))
            if len(begun) >= AHEAD * max(1, workers):
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _compute_with_one_thread() -> None:
    torch.set_num_threads(1)  # of this thread
