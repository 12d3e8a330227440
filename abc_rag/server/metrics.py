"""Metrics in Prometheus' format: requests, batches, queue, caches and jobs. No label holds what a client sent."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Depends, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.engine.runner import BatchReport
from abc_rag.embedding.threads import in_thread
from abc_rag.server.guard import Seen, require
from abc_rag.server.library import Library
from abc_rag.server.service import Service

__all__ = ["Metrics", "metric_routes"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server.

    Args:
        service: Whose model computes.
        library: Whose jobs wait, if there are collections.
    """

    def __init__(self, service: Service, library: Library | None) -> None:
        self.registry = CollectorRegistry()
        self._service = service
        self._library = library
        labels = ("method", "route", "status")
        self._requests = Counter("abc_rag_requests", "Requests that have ended.", labels, registry=self.registry)
        self._seconds = Histogram(
            "abc_rag_request_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._received = Counter("abc_rag_received_bytes", "Bytes of requests' bodies.", registry=self.registry)
        self._sent = Counter("abc_rag_sent_bytes", "Bytes of answers' bodies.", registry=self.registry)
        self._batches = Histogram(
            "abc_rag_batch_inputs", "Inputs of a batch.", ("kind",), buckets=_SIZES, registry=self.registry
        )
        self._tokens = Counter("abc_rag_tokens", "Tokens that the model read.", registry=self.registry)
        self._patches = Counter("abc_rag_patches", "Patches that the vision tower saw.", registry=self.registry)
        self._computing = Counter("abc_rag_batch_seconds", "Time that batches took.", registry=self.registry)
        self.registry.register(self)
        if isinstance(service.embedder, LocalEmbedder):
            service.embedder.report_to(self._batch)

    def request(self, seen: Seen) -> None:
        """Count a request."""
        self._requests.labels(seen.method, seen.route, str(seen.status)).inc()
        self._seconds.labels(seen.route).observe(seen.seconds)
        self._received.inc(seen.received)
        self._sent.inc(seen.sent)

    def _batch(self, report: BatchReport) -> None:
        self._batches.labels(report.kind).observe(report.items)
        self._tokens.inc(report.tokens)
        self._patches.inc(report.patches)
        self._computing.inc(max(0.0, report.ended - report.begun))

    def collect(self) -> Iterator[Metric]:
        """What is read when it is asked for."""
        yield GaugeMetricFamily("abc_rag_ready", "Whether the model is loaded.", value=float(self._service.ready))
        yield GaugeMetricFamily(
            "abc_rag_requests_in_progress", "Requests in progress.", value=float(self._service.in_progress())
        )
        if isinstance(self._service.embedder, LocalEmbedder):
            state = self._service.embedder.state
            yield GaugeMetricFamily("abc_rag_queued_inputs", "Inputs that wait or compute.", value=float(state.queued))
            for name, cache in (("vision", state.vision), ("embedding", state.embeddings)):
                for what, number in (("hits", cache.hits), ("misses", cache.misses)):
                    gauge = f"abc_rag_{name}_cache_{what}"
                    yield GaugeMetricFamily(gauge, f"{what} of the {name} cache since the start.", value=float(number))
        if self._library is not None:
            waiting = float(len(self._library.ledger.unfinished()))
            yield GaugeMetricFamily("abc_rag_unfinished_jobs", "Jobs that are not done.", value=waiting)


def metric_routes(metrics: Metrics) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["health"], dependencies=[Depends(require("admin"))])

    @routes.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def show() -> Response:
        body = await in_thread(generate_latest, metrics.registry)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    return routes
