"""Asks a server over HTTP: patient with one that is busy, loading or restarting, and with nothing else."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import abc_rag.errors
from abc_rag.embedding.endpoint import checked_url, is_loopback
from abc_rag.errors import ABCRagError, DocumentError, ImageError, InputError, MissingExtraError, PartialIndexError

if TYPE_CHECKING:
    import httpx

__all__ = ["KEY_VARIABLE", "Refused", "Server", "error_told"]

KEY_VARIABLE = "ABC_RAG_API_KEY"
"""The environment variable whose key a server of abc-rag is sent; none is sent where it is not set."""
_WAIT_S = (0.25, 10.0)
_SHOWN = 300


class Refused(Exception):
    """An answer that is no success and was not worth asking for again.

    Attributes:
        status: HTTP's.
        error: What the server told, by OpenAI's protocol and ours; empty where it told something else.
    """

    def __init__(self, status: int, error: Mapping[str, Any], told: str) -> None:
        super().__init__(told)
        self.status = status
        self.error = error


class Server:
    """A server and one connection pool to it. Safe to use from many threads; a forked process gets its own pool.

    Args:
        url: Its base URL.
        key_variable: Environment variable that may hold a key for it; read for each request, and never stored.
        patience_s: Maximum seconds in which a busy, loading or unreachable server is asked again.
        timeout_s: Maximum seconds without a word from it.

    Raises:
        InputError: The URL is none.
        MissingExtraError: httpx is not installed.
    """

    def __init__(
        self, url: str, *, key_variable: str = KEY_VARIABLE, patience_s: float = 120.0, timeout_s: float = 300.0
    ) -> None:
        try:
            import httpx  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError.for_module(error, "asking a server", extra="generate") from error
        self.url = checked_url(url)
        self.variable = key_variable
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._open: dict[int, httpx.Client] = {}
        # Else the sockets of one that is given up stay open until the process ends.
        weakref.finalize(self, _close, self._open)

    def ask(
        self, method: str, path: str, *, json: Mapping[str, Any] | None = None, content: bytes | None = None
    ) -> httpx.Response:
        """A successful answer. It is asked for again while the server is busy (429, 503) or cannot be reached.

        Raises:
            Refused: The server refuses, or fails.
            ABCRagError: It cannot be reached, or stays busy.
        """
        import httpx

        until, tries = time.monotonic() + self._patience_s, 0
        while True:
            told, wait = "", 0.0
            try:
                response = self._pool().request(method, path, json=json, content=content, headers=self._headers())
                if response.is_success:
                    return response
                if response.status_code not in (429, 503):
                    raise Refused(response.status_code, *_told(response))
                told, wait = f"is busy ({_told(response)[1]})", _seconds(response.headers.get("Retry-After"))
            except httpx.TimeoutException as error:
                raise ABCRagError(
                    f"the server at {self.url} said nothing for {self._timeout_s:g} s; ask with fewer inputs at once"
                ) from error
            except httpx.TransportError as error:
                told = f"cannot be reached ({error or type(error).__name__})"
            tries += 1
            wait = max(wait, min(_WAIT_S[1], _WAIT_S[0] * 2**tries) * random.uniform(0.5, 1.0))
            if time.monotonic() + wait > until:
                raise ABCRagError(f"the server at {self.url} {told}, for {self._patience_s:g} s; try again later")
            time.sleep(wait)

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            _close(self._open)

    def _pool(self) -> httpx.Client:
        import httpx

        with self._lock:
            if (found := self._open.get(os.getpid())) is None:
                # A server on this machine is never asked through a proxy, whatever the environment says.
                found = self._open[os.getpid()] = httpx.Client(
                    base_url=self.url, timeout=self._timeout_s, trust_env=not is_loopback(self.url)
                )
            return found

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.variable, "").strip()
        # Checked here, as httpx would repeat the key in its message.
        if not (key.isascii() and (key.isprintable() or not key)):
            raise InputError(f"${self.variable} holds characters that no key has; correct it")
        return {"Authorization": f"Bearer {key}"} if key else {}


def _close(clients: dict[int, httpx.Client]) -> None:
    """Close this process's connections. Those of the process that it was forked from are not its own."""
    if (own := clients.pop(os.getpid(), None)) is not None:
        own.close()


def error_told(refused: Refused, server: Server, *, source: str | None = None) -> ABCRagError:
    """The error that a server told of, as the class that it was there.

    Args:
        refused: What it told.
        server: Which it was.
        source: Our own name of the picture that the error is about, in place of the server's.
    """
    told = refused.error
    message = str(told.get("message") or refused)[:2000]
    kind = getattr(abc_rag.errors, str(told.get("code")), None)
    if refused.status in (401, 403):
        return InputError(f"the server at {server.url} refuses the key ({message}); set ${server.variable}")
    if isinstance(kind, type) and issubclass(kind, ABCRagError) and not issubclass(kind, PartialIndexError):
        if issubclass(kind, (ImageError, DocumentError)):
            return kind(source or str(told.get("source") or "a picture"), str(told.get("reason") or message))
        return kind(message)
    if refused.status < 500:
        return InputError(f"the server at {server.url} refuses it ({message}); correct it")
    return ABCRagError(f"the server at {server.url} failed ({message}); see its log")


def _told(response: httpx.Response) -> tuple[dict[str, Any], str]:
    """What an error's body says: its ``error``, and one line of text."""
    try:
        error = response.json()["error"]
        told = error if isinstance(error, dict) else {"message": str(error)}
    except (ValueError, KeyError, TypeError):
        told = {}
    line = " ".join(str(told.get("message") or response.text).split())[:_SHOWN]
    return told, f"{response.status_code}: {line}" if line else str(response.status_code)


def _seconds(header: str | None) -> float:
    """Of a Retry-After; a date counts as none."""
    try:
        return max(0.0, float(header or 0.0))
    except ValueError:
        return 0.0
