"""Figures for Prometheus, in a registry of one service's own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters, gauges and histograms; a label never holds what a client sent."""

    def __init__(self) -> None:
        self.registry = here = CollectorRegistry()
        ProcessCollector(registry=here)
        counted = ["route", "method", "status"]
        self.requests = Counter("atrous_requests", "Requests answered", counted, registry=here)
        text = "From the head of a request to the end of its answer"
        self.seconds = Histogram("atrous_request_seconds", text, ["route"], buckets=_SECONDS, registry=here)
        text = "Decoding, network and encoding of requests segmented together"
        self.inference = Histogram("atrous_inference_seconds", text, buckets=_SECONDS, registry=here)
        text = "Requests segmented together"
        self.together = Histogram("atrous_batch_size", text, buckets=(1, 2, 3, 4), registry=here)
        self.images = Counter("atrous_images", "Images segmented", ["model"], registry=here)
        self.left = Counter("atrous_clients_left", "Requests whose client left before the answer", registry=here)
        self.in_flight = Gauge("atrous_requests_in_flight", "Requests being answered", registry=here)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"atrous_{name}", text, registry=self.registry).set_function(value)

    def observe(self, seconds: float, jobs: int) -> None:
        """Note a group of jobs that a worker has done."""
        self.inference.observe(seconds)
        self.together.observe(jobs)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
