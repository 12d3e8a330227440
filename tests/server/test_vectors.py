"""Our own form: every kind of input, bit for bit, pictures sent once, errors by input."""

from __future__ import annotations

import base64
import hashlib
import urllib.parse
from typing import Any

import numpy as np
from server_helpers import Running, b64, png, serving

from abc_rag import Embedder, Image, InstructedImage, InstructedText, Interleaved, Text
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.server import ServerSettings
from abc_rag.types import INPUT_TYPES


def rows(answer: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(answer["vectors"]), answer["dtype"]).reshape(-1, answer["dim"])


def test_the_model_tells_its_facts(server: Running, mini: Embedder) -> None:
    answer = server.client.get("/v1/model")
    told = answer.json()
    assert told["dim"] == mini.dim
    assert told["fingerprint"]["revision"] == mini.fingerprint.revision
    assert told["accepts"] == [kind.__name__ for kind in mini.accepts if kind in INPUT_TYPES]
    assert urllib.parse.unquote(answer.headers["abc-fingerprint"]) == str(mini.fingerprint)


def test_a_text_alone_is_bit_for_bit_the_local_one(server: Running, mini: Embedder) -> None:
    body = {"inputs": [{"type": "text", "text": "a rose beside a fox"}], "fingerprint": str(mini.fingerprint)}
    answer = server.post("/v1/vectors", body).raise_for_status().json()
    assert np.array_equal(rows(answer), mini.embed([Text("a rose beside a fox")]))


def test_every_kind_of_input_arrives() -> None:
    red, blue = png("red"), png("blue")
    with serving(FakeEmbedder(dim=16)) as running:
        body = {
            "inputs": [
                {"type": "text", "text": "a", "role": "query"},
                {"type": "instructed_text", "text": "a", "instruction": "b"},
                {"type": "image", "image": {"data": b64(red)}},
                {"type": "instructed_image", "image": {"data": b64(red)}, "instruction": ""},
                {
                    "type": "interleaved",
                    "parts": [{"type": "text", "text": "a "}, {"type": "image", "image": {"data": b64(blue)}}],
                },
            ]
        }
        answer = running.post("/v1/vectors", body).raise_for_status().json()
    expected = FakeEmbedder(dim=16).embed(
        [
            Text("a", role="query"),
            InstructedText("a", "b"),
            Image(red),
            InstructedImage(red, ""),
            Interleaved([Text("a "), Image(blue)]),
        ]
    )
    assert np.array_equal(rows(answer), expected)


def test_one_bad_input_costs_only_itself(server: Running, mini: Embedder) -> None:
    inputs = [
        {"type": "text", "text": "a rose"},
        {"type": "image", "image": {"data": b64(b"no picture")}},
        {"type": "text", "text": "a pig"},
    ]
    answer = server.post("/v1/vectors", {"inputs": inputs, "errors": "each"}).raise_for_status().json()
    found = rows(answer)
    np.testing.assert_allclose(found[[0, 2]], mini.embed([Text("a rose"), Text("a pig")]), atol=1e-6)
    assert not found[1].any()
    (error,) = answer["errors"]
    assert (error["position"], error["code"]) == (1, "ImageFormatError")
    assert server.post("/v1/vectors", {"inputs": inputs}).json()["error"]["position"] == 1


def test_pictures_are_sent_once(server: Running, mini: Embedder) -> None:
    data = png("green")
    sha256 = hashlib.sha256(data).hexdigest()
    body = {"inputs": [{"type": "image", "image": {"sha256": sha256}}]}
    refused = server.post("/v1/vectors", body)
    assert refused.status_code == 409
    assert refused.json()["error"]["missing"] == [sha256]
    assert server.client.head(f"/v1/blobs/{sha256}").status_code == 404
    assert server.client.put(f"/v1/blobs/{sha256}", content=data).status_code == 201
    assert server.client.put(f"/v1/blobs/{sha256}", content=data).status_code == 200
    assert server.client.head(f"/v1/blobs/{sha256}").status_code == 200
    other = hashlib.sha256(b"other").hexdigest()
    assert server.post("/v1/blobs/missing", {"sha256": [sha256, other]}).json() == {"missing": [other]}
    np.testing.assert_allclose(rows(server.post("/v1/vectors", body).json()), mini.embed([Image(data)]), atol=1e-6)


def test_bytes_of_another_hash_are_refused(server: Running) -> None:
    answer = server.client.put(f"/v1/blobs/{'0' * 64}", content=b"something")
    assert answer.status_code == 400
    assert "SHA-256" in answer.json()["error"]["message"]


def test_the_cache_forgets_the_oldest() -> None:
    blobs = [bytes([number]) * 100 for number in range(3)]
    names = [hashlib.sha256(one).hexdigest() for one in blobs]
    with serving(FakeEmbedder(), ServerSettings(blob_bytes=250)) as running:
        for name, one in zip(names, blobs, strict=True):
            assert running.client.put(f"/v1/blobs/{name}", content=one).status_code == 201
        assert running.post("/v1/blobs/missing", {"sha256": names}).json() == {"missing": names[:1]}


def test_another_model_is_refused(server: Running) -> None:
    answer = server.post("/v1/vectors", {"inputs": [], "fingerprint": "other@1 (1..1 image tokens)"})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "FingerprintMismatchError"
