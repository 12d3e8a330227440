"""Fetching a picture from an address that somebody else chose.

A service that fetches whatever it is told can be made to read the network it stands in: a cloud's
metadata service, a database on the same host. So `fetch` looks a name up once, checks every address
it got, and connects to exactly the address it checked: a second lookup could answer differently
(DNS rebinding). Every redirect goes through the same checks. TLS still verifies the name.

Proxies from the environment are not used: a proxy would look names up again, out of sight.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from abc_rag.errors import ImageError, ImageFetchError, ImageLimitError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["fetch", "fetch_page", "is_public_address"]

_CHUNK = 1 << 16  # bytes read at a time
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_PICTURE = "a picture"
_FETCH_IT_YOURSELF = "if you trust it, download it yourself and pass its path or its bytes"

# Written out, because ipaddress.is_global has changed its answer between Python releases.
_CLOSED_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, and a metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's metadata and DNS, reachable from inside only
        "169.254.0.0/16",  # link-local, and the usual metadata service
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, and a metadata service
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")  # the only block given out for public use
_CLOSED_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public_address(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet could reach.

    Args:
        address: An IPv4 or IPv6 address in digits, as a resolver returns it.

    Returns:
        False for private, loopback, link-local, multicast, reserved, unspecified, carrier-grade NAT,
        documentation and cloud metadata addresses, for IPv4 addresses mapped into IPv6, for 6to4 and
        NAT64 addresses that carry any of these, and for what is not an address.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _CLOSED_V4)
    if ip.scope_id is not None:
        return False
    if ip in _NAT64:
        return is_public_address(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    if ip.sixtofour is not None:
        return is_public_address(str(ip.sixtofour))
    return ip in _OPEN_V6 and not any(ip in network for network in _CLOSED_V6)


def _system_addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Deadline:
    """A point on the monotonic clock after which nothing waits any longer."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("time is up")
        return left


class _TimedReader(io.RawIOBase):
    """Reads a socket within the time that is left."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        # A timeout per read is not enough: a server may send one byte just before each ends.
        self._sock.settimeout(self._deadline.remaining())
        return self._sock.recv_into(buffer)


class _TimedSocket:
    """The part of a socket that http.client uses."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._deadline))

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.remaining())
        self._sock.sendall(data)

    def close(self) -> None:
        """Does nothing: http.client closes before the body is read; `_get` closes the real socket."""


class _Connection(http.client.HTTPConnection):
    """An HTTP connection over a socket that is connected, checked and encrypted already."""

    def __init__(self, host: str, port: int, connected: _TimedSocket) -> None:
        super().__init__(host, port)
        self._connected = connected

    def connect(self) -> None:
        self.sock = self._connected


class _Target(NamedTuple):
    secure: bool
    host: str
    port: int
    netloc: str
    path: str


class _Redirect(NamedTuple):
    location: str


