from __future__ import annotations

import base64
import io
import random
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest

from abc_rag.errors import ImageError, ImageFetchError, ImageLimitError
from abc_rag.images.fetch import fetch, is_public_address
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_image
from abc_rag.types import URL

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "::1"])

# A key and a certificate for pictures.test, valid until 2120 and of use to nobody.
KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg1qSW737H4q/Q8+gPNO6mP3wIS7P9qY2GMZ8f7Ah80LqhRANCAAQHvVBCU4bz"
    "ZSspq0iWZM0IALB6jnEe2WppOrCSrJsoYF9l1LmUCtE9WeNi25u8y7uQNqB+L2gUGv3ENJPbtR9H"
)
CERTIFICATE = (
    "MIIBnTCCAUSgAwIBAgIBBzAKBggqhkjOPQQDAjAYMRYwFAYDVQQDDA1waWN0dXJlcy50ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAx"
    "MDAwMDAwWjAYMRYwFAYDVQQDDA1waWN0dXJlcy50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEB71QQlOG82UrKatIlmTNCACweo5x"
    "HtlqaTqwkqybKGBfZdS5lArRPVnjYtubvMu7kDagfi9oFBr9xDST27UfR6N9MHswGAYDVR0RBBEwD4INcGljdHVyZXMudGVzdDAPBgNVHRMB"
    "Af8EBTADAQH/MA4GA1UdDwEB/wQEAwIBhjAdBgNVHQ4EFgQUt34rNCXYixEdx4y2pEgc6cXf/5cwHwYDVR0jBBgwFoAUt34rNCXYixEdx4y2"
    "pEgc6cXf/5cwCgYIKoZIzj0EAwIDRwAwRAIgGFFbHHgQEUde2KdAK9x6+XA6ZYlh3luhuK/cV82DQk0CIEY3kszMjoFAkL6QC/4/TTwzsIhI"
    "iLnsedkXsiZNvVYp"
)

Answer = Callable[[Callable[[bytes], object]], None]


