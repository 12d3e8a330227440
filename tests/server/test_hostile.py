"""What strangers may send: each gets the right status, none costs the others anything, and nothing is told."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from server_helpers import Running, b64, png, serving

from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.images.limits import ImageLimits
from abc_rag.server import Keys, ServerSettings
from abc_rag.server.stores import chroma

LIMITS = ServerSettings(
    max_body_bytes=200_000,
    max_upload_bytes=400_000,
    max_inputs=16,
    max_text_characters=5_000,
    body_timeout_s=1.0,
    image_limits=ImageLimits(max_bytes=100_000, max_pixels=1_000_000),
)


class Guarded:
    """A running server with keys, and a key of each scope."""

    def __init__(self, running: Running, keys: dict[str, str], place: Path) -> None:
        self.running = running
        self.keys = keys
        self.place = place

    def send(self, method: str, path: str, *, scope: str = "admin", raw: bytes | None = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.keys[scope]}", **more.pop("headers", {})}
        if raw is not None:
            headers.setdefault("Content-Type", "application/json")
            more["content"] = raw
        return self.running.client.request(method, path, headers=headers, **more)

    def talk(self, sent: bytes) -> bytes:
        """What comes back for plain bytes, until the server closes."""
        host, port = self.running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as one:
            one.sendall(sent)
            found = b""
            while part := one.recv(65536):
                found += part
            return found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    from dataclasses import replace

    place = tmp_path_factory.mktemp("guarded")
    keys = Keys(place / "keys.json")
    tokens = {scope: keys.add(scope, scope=scope)[1] for scope in ("read", "write", "admin")}
    settings = replace(LIMITS, folder=place / "abc-server")
    with serving(FakeEmbedder(), settings, keys=keys, stores=chroma(place)) as running:
        made = Guarded(running, tokens, place)
        assert made.send("POST", "/v1/collections", json={"name": "photos"}).status_code == 201
        yield made
        # After all of it, it serves.
        assert made.send("POST", "/v1/embeddings", json={"input": "still here"}).status_code == 200
        assert running.client.get("/health").status_code == 200


EMBED, OWN, RERANK = "/v1/embeddings", "/v1/vectors", "/v1/rerank"
SEARCH, ITEMS, COLLECTIONS = "/v1/collections/photos/search", "/v1/collections/photos/items", "/v1/collections"
ROUTES = [EMBED, OWN, RERANK, "/v2/embed", "/v1/chat/completions", COLLECTIONS, SEARCH, ITEMS, "/v1/blobs/missing"]
# What is no request for any of them.
NO_BODIES = [
    *(b"", b"{", b"[]", b"null", b"1", b'"text"', b"\xff\xfe", b"{}{}", b'{"a":}', b"NaN", b"\x00" * 10),
    b"[" * 50_000,
    b'{"a":' * 20_000,
]
WRONG: list[tuple[str, Any]] = [
    *(
        (EMBED, {"input": value})
        for value in (1, True, None, {}, [None], [[]], [[1]], [{}], {"image": 1}, [{"a": "b"}])
    ),
    *((EMBED, {"input": "a", "dimensions": value}) for value in (0, -1, "x", 1.5, 10**30, [])),
    *((EMBED, {"input": "a", name: {}}) for name in ("model", "role", "instruction", "encoding_format", "task")),
    *((EMBED, {"messages": value}) for value in (1, [], [1], [{"role": "tool", "content": "a"}], [{"role": "user"}])),
    (EMBED, {"input": {"image": "/etc/passwd"}}),
    (EMBED, {"input": {"image": "file:///etc/passwd"}}),
    (EMBED, {"input": {"image": "http://169.254.169.254/latest/meta-data"}}),
    (EMBED, {"input": {"image": "HTTP://localhost:1/"}}),
    (EMBED, {"input": {"image": b64(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)}}),
    *((OWN, {"inputs": value}) for value in (1, {}, [1], [{}], [{"type": "x"}], [{"type": "text"}])),
    (OWN, {"inputs": [{"type": "image", "image": {}}]}),
    (OWN, {"inputs": [{"type": "image", "image": {"sha256": "../../etc/passwd"}}]}),
    (OWN, {"inputs": [{"type": "image", "image": {"data": "a", "url": "b"}}]}),
    (OWN, {"inputs": [{"type": "image", "image": {"url": "file:///etc/passwd"}}]}),
    (OWN, {"inputs": [{"type": "interleaved", "parts": []}]}),
    (OWN, {"inputs": [{"type": "text", "text": "a", "role": ""}]}),
    (OWN, {"inputs": [], "surprise": 1}),
    (OWN, {"inputs": [], "errors": "some"}),
    *((RERANK, {"query": value, "documents": ["a"]}) for value in (1, None, {}, [], {"image": "/etc/passwd"})),
    *((RERANK, {"query": "a", "documents": value}) for value in (1, "a", [], [1], [{}], [None])),
    ("/v2/embed", {"texts": "a"}),
    ("/v2/embed", {}),
    ("/v2/embed", {"texts": ["a"], "embedding_types": ["int8"]}),
    *(
        (COLLECTIONS, {"name": value})
        for value in (1, "", "..", "../x", "a/b", "a b", "-a", "a.b", "x" * 65, "ä", "a\0")
    ),
    *((SEARCH, {"question": value}) for value in (1, [], "", " ", {})),
    (SEARCH, {}),
    (SEARCH, {"image": {"url": "http://127.0.0.1/"}}),
    *((SEARCH, {"question": "a", "k": value}) for value in (0, -1, 1001, "x", 1.5)),
    *((SEARCH, {"question": "a", "where": value}) for value in (1, [], {"$bad": 1}, {"a": {"$gt": []}}, {"$and": 1})),
    *((SEARCH, {"question": "a", name: 2}) for name in ("mmr", "min_score", "min_confidence", "rerank", "keywords")),
    (SEARCH, {"question": "a", "rerank": "judge"}),
    (SEARCH, {"question": "a", "modality": "sound"}),
    *(
        (ITEMS, {"items": value})
        for value in (1, [], [1], [{}], [{"text": ""}], [{"text": "a", "image": {"data": ""}}])
    ),
    *((ITEMS, {"items": [{"text": "a", "metadata": value}]}) for value in (1, {"abc:x": 1}, {"a": {}}, {"a": None})),
    (ITEMS, {"items": [{"image": {"url": "http://127.0.0.1/"}}]}),
    (ITEMS, {"items": [{"image": {"sha256": "../x"}}]}),
    (ITEMS, {"items": [{"text": "a"}], "facets": [" "]}),
    ("/v1/blobs/missing", {"sha256": ["x"]}),
]


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_no_request_is_refused(guarded: Guarded, route: str) -> None:
    for body in NO_BODIES:
        answer = guarded.send("POST", route, raw=body)
        # Without a body there is no type either.
        assert answer.status_code == 400, (route, body[:20], answer.text)
        assert set(answer.json()["error"]) >= {"message", "type", "code"}


def test_wrong_values_are_refused_and_nothing_is_told(guarded: Guarded) -> None:
    wrong = []
    for route, body in WRONG:
        answer = guarded.send("POST", route, json=body)
        if answer.status_code != 400:
            wrong.append((route, body, answer.status_code))
        assert "root:" not in answer.text
        assert str(guarded.place) not in answer.text
    assert wrong == []


def test_more_than_the_limits_is_refused(guarded: Guarded) -> None:
    bomb = io.BytesIO()
    PIL.Image.new("1", (4000, 4000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 10_000
    for route, body in [
        (EMBED, {"input": ["a"] * 17}),
        (EMBED, {"input": "a" * 5_001}),
        (OWN, {"inputs": [{"type": "text", "text": "a"}] * 17}),
        (RERANK, {"query": "a", "documents": ["b"] * 17}),
        (EMBED, {"input": "a" * 250_000}),
        (SEARCH, {"question": "a" * 250_000}),
    ]:
        answer = guarded.send("POST", route, json=body)
        assert answer.status_code == 413, (route, answer.text)
    many = guarded.send("POST", ITEMS, files=[("files", ("a.txt", b"a" * 500_000))])
    assert many.status_code == 413
    blob = guarded.send("PUT", f"/v1/blobs/{'0' * 64}", content=b"a" * 150_000)
    assert blob.status_code == 413


def test_a_body_without_a_length_is_counted(guarded: Guarded) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    answer = guarded.send("POST", EMBED, content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_compressed_and_other_bodies_are_refused(guarded: Guarded) -> None:
    body = json.dumps({"input": "a"}).encode()
    packed = zlib.compress(b" " * 10_000_000 + body)
    for headers, sent in [
        ({"Content-Encoding": "deflate", "Content-Type": "application/json"}, packed),
        ({"Content-Encoding": "gzip", "Content-Type": "application/json"}, packed),
        ({"Content-Encoding": "br", "Content-Type": "application/json"}, body),
        ({"Content-Type": "text/plain"}, body),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"input=a"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x--"),
        ({"Content-Type": ""}, body),
    ]:
        assert guarded.send("POST", EMBED, content=sent, headers=headers).status_code == 415, headers


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n\r\n"),
        ("multipart/form-data; boundary=", b"--\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"no form at all"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: nonsense; name=files\r\n\r\na\r\n--x--"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\na\r\n--x--'),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="b"\r\n\r\na\r\n--x--'),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nno end'),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 2000 + b"\r\n\r\n--x--"),
        ("multipart/form-data; boundary=" + "x" * 5000, b"--x--"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n\r\n--x\r\n'
            b'Content-Disposition: form-data; name="metadata"\r\n\r\n[1]\r\n--x--\r\n',
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n\r\n--x\r\n'
            b'Content-Disposition: form-data; name="facets"\r\n\r\n[[[[\r\n--x--\r\n',
        ),
    ],
)
def test_malformed_forms_are_refused_and_leave_nothing(guarded: Guarded, kind: str, body: bytes) -> None:
    answer = guarded.send("POST", ITEMS, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400, answer.text
    assert list((guarded.place / "abc-server" / "uploads").iterdir()) == []


PLACES = ["%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..\\..\\x", "%00", "a%00b", "photos%2f%2e%2e", "photos%20"]


def test_no_name_leads_anywhere(guarded: Guarded) -> None:
    for place in [*PLACES, "none", "default.photos", "%252e%252e", "x" * 3000, "';DROP TABLE jobs;--", "*"]:
        for path in (
            f"/v1/collections/{place}",
            f"/v1/collections/{place}/records",
            f"/v1/collections/{place}/record?id=a",
            f"/v1/collections/{place}/picture?id=a",
            f"/v1/collections/{place}/jobs/a",
            f"/v1/collections/photos/jobs/{place}",
            f"/v1/collections/photos/record?id={place}",
            f"/v1/collections/photos/picture?id={place}",
            f"/v1/collections/photos/page?id={place}",
            f"/page/{place}",
            f"/{place}",
        ):
            answer = guarded.send("GET", path)
            assert answer.status_code in (400, 404, 405), (path, answer.text)
            assert "root:" not in answer.text
    for path in ("/v1/collections/photos/../../..", "//etc/passwd", "/page/../../etc/passwd", "http://x/etc/passwd"):
        told = guarded.talk(request(guarded, "Connection: close", line=f"GET {path} HTTP/1.1"))
        assert told.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), path
    for place in PLACES:
        blob = guarded.send("HEAD", f"/v1/blobs/{place}")
        assert blob.status_code in (400, 404, 405), place


def test_keys_are_not_guessed(guarded: Guarded) -> None:
    good = guarded.keys["read"]
    id_ = good.split("-")[1]
    wrong = [
        *(
            "x",
            "abc",
            "abc-",
            f"abc-{id_}",
            f"abc-{id_}-",
            f"abc-{id_}-{'a' * 43}",
            good[:-1],
            good + "x",
            good[1:],
        ),
        *(good.upper(), good.swapcase(), f"{good} {good}", f"abc-{'0' * 12}-{good[-43:]}", "\xe9" * 10, "a" * 20_000),
        *("null", "true", "admin", "' OR 1=1", "../keys.json"),
    ]
    for token in wrong:
        headers = [("Authorization", f"Bearer {token}".encode("latin-1"))]
        answer = guarded.running.client.post(EMBED, json={"input": "a"}, headers=headers)
        assert answer.status_code == 401, token
        assert answer.headers["www-authenticate"] == "Bearer"
    for headers in ({}, {"Authorization": good}, {"Authorization": f"Basic {good}"}, {"X-API-Key": good}):
        assert guarded.running.client.post(EMBED, json={"input": "a"}, headers=headers).status_code == 401
    for path in ("/docs", "/openapi.json", "/metrics", "/v1/models", "/v1/none", f"{EMBED}?key={good}"):
        assert guarded.running.client.get(path).status_code == 401, path


def test_scopes_hold(guarded: Guarded) -> None:
    for scope, method, path, body in [
        ("read", "POST", COLLECTIONS, {"name": "more"}),
        ("read", "POST", ITEMS, {"items": [{"text": "a"}]}),
        ("read", "DELETE", "/v1/collections/photos/records", {"ids": ["a"]}),
        ("read", "DELETE", "/v1/collections/photos", None),
        ("write", "DELETE", "/v1/collections/photos", None),
        ("write", "GET", "/metrics", None),
        ("read", "GET", "/metrics", None),
    ]:
        assert guarded.send(method, path, scope=scope, json=body).status_code == 403, (scope, path)


def test_other_sites_pages_may_not_ask(guarded: Guarded) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:1", guarded.running.url.replace("127.0.0.1", "x")):
        answer = guarded.send("POST", EMBED, json={"input": "a"}, headers={"Origin": origin})
        assert answer.status_code == 403, origin
        assert not any(name.startswith("access-control") for name in answer.headers)
    own = guarded.send("POST", EMBED, json={"input": "a"}, headers={"Origin": guarded.running.url})
    assert own.status_code == 200


def test_without_keys_only_this_machines_names_are_answered(server: Running) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "0.0.0.0", "10.0.0.1", "[::]", "["):
        assert server.client.get("/v1/models", headers={"Host": host}).status_code in (400, 403), host
    for host in ("localhost", "127.0.0.1:1", "[::1]:1"):
        assert server.client.get("/v1/models", headers={"Host": host}).status_code == 200, host


def request(guarded: Guarded, *headers: str, line: str = f"POST {EMBED} HTTP/1.1") -> bytes:
    told = [
        line,
        "Host: x",
        f"Authorization: Bearer {guarded.keys['read']}",
        "Content-Type: application/json",
        *headers,
    ]
    return ("\r\n".join(told) + "\r\n\r\n").encode("latin-1")


def test_tricks_with_headers_and_lines_are_refused(guarded: Guarded) -> None:
    body = b'{"input": "a"}'
    for sent in [
        b"\r\n\r\n\0\0\0",
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
        request(guarded, "Content-Length: 14", "Content-Length: 15") + body,
        request(guarded, "Content-Length: -1"),
        request(guarded, "Content-Length: x"),
        request(guarded, "Content-Length: 14", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        request(guarded, "Transfer-Encoding: chunked") + b"zz\r\n" + body,
        request(guarded, "No-Colon-Here"),
        request(guarded, "A\0B: c"),
    ]:
        answer = guarded.talk(sent + b"")
        assert answer.startswith(b"HTTP/1.1 400"), (sent[:60], answer[:100])
    told = request(
        guarded, "Content-Length: 14", "Connection: close", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-User: admin"
    )
    forwarded = guarded.talk(told.replace(guarded.keys["read"].encode(), b"x") + body)
    assert forwarded.startswith(b"HTTP/1.1 401")


def test_a_slow_body_is_given_up(guarded: Guarded) -> None:
    sent = request(guarded, "Content-Length: 1000") + b'{"input": '
    answer = guarded.talk(sent)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer.lower()


def test_a_client_that_leaves_costs_nothing(guarded: Guarded) -> None:
    host, port = guarded.running.url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as one:
            one.sendall(request(guarded, "Content-Length: 1000") + b"{")
    state = guarded.running.app.state.service
    while state.in_progress() > 0:
        time.sleep(0.01)
    assert guarded.send("POST", EMBED, json={"input": "a"}).status_code == 200


def test_a_key_may_be_limited(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    token = keys.add("few", per_minute=3)[1]
    headers = {"Authorization": f"Bearer {token}"}
    with serving(FakeEmbedder(), keys=keys) as running:
        answers = [running.client.get("/v1/models", headers=headers) for _ in range(4)]
        assert [one.status_code for one in answers] == [200, 200, 200, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        keys.remove(keys.all()[0].id)
        assert running.client.get("/v1/models", headers=headers).status_code == 401


class Held(FakeEmbedder):
    """Computes when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)

    def _embed(self, inputs: Any, **more: Any) -> Any:
        self.begun.release()
        self.go.wait(30)
        return super()._embed(inputs, **more)


