"""What stands before every route: who asks, from where, how much at once, and how large and slow its body may be.

It works on ASGI's messages, before a byte of a body is read.
"""

from __future__ import annotations

import asyncio
import functools
import re
import sys
import time
import urllib.parse
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from abc_rag.errors import InputError
from abc_rag.server.errors import Refusal, error_body, refusal
from abc_rag.server.keys import ApiKey, Keys, Scope
from abc_rag.server.settings import ServerSettings, is_loopback

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.types import ASGIApp, Message, Receive, Send
    from starlette.types import Scope as ASGIScope

__all__ = ["Caller", "Guard", "Seen", "caller_of", "end_of_body", "require"]

_ORDER: dict[Scope, int] = {"read": 0, "write": 1, "admin": 2}
# Answered without a key: what a load balancer asks, and the page, which has no data of its own.
_OPEN = frozenset({"/health", "/ready", "/"})
_OPEN_BELOW = "/page/"
_UPLOADS = re.compile(r"/v1/collections/[^/]+/items")
_TAIL_BYTES = 256
_DRAIN_BYTES = 4 * 2**20
_DRAIN_S = 2.0


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        tenant: Whose collections it sees; "default" where no keys are used.
        scope: What it may do.
        key: The id of its key, for logs; empty without one.
    """

    tenant: str
    scope: Scope
    key: str = ""


ANYBODY = Caller("default", "admin")


@dataclass
class Seen:
    """One request as it ended, for logs and metrics.

    Attributes:
        id: Names it in logs and in the answer's X-Request-Id.
        method: HTTP method.
        route: The route's pattern, without what a client put into it.
        status: HTTP status; 499 where the client went away.
        key: Id of the caller's key.
        seconds: From the first byte to the last.
        received: Bytes of its body.
        sent: Bytes of the answer.
    """

    id: str
    method: str
    route: str = "none"
    status: int = 499
    key: str = ""
    seconds: float = 0.0
    received: int = 0
    sent: int = 0


def caller_of(request: Request) -> Caller:
    """Who asks, as the guard found out."""
    caller: Caller = request.scope["abc_rag.caller"]
    return caller


def end_of_body(request: Request) -> bytes:
    """The last bytes of a body that was read."""
    body: _Body = request.scope["abc_rag.body"]
    return body.tail


def require(scope: Scope) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses callers whose key may do less."""

    # A coroutine, as FastAPI calls plain functions in a thread.
    async def check(request: Request) -> None:
        if _ORDER[caller_of(request).scope] < _ORDER[scope]:
            raise Refusal(403, f"this key may not do that; it takes a key with the scope {scope}")

    # FastAPI resolves annotations by the module's names, and Request is there for the type checker alone.
    from fastapi import Request as Here

    check.__annotations__ = {"request": Here, "return": None}
    return check