class Server(socketserver.ThreadingTCPServer):
    """Answers each path with bytes, or with what a function sends by and by."""

    daemon_threads = True
    block_on_close = False
    tls: ssl.SSLContext | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, bytes | Answer] = {}
        self.requests: list[bytes] = []
        self.stop = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up on purpose here."""


class Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        sock = self.request
        if self.server.tls is not None:
            sock = self.server.tls.wrap_socket(sock, server_side=True)
        request = b""
        while b"\r\n\r\n" not in request:
            more = sock.recv(4096)
            if not more:
                return
            request += more
        self.server.requests.append(request)
        answer = self.server.routes[request.split()[1].decode()]
        if isinstance(answer, bytes):
            sock.sendall(answer)
        else:
            answer(sock.sendall)
        sock.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.stop.set()
        running.shutdown()
        thread.join()


def loopback(address: str) -> bool:
    return address == "127.0.0.1"


def get(
    url: str,
    *,
    max_bytes: int = 1000,
    timeout_s: float = 5.0,
    max_redirects: int = 3,
    allowed: Callable[[str], bool] = loopback,
    names: dict[str, list[str]] | None = None,
    tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
) -> bytes:
    return fetch(
        url,
        source=url,
        max_bytes=max_bytes,
        timeout_s=timeout_s,
        max_redirects=max_redirects,
        _address_allowed=allowed,
        _resolve=lambda host, port: (names or {}).get(host, [host]),
        _tls=tls,
    )


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def drip(server: Server, start: bytes, each: bytes) -> Answer:
    def answer(send: Callable[[bytes], object]) -> None:
        send(start)
        while not server.stop.wait(0.03):
            send(each)

    return answer


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "169.254.169.254"),
        *("168.63.129.16", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1"),
        *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *("fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1", "2001::1", "100::1", "5f00::1", "64:ff9b:1::1"),
        *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:0a00:0001::", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254"),
        *("2606:4700::1111%1", "", "localhost", "1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.1", "169.253.0.1"),
        *("223.255.255.1", "2606:4700:4700::1111", "2001:4860:4860::8888", "2002:808:808::1", "64:ff9b::8.8.8.8"),
    ],
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "2130706433", "0x7f000001", "017700000001", "127.1", "0.0.0.0", "0"),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
        *("\uff11\uff12\uff17.0.0.1", "169.254.169.254", "[fd00:ec2::254]"),
    ],
)
def test_this_host_is_refused_however_it_is_written(host: str, server: Server) -> None:
    with pytest.raises(ImageFetchError, match=r"not a public address|cannot be resolved"):
        open_image(URL(server.url(host=host)), limits=ImageLimits(allow_urls=True))
    assert server.requests == []


def test_a_picture_is_fetched(server: Server) -> None:
    file = io.BytesIO()
    PIL.Image.new("RGB", (5, 4)).save(file, "PNG")
    server.routes["/a%20b/%C3%BC.png?x=%E2%82%AC&y=1"] = ok(file.getvalue())
    data = get(
        server.url("/a%20b/\xfc.png?x=\u20ac&y=1#part", host="pictures.test"), names={"pictures.test": ["127.0.0.1"]}
    )
    assert open_image(data).size == (5, 4)
    request = server.requests[0].decode().lower()
    for header in (f"host: pictures.test:{server.port}", "accept-encoding: identity", "connection: close"):
        assert f"\r\n{header}\r\n" in request
    assert request.count("accept-encoding") == 1


def test_the_environment_s_proxies_are_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.routes["/"] = ok(b"direct")
    assert get(server.url()) == b"direct"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("ftp://example.com/a.png", "only http and https"),
        ("gopher://127.0.0.1/", "only http and https"),
        ("//example.com/a.png", "without a scheme"),
        ("example.com/a.png", "without a scheme"),
        ("http://user@example.com/", "user name"),
        ("http://user:word@example.com/", "user name"),
        ("http:///a.png", "host name"),
        ("http://" + "a." * 200 + "com/", "host name"),
        ("http://exa mple.com/", "control characters"),
        ("http://example.com/\r\nX: y", "control characters"),
        ("http://example.com:22/", "port 22"),
        ("http://example.com:0/", "port 0"),
        ("http://example.com:99999/", "malformed"),
        ("http://[::1/", "malformed"),
        ("http://" + "\xfc" * 70 + ".com/", "malformed"),
    ],
)
def test_urls_that_are_not_fetched(url: str, reason: str) -> None:
    with pytest.raises(ImageFetchError, match=reason):
        get(url)
    with pytest.raises(ImageFetchError):
        open_image(URL(url), limits=ImageLimits(allow_urls=True))


def test_one_private_address_among_public_ones_is_refused(server: Server) -> None:
    for addresses in (["8.8.8.8", "10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], []):
        with pytest.raises(ImageFetchError, match=r"mixed\.test (is at 10\.0\.0\.1|has no address)"):
            get(
                server.url(host="mixed.test"),
                names={"mixed.test": addresses},
                allowed=lambda address: loopback(address) or is_public_address(address),
            )
    assert server.requests == []


def test_a_name_is_resolved_once_per_request(server: Server) -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    asked: list[tuple[str, int]] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return answers[len(asked) - 1]

    def attempt() -> bytes:
        url = server.url(host="rebind.test")
        limits = {"max_bytes": 100, "timeout_s": 5.0, "max_redirects": 3}
        return fetch(url, source=url, **limits, _address_allowed=loopback, _resolve=rebinding)  # type: ignore[arg-type]

    server.routes["/"] = ok(b"first")
    assert attempt() == b"first"
    assert asked == [("rebind.test", server.port)]
    server.routes["/"] = redirect("/again")
    asked.clear()
    with pytest.raises(ImageFetchError, match=r"10\.0\.0\.1"):
        attempt()
    assert len(server.requests) == 2


def test_the_second_address_is_tried(server: Server) -> None:
    server.routes["/"] = ok(b"here")
    names = {"two.test": ["::1", "127.0.0.1"]}  # nothing listens on the first
    assert get(server.url(host="two.test"), names=names, allowed=lambda address: True) == b"here"
    with pytest.raises(ImageFetchError, match="could not be fetched"):
        get(server.url(host="one.test"), names={"one.test": ["::1"]}, allowed=lambda address: True)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int, server: Server) -> None:
    server.routes["/a/b"] = redirect("../c d?e", status)
    server.routes["/c%20d?e"] = redirect(server.url("/f"), status)
    server.routes["/f"] = ok(b"end")
    assert get(server.url("/a/b")) == b"end"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.2/", "not a public address"),
        ("http://169.254.169.254/latest/meta-data/", "not a public address"),
        ("//10.0.0.1/", "not a public address"),
        ("http://[::1]/", "not a public address"),
        ("file:///etc/passwd", "only http and https"),
        ("http://user@127.0.0.1/", "user name"),
        ("http://127.0.0.1:22/", "port 22"),
        ("http://[::1/", "malformed"),
        ("", "nowhere"),
    ],
)
def test_redirects_are_checked(location: str, reason: str, server: Server) -> None:
    server.routes["/"] = redirect(location)
    with pytest.raises(ImageFetchError, match=reason):
        get(server.url())
    assert len(server.requests) == 1


def test_redirects_end(server: Server) -> None:
    server.routes["/"] = redirect("/")
    with pytest.raises(ImageFetchError, match=r"ImageLimits\.max_redirects=3"):
        get(server.url())
    assert len(server.requests) == 4
    with pytest.raises(ImageFetchError, match=r"ImageLimits\.max_redirects=0"):
        get(server.url(), max_redirects=0)
    assert len(server.requests) == 5


def test_too_large(server: Server) -> None:
    server.routes["/announced"] = b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"
    with pytest.raises(ImageLimitError, match=r"1,001 bytes .*ImageLimits\.max_bytes=1,000"):
        get(server.url("/announced"))
    endless = drip(server, b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1001), bytes(100))
    server.routes["/silent"] = endless
    server.routes["/chunked"] = drip(
        server, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + bytes(1001) + b"\r\n", b"1\r\nx\r\n"
    )
    for path in ("/silent", "/chunked"):
        with pytest.raises(ImageLimitError, match=r"ImageLimits\.max_bytes=1,000"):
            get(server.url(path))
    for length in (0, 999, 1000):
        server.routes["/fits"] = ok(bytes(length))
        server.routes["/unannounced"] = b"HTTP/1.0 200 OK\r\n\r\n" + bytes(length)
        assert len(get(server.url("/fits"))) == len(get(server.url("/unannounced"))) == length


@pytest.mark.parametrize(
    ("start", "each"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 ", b"2"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b""),
    ],
)
def test_a_slow_server_does_not_outlast_the_clock(start: bytes, each: bytes, server: Server) -> None:
    server.routes["/"] = drip(server, start, each)
    began = time.monotonic()
    with pytest.raises(ImageFetchError, match=r"ImageLimits\.url_timeout_s=0\.3 seconds"):
        get(server.url(), timeout_s=0.3)
    assert 0.25 < time.monotonic() - began < 1.5


def test_one_clock_for_all_redirects(server: Server) -> None:
    def slowly(send: Callable[[bytes], object]) -> None:
        server.stop.wait(0.15)
        send(redirect("/"))

    server.routes["/"] = slowly
    began = time.monotonic()
    with pytest.raises(ImageFetchError, match="url_timeout_s"):
        get(server.url(), timeout_s=0.4, max_redirects=100)
    assert time.monotonic() - began < 1.5


def test_slow_names_and_slow_handshakes(server: Server) -> None:
    release = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        release.wait(10)
        return ["127.0.0.1"]

    began = time.monotonic()
    limits = {"source": "it", "max_bytes": 9, "timeout_s": 0.2, "max_redirects": 0}
    with pytest.raises(ImageFetchError, match="url_timeout_s"):
        fetch(server.url(), **limits, _resolve=slow, _address_allowed=loopback)  # type: ignore[arg-type]
    release.set()
    with pytest.raises(ImageFetchError, match="url_timeout_s"):
        get(server.url(scheme="https"), timeout_s=0.2)  # the server waits for a request
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx", "status 206"),
        (ok(b"x", "Content-Encoding: gzip"), "Content-Encoding: 'gzip'"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "Transfer-Encoding"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "5 of 9 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshor", "try again"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "try again"),
        (b"SSH-2.0-OpenSSH\r\n", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, "headers"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, "LineTooLong"),
        (b"", "RemoteDisconnected"),
    ],
)
def test_bad_answers(answer: bytes, reason: str, server: Server) -> None:
    server.routes["/"] = answer
    with pytest.raises(ImageFetchError, match=reason) as info:
        get(server.url())
    assert info.value.source == server.url()


def test_random_answers_raise_nothing_but_image_errors(server: Server) -> None:
    clean = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    rng = random.Random(0)
    for _ in range(100):
        data = bytearray(clean)
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.randrange(256)
        server.routes["/"] = bytes(data)
        try:
            get(server.url(), timeout_s=2)
        except ImageError:
            pass


def test_certificates_are_checked_against_the_name(server: Server, tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    pem.write_text(
        f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n"
        f"-----BEGIN CERTIFICATE-----\n{CERTIFICATE}\n-----END CERTIFICATE-----\n"
    )
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(pem)
    named: list[str | None] = []
    server.tls.sni_callback = lambda sock, name, context: named.append(name)
    server.routes["/"] = ok(b"secret")
    names = {"pictures.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}

    def trusting() -> ssl.SSLContext:
        return ssl.create_default_context(cadata=base64.b64decode(CERTIFICATE))

    assert get(server.url(host="pictures.test", scheme="https"), names=names, tls=trusting) == b"secret"
    with pytest.raises(ImageFetchError, match="certificate is not valid"):
        get(server.url(host="other.test", scheme="https"), names=names, tls=trusting)
    with pytest.raises(ImageFetchError, match="certificate is not valid"):
        get(server.url(host="127.0.0.1", scheme="https"), tls=trusting)
    with pytest.raises(ImageFetchError, match="certificate is not valid"):
        get(server.url(host="pictures.test", scheme="https"), names=names)
    assert named[:2] == ["pictures.test", "other.test"]
    assert len(server.requests) == 1
    server.routes["/"] = redirect("http://pictures.test/")
    with pytest.raises(ImageFetchError, match="from https to http"):
        get(server.url(host="pictures.test", scheme="https"), names=names, tls=trusting)


def test_names_that_cannot_be_resolved() -> None:
    def failing(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    limits = {"source": "it", "max_bytes": 9, "timeout_s": 5.0, "max_redirects": 0}
    with pytest.raises(ImageFetchError, match=r"nowhere\.test cannot be resolved \(no such name\)"):
        fetch("http://nowhere.test/", **limits, _resolve=failing)  # type: ignore[arg-type]