def test_too_many_at_once_are_told_to_come_again(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    narrow = {"Authorization": "Bearer " + keys.add("narrow", at_once=1)[1]}
    wide = {"Authorization": "Bearer " + keys.add("wide")[1]}
    held = Held()
    with serving(held, ServerSettings(max_requests=3), keys=keys) as running:
        done: list[int] = []

        def ask(headers: dict[str, str]) -> None:
            done.append(running.post(EMBED, {"input": "a"}, headers=headers).status_code)

        threads = [threading.Thread(target=ask, args=(headers,)) for headers in (narrow, wide, wide)]
        threads[0].start()
        assert held.begun.acquire(timeout=30)
        busy = running.post(EMBED, {"input": "a"}, headers=narrow)
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        for thread in threads[1:]:
            thread.start()
            assert held.begun.acquire(timeout=30)
        full = running.post(EMBED, {"input": "a"}, headers=wide)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "overloaded")
        assert full.headers["retry-after"] == "1"
        assert running.client.get("/health").status_code == 200
        held.go.set()
        for thread in threads:
            thread.join(30)
        assert done == [200, 200, 200]


def test_a_picture_that_is_too_large_is_413(server: Running) -> None:
    bomb = io.BytesIO()
    PIL.Image.new("1", (8_000, 8_000)).save(bomb, "PNG")
    answer = server.post(EMBED, {"input": {"image": b64(bomb.getvalue())}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "ImageLimitError")
    assert server.post(EMBED, {"input": {"image": b64(png())}}).status_code == 200