class _Fetcher(NamedTuple):
    source: str
    max_bytes: int
    deadline: _Deadline
    address_allowed: Callable[[str], bool]
    resolve: Callable[[str, int], list[str]]
    tls: Callable[[], ssl.SSLContext]
    wanted: str
    limits: str

    def refuse(self, reason: str) -> ImageFetchError:
        return ImageFetchError(self.source, reason)

    def get(self, target: _Target) -> bytes | _Redirect:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(self.dial(target))
            if target.secure:
                sock.settimeout(self.deadline.remaining())
                sock = stack.enter_context(self.tls().wrap_socket(sock, server_hostname=target.host))
            connection = _Connection(target.host, target.port, _TimedSocket(sock, self.deadline))
            headers = {
                "Host": target.netloc,
                "User-Agent": "abc-rag",
                "Accept": "image/*" if self.wanted == _PICTURE else "text/html, application/xhtml+xml, */*;q=0.5",
                "Accept-Encoding": "identity",
                "Connection": "close",
            }
            connection.request("GET", target.path, headers=headers)
            response = stack.enter_context(connection.getresponse())
            if response.status in _REDIRECTS:
                return _Redirect(response.getheader("Location", ""))
            return self.body(response)

    def dial(self, target: _Target) -> socket.socket:
        addresses = self.look_up(target)
        closed = [address for address in addresses if not self.address_allowed(address)]
        if closed or not addresses:
            # A single closed address among open ones is a trap or a mistake; neither deserves a connection.
            found = f"is at {closed[0]}, which is not a public address" if closed else "has no address"
            raise self.refuse(f"{target.host} {found}, so it is not fetched; {_FETCH_IT_YOURSELF}")
        failure = OSError("no connection")
        for position, address in enumerate(addresses):
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            try:
                # Each address gets its share of the time, so that a dead one does not use up the others'.
                sock.settimeout(self.deadline.remaining() / (len(addresses) - position))
                sock.connect((address, target.port))
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure

    def look_up(self, target: _Target) -> list[str]:
        # getaddrinfo has no timeout of its own, so it is waited for from outside.
        answers: list[list[str] | Exception] = []

        def ask() -> None:
            try:
                answers.append(self.resolve(target.host, target.port))
            except Exception as error:
                answers.append(error)

        thread = threading.Thread(target=ask, name="abc-rag-resolve", daemon=True)
        thread.start()
        thread.join(self.deadline.remaining())
        if not answers:
            raise TimeoutError("time is up")
        if isinstance(answers[0], (OSError, UnicodeError)):
            raise self.refuse(f"the name {target.host} cannot be resolved ({answers[0]})") from answers[0]
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    def body(self, response: http.client.HTTPResponse) -> bytes:
        if response.status != 200:
            raise self.refuse(f"the server answered with status {response.status} instead of {self.wanted}")
        for header, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
            value = response.getheader(header, plain).strip().lower()
            if value != plain:
                raise self.refuse(f"the server sent {header}: {value[:40]!r}, which is not decoded")
        announced = response.length
        if announced is not None and announced > self.max_bytes:
            raise self.too_large(f"{announced:,} bytes by its Content-Length")
        body = bytearray()
        while chunk := response.read(min(_CHUNK, self.max_bytes + 1 - len(body))):
            body += chunk
            if len(body) > self.max_bytes:
                raise self.too_large(f"more than {self.max_bytes:,} bytes")
        if announced is not None and len(body) < announced:
            raise self.refuse(f"the connection ended after {len(body):,} of {announced:,} bytes; try again")
        return bytes(body)

    def too_large(self, measured: str) -> ImageLimitError:
        reason = f"{measured} exceed {self.limits}.max_bytes={self.max_bytes:,}"
        return ImageLimitError(self.source, f"{reason}; to allow it, pass limits={self.limits}(max_bytes=...)")


