"""The life of a server: loading, ready, stopping; and what it tells of itself."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_helpers import Running

from abc_rag.embedding.embedder import BatchSize
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError, CheckpointError, InputError
from abc_rag.server import BackgroundServer, Keys, ServerSettings, create_app
from abc_rag.types import Fingerprint, Input, Vectors


class Waiting(FakeEmbedder):
    """Loads, and computes, when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.load, self.go, self.begun = threading.Event(), threading.Event(), threading.Event()

    @property
    def fingerprint(self) -> Fingerprint:
        self.load.wait(30)
        return super().fingerprint

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        self.begun.set()
        self.go.wait(30)
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


def test_until_the_model_is_loaded_it_is_healthy_but_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Waiting()
    servers: list[BackgroundServer] = []
    thread = threading.Thread(target=lambda: servers.append(BackgroundServer(embedder, ServerSettings(port=0))))
    listening = threading.Event()
    urls: list[str] = []
    plain = ServerSettings.url.fget
    assert plain is not None

    def told(settings: ServerSettings) -> str:
        urls.append(plain(settings))
        listening.set()
        return urls[-1]

    monkeypatch.setattr(ServerSettings, "url", property(told))
    thread.start()
    assert listening.wait(30)
    with httpx.Client(base_url=urls[0], trust_env=False) as client:
        assert client.get("/health").status_code == 200
        for path in ("/ready", "/v1/models"):
            early = client.get(path)
            assert (early.status_code, early.headers["retry-after"]) == (503, "5")
        embedder.load.set()
        thread.join(30)
        assert client.get("/ready").json() == {"status": "ready"}
        assert client.get("/v1/models").status_code == 200
    servers[0].close()


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    class Broken(FakeEmbedder):
        @property
        def fingerprint(self) -> Fingerprint:
            raise CheckpointError("the weights are missing")

    with pytest.raises(ABCRagError, match="the weights are missing"):
        BackgroundServer(Broken())


def test_a_request_in_progress_ends_before_the_server_does() -> None:
    embedder = Waiting()
    embedder.load.set()
    answers: list[httpx.Response] = []
    server = BackgroundServer(embedder)
    url, body = f"{server.url}/v1/embeddings", {"input": "a"}
    asking = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body, timeout=60, trust_env=False)))
    asking.start()
    assert embedder.begun.wait(30)
    closing = threading.Thread(target=server.close)
    closing.start()
    embedder.go.set()
    asking.join(30)
    closing.join(30)
    assert answers[0].status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.post(url, json=body, trust_env=False)


def test_another_address_takes_keys(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    for host in ("0.0.0.0", "::", "10.1.2.3", "gpu.example"):
        for known in (None, keys):
            with pytest.raises(InputError, match="keys add"):
                create_app(FakeEmbedder(), ServerSettings(host=host), keys=known)
    keys.add("team")
    create_app(FakeEmbedder(), ServerSettings(host="0.0.0.0"), keys=keys)


def test_only_hashes_of_keys_are_kept(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    key, token = keys.add("team", scope="write", tenant="us")
    assert keys.path.stat().st_mode & 0o777 == 0o600
    assert token.split("-")[2] not in keys.path.read_text()
    assert Keys(keys.path).find(token) == key
    for wrong in ({"scope": "all"}, {"tenant": "../x"}, {"per_minute": 0}):
        with pytest.raises(InputError):
            keys.add("x", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="keys list"):
        keys.remove("none")


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"port": "80"}, {"host": ""}, {"max_requests": 0}, {"body_timeout_s": -1.0}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServerSettings(**wrong)


def test_the_interface_is_described_with_examples(server: Running) -> None:
    told = server.client.get("/openapi.json").json()
    assert {"/v1/embeddings", "/v2/embed", "/v1/vectors", "/v1/rerank", "/ready"} <= set(told["paths"])
    schemas = told["components"]["schemas"]
    for name in ("EmbeddingsRequest", "CohereRequest", "VectorsRequest", "RerankRequest"):
        for example in schemas[name]["examples"]:
            json.dumps(example)
        assert schemas[name]["examples"]


def test_logs_tell_what_happened_and_nothing_that_was_sent(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="abc_rag.server"):
        server.post("/v1/embeddings", {"input": "a secret rose"})
        server.post("/v1/embeddings", {"input": "a secret rose", "role": "a secret role"})
        # The line is written when the request has ended, which a client need not wait for.
        while len(caplog.records) < 2:
            server.client.get("/v1/models")
    facts = [record.facts for record in caplog.records if record.facts["route"] == "/v1/embeddings"]
    assert [one["status"] for one in facts] == [200, 400]
    assert "secret" not in json.dumps(facts) + caplog.text