class _Rates:
    """How often and how many at once a key asks."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}
        self.active: dict[str, int] = {}

    def enter(self, key: ApiKey) -> None:
        if key.at_once is not None and self.active.get(key.id, 0) >= key.at_once:
            raise Refusal(429, f"this key may have {key.at_once} requests in progress; wait for one", retry_s=1)
        if key.per_minute is not None:
            now, each = time.monotonic(), 60.0 / key.per_minute
            left, since = self._left.get(key.id, (float(key.per_minute), now))
            left = min(float(key.per_minute), left + (now - since) / each)
            if left < 1.0:
                self._left[key.id] = (left, now)
                raise Refusal(429, f"this key may ask {key.per_minute} times a minute", retry_s=(1.0 - left) * each)
            self._left[key.id] = (left - 1.0, now)
        self.active[key.id] = self.active.get(key.id, 0) + 1

    def leave(self, key: ApiKey) -> None:
        self.active[key.id] -= 1


class _Body:
    """A body on its way in, within its limits."""

    def __init__(self, receive: Receive, most: int, guard: Guard, until: float) -> None:
        self._receive = receive
        self._most = most
        self._guard = guard
        self._until = until
        self._held = 0
        self.tail = b""
        self.received = 0
        self.ended = False

    async def __call__(self) -> Message:
        if self.ended:
            return await self._receive()
        try:
            message = await _within(self._receive(), self._until)
        except (TimeoutError, asyncio.TimeoutError):
            told = f"the body did not arrive within {self._guard.settings.body_timeout_s:g} s; send it faster"
            raise Refusal(408, told) from None
        if message["type"] != "http.request":
            self.ended = True  # the client has gone
        else:
            size = len(message.get("body", b""))
            self.tail = (self.tail + message.get("body", b"")[-_TAIL_BYTES:])[-_TAIL_BYTES:]
            self.received += size
            self.ended = not message.get("more_body", False)
            if self.received > self._most:
                raise Refusal(413, f"the body is larger than {self._most:,} bytes; split the request")
            if self._most <= self._guard.settings.max_body_bytes:  # larger ones are uploads, which go to the disk
                self._held += size
                self._guard.held += size
                if self._guard.held > self._guard.settings.max_received_bytes:
                    raise Refusal(503, "the server is receiving too much at once; try again", retry_s=2)
        return message

    def release(self) -> None:
        """Give back its share of the memory for bodies."""
        self._guard.held -= self._held
        self._held = 0

    async def drain(self) -> None:
        """Read on for a while, as a client that still sends would not see the answer."""
        loop = asyncio.get_running_loop()
        left, until = _DRAIN_BYTES, loop.time() + _DRAIN_S
        with suppress(TimeoutError, asyncio.TimeoutError, OSError):
            while not self.ended and left > 0:
                message = await _within(self._receive(), until)
                left -= len(message.get("body", b""))
                self.ended = message["type"] != "http.request" or not message.get("more_body", False)


class _Exchange:
    """One request and its answer, on their way through the guard."""

    def __init__(self, guard: Guard, scope: ASGIScope, receive: Receive, send: Send) -> None:
        self._guard = guard
        self._scope = scope
        self._send = send
        self._begun = time.perf_counter()
        self._has_body = _has_body(scope)
        until = asyncio.get_running_loop().time() + guard.settings.body_timeout_s
        self.body = _Body(receive, guard.most(scope), guard, until)
        self.seen = Seen(uuid.uuid4().hex, scope["method"])
        self.started = False

    async def answer(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.started, self.seen.status = True, message["status"]
            given: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
            names = {name for name, _ in given}
            more = [*_ALWAYS, *self._guard.headers(), (b"x-request-id", self.seen.id.encode())]
            message["headers"] = given + [pair for pair in more if pair[0] not in names]
            if self._has_body and not self.body.ended:
                MutableHeaders(scope=message)["Connection"] = "close"
        self.seen.sent += len(message.get("body", b""))
        await self._send(message)

    async def end(self) -> Seen:
        """Release what the request held."""
        self.body.release()
        if self._has_body and not self.body.ended:
            await self.body.drain()
        seen = self.seen
        seen.route = getattr(self._scope.get("route"), "path", seen.route)
        seen.seconds, seen.received = time.perf_counter() - self._begun, self.body.received
        return seen


class Guard:
    """The ASGI middleware.

    Args:
        app: What it guards.
        settings: The limits.
        keys: The API keys; None where anybody on this machine may ask.
        ended: Called with each request that has ended.
        counted: Told how to learn the number of requests in progress.
        headers: Further headers of every answer, as ASGI has them: names in lower case.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        keys: Keys | None,
        ended: Callable[[Seen], None],
        headers: Callable[[], list[tuple[bytes, bytes]]],
        counted: Callable[[Callable[[], int]], None],
    ) -> None:
        self._app = app
        counted(lambda: self.active)
        self.settings = settings
        self._keys = keys
        self._ended = ended
        self.headers = headers
        self._rates = _Rates()
        self.active = 0
        self.held = 0

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        exchange = _Exchange(self, scope, receive, send)
        self.active += 1
        try:
            await self._guarded(scope, exchange)
        except Refusal as error:
            if exchange.started:
                raise
            await refusal(error)(scope, receive, exchange.answer)
        except Exception:
            if not exchange.started:
                told = "the server failed; its log says why under this answer's X-Request-Id"
                await JSONResponse(error_body(500, told, "internal"), 500)(scope, receive, exchange.answer)
            raise
        finally:
            self.active -= 1
            self._ended(await exchange.end())

    async def _guarded(self, scope: ASGIScope, exchange: _Exchange) -> None:
        headers = Headers(scope=scope)
        path = scope["path"]
        self._check_origin(headers)
        if path in _OPEN or path.startswith(_OPEN_BELOW):
            scope["abc_rag.caller"] = Caller("", "read")
            return await self._app(scope, exchange.body, exchange.answer)
        caller, key = self._caller(headers)
        scope["abc_rag.caller"] = caller
        scope["abc_rag.request_id"] = exchange.seen.id
        scope["abc_rag.body"] = exchange.body
        exchange.seen.key = caller.key
        if self.active > self.settings.max_requests:
            raise Refusal(503, "the server has too many requests in progress; try again", retry_s=1)
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self.most(scope):
            raise Refusal(413, f"the body is larger than {self.most(scope):,} bytes; split the request")
        self._check_kind(scope, headers)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "compressed bodies are not read; send it as it is")
        if key is None:
            return await self._app(scope, exchange.body, exchange.answer)
        self._rates.enter(key)
        try:
            return await self._app(scope, exchange.body, exchange.answer)
        finally:
            self._rates.leave(key)

    def most(self, scope: ASGIScope) -> int:
        """Maximum bytes of a request's body."""
        kind = Headers(scope=scope).get("content-type", "").lower()
        # Only forms go to the disk.
        uploads = _UPLOADS.fullmatch(scope["path"]) and kind.startswith("multipart/form-data")
        return self.settings.max_upload_bytes if uploads else self.settings.max_body_bytes

    def _check_kind(self, scope: ASGIScope, headers: Headers) -> None:
        """Refuse bodies that are no JSON: browsers send others across sites without asking first."""
        if scope["method"] != "POST" or not _has_body(scope):
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind == "multipart/form-data" and _UPLOADS.fullmatch(scope["path"])):
            raise Refusal(415, "send JSON, with Content-Type: application/json")

    def _check_origin(self, headers: Headers) -> None:
        """Refuse what a browser sends on behalf of another site's page."""
        host = headers.get("host", "")
        if self._keys is None and not _is_here(host):
            # A name that somebody let point to this machine (DNS rebinding).
            raise Refusal(403, "without API keys this server answers to localhost and 127.0.0.1 only")
        origin = headers.get("origin")
        if origin is not None and urllib.parse.urlsplit(origin).netloc.lower() != host.lower():
            raise Refusal(403, "pages of other sites may not ask this server")

    def _caller(self, headers: Headers) -> tuple[Caller, ApiKey | None]:
        if self._keys is None:
            return ANYBODY, None
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise _unknown("send an API key: Authorization: Bearer abc-...")
        try:
            key = self._keys.find(token.strip())
        except InputError as error:
            raise Refusal(503, "the server's keys cannot be read; its log says why", code="keys_unreadable") from error
        if key is None:
            raise _unknown("there is no such API key")
        return Caller(key.tenant, key.scope, key.id), key


_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
)


def _unknown(message: str) -> Refusal:
    made = Refusal(401, message)
    made.headers = {"WWW-Authenticate": "Bearer"}
    return made


@functools.lru_cache(maxsize=16)
def _is_here(host: str) -> bool:
    """Whether a request's Host names this machine."""
    try:
        return is_loopback(urllib.parse.urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


async def _within(message: Awaitable[Message], until: float) -> Message:
    if sys.version_info >= (3, 11):  # wait_for would make a task of each message
        async with asyncio.timeout_at(until):
            return await message
    else:
        left = until - asyncio.get_running_loop().time()
        return await asyncio.wait_for(message, max(0.0, left))


def _has_body(scope: ASGIScope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
