"""Metrics: what was asked, by route, and what the engine did for it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from server_helpers import Running


def value(server: Running, name: str, **labels: str) -> float:
    text = server.client.get("/metrics").raise_for_status().text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_requests_tokens_and_batches_are_counted(server: Running) -> None:
    asked = {"route": "/v1/embeddings", "status": "200", "method": "POST"}
    before = [value(server, name) for name in ("abc_rag_tokens_total", "abc_rag_batch_inputs_sum")]
    done = value(server, "abc_rag_requests_total", **asked)
    answer = server.post("/v1/embeddings", {"input": ["a text that no other test has", "and one more"]}).json()
    assert value(server, "abc_rag_requests_total", **asked) == done + 1
    assert value(server, "abc_rag_tokens_total") == before[0] + answer["usage"]["total_tokens"]
    assert value(server, "abc_rag_batch_inputs_sum") == before[1] + 2
    assert value(server, "abc_rag_ready") == 1
    assert value(server, "abc_rag_requests_in_progress") == 1  # the question itself
    assert value(server, "abc_rag_queued_inputs") == 0


def test_a_refused_request_is_counted_without_what_was_sent(server: Running) -> None:
    server.client.get("/v1/no-such-place-as-this")
    assert value(server, "abc_rag_requests_total", route="none", status="404") >= 1
    assert "no-such-place" not in server.client.get("/metrics").text
