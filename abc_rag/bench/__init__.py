"""How fast a model is on this machine."""

from __future__ import annotations

from abc_rag.bench.bench import BenchResult, Latency, Throughput, bench, estimate_seconds

__all__ = ["BenchResult", "Latency", "Throughput", "bench", "estimate_seconds"]