def _parse(url: str, source: str) -> _Target:
    def refuse(reason: str) -> ImageFetchError:
        return ImageFetchError(source, f"cannot be fetched: {reason}")

    if not url.isprintable() or " " in url:
        raise refuse("the URL has spaces or control characters; percent-encode them")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("ascii" if url.isascii() else "idna").decode("ascii")
    except ValueError as error:
        raise refuse(f"the URL is malformed ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise refuse(f"only http and https URLs are, not {parts.scheme or 'one without a scheme'!r}")
    if "@" in parts.netloc:
        raise refuse(f"the URL has a user name or password in it; {_FETCH_IT_YOURSELF}")
    if not 0 < len(host) <= 253:
        raise refuse("the URL has no usable host name")
    secure = parts.scheme == "https"
    if port is None:
        port = 443 if secure else 80
    if port not in (80, 443) and not 1024 <= port <= 65535:
        raise refuse(f"port {port} is not a web server's; 80, 443 and 1024 to 65535 are")
    bracketed = f"[{host}]" if ":" in host else host
    netloc = bracketed if port == (443 if secure else 80) else f"{bracketed}:{port}"
    path = urllib.parse.quote(parts.path or "/", safe=_PRINTABLE)
    query = urllib.parse.quote(parts.query, safe=_PRINTABLE)
    return _Target(secure, host, port, netloc, f"{path}?{query}" if query else path)


def _follow(url: str, location: str, source: str) -> str:
    if not location:
        raise ImageFetchError(source, "the server redirects to nowhere (no Location header)")
    # http.client reads headers as latin-1, whatever they were; percent-encoding restores the bytes.
    onward = urllib.parse.quote(location.strip().encode("latin-1", "replace"), safe=_PRINTABLE)
    try:
        joined = urllib.parse.urljoin(url, onward)
    except ValueError as error:
        raise ImageFetchError(source, f"the server redirects to a malformed URL ({error})") from error
    if url.lower().startswith("https:") and joined.lower().startswith("http:"):
        raise ImageFetchError(source, f"the server redirects from https to http; {_FETCH_IT_YOURSELF}")
    return joined


def fetch(
    url: str,
    *,
    source: str,
    max_bytes: int,
    timeout_s: float,
    max_redirects: int,
    _address_allowed: Callable[[str], bool] = is_public_address,
    _resolve: Callable[[str, int], list[str]] = _system_addresses,
    _tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
) -> bytes:
    """Fetches what an http or https URL points to, from public addresses only.

    Args:
        url: Where to fetch from. Without user name or password.
        source: What errors call the picture.
        max_bytes: Maximum size of the body in bytes.
        timeout_s: Timeout in seconds for everything: name lookup, connections, redirects, headers, body.
        max_redirects: Maximum number of redirects that are followed.
        _address_allowed: Whether to connect to an IP address; tests allow their loopback server.
        _resolve: Gives a host's IP addresses in digits; tests make up names.
        _tls: Makes the TLS context; tests trust their own certificate.

    Returns:
        The body, 0 to ``max_bytes`` bytes of anything: nothing checks yet that it is a picture.

    Raises:
        ImageLimitError: The body is larger than ``max_bytes``.
        ImageFetchError: The URL is not fetched, or fetching it failed or took too long.
    """
    return _fetched(
        _Fetcher(source, max_bytes, _Deadline(timeout_s), _address_allowed, _resolve, _tls, _PICTURE, "ImageLimits"),
        url,
        timeout_s,
        max_redirects,
    )[0]


def fetch_page(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float,
    max_redirects: int = 5,
    _address_allowed: Callable[[str], bool] = is_public_address,
) -> tuple[bytes, str]:
    """Fetches a web page or another document, as `fetch` does.

    Args:
        url: Where to fetch from. Without user name or password.
        max_bytes: Maximum size of the body in bytes.
        timeout_s: Timeout in seconds for everything.
        max_redirects: Maximum number of redirects that are followed.
        _address_allowed: Whether to connect to an IP address; tests allow their loopback server.

    Returns:
        The body, and the URL after all redirects.

    Raises:
        ImageLimitError: The body is larger than ``max_bytes``.
        ImageFetchError: The URL is not fetched, or fetching it failed or took too long.
    """
    deadline = _Deadline(timeout_s)
    fetcher = _Fetcher(
        *(url, max_bytes, deadline, _address_allowed, _system_addresses, ssl.create_default_context),
        "a document",
        "DocumentLimits",
    )
    return _fetched(fetcher, url, timeout_s, max_redirects)


def _fetched(fetcher: _Fetcher, url: str, timeout_s: float, max_redirects: int) -> tuple[bytes, str]:
    source = fetcher.source
    limit = f"{fetcher.limits}.url_timeout_s"
    try:
        for _ in range(max_redirects + 1):
            answer = fetcher.get(_parse(url, source))
            if isinstance(answer, bytes):
                return answer, url
            url = _follow(url, answer.location, source)
    except ImageError:
        raise
    except TimeoutError as error:
        reason = f"was not fetched within {limit}={timeout_s:g} seconds; raise it or try again"
        raise ImageFetchError(source, reason) from error
    except ssl.SSLCertVerificationError as error:
        reason = f"the server's certificate is not valid for it ({error.verify_message}); {_FETCH_IT_YOURSELF}"
        raise ImageFetchError(source, reason) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = f"could not be fetched ({type(error).__name__}: {str(error)[:200]}); try again later"
        raise ImageFetchError(source, reason) from error
    reason = f"redirects more often than {fetcher.limits}.max_redirects={max_redirects}; raise it or pass the final URL"
    raise ImageFetchError(source, reason)
