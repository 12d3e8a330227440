"""Clients of an embedded Chroma and of a Chroma server, and the translation of their errors."""

from __future__ import annotations

import contextlib
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

from abc_rag.errors import ABCRagError, InputError, MissingExtraError, StoreError

if TYPE_CHECKING:
    from chromadb.api.client import Client

__all__ = ["Server", "close_client", "translated"]

T = TypeVar("T")


# Messages of Chroma, SQLite and the system, each with its remedy. The first match is used.
_REMEDIES = (
    ("connect|refused|timed out|timeout|unreachable|disconnected|name or service|nodename",
     "start a Chroma server ('chroma run --path DIRECTORY --port PORT') or correct the url"),
    ("too large|length limit|payload", "a single record is too big for the server: shorten its text"),
    ("forbidden|unauthor|authent", "pass the server's token in headers"),
    ("no space left|disk is full|disk full", "free some space on the disk"),
    ("readonly|read-only|permission denied|unable to open", "make the directory writable, or use another path"),
    ("file exists|not a directory|no such file", "path must name a directory: use another one"),
    ("not a database|malformed|migration|no such table|no such column|unsupported",
     "the files are damaged or of another chromadb version: restore a copy, or use another path and index again"),
    ("different settings", "close your own chromadb client of this directory first"),
    ("locked", "another program is using the directory: close it"),
)  # fmt: skip


def close_client(client: Client) -> None:
    """Close a client and its connections."""
    # Chroma never closes its HTTP sessions, so their sockets would stay open.
    for owner in (client, client._admin_client):
        session = getattr(getattr(owner, "_server", None), "_session", None)
        if session is not None:
            session.close()
    client.close()


class Server:
    """A Chroma server, which coordinates its clients by itself."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"url {url!r}: {error}") from error
        if parts.username or parts.password:
            raise InputError(f"url of {parts.hostname}: give credentials as headers, not in the url")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise InputError(f"url {url!r}: expected http://host:port or https://host")
        self._ssl = parts.scheme == "https"
        self._host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self._port = port or (443 if self._ssl else 8000)
        self._url, self._headers = url, headers
        self._open: tuple[int, Client] | None = None
        self._closed = False

    def _client(self) -> Client:
        if self._closed:
            raise StoreError(f"{self._url}: this store has been closed; open a new one")
        # A forked child must not use its parent's connections.
        if self._open is None or self._open[0] != os.getpid():
            import chromadb
            from chromadb.config import Settings

            client = chromadb.HttpClient(
                self._host, self._port, self._ssl, self._headers or None, Settings(anonymized_telemetry=False)
            )
            self._open = os.getpid(), cast("Client", client)
        return self._open[1]

    def read(self, use: Callable[[Client], T]) -> T:
        """Call ``use(client)``."""
        return self.write(use)

    def write(self, use: Callable[[Client], T]) -> T:
        """Call ``use(client)``, and repeat the call while the server is not ready for it."""
        from chromadb.errors import InternalError

        # While a server writes a collection's first index files, a read of vectors may find them incomplete (seen
        # with chromadb 1.5.9 under sixteen threads); a moment later they are whole. An upsert may be repeated.
        for pause in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
            try:
                return use(self._client())
            except InternalError as error:
                if "Nothing found on disk" not in str(error):
                    raise
            time.sleep(pause)
        return use(self._client())

    def close(self) -> None:
        """Close the connections. Idempotent."""
        opened, self._open, self._closed = self._open, None, True
        if opened is not None and opened[0] == os.getpid():
            close_client(opened[1])


@contextlib.contextmanager
def translated(place: str, where: object = None) -> Iterator[None]:
    """Raise errors of Chroma, its transport and the file system as errors of abc-rag."""
    try:
        yield
    except ABCRagError:
        raise
    except BaseException as error:
        # A panic in Chroma's native code is not an Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise _translate(error, place, where) from error
        raise


def _translate(error: BaseException, place: str, where: object) -> ABCRagError:
    if isinstance(error, ImportError):
        return MissingExtraError(f"chromadb cannot be imported ({error}); pip install chromadb")
    from chromadb.errors import InvalidArgumentError, InvalidDimensionException

    text = " ".join(str(error).split()) or type(error).__name__
    refused = isinstance(error, (InvalidArgumentError, InvalidDimensionException))
    if where is not None and (refused or isinstance(error, (ValueError, TypeError))):
        return InputError(f"the filter {where!r} cannot be used: {text}")
    if refused:
        return InputError(f"{place}: {text}; correct the input, or use another collection")
    found = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE))
    return StoreError(f"{place}: {text}; {next(found, 'try again, or use another path or collection')}")
