"""Logs as JSON lines on standard error: what happened, how long it took and for whom; never what was sent."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from abc_rag.server.guard import Seen

__all__ = ["json_logs", "log_event", "log_request"]

logger = logging.getLogger("abc_rag.server")
_QUIET = frozenset({"/health", "/ready", "/metrics"})


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        told |= getattr(record, "facts", {})
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=True)


@contextmanager
def json_logs(level: str = "info") -> Iterator[None]:
    """Write the logs of the server, of abc-rag and of uvicorn as lines of JSON, until the block ends."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    loggers = [logging.getLogger(name) for name in ("abc_rag", "uvicorn.error")]
    before = [(list(one.handlers), one.propagate, one.level) for one in loggers]
    for one in loggers:
        one.handlers[:] = [handler]
        one.propagate = False
        one.setLevel(level.upper())
    try:
        yield
    finally:
        for one, (handlers, propagate, own) in zip(loggers, before, strict=True):
            one.handlers[:] = handlers
            one.propagate = propagate
            one.setLevel(own)


def log_event(event: str, **facts: Any) -> None:  # noqa: ANN401
    """One line."""
    logger.info(event, extra={"facts": facts})


def log_request(seen: Seen) -> None:
    """One line for a request that has ended; health checks are left out."""
    if seen.route in _QUIET and seen.status < 400:
        return
    log_event(
        "request",
        id=seen.id,
        method=seen.method,
        route=seen.route,
        status=seen.status,
        key=seen.key,
        ms=round(seen.seconds * 1000, 1),
        received=seen.received,
        sent=seen.sent,
    )
